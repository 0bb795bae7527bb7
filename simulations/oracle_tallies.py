"""The vectorised oracle's aggregates: one aggregate over the windows of many requests at once.

Rule: sums are exact integers until the last step, which rounds as design.md's definitions do; an
aggregate takes events in any order, and the payment itself last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from freshscore.features.money import minor_digits
from freshscore.features.specification import Aggregate, FeatureSpecification
from freshscore.simulations.oracle_columns import (
    NEVER,
    Bools,
    Floats,
    Ints,
    OracleRequests,
    OracleRows,
)
from freshscore.simulations.oracle_entries import Entries, FactTable

# How many sums a function takes: the number of events is always the first.
_N_SUMS: Final = {"mean": 2, "sum": 2, "std": 5, "share": 2}
SUMS: Final = ("count", "sum", "mean", "std", "share")
# Squares are summed in limbs of 20 bits: 2^40 x 2^22 events stay below 2^63.
_LIMB_BITS: Final = 20


@dataclass(frozen=True)
class Limits:
    """How the work is cut; it changes no value.

    block: entries whose sums are kept. pairs: of request and entry looked at together; some 100
    bytes each, so half a gigabyte at most.
    """

    block: int = 64
    pairs: int = 4_000_000


@dataclass(frozen=True)
class Stream:
    """What every window of a specification is evaluated on."""

    specification: FeatureSpecification
    rows: OracleRows
    facts: FactTable
    limits: Limits


class Tally:
    """One aggregate over the windows of m requests, as far as their events were taken."""

    def __init__(
        self, stream: Stream, aggregate: Aggregate, entries: Entries, requests: OracleRequests
    ) -> None:
        self._stream, self._aggregate = stream, aggregate
        self._entries, self._requests = entries, requests
        self._scale = float(10 ** minor_digits(stream.specification.currency))
        self.sums: Ints = np.zeros((_N_SUMS.get(aggregate.function, 1), len(requests)), np.int64)
        # min and max: an amount; last: a place among the entries, or -1.
        self._extreme = np.full(len(requests), NEVER if aggregate.function == "min" else -1)
        self._is_own_last = np.zeros(len(requests), np.bool_)
        self._seen: list[tuple[Ints, Ints]] = []

    def take_events(self, owner: Ints, place: Ints) -> None:
        """Count the events at `place`, each for its request."""
        row = self._entries.row[place]
        as_of_ms, applied = self._requests.as_of_ms[owner], self._requests.applied[owner]
        counted, is_true = met(self._stream, self._aggregate, row, as_of_ms, applied)
        owner, place, row = owner[counted], place[counted], row[counted]
        amount = self._stream.rows.amount_minor[row]
        for i, term in enumerate(terms(self._aggregate.function, amount, is_true[counted])):
            np.add.at(self.sums[i], owner, term)
        if self._aggregate.function == "min":
            np.minimum.at(self._extreme, owner, amount)
        if self._aggregate.function == "max":
            np.maximum.at(self._extreme, owner, amount)
        if self._aggregate.function == "last":
            np.maximum.at(self._extreme, owner, place)
        if self._aggregate.function == "distinct":
            self._see(owner, row)

    def take_own(self, owner: Ints) -> None:
        """Count the payments of these requests themselves, of which no fact is ever true."""
        where, rows = self._aggregate.where, self._stream.rows
        if where is not None and where.fact is not None:
            return
        if where is not None:
            bit = self._stream.specification.conditions.index(where)
            owner = owner[rows.conditions[self._requests.row[owner], bit]]
        row = self._requests.row[owner]
        amount = rows.amount_minor[row]
        false = np.zeros(len(owner), np.bool_)
        for i, term in enumerate(terms(self._aggregate.function, amount, false)):
            self.sums[i, owner] += term
        if self._aggregate.function == "min":
            self._extreme[owner] = np.minimum(self._extreme[owner], amount)
        if self._aggregate.function == "max":
            self._extreme[owner] = np.maximum(self._extreme[owner], amount)
        if self._aggregate.function == "last":
            place = self._extreme[owner]
            self._is_own_last[owner] = self._entries.are_before(place, row)
        if self._aggregate.function == "distinct":
            self._see(owner, row)

    def _see(self, owner: Ints, row: Ints) -> None:
        member = self._stream.rows.entities[self._aggregate.of or ""][row]
        present = member >= 0
        self._seen.append((owner[present], member[present]))

    def values(self) -> Floats:
        """float64[m]: the aggregate, in major units where it is of amounts."""
        function, n = self._aggregate.function, self.sums[0]
        with np.errstate(invalid="ignore", divide="ignore"):
            value = self._of_some(function, n)
        empty = 0.0 if function in ("count", "sum", "distinct") else np.nan
        value[n == 0] = empty if self._aggregate.empty is None else self._aggregate.empty
        return value

    def _of_some(self, function: str, n: Ints) -> Floats:
        number: Floats = n.astype(np.float64)
        if function == "count":
            return number
        if function == "std":
            return np.sqrt(_spread(self.sums)) / number / self._scale
        if function in ("sum", "mean", "share"):
            total: Floats = self.sums[1].astype(np.float64)
            total /= number if function != "sum" else 1.0
            return total if function == "share" else total / self._scale
        if function == "distinct":
            return self._n_distinct()
        amount = self._last_amount() if function == "last" else self._extreme
        return amount.astype(np.float64) / self._scale

    def _last_amount(self) -> Ints:
        rows = self._stream.rows
        row = self._requests.row.copy()
        is_other = ~self._is_own_last & (self._extreme >= 0)
        row[is_other] = self._entries.row[self._extreme[is_other]]
        return rows.amount_minor[row]

    def _n_distinct(self) -> Floats:
        n_codes = len(self._stream.rows)
        pairs = [owner * n_codes + member for owner, member in self._seen]
        # numpy's own `unique` takes seven times as long on millions of pairs.
        owner = pd.unique(np.concatenate(pairs)) // n_codes
        return np.bincount(owner, minlength=len(self._requests)).astype(np.float64)


def met(
    stream: Stream, aggregate: Aggregate, row: Ints, as_of_ms: Ints, applied: Ints
) -> tuple[Bools, Bools]:
    """bool[p] twice: whether the aggregate counts the row, and whether its fact `of` is true."""
    where, facts = aggregate.where, stream.specification.facts
    counted = np.ones(len(row), np.bool_)
    is_true = np.zeros(len(row), np.bool_)
    if where is not None and where.fact is not None:
        counted = stream.facts.hold(facts.index(where.fact), row, as_of_ms, applied)
    elif where is not None:
        counted = stream.rows.conditions[row, stream.specification.conditions.index(where)]
    if aggregate.function == "share":
        is_true = stream.facts.hold(facts.index(aggregate.of or ""), row, as_of_ms, applied)
    return counted, is_true


def terms(function: str, amount: Ints, is_true: Bools) -> Iterator[Ints]:
    """What each event adds to each of a function's sums, int64[p] each."""
    yield np.ones(len(amount), np.int64)
    if function == "share":
        yield is_true.astype(np.int64)
    if function in ("sum", "mean", "std"):
        yield amount
    if function == "std":
        high, low = amount >> _LIMB_BITS, amount & (2**_LIMB_BITS - 1)
        yield high * high
        yield high * low
        yield low * low


def _spread(sums: Ints) -> Floats:
    """float64[m]: n x (sum of squares) - (sum)^2 as exact integers, then the nearest double."""
    n, total, high, cross, low = (row.astype(object) for row in sums)
    squares = high * 2 ** (2 * _LIMB_BITS) + cross * 2 ** (_LIMB_BITS + 1) + low
    spread: Floats = (n * squares - total * total).astype(np.float64)
    return spread
