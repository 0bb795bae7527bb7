"""Read your own writes: what this scorer observed, until a state that was read contains it.

An event that was handed to Kafka comes back through Redis milliseconds later. Until then its
records stand here, and are united by identity with every state of its entities that is read, so
overlap is harmless: only the oldest that are pending of an entity are looked for in its state. A
record leaves when the state that was read contains it, when the broker's stamp shows that it will
be refused, when it could not be sent, or at its limit, which is counted. The limit in time begins
with the log's acknowledgement: while Kafka is away, nobody else can know of what waits for it.
Exchanges and sightings draw tickets from one sequence. A record that a state has shown is kept for
the exchanges that drew theirs before that sighting, for what they brought may be older; it is
forgotten when the last of them has ended. An exchange that draws its ticket later sees the record.
Rule: for entities of which nothing is pending this costs one look into an empty dict; for others,
nothing that grows with their number but copying is done under the lock that all scores share.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
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
    ends_s: when it is given up, on the monotonic clock; infinite until the log has it.
    """

    records: dict[bytes, bytes]
    ends_s: float = math.inf


class PendingEvents:
    """What is on its way; bounded in number, and in time once the log has it. Safe in many threads.

    pending_s: how long after the log's acknowledgement an event may be pending. oldest_ticket: the
    lowest ticket of the exchanges that have begun and not ended; where there is none, a number
    above all tickets.
    """

    def __init__(
        self, most: int, pending_s: float, clock: Clock, oldest_ticket: Callable[[], int]
    ) -> None:
        self._most = most
        self._pending_s = pending_s
        self._clock = clock
        self._oldest_ticket = oldest_ticket
        # Drawn in one step under the interpreter's lock; by each exchange before it is sent.
        self.ticket: Callable[[], int] = itertools.count(1).__next__
        self._lock = threading.Lock()
        # Of each entity its records by event, oldest first.
        self._by_token: dict[bytes, dict[PendingEvent, bytes]] = {}
        # Oldest first; the first is found at once, even behind many that have left.
        self._by_age: OrderedDict[PendingEvent, None] = OrderedDict()
        # Those that the log has, in the order in which they end.
        self._ending: OrderedDict[PendingEvent, None] = OrderedDict()
        # What a state has shown, for exchanges that began before: of each entity the record and the
        # ticket of the sighting; and all of them in the order of those.
        self._shown: dict[bytes, dict[PendingEvent, tuple[int, bytes]]] = {}
        self._leaving: deque[tuple[int, bytes, PendingEvent]] = deque()
        self._counts = dict.fromkeys(COUNTED, 0)

    def __len__(self) -> int:
        return len(self._by_age)

    @property
    def is_any(self) -> bool:
        """Whether anything is pending, or kept for older exchanges; without waiting for anybody."""
        # In this order, in which a record goes from one to the other.
        return bool(self._by_token) or bool(self._shown)

    @property
    def counts(self) -> dict[str, int]:
        """How many came, and how they left."""
        with self._lock:
            return dict(self._counts)

    def add(self, records: dict[bytes, bytes]) -> PendingEvent:
        """From now on, unite `records` (by token) with what is read; over the limit the oldest go.

        One event or one fact: a state that holds several has them in an order of its own.
        """
        event = PendingEvent(records)
        with self._lock:
            self._counts["sent"] += 1
            self._drop_old()
            self._drop_shown()
            while self._leaving and len(self._by_age) + len(self._leaving) >= self._most:
                self._drop_first_shown()
            while len(self._by_age) >= self._most:
                self._leave(next(iter(self._by_age)), "no room")
            self._by_age[event] = None
            for token, record in records.items():
                self._by_token.setdefault(token, {})[event] = record
        return event

    def acknowledged(self, event: PendingEvent) -> None:
        """The log has `event`: the time begins within which a state must show it."""
        with self._lock:
            if event in self._by_age and event not in self._ending:
                event.ends_s = self._clock.monotonic_s() + self._pending_s
                self._ending[event] = None

    def give_up(self, event: PendingEvent, why: str) -> None:
        """Count `event` no longer: it was "refused" or "not sent"."""
        with self._lock:
            self._leave(event, why)

    def concerns(self, tokens: Sequence[bytes]) -> bool:
        """Whether something is pending for one of the entities, or kept for older exchanges."""
        by_token, shown = self._by_token, self._shown
        if by_token and any(token in by_token for token in tokens):
            return True
        if not shown:
            return False
        with self._lock:
            self._drop_shown()
        return any(token in shown for token in tokens)

    def united(
        self, tokens: Sequence[bytes], states: Sequence[bytes | None], ticket: int
    ) -> tuple[list[bytes | None], tuple[bytes, ...]]:
        """The states with what is pending behind them, and the identities of what that is.

        tokens, states: of each entity; bytes as they were read, None for none. ticket: that of the
        exchange that brought them, which has not ended. What a state contains leaves.
        """
        with self._lock:
            self._drop_old()
            self._drop_shown()
            held = [self._copied(token, ticket) for token in tokens]
        found = list(states)
        seen: list[tuple[PendingEvent, bytes]] = []
        identities: dict[bytes, None] = {}
        for e, (token, (n_shown, oldest, records)) in enumerate(zip(tokens, held, strict=True)):
            state = states[e] or b""
            places = _places_in(state, records[:_MOST_SOUGHT]) if state else []
            seen += [(oldest[place - n_shown], token) for place in places if place >= n_shown]
            left = _without(records, places)
            if left:
                # A state with a part of a record at its end is damaged, and stays so.
                found[e] = b"".join([state, *left])
                identities |= dict.fromkeys([record[:_IDENTITY_BYTES] for record in left])
        if seen:
            with self._lock:
                sighting = self.ticket()
                for event, token in seen:
                    self._seen(event, token, sighting)
        return found, tuple(identities)

    def _copied(self, token: bytes, ticket: int) -> tuple[int, list[PendingEvent], list[bytes]]:
        """Of an entity: how many were shown since `ticket`, the oldest pending, all records."""
        shown = self._shown.get(token)
        records = []
        if shown is not None:
            records = [record for sighting, record in shown.values() if sighting > ticket]
        held = self._by_token.get(token)
        if held is None:
            return len(records), [], records
        return len(records), [*islice(held, _MOST_SOUGHT)], [*records, *held.values()]

    def _seen(self, event: PendingEvent, token: bytes, sighting: int) -> None:
        """A state contains the event's record: leave that entity, and all after the last one."""
        # Another thread may have seen it too, or the event may have left.
        if event not in self._by_age:
            return
        record = event.records.pop(token, None)
        if record is None:
            return
        # Before it leaves there: whoever looks meanwhile finds it in one of both.
        self._shown.setdefault(token, {})[event] = (sighting, record)
        self._leaving.append((sighting, token, event))
        self._forget(event, token)
        if not event.records:
            self._leave(event, "seen")

    def _drop_shown(self) -> None:
        """Forget what all exchanges under way must have seen."""
        if not self._leaving:
            return
        oldest = self._oldest_ticket()
        for _ in range(_MOST_DROPPED):
            if not self._leaving or self._leaving[0][0] > oldest:
                return
            self._drop_first_shown()

    def _drop_first_shown(self) -> None:
        _, token, event = self._leaving.popleft()
        events = self._shown[token]
        del events[event]
        if not events:
            del self._shown[token]

    def _drop_old(self) -> None:
        now_s = self._clock.monotonic_s()
        for _ in range(_MOST_DROPPED):
            event = next(iter(self._ending), None)
            if event is None or event.ends_s > now_s:
                return
            self._leave(event, "timed out")

    def _leave(self, event: PendingEvent, why: str) -> None:
        if event not in self._by_age:
            return
        del self._by_age[event]
        self._ending.pop(event, None)
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
