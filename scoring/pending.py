"""Read your own writes: what this scorer observed, until a state that was read contains it.

An event that was handed to Kafka comes back through Redis milliseconds later. Until then its
records stand here, and are united by identity with every state of its entities that is read, so
overlap is harmless: only the oldest that are pending of an entity are looked for in its state. A
record leaves when the state that was read contains it, when the broker's stamp shows that it will
be refused, when it could not be sent, or at its limit, which is counted.
Rule: for entities of which nothing is pending this costs one look into an empty dict; for others,
nothing that grows with their number but copying is done under the lock that all scores share.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from freshscore.config.clock import Clock

# What a record's identity takes at its beginning.
_IDENTITY_BYTES: Final = 8
# Pending records of one entity that a score looks for; they come back about in order.
_MOST_SOUGHT: Final = 64
# Bytes of a state that one score searches for records that are not there, about 1 ms.
_MOST_SEARCHED_BYTES: Final = 1 << 20
# Old ones that one call drops: more come with the next.
_MOST_DROPPED: Final = 256
COUNTED: Final = ("sent", "seen", "refused", "not sent", "timed out", "no room")


@dataclass(eq=False, slots=True)
class PendingEvent:
    """One event or fact that Redis has not shown yet.

    records: of each of its entities, by token, the record that its state will contain.
    ends_s: when it is given up, on the monotonic clock.
    """

    records: dict[bytes, bytes]
    ends_s: float


class PendingEvents:
    """What is on its way; bounded in number and in time, and safe in many threads."""

    def __init__(self, most: int, pending_s: float, clock: Clock) -> None:
        self._most = most
        self._pending_s = pending_s
        self._clock = clock
        self._lock = threading.Lock()
        # Of each entity its records by event, oldest first.
        self._by_token: dict[bytes, dict[PendingEvent, bytes]] = {}
        # Oldest first, for all live equally long; the first is found at once, even behind many
        # that have left.
        self._by_age: OrderedDict[PendingEvent, None] = OrderedDict()
        self._counts = dict.fromkeys(COUNTED, 0)

    def __len__(self) -> int:
        return len(self._by_age)

    @property
    def is_any(self) -> bool:
        """Whether anything is pending; without waiting for anybody."""
        return bool(self._by_token)

    @property
    def counts(self) -> dict[str, int]:
        """How many came, and how they left."""
        with self._lock:
            return dict(self._counts)

    def add(self, records: dict[bytes, bytes]) -> PendingEvent:
        """From now on, unite `records` (by token) with what is read; over the limit the oldest go.

        One event or one fact: a state that holds several has them in an order of its own.
        """
        event = PendingEvent(records, self._clock.monotonic_s() + self._pending_s)
        with self._lock:
            self._counts["sent"] += 1
            self._drop_old()
            while len(self._by_age) >= self._most:
                self._leave(next(iter(self._by_age)), "no room")
            self._by_age[event] = None
            for token, record in records.items():
                self._by_token.setdefault(token, {})[event] = record
        return event

    def give_up(self, event: PendingEvent, why: str) -> None:
        """Count `event` no longer: it was "refused" or "not sent"."""
        with self._lock:
            self._leave(event, why)

    def concerns(self, tokens: Sequence[bytes]) -> bool:
        """Whether something is pending for one of the entities."""
        by_token = self._by_token
        return bool(by_token) and any(token in by_token for token in tokens)

    def united(
        self, tokens: Sequence[bytes], states: Sequence[bytes | None]
    ) -> tuple[list[bytes | None], tuple[bytes, ...]]:
        """The states with what is pending behind them, and the identities of what that is.

        tokens, states: of each entity; bytes as they were read, None for none. What a state
        contains leaves.
        """
        with self._lock:
            self._drop_old()
            held = [self._copied(token) for token in tokens]
        found = list(states)
        seen: list[tuple[PendingEvent, bytes]] = []
        identities: dict[bytes, None] = {}
        for e, (token, (oldest, records)) in enumerate(zip(tokens, held, strict=True)):
            state = states[e] or b""
            places = _places_in(state, records[: len(oldest)]) if state else []
            seen += [(oldest[place], token) for place in places]
            left = _without(records, places)
            if left:
                # A state with a part of a record at its end is damaged, and stays so.
                found[e] = b"".join([state, *left])
                identities |= dict.fromkeys([record[:_IDENTITY_BYTES] for record in left])
        if seen:
            with self._lock:
                for event, token in seen:
                    self._seen(event, token)
        return found, tuple(identities)

    def _copied(self, token: bytes) -> tuple[list[PendingEvent], list[bytes]]:
        """The oldest events that are pending of an entity, and the records of all."""
        held = self._by_token.get(token)
        return ([], []) if held is None else ([*islice(held, _MOST_SOUGHT)], [*held.values()])

    def _seen(self, event: PendingEvent, token: bytes) -> None:
        """A state contains the event's record: leave that entity, and all after the last one."""
        # Another thread may have seen it too, or the event may have left.
        if event not in self._by_age or event.records.pop(token, None) is None:
            return
        self._forget(event, token)
        if not event.records:
            self._leave(event, "seen")

    def _drop_old(self) -> None:
        now_s = self._clock.monotonic_s()
        for _ in range(_MOST_DROPPED):
            event = next(iter(self._by_age), None)
            if event is None or event.ends_s > now_s:
                return
            self._leave(event, "timed out")

    def _leave(self, event: PendingEvent, why: str) -> None:
        if event not in self._by_age:
            return
        del self._by_age[event]
        self._counts[why] += 1
        for token in event.records:
            self._forget(event, token)

    def _forget(self, event: PendingEvent, token: bytes) -> None:
        events = self._by_token[token]
        del events[event]
        if not events:
            del self._by_token[token]


def _places_in(state: bytes, records: Sequence[bytes]) -> list[int]:
    """Which of the records a state holds, as far as a bounded search finds them."""
    places: list[int] = []
    at = searched = 0
    for place, record in enumerate(records):
        # Mostly right behind the one before.
        there = state.find(record, at)
        if there < 0:
            searched += len(state)
            there = state.find(record, 0, at + len(record)) if at else -1
        if there >= 0:
            at = there + len(record)
            places.append(place)
        elif searched > _MOST_SEARCHED_BYTES:
            break
    return places


def _without(records: list[bytes], places: list[int]) -> list[bytes]:
    """The records, without those at some of the first places."""
    if not places:
        return records
    end, gone = places[-1] + 1, frozenset(places)
    return [one for place, one in enumerate(records[:end]) if place not in gone] + records[end:]
