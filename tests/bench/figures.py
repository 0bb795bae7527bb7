"""What a benchmark reports: figures beside the alternative measured in the same run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

Items = Sequence[Any] | np.ndarray[Any, Any]
# Calls measured in one go, before it is another one's turn.
CHUNK = 1_000


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    value beside reference_value (what `reference` names); ratio = value / reference_value.
    goal: in words; met: None where the figure is only stated.
    """

    name: str
    value: float
    unit: str
    reference: str = ""
    reference_value: float | None = None
    goal: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """value / reference_value, None without a reference."""
        return None if not self.reference_value else self.value / self.reference_value


def at_most(name: str, value: float, unit: str, limit: float, **more: Any) -> Figure:
    """A figure whose value must not exceed `limit`."""
    return Figure(name, value, unit, goal=f"<= {limit:g} {unit}", met=value <= limit, **more)


def at_least(name: str, value: float, unit: str, limit: float, **more: Any) -> Figure:
    """A figure whose value must reach `limit`."""
    return Figure(name, value, unit, goal=f">= {limit:g} {unit}", met=value >= limit, **more)


def ratio_at_most(
    name: str, value: float, unit: str, limit: float, reference: str, reference_value: float
) -> Figure:
    """A figure whose ratio to the reference must not exceed `limit`."""
    met = value <= limit * reference_value
    return Figure(name, value, unit, reference, reference_value, f"<= {limit:g} x", met)


def ratio_at_least(
    name: str, value: float, unit: str, limit: float, reference: str, reference_value: float
) -> Figure:
    """A figure whose ratio to the reference must reach `limit`."""
    met = value >= limit * reference_value
    return Figure(name, value, unit, reference, reference_value, f">= {limit:g} x", met)


@dataclass(frozen=True)
class Measured:
    """A call, and what it is called with, one after the other.

    prepare: makes the argument of a call, before its time is taken; by default it is the item.
    """

    call: Callable[[Any], object]
    items: Items
    prepare: Callable[[Any], Any] = lambda item: item


def taking_turns(measured: dict[str, Measured]) -> dict[str, np.ndarray[Any, Any]]:
    """Nanoseconds of each call, in chunks by turns.

    These machines are slower in one second than in the next: by turns, all have the same seconds.
    """
    elapsed: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in measured}
    for first in range(0, max(len(one.items) for one in measured.values()), CHUNK):
        for name, one in measured.items():
            # Made for each chunk and given up after it, as those of requests are.
            arguments = [*map(one.prepare, one.items[first : first + CHUNK])]
            elapsed[name].append(each_ns(one.call, arguments))
    return {name: np.concatenate(parts) for name, parts in elapsed.items()}


def each_ns(call: Callable[[Any], object], arguments: Items) -> np.ndarray[Any, Any]:
    """Nanoseconds of `call` on each argument, less the cost of asking the clock."""
    elapsed = np.empty(len(arguments), np.int64)
    for i, argument in enumerate(arguments):
        started = perf_counter_ns()
        call(argument)
        elapsed[i] = perf_counter_ns() - started
    return np.maximum(elapsed - clock_ns(), 1)


def clock_ns() -> int:
    """What two readings of the clock cost, median of many."""
    costs = []
    for _ in range(1001):
        started = perf_counter_ns()
        costs.append(perf_counter_ns() - started)
    return sorted(costs)[500]


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    started = perf_counter_ns()
    call()
    return (perf_counter_ns() - started) / 1e9


def p50_us(elapsed_ns: np.ndarray[Any, Any]) -> float:
    """Median, microseconds."""
    return float(np.median(elapsed_ns)) / 1000


def p99_us(elapsed_ns: np.ndarray[Any, Any]) -> float:
    """99th percentile, microseconds."""
    return float(np.percentile(elapsed_ns, 99)) / 1000


def written(figures: Sequence[Figure], path: Path) -> None:
    """Write the figures as a list of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(figure) | {"ratio": figure.ratio} for figure in figures]
    path.write_text(json.dumps(rows, indent=1) + "\n")
