"""The vectorised oracle's view of a stream: which events and facts count for which request.

Rule: nothing is decided once for all: every event and fact has the span of positions in which it
counts, because a late repetition with other content, or an earlier copy of a fact, ends the
span of the one before it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from freshscore.features.specification import FeatureSpecification, has_location, members_of
from freshscore.simulations.oracle_columns import (
    ANY_TIME,
    NEVER,
    Bools,
    Ints,
    OracleFacts,
    OracleRequests,
    OracleRows,
)


class Timeline:
    """The rows in time.

    moments: the distinct times; moment: int64[n], each row's place among them. rank: int64[n],
    the place of each row's (time, identity); equal ones share theirs.
    """

    def __init__(self, rows: OracleRows) -> None:
        self.rows = rows
        self.moments: Ints = np.sort(pd.unique(rows.time_ms))
        self.moment = np.searchsorted(self.moments, rows.time_ms)
        order = np.lexsort((rows.identity, rows.time_ms))
        is_new = np.ones(len(rows), np.bool_)
        is_new[1:] = (np.diff(rows.time_ms[order]) != 0) | (np.diff(rows.identity[order]) != 0)
        self.rank = np.empty(len(rows), np.int64)
        self.rank[order] = np.cumsum(is_new) - 1


class Entries:
    """The events of one entity that count at some time, sorted by (code, time, identity).

    row: int64[e], in OracleRows. code: int64[e], whose event it is. start, until: int64[e]; a
    request that has seen `applied` counts the entry if start < applied <= until.
    """

    def __init__(self, timeline: Timeline, row: Ints, code_of_row: Ints, until: Ints) -> None:
        self._timeline = timeline
        self._rows = rows = timeline.rows
        order = np.lexsort((timeline.rank[row], code_of_row[row]))
        self.row: Ints = row[order]
        self.until: Ints = until[order]
        self.code: Ints = code_of_row[self.row]
        self.start: Ints = rows.applied[self.row]
        # One key for (code, moment), one for (code, rank): a binary search each.
        self._moment_key = self.code * (len(timeline.moments) + 1) + timeline.moment[self.row]
        self._rank_key = self.code * len(rows) + timeline.rank[self.row]

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.row)

    def regrouped(self, code_of_row: Ints) -> Entries:
        """The same entries under other codes; those whose code is -1 are left out."""
        some = code_of_row[self.row] >= 0
        return Entries(self._timeline, self.row[some], code_of_row, self.until[some])

    def first_after(self, code: Ints, time_ms: Ints) -> Ints:
        """int64[m]: place of the first entry of `code` later than `time_ms`, or behind its last."""
        moments = self._timeline.moments
        moment = np.searchsorted(moments, time_ms, side="right")
        return np.searchsorted(self._moment_key, code * (len(moments) + 1) + moment)

    def count_for(self, places: Ints, requests: OracleRequests, owners: Ints) -> Bools:
        """bool[p]: whether the entry at `places` counts for request `owners`, the own excluded."""
        applied = requests.applied[owners]
        transaction = self._rows.transaction
        is_other: Bools = transaction[self.row[places]] != transaction[requests.row[owners]]
        counts: Bools = (self.start[places] < applied) & (self.until[places] >= applied)
        return counts & is_other

    def are_before(self, place: Ints, row: Ints) -> Bools:
        """bool[p]: whether the entry at `place` (-1: none) is before the row in time order."""
        rank = self._timeline.rank
        before = place < 0
        some = ~before
        before[some] = rank[self.row[place[some]]] < rank[row[some]]
        return before

    def last_before(self, code_of_row: Ints, requests: OracleRequests, reach_ms: int) -> Ints:
        """int64[m]: place of the last entry before the payment's own (time, identity), else -1.

        Only entries later than own time - reach; entries that do not count are stepped over.
        """
        code, time_ms = code_of_row[requests.row], self._rows.time_ms
        key = code * len(self._rows) + self._timeline.rank[requests.row]
        place = np.searchsorted(self._rank_key, key) - 1
        found = np.full(len(requests), -1)
        still = np.flatnonzero((code >= 0) & (place >= 0))
        while len(still):
            at = place[still]
            row = self.row[at]
            within = self.code[at] == code[still]
            within &= time_ms[row] > time_ms[requests.row[still]] - reach_ms
            counts = within & self.count_for(at, requests, still)
            found[still[counts]] = at[counts]
            still = still[within & ~counts & (at > 0)]
            place[still] -= 1
        return found

    @cached_property
    def _by_transaction(self) -> tuple[Ints, Ints]:
        transaction = self._rows.transaction[self.row]
        order = np.argsort(transaction, kind="stable")
        return order, transaction[order]

    def own_places(self, requests: OracleRequests) -> tuple[Ints, Ints]:
        """(owner, place) of every entry that has the transaction_id of its request."""
        order, known = self._by_transaction
        wanted = self._rows.transaction[requests.row]
        first = np.searchsorted(known, wanted)
        owner, at = expanded(first, np.searchsorted(known, wanted, side="right") - first)
        return owner, order[at]


class FactTable:
    """Which facts are true of which row, at an instant, for a request.

    For each name: known_min, known_max, start_min, start_max: int64[n], the bounds of known-at
    and position over the row's facts (NEVER and -1 where it has none).
    """

    def __init__(self, rows: OracleRows, facts: OracleFacts, n_names: int) -> None:
        table = _facts_of_rows(rows, facts)
        self._of_name = [_NameTable(table[table["name"] == i], len(rows)) for i in range(n_names)]

    def hold(self, name: int, row: Ints, as_of_ms: Ints, applied: Ints) -> Bools:
        """bool[p]: whether the latest fact that is known and seen says true; all int64[p]."""
        return self._of_name[name].hold(row, as_of_ms, applied)

    def bounds(self, name: int) -> tuple[Ints, Ints, Ints, Ints]:
        """known_min, known_max, start_min, start_max of the name."""
        table = self._of_name[name]
        return table.known_min, table.known_max, table.start_min, table.start_max


class _NameTable:
    def __init__(self, table: pd.DataFrame, n_rows: int) -> None:
        table = table.sort_values(["row", "known", "sender", "value"])
        self._known, self._value = table["known"].to_numpy(), table["value"].to_numpy()
        self._start, self._until = table["start"].to_numpy(), table["until"].to_numpy()
        row = table["row"].to_numpy()
        self._first = np.searchsorted(row, np.arange(n_rows + 1))
        self.known_min, self.start_min = np.full(n_rows, NEVER), np.full(n_rows, NEVER)
        self.known_max, self.start_max = np.full(n_rows, -1), np.full(n_rows, -1)
        np.minimum.at(self.known_min, row, self._known)
        np.minimum.at(self.start_min, row, self._start)
        np.maximum.at(self.known_max, row, self._known)
        np.maximum.at(self.start_max, row, self._start)

    def hold(self, row: Ints, as_of_ms: Ints, applied: Ints) -> Bools:
        truth = np.zeros(len(row), np.bool_)
        first = self._first[row]
        count = self._first[row + 1] - first
        some = np.flatnonzero(count)
        if len(some) == 0:
            return truth
        owner, at = expanded(first[some], count[some])
        seen = (self._start[at] < applied[some][owner]) & (self._until[at] >= applied[some][owner])
        seen &= self._known[at] <= as_of_ms[some][owner]
        segments = np.cumsum(count[some]) - count[some]
        latest = np.maximum.reduceat(np.where(seen, at, -1), segments)
        truth[some] = (latest >= 0) & self._value[latest]
        return truth


def entries_of(specification: FeatureSpecification, timeline: Timeline, entity: str) -> Entries:
    """The entries of one entity: repetitions dropped, conflicts decided."""
    rows = timeline.rows
    code = rows.entities[entity]
    row = np.flatnonzero((code >= 0) & (rows.applied != NEVER))
    group = pd.factorize(code[row] * len(rows) + rows.transaction[row])[0].astype(np.int64)
    is_twice = pd.Series(group).duplicated(keep=False).to_numpy()
    # Ranks are only needed, and are dear, where an id comes more than once.
    rank = np.zeros(len(row), np.int64)
    rank[is_twice] = _content_rank(specification, rows, entity, row[is_twice])
    kept, until = reigns(group, rank, rows.applied[row])
    return Entries(timeline, row[kept], code, until)


def reigns(group: Ints, rank: Ints, applied: Ints) -> tuple[Ints, Ints]:
    """(index, until) of those that are, when applied, the smallest `rank` of their group so far.

    until: the position of the one that takes over, NEVER for the last; all int64.
    """
    order = np.lexsort((rank, applied, group))
    ranked = pd.Series(rank[order])
    best = ranked.groupby(group[order]).cummin()
    before = best.groupby(group[order]).shift(1, fill_value=NEVER)
    kept = order[(ranked < before).to_numpy()]
    until = np.full(len(kept), NEVER)
    has_next = group[kept][1:] == group[kept][:-1]
    until[:-1][has_next] = applied[kept][1:][has_next]
    return kept, until


def expanded(first: Ints, count: Ints) -> tuple[Ints, Ints]:
    """(owner, at): for each i, `count[i]` times i beside first[i], first[i] + 1, ..."""
    owner = np.repeat(np.arange(len(first)), count)
    start = np.cumsum(count) - count
    return owner, np.arange(len(owner)) + (first - start)[owner]


def fixed_degrees(degrees: NDArray[np.float64]) -> Ints:
    """int64: 1e-7 degrees, half to even; -2**31 where there are none."""
    return np.where(np.isnan(degrees), -(2.0**31), np.rint(degrees * 1e7)).astype(np.int64)


def _content_rank(
    specification: FeatureSpecification, rows: OracleRows, entity: str, row: Ints
) -> Ints:
    """int64[r]: the order between contents of one id, equal contents sharing theirs."""
    keys: list[NDArray[Any]] = [rows.time_ms, rows.amount_minor, rows.kind]
    keys += [_bits(rows.conditions), _bits(rows.flags)]
    keys += [rows.members[name] for name in members_of(specification, entity)]
    if has_location(specification, entity):
        # Unsigned, as words of a record compare.
        keys += [fixed_degrees(d) & 0xFFFFFFFF for d in (rows.latitude, rows.longitude)]
    frame = pd.DataFrame({i: key[row] for i, key in enumerate(keys)})
    return frame.groupby(list(frame.columns), sort=True).ngroup().to_numpy().astype(np.int64)


def _bits(truths: Bools) -> Ints:
    weights = np.left_shift(1, np.arange(truths.shape[1], dtype=np.int64))
    bits: Ints = (truths * weights).sum(axis=1, dtype=np.int64)
    return bits


def _facts_of_rows(rows: OracleRows, facts: OracleFacts) -> pd.DataFrame:
    """The facts of every applied row, its flags included, with the span in which each counts."""
    labels = pd.DataFrame(
        {
            "transaction": facts.transaction,
            "name": facts.name,
            "value": facts.value,
            "sender": facts.sender_ms,
            "known": facts.known_at_ms,
            "time": facts.time_ms,
            "start": facts.applied,
        }
    )
    row = np.flatnonzero(rows.applied != NEVER)
    events = pd.DataFrame({"row": row, "transaction": rows.transaction[row]})
    labels = labels[labels["start"] != NEVER].merge(events, on="transaction")
    is_of_row = (labels["time"] == ANY_TIME) | (labels["time"] == rows.time_ms[labels["row"]])
    flagged, name = np.nonzero(rows.flags & (rows.applied != NEVER)[:, None])
    at_once = rows.time_ms[flagged]
    flags = pd.DataFrame(
        {"row": flagged, "name": name, "value": True, "sender": at_once, "known": at_once}
    )
    columns = ["row", "name", "value", "sender", "known", "start"]
    table = pd.concat([flags.assign(start=-1)[columns], labels.loc[is_of_row, columns]])
    table = table.reset_index(drop=True).astype({"value": np.bool_})
    copies = table.groupby(["row", "name", "value", "sender"], sort=False).ngroup().to_numpy()
    known, start = table["known"].to_numpy(), table["start"].to_numpy()
    kept, until = reigns(copies.astype(np.int64), known, start)
    return table.iloc[kept].assign(until=until)
