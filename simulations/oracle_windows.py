"""The vectorised oracle's windows: all aggregates of one group over one length, for many requests.

Layout: a window is a run of an entity's entries, sorted by time. Every entry of the run is looked
at for every request, except in runs longer than a few blocks of entries, if all functions
are sums: there a block in which nothing can differ from one request to the next (all its events
applied, none superseded, its facts all known or none known, the own payment elsewhere) gives
its sums, and only the other blocks are opened.
Cost: entries of each window for min, max, last and distinct; entries / block for sums, save over
blocks whose facts are becoming known at `as_of`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from freshscore.features.specification import Aggregate, WindowGroup
from freshscore.simulations.oracle_columns import NEVER, Bools, Floats, Ints, OracleRequests
from freshscore.simulations.oracle_entries import Entries, expanded
from freshscore.simulations.oracle_tallies import SUMS, Stream, Tally, met, terms


class Windows:
    """The windows of one group; `values` gives its aggregates' columns over one length."""

    def __init__(self, stream: Stream, entries: Entries, group: WindowGroup) -> None:
        self._stream, self._entries, self._group = stream, entries, group
        is_sums = all(aggregate.function in SUMS for aggregate in group.aggregates)
        self._blocks = _Blocks(stream, entries, group.aggregates) if is_sums else None

    def values(self, length_ms: int, requests: OracleRequests) -> list[Floats]:
        """float64[m] for each aggregate of the group, in order."""
        code = self._stream.rows.entities[self._group.entity][requests.row]
        begin_ms, end_ms = self._instants(length_ms, requests.as_of_ms)
        first = self._entries.first_after(code, begin_ms)
        count = np.where(code < 0, 0, self._entries.first_after(code, end_ms) - first)
        time_ms = self._stream.rows.time_ms[requests.row]
        is_own = (begin_ms < time_ms) & (time_ms <= end_ms) & self._group.current
        columns = [np.empty(len(requests)) for _ in self._group.aggregates]
        for these in _parts(count, self._stream.limits.pairs):
            part = OracleRequests(
                requests.row[these], requests.as_of_ms[these], requests.applied[these]
            )
            tallies = self._tallies(part, first[these], count[these], is_own[these])
            for column, tally in zip(columns, tallies, strict=True):
                column[these] = tally.values()
        for column in columns:
            column[code < 0] = np.nan
        return columns

    def _instants(self, length_ms: int, as_of_ms: Ints) -> tuple[Ints, Ints]:
        """Begin (outside) and end (inside) of each window."""
        end_ms = as_of_ms - self._group.delay_ms
        begin_ms = end_ms - length_ms
        step_ms = self._stream.specification.step_ms(self._group, length_ms)
        if step_ms:
            begin_ms = begin_ms // step_ms * step_ms
        if step_ms and self._group.delay_ms:
            end_ms = end_ms // step_ms * step_ms
        return begin_ms, end_ms

    def _tallies(
        self, requests: OracleRequests, first: Ints, count: Ints, is_own: Bools
    ) -> list[Tally]:
        tallies = [Tally(self._stream, a, self._entries, requests) for a in self._group.aggregates]
        if self._blocks is not None:
            owner, first, count = self._blocks.take(tallies, requests, first, count)
        else:
            owner = np.arange(len(requests))
        segment, place = expanded(first, count)
        owner = owner[segment]
        counts = self._entries.count_for(place, requests, owner)
        for tally in tallies:
            tally.take_events(owner[counts], place[counts])
            tally.take_own(np.flatnonzero(is_own))
        return tallies


