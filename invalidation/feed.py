"""The feed: which events and facts are accepted, and their way into the states.

Whether an event is accepted is a function of its message alone (law 3): its event time lies between
arrival - horizon and arrival + skew. Embedded, arrival is the event's own time unless it is given;
in no case is it later than the clock, for one event of the year 2099 would put all others beyond
reach.
Rule: nothing is dropped silently: what is refused raises, and everything is counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import NDArray

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import BadFact, BadTransaction, EventRefused, UnknownTransaction
from freshscore.config.settings import StoreSettings
from freshscore.features.layout import SENDER_LIMIT_MS
from freshscore.features.packing import Packer
from freshscore.features.store import MemoryStore
from freshscore.features.transaction import Transaction, time_ms

if TYPE_CHECKING:
    from freshscore.features.table import PaymentTable

# What a row needs and a fact that is looked up does not have.
_ANY_TIME_MS: Final = 946_684_800_000


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How late and how early an event may be, ms."""

    horizon_ms: int
    skew_ms: int

    @classmethod
    def of(cls, settings: StoreSettings) -> Self:
        """What the settings allow."""
        return cls(1000 * settings.horizon_s, 1000 * settings.skew_s)


class Feed:
    """Applies events and facts to the states of one store.

    begin: called once, before the first of them. Outcomes: accepted, repeated, conflict, beyond
    reach, late, early; "fact accepted" and the like for facts.
    """

    def __init__(
        self,
        store: MemoryStore,
        packer: Packer,
        acceptance: Acceptance,
        begin: Callable[[], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._packer = packer
        self._acceptance = acceptance
        self._begin = begin
        self._clock = clock or SystemClock()
        # The clock as it was read last: what is before it needs no reading.
        self._now_ms = 0
        self._counts: dict[str, int] = {}
        # Adding to a count is a reading and a writing, between which another thread may come.
        self._counting = threading.Lock()

    @property
    def counts(self) -> dict[str, int]:
        """Outcome -> events or facts."""
        counts = self._store.observed
        for outcome, count in self._counts.items():
            counts[outcome] = counts.get(outcome, 0) + count
        return counts

    def observe(self, row: bytes, event_ms: int, arrival_ms: int | None) -> str:
        """Apply the event in `row`; "accepted", "repeated", "conflict" or "beyond reach".

        Raises EventRefused if it is too late or too early for its arrival, StoreFull at a limit.
        """
        if self._begin is not None:
            self._start()
        if arrival_ms is not None or event_ms > self._now_ms:
            self._check_arrival(event_ms, event_ms if arrival_ms is None else arrival_ms)
        return self._store.observe(row)

    def _start(self) -> None:
        with self._counting:
            if self._begin is not None:
                self._begin()
                self._begin = None

    def _check_arrival(self, event_ms: int, arrival_ms: int) -> None:
        limits = self._acceptance
        if arrival_ms > self._now_ms:
            self._now_ms = self._clock.now_ms()
            arrival_ms = min(arrival_ms, self._now_ms)
        if event_ms < arrival_ms - limits.horizon_ms:
            self._count("late")
            raise EventRefused(
                f"the event is {arrival_ms - event_ms} ms older than its arrival;"
                f" the horizon is {limits.horizon_ms} ms"
            )
        if event_ms > arrival_ms + limits.skew_ms:
            self._count("early")
            raise EventRefused(
                f"the event is {event_ms - arrival_ms} ms newer than its arrival, which is not"
                f" later than the clock; the skew allowed is {limits.skew_ms} ms"
            )

    def label(
        self,
        transaction_id: str,
        flags: Mapping[str, bool],
        known_at: datetime | int | None,
        entities: Mapping[str, str] | None,
        time: datetime | int | None,
    ) -> None:
        """Apply facts of one payment, known at `known_at`.

        By default that is the newest event time applied, or `time` where that is later. entities
        and time: the payment's own, or neither; then they are looked up. Raises BadFact, and
        UnknownTransaction if there is nothing to look up.
        """
        numbers, row = checked_label(self._packer, transaction_id, flags, entities, time)
        looked_up = entities is None
        time_or_0 = 0 if time is None else time_ms(time)
        known_ms = self._known_ms(known_at, time_or_0)
        if not looked_up:
            check_distance(known_ms, time_or_0)
        if self._begin is not None:
            self._start()
        for name, value in flags.items():
            outcome = self._store.label(row, numbers[name], value, known_ms, known_ms, looked_up)
            self._count(f"fact {outcome}")
            if outcome == "unknown":
                raise UnknownTransaction(
                    "the transaction is not known here; bring its entities and time"
                )

    def load(self, table: PaymentTable) -> dict[str, int]:
        """Apply all payments of a table in arrival order, then its facts; outcome -> how many.

        The table is taken to be all that happened between its first and its last payment, of those
        that are accepted.
        """
        # Tables bring pyarrow, which who scores one payment at a time need not wait for.
        from freshscore.features.table_rows import rows_of

        before = self.counts
        rows = rows_of(table, self._packer)
        if self._begin is not None:
            self._start()
        ages = np.minimum(table.arrival_ms, self._clock.now_ms()) - table.time_ms
        late = ages > self._acceptance.horizon_ms
        early = -ages > self._acceptance.skew_ms
        self._count("late", int(late.sum()))
        self._count("early", int(early.sum()))
        kept = rows if not (late | early).any() else np.ascontiguousarray(rows[~(late | early)])
        offered = table.time_ms[~(late | early) & (table.time_ms >= self._store.reaches_to_ms)]
        if len(offered):
            self._store.declare_complete(int(offered.min()), int(offered.max()))
        for outcome, count in self._store.observe_all(kept).items():
            self._count(outcome, count)
        self._load_facts(table, rows)
        return {
            name: count - before.get(name, 0)
            for name, count in self.counts.items()
            if count != before.get(name, 0)
        }

    def _load_facts(self, table: PaymentTable, rows: NDArray[np.uint64]) -> None:
        facts = table.facts
        order = np.argsort(facts.known_at_ms, kind="stable")
        outcomes = self._store.label_all(
            np.ascontiguousarray(rows[facts.row[order]]),
            facts.name[order],
            facts.value[order],
            facts.known_at_ms[order],
            facts.sender_ms[order],
        )
        for outcome, count in outcomes.items():
            self._count(f"fact {outcome}", count)

    def _known_ms(self, known_at: datetime | int | None, event_ms: int) -> int:
        if known_at is None:
            return max(self._store.newest_ms, event_ms)
        return known_ms_of(known_at)

    def _count(self, outcome: str, count: int = 1) -> None:
        if count:
            with self._counting:
                self._counts[outcome] = self._counts.get(outcome, 0) + count


def checked_label(
    packer: Packer,
    transaction_id: str,
    flags: Mapping[str, bool],
    entities: Mapping[str, str] | None,
    time: datetime | int | None,
) -> tuple[dict[str, int], bytes]:
    """Fact -> its number, and the row of the payment that a label is about. Raises BadFact."""
    if not flags:
        raise BadFact("a label needs at least one fact, such as fraud=True")
    if (entities is None) != (time is None):
        raise BadFact("a label brings entities and time together, or neither")
    if entities is not None:
        _check_entities(packer, entities)
    numbers = {name: _fact_number(packer, name, value) for name, value in flags.items()}
    return numbers, _fact_row(packer, transaction_id, entities, time)


def known_ms_of(known_at: datetime | int) -> int:
    """When a fact became known, ms. Raises BadFact."""
    try:
        return time_ms(known_at, "known_at")
    except BadTransaction as problem:
        raise BadFact(str(problem)) from None


def check_distance(known_ms: int, event_ms: int) -> None:
    """Raise BadFact for a fact that lies further from its event than a record can say."""
    if abs(known_ms - event_ms) >= SENDER_LIMIT_MS:
        raise BadFact("a fact lies more than 17 years from its event")


def _fact_number(packer: Packer, name: str, value: object) -> int:
    facts = packer.program.specification.facts
    if name not in facts:
        raise BadFact(f"{name!r} is no fact of the specification; it has {', '.join(facts)}")
    if not isinstance(value, bool):
        raise BadFact(f"fact {name!r} must be True or False, not {type(value).__name__}")
    return facts.index(name)


def _check_entities(packer: Packer, entities: Mapping[str, str]) -> None:
    read = {part for layout in packer.program.entities for part in layout.parts}
    if not read.intersection(entities):
        raise BadFact(
            f"none of the fact's entities is one that the specification reads: it has"
            f" {', '.join(sorted(map(str, entities))) or 'none'}; read are"
            f" {', '.join(sorted(read)) or 'none'}"
        )


def _fact_row(
    packer: Packer,
    transaction_id: str,
    entities: Mapping[str, str] | None,
    time: datetime | int | None,
) -> bytes:
    try:
        named = Transaction(
            transaction_id,
            _ANY_TIME_MS if time is None else time,
            0,
            packer.program.specification.currency,
            {} if entities is None else entities,
        )
    except BadTransaction as problem:
        raise BadFact(str(problem)) from None
    return packer.row(named)
