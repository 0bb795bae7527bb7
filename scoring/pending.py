"""Read your own writes: what this scorer observed, until a state that was read contains it.

An event that was handed to Kafka comes back through Redis milliseconds later. Until then its
records stand here, and are united by identity with every state of its entities that is read, so
overlap is harmless. A record leaves when the state that was read contains it, when the broker's
stamp shows that it will be refused, when it could not be sent, or at its limit, which is counted.
Rule: for entities of which nothing is pending this costs one look into an empty dict.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from freshscore.config.clock import Clock

# What a record's identity takes at its beginning.
_IDENTITY_BYTES: Final = 8
COUNTED: Final = ("sent", "seen", "refused", "not sent", "timed out", "no room")


@dataclass(eq=False, slots=True)
class PendingEvent:
    """One event or fact that Redis has not shown yet.

    records: of each of its entities, by token, the record that its state will contain.
    ends_s: when it is given up, on the monotonic clock.
    """

    records: dict[bytes, bytes]
    ends_s: float
    ended: bool = field(default=False)


class PendingEvents:
    """What is on its way; bounded in number and in time, and safe in many threads."""

    def __init__(self, most: int, pending_s: float, clock: Clock) -> None:
        self._most = most
        self._pending_s = pending_s
        self._clock = clock
        self._lock = threading.Lock()
        self._by_token: dict[bytes, list[PendingEvent]] = {}
        # By age, for all live equally long; those that have left are dropped when they get old.
        self._by_age: deque[PendingEvent] = deque()
        self._n = 0
        self._counts = dict.fromkeys(COUNTED, 0)

    def __len__(self) -> int:
        return self._n

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
            while self._n >= self._most:
                self._leave(self._by_age.popleft(), "no room")
            if len(self._by_age) > 2 * self._most:
                # Most have been seen long before they are old.
                self._by_age = deque(one for one in self._by_age if not one.ended)
            self._n += 1
            self._by_age.append(event)
            for token in records:
                self._by_token.setdefault(token, []).append(event)
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
            found = list(states)
            identities: dict[bytes, None] = {}
            for e, token in enumerate(tokens):
                for event in list(self._by_token.get(token, ())):
                    records = event.records[token]
                    state = states[e]
                    if state is not None and records in state:
                        self._seen(event, token)
                        continue
                    # A state with a part of a record at its end is damaged, and stays so.
                    found[e] = (found[e] or b"") + records
                    identities[records[:_IDENTITY_BYTES]] = None
            return found, tuple(identities)

    def _seen(self, event: PendingEvent, token: bytes) -> None:
        """A state contains the event's record: leave that entity, and all after the last one."""
        self._forget(event, token)
        del event.records[token]
        if not event.records:
            self._leave(event, "seen")

    def _drop_old(self) -> None:
        now_s = self._clock.monotonic_s()
        while self._by_age and (self._by_age[0].ended or self._by_age[0].ends_s <= now_s):
            self._leave(self._by_age.popleft(), "timed out")

    def _leave(self, event: PendingEvent, why: str) -> None:
        if event.ended:
            return
        event.ended = True
        self._n -= 1
        self._counts[why] += 1
        for token in event.records:
            self._forget(event, token)

    def _forget(self, event: PendingEvent, token: bytes) -> None:
        events = self._by_token[token]
        events.remove(event)
        if not events:
            del self._by_token[token]
