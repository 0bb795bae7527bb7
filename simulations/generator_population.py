"""Who pays where: customers, terminals, and which terminals each customer can reach.

Positions are uniform on a square of SIDE x SIDE; a customer uses the terminals nearer than the
radius.
They are found through a grid whose cells are at least a radius wide, so only a cell's own and its
eight neighbours' terminals are compared: cost and memory follow the number of reachable pairs
(customers x terminals x pi x radius^2 / SIDE^2), never customers x terminals.
Source of the distributions: Fraud Detection Handbook, chapter 3, the simulated data set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIDE = 100.0
MEAN_AMOUNT = (5.0, 100.0)  # major units, uniform over customers
PER_DAY = (0.0, 4.0)  # mean payments a day, uniform over customers
# Pairs compared at once: 4 M pairs of positions take some 100 MB.
_PAIRS_AT_ONCE = 4_000_000

Floats = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Population:
    """Customers' profiles (one element a customer) and their reachable terminals.

    mean_amount: major units; the standard deviation of a customer's amounts is half of it.
    per_day: mean payments a day; 0 for a customer who reaches no terminal.
    first, reachable: customer i uses the terminals `reachable[first[i]:first[i + 1]]`.
    """

    mean_amount: Floats
    per_day: Floats
    first: Int64s
    reachable: Int32s


def population(
    customers: int, terminals: int, radius: float, rng: np.random.Generator
) -> Population:
    """Draw a population of `customers` and `terminals`."""
    customer_xy = rng.uniform(0.0, SIDE, (customers, 2))
    mean_amount = rng.uniform(*MEAN_AMOUNT, customers)
    per_day = rng.uniform(*PER_DAY, customers)
    terminal_xy = rng.uniform(0.0, SIDE, (terminals, 2))
    first, reachable = terminals_within(customer_xy, terminal_xy, radius)
    return Population(
        mean_amount=mean_amount,
        per_day=np.where(np.diff(first) > 0, per_day, 0.0),
        first=first,
        reachable=reachable,
    )


def terminals_within(
    customer_xy: Floats, terminal_xy: Floats, radius: float
) -> tuple[Int64s, Int32s]:
    """For each customer the terminals at a distance below `radius`.

    customer_xy (n, 2), terminal_xy (m, 2): positions on the square, at least one of each.
    Returns (first, reachable) of shapes (n + 1,) and (pairs,), as in Population.
    """
    # More cells than terminals would only be empty ones.
    cells = max(1, min(int(SIDE / radius), math.isqrt(len(terminal_xy))))
    column, row = _cells_of(terminal_xy, cells)
    by_cell = np.argsort(column * cells + row, kind="stable")
    cell_first = np.searchsorted((column * cells + row)[by_cell], np.arange(cells * cells + 1))
    x, y = terminal_xy[by_cell].T.copy()

    counts = []
    found = []
    for block in _blocks(len(customer_xy), len(terminal_xy), cells):
        here = customer_xy[block]
        customer, place = _candidates(here, cells, cell_first)
        away_x, away_y = here[:, 0][customer] - x[place], here[:, 1][customer] - y[place]
        near = away_x * away_x + away_y * away_y < radius * radius
        counts.append(np.bincount(customer[near], minlength=len(here)))
        found.append(by_cell[place[near]].astype(np.int32))
    first = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return first, np.concatenate(found)


def expand(first: Int64s, length: Int64s) -> tuple[Int64s, Int64s]:
    """All numbers of the ranges [first, first + length), and the range that each belongs to."""
    owner = np.repeat(np.arange(len(first)), length)
    before = np.cumsum(length) - length
    return owner, np.arange(len(owner)) + (first - before)[owner]


def _cells_of(xy: Floats, cells: int) -> tuple[Int64s, Int64s]:
    """Column and row of the cell that each position lies in."""
    column, row = np.minimum((xy.T * (cells / SIDE)).astype(np.int64), cells - 1)
    return column, row


def _blocks(customers: int, terminals: int, cells: int) -> Iterator[slice]:
    compared = max(1.0, terminals * min(1.0, 9 / cells**2))
    step = max(1, int(_PAIRS_AT_ONCE / compared))
    for start in range(0, customers, step):
        yield slice(start, start + step)


def _candidates(customer_xy: Floats, cells: int, cell_first: Int64s) -> tuple[Int64s, Int64s]:
    """(customer, place in cell order) of every pair in the same or neighbouring cells.

    Cells of one column are numbered upwards, so three neighbours in a column are one range.
    """
    column, row = _cells_of(customer_xy, cells)
    columns = column[:, None] + np.array([-1, 0, 1])
    inside = (columns >= 0) & (columns < cells)
    base = np.where(inside, columns, 0) * cells
    low = cell_first[base + np.maximum(row - 1, 0)[:, None]]
    high = cell_first[base + np.minimum(row + 1, cells - 1)[:, None] + 1]
    owner, place = expand(low.ravel(), np.where(inside, high - low, 0).ravel())
    return owner // 3, place