class _Blocks:
    """Sums over blocks of entries, and for which requests they hold."""

    def __init__(self, stream: Stream, entries: Entries, aggregates: tuple[Aggregate, ...]) -> None:
        self._entries, row = entries, entries.row
        self._size = stream.limits.block
        self._start_min = self._by_block(np.minimum, entries.start)
        self._start_max = self._by_block(np.maximum, entries.start)
        self._until_min = self._by_block(np.minimum, entries.until)
        names = {a.where.fact for a in aggregates if a.where is not None}
        names |= {a.of for a in aggregates if a.function == "share"}
        known = [stream.facts.bounds(stream.specification.facts.index(n)) for n in names if n]
        reducers = (np.minimum, np.maximum, np.minimum, np.maximum)
        self._bounds = [
            [
                self._by_block(reducer, bound[row])
                for reducer, bound in zip(reducers, of_name, strict=True)
            ]
            for of_name in known
        ]
        # At the end of time all facts are known; before its beginning, none.
        self._sums = [
            [self._totals(stream, aggregate, as_of_ms) for aggregate in aggregates]
            for as_of_ms in (-2, NEVER)
        ]

    def take(
        self, tallies: list[Tally], requests: OracleRequests, first: Ints, count: Ints
    ) -> tuple[Ints, Ints, Ints]:
        """Count whole blocks; what is left of each run is (owner, first, count)."""
        begin, end = -(-first // self._size), (first + count) // self._size
        is_long = end > begin
        begin, end = np.where(is_long, begin, 0), np.where(is_long, end, 0)
        owner, block = expanded(begin, end - begin)
        is_open = self._has_own(requests, begin, end)
        settled, all_known = self._are_settled(requests, owner, block)
        settled &= ~is_open
        absent = self._start_min[block] >= requests.applied[owner]
        for version, these in enumerate((settled & ~all_known, settled & all_known)):
            for tally, sums in zip(tallies, self._sums[version], strict=True):
                for i in range(len(sums)):
                    np.add.at(tally.sums[i], owner[these], sums[i, block[these]])
        left = ~settled & ~absent
        everyone = np.arange(len(requests))
        head = np.where(is_long, begin * self._size - first, count)
        tail = np.where(is_long, first + count - end * self._size, 0)
        return (
            np.concatenate([everyone, everyone, owner[left]]),
            np.concatenate([first, end * self._size, block[left] * self._size]),
            np.concatenate([head, tail, np.full(int(left.sum()), self._size)]),
        )

    def _are_settled(
        self, requests: OracleRequests, owner: Ints, block: Ints
    ) -> tuple[Bools, Bools]:
        """Whether the block's sums hold, and whether they are those with all facts known."""
        applied, as_of_ms = requests.applied[owner], requests.as_of_ms[owner]
        settled = (self._start_max[block] < applied) & (self._until_min[block] >= applied)
        all_known = np.ones(len(owner), np.bool_)
        none_known = np.ones(len(owner), np.bool_)
        for known_min, known_max, start_min, start_max in self._bounds:
            all_known &= (known_max[block] <= as_of_ms) & (start_max[block] < applied)
            none_known &= (known_min[block] > as_of_ms) | (start_min[block] >= applied)
        return settled & (all_known | none_known), all_known

    def _has_own(self, requests: OracleRequests, begin: Ints, end: Ints) -> Bools:
        """bool[pairs of request and block]: whether the request's own payment lies there."""
        count = end - begin
        found = np.zeros(int(count.sum()), np.bool_)
        owner, place = self._entries.own_places(requests)
        block = place // self._size
        within = (block >= begin[owner]) & (block < end[owner])
        pair = (np.cumsum(count) - count - begin)[owner] + block
        found[pair[within]] = True
        return found

    def _totals(self, stream: Stream, aggregate: Aggregate, as_of_ms: int) -> Ints:
        """int64[sums, blocks] over all entries, with the facts known at `as_of_ms`."""
        row = self._entries.row
        counted, is_true = met(
            stream, aggregate, row, np.full(len(row), as_of_ms), np.full(len(row), NEVER)
        )
        amount = stream.rows.amount_minor[row]
        return np.stack(
            [
                self._by_block(np.add, term * counted)
                for term in terms(aggregate.function, amount, is_true)
            ]
        )

    def _by_block(self, reducer: np.ufunc, values: Ints) -> Ints:
        starts = np.arange(0, len(values), self._size)
        reduced: Ints = reducer.reduceat(values, starts) if len(values) else values
        return reduced


def _parts(sizes: Ints, limit: int) -> Iterator[slice]:
    """Runs of requests of at most about `limit` pairs together."""
    part = np.cumsum(sizes + 1) // limit
    edges = np.flatnonzero(np.diff(part, prepend=-1, append=-1))
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield slice(start, stop)
