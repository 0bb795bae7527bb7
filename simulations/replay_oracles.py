"""The oracles of a replay: features of answered touches, computed anew by code that shares nothing.

The plain one follows a sample of touches. For each it is given what could possibly count, that is
the events of the payment's own entities that some window reaches, and decides the rest itself; so
its cost hangs on the sample, not on the file. The vectorised one follows every touch, or a sample.
Rule: an oracle reads payments, instants and the order of application, never a state or a kernel's
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np

from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import Floats, Int64s
from freshscore.invalidation.feed import Acceptance
from freshscore.simulations.applied_log import (
    AppliedFacts,
    AppliedLog,
    EntityNumbers,
    applied_log,
    entity_numbers,
    payments_of,
    times_ms,
)
from freshscore.simulations.oracle import PlainOracle
from freshscore.simulations.streams import Stream

Codes = Mapping[str, Mapping[str, int]]
Advance = Callable[[int], None]
# Added to a reach, because grid windows begin at a step before it and requests come after their
# payment's own time. What is offered beyond need changes nothing.
_MARGIN_MS: Final = 2 * 86_400_000


def plain_features(
    stream: Stream,
    touches: Int64s,
    acceptance: Acceptance,
    record_key: bytes,
    codes: Codes,
    advance: Advance = lambda touches: None,
) -> Floats:
    """Feature vectors at `touches` (scores of the stream) by the plain oracle, (n, columns)."""
    specification = stream.table.specification
    relevant = _Relevant(stream)
    found = np.empty((len(touches), len(specification.feature_names)))
    for row, touch in enumerate(touches.tolist()):
        oracle = PlainOracle(
            specification,
            horizon_ms=acceptance.horizon_ms,
            skew_ms=acceptance.skew_ms,
            record_key=record_key,
        )
        relevant.tell(oracle, touch)
        request = next(stream.transactions(stream.content[touch : touch + 1]))
        found[row] = oracle.features(request, int(stream.at_ms[touch]), codes)
        advance(1)
    return found


class _Relevant:
    """Finds the events and facts that could count for a touch."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._log: AppliedLog = applied_log(stream)
        self._payment = payments_of(self._log.events.content)
        self._event_ms = times_ms(stream)[self._payment]
        specification = stream.table.specification
        self._entities = [
            (_Grouped(entity_numbers(stream, entity.name), self._payment), reach_ms)
            for entity in specification.entities
            for reach_ms in [entity_reach_ms(specification, entity.name)]
        ]
        self._facts_by_payment = np.argsort(self._log.facts.payment, kind="stable")

    def tell(self, oracle: PlainOracle, touch: int) -> None:
        """Give `oracle` what was applied before `touch` and concerns its payment's entities."""
        stream, events = self._stream, self._log.events
        seen = self._events(touch)
        arrivals_ms = events.arrival_ms[seen].tolist()
        for transaction, arrival_ms in zip(
            stream.transactions(events.content[seen]), arrivals_ms, strict=True
        ):
            oracle.observe(transaction, arrival_ms)
        self._tell_facts(oracle, touch, np.unique(self._payment[seen]))

    def _events(self, touch: int) -> Int64s:
        """Indices of events, in the order in which they were applied."""
        payment = int(self._stream.payment[touch])
        now_ms = int(self._stream.at_ms[touch])
        own_ms = int(self._own_ms(payment))
        position = self._log.start + touch
        found = []
        for grouped, reach_ms in self._entities:
            theirs = grouped.of(payment)
            times = self._event_ms[theirs]
            near = (times > own_ms - reach_ms - _MARGIN_MS) & (times <= now_ms)
            found.append(theirs[near & (self._log.events.position[theirs] < position)])
        return np.unique(np.concatenate(found))

    def _own_ms(self, payment: int) -> int:
        n = len(self._stream.table)
        table = self._stream.table if payment < n else self._stream.added
        return int(table.time_ms[payment if payment < n else payment - n])

    def _tell_facts(self, oracle: PlainOracle, touch: int, payments: Int64s) -> None:
        facts, position = self._log.facts, self._log.start + touch
        by_payment = facts.payment[self._facts_by_payment]
        first = np.searchsorted(by_payment, payments)
        last = np.searchsorted(by_payment, payments, side="right")
        for low, high in zip(first.tolist(), last.tolist(), strict=True):
            for fact in self._facts_by_payment[low:high].tolist():
                if facts.position[fact] < position:
                    self._tell_fact(oracle, facts, fact)

    def _tell_fact(self, oracle: PlainOracle, facts: AppliedFacts, fact: int) -> None:
        stream, payment = self._stream, int(facts.payment[fact])
        n = len(stream.table)
        table = stream.table if payment < n else stream.added
        row = payment if payment < n else payment - n
        oracle.label(
            table.transaction_id[row].as_py(),
            table.specification.facts[facts.name[fact]],
            bool(facts.value[fact]),
            int(facts.sender_ms[fact]),
            int(facts.known_at_ms[fact]),
            int(table.time_ms[row]),
        )


class _Grouped:
    """Events by whose they are."""

    def __init__(self, numbers: EntityNumbers, payment: Int64s) -> None:
        self._number = numbers.number
        whose = numbers.number[payment]
        self._order = np.argsort(whose, kind="stable")
        self._whose = whose[self._order]

    def of(self, payment: int) -> Int64s:
        """Indices of the events that share this entity with a payment."""
        number = self._number[payment]
        if number < 0:
            return self._order[:0]
        first, last = np.searchsorted(self._whose, [number, number + 1])
        return self._order[first:last]


def entity_reach_ms(specification: FeatureSpecification, entity: str) -> int:
    """How far back any feature over `entity` looks."""
    windows = (
        group.delay_ms + max(group.lengths_ms)
        for group in specification.windows
        if group.entity == entity
    )
    looks_back = any(feature.entity == entity for feature in specification.features)
    return max([*windows, specification.reach_ms if looks_back else 0], default=0)


def pieces(touches: Int64s, size: int) -> Iterator[Int64s]:
    """`touches` in pieces of `size`."""
    for first in range(0, len(touches), size):
        yield touches[first : first + size]
