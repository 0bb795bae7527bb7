"""What the tests of the journal stand on: a log that answers when it is told to, and messages."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freshscore.config.errors import Unavailable
from freshscore.invalidation.delivery import Delivered
from freshscore.invalidation.journal import Journal
from freshscore.invalidation.journal_limits import JournalLimits
from freshscore.invalidation.journal_records import Message
from freshscore.invalidation.journal_sending import JournalSender
from freshscore.simulations.clock import VirtualClock

KEY_ID = "0123abcd"
NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
# Where everything comes to stand.
STOOD = Delivered("transactions", 0, 0, NOW_MS)
ROOMY = JournalLimits(
    max_bytes=1 << 20,
    fsync_s=1.0,
    most_age_ms=HOUR_MS,
    most_told=100_000,
    in_flight_bytes=1 << 22,
    send_per_s=5_000,
)


@dataclass
class HeldLog:
    """Takes messages where it is there, and acknowledges them when the test says so."""

    is_there: bool = True
    sent: list[bytes] = field(default_factory=list)
    held: list[tuple[bytes, Callable[[Delivered | None], None]]] = field(default_factory=list)
    reached: Counter[bytes] = field(default_factory=Counter)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        event_ms: int | None = None,
        done: Callable[[Delivered | None], None] | None = None,
    ) -> None:
        if not self.is_there:
            raise Unavailable("Kafka is away")
        assert done is not None
        assert topic == "transactions"
        self.sent.append(value)
        self.held.append((value, done))

    def acknowledge(self, *places: int) -> None:
        """The messages at these places of `held` are in the log; all where none is named."""
        self._tell(places or range(len(self.held)), STOOD)

    def refuse(self, *places: int) -> None:
        """They never will be."""
        self._tell(places or range(len(self.held)), None)

    def flush(self, timeout_s: float) -> None:
        """Nobody waits for it."""

    def close(self, timeout_s: float) -> None:
        """Nothing is left."""

    def _tell(self, places: Any, stood: Delivered | None) -> None:
        chosen = [self.held[place] for place in places]
        self.held = [one for one in self.held if one not in chosen]
        for value, done in chosen:
            if stood is not None:
                self.reached[value] += 1
            done(stood)


class World:
    """A journal with its sender, driven step by step on a virtual clock."""

    def __init__(
        self,
        parent: Path,
        limits: JournalLimits = ROOMY,
        key_id: str = KEY_ID,
        now_ms: int = NOW_MS,
    ) -> None:
        self.parent = parent
        self.clock = VirtualClock(now_ms)
        self.log = HeldLog()
        self.journal = Journal(parent, key_id, limits, self.clock)
        self.sender = JournalSender(self.journal, self.log, self.clock)

    def append(self, value: bytes, event_ms: int | None = None, **told: Any) -> None:
        self.journal.append("transactions", b"key", value, event_ms, **told)

    def step(self, passed_s: float = 10.0) -> None:
        """Some time later."""
        self.clock.move_to(self.clock.now_ms() + round(1000 * passed_s))
        self.sender.step()

    def sent_and_acknowledged(self) -> list[bytes]:
        """What the log gets until nothing is left."""
        before = len(self.log.sent)
        for _ in range(200):
            self.step()
            if not self.log.held and self.sender.is_done:
                return self.log.sent[before:]
            self.log.acknowledge()
        raise AssertionError("the journal is never done")

    def die(self) -> None:
        """As a killed process does: its locks end, and nothing else happens."""
        for folder in (self.journal.folder, *self.sender._others):
            folder.release()

    def close(self) -> None:
        self.sender.close()
        self.journal.close()

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.parent.rglob("*") if path.is_file())


def some_message(chance: random.Random) -> Message:
    """Any bytes, so also such as look like the journal's own."""
    return Message(
        "transactions",
        chance.choice([None, b"", chance.randbytes(22)]),
        chance.choice([b"", b"\xff\xf5fs", b"\xff\xf5fs\x20\0\0\0"]) * chance.randrange(3)
        + chance.randbytes(chance.choice([0, 1, 40, 400])),
        chance.choice([None, 0, NOW_MS, -5]),
    )
