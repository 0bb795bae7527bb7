"""The outbox: nobody waits, what is lost is counted, and what is kept goes out in its order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from freshscore.config.errors import Unavailable
from freshscore.scoring.outbox import Outbox, outbox_counts

_LIMIT_S = 30.0


class _Log:
    """Takes what it is given, while it is there."""

    def __init__(self) -> None:
        self.is_there = True
        self.taken: list[int] = []
        self.refused = threading.Event()
        # Whom it has not told yet; None where it tells at once.
        self.held: list[Callable[[bool], None]] | None = None

    def send(self, one: int, told: Callable[[bool], None]) -> None:
        if not self.is_there:
            self.refused.set()
            raise Unavailable("the log is away")
        if one < 0:
            raise ValueError("no message")
        self.taken.append(one)
        if self.held is None:
            told(True)
        else:
            self.held.append(told)


@contextmanager
def outbox_to(log: _Log, most: int = 100, *, keeps: bool) -> Iterator[Outbox[int]]:
    box: Outbox[int] = Outbox("messages", log.send, most, keeps=keeps)
    yield box
    box.close(_LIMIT_S)


@pytest.mark.parametrize("keeps", [True, False])
def test_what_is_handed_over_goes_out_in_its_order(keeps: bool) -> None:
    log = _Log()
    with outbox_to(log, keeps=keeps) as box:
        for number in range(50):
            box.add(number)
        assert box.flush(_LIMIT_S)
        assert outbox_counts(box) == {"sent": 50, "lost": 0, "waiting": 0}
    assert log.taken == [*range(50)]


def test_what_is_kept_waits_for_the_log_up_to_the_limit() -> None:
    log = _Log()
    log.is_there = False
    with outbox_to(log, 20, keeps=True) as box:
        box.add(0)
        assert log.refused.wait(_LIMIT_S)
        for number in range(1, 40):
            box.add(number)
        assert not box.flush(0.05)
        counts = outbox_counts(box)
        # One may be on its way while the others wait.
        assert counts["sent"] == 0
        assert counts["waiting"] in (20, 21)
        assert counts["lost"] == 40 - counts["waiting"]
        log.is_there = True
        assert box.flush(_LIMIT_S)
        assert outbox_counts(box)["lost"] == counts["lost"]
    assert log.taken == [*range(counts["waiting"])]


def test_what_is_not_kept_is_lost_and_counted() -> None:
    log = _Log()
    log.is_there = False
    with outbox_to(log, keeps=False) as box:
        for number in range(5):
            box.add(number)
        assert box.flush(_LIMIT_S)
        assert outbox_counts(box) == {"sent": 0, "lost": 5, "waiting": 0}


def test_what_cannot_be_a_message_is_lost_alone() -> None:
    log = _Log()
    with outbox_to(log, keeps=True) as box:
        for number in (1, -1, 2):
            box.add(number)
        assert box.flush(_LIMIT_S)
        assert outbox_counts(box) == {"sent": 2, "lost": 1, "waiting": 0}
    assert log.taken == [1, 2]


def test_closing_waits_for_nobody_who_is_away() -> None:
    log = _Log()
    log.is_there = False
    box: Outbox[int] = Outbox("messages", log.send, 10, keeps=True)
    for number in range(3):
        box.add(number)
    assert log.refused.wait(_LIMIT_S)
    box.close(_LIMIT_S)
    box.add(4)
    assert outbox_counts(box) == {"sent": 0, "lost": 4, "waiting": 0}


def test_what_the_log_has_not_acknowledged_takes_room_and_is_waited_for() -> None:
    """A client's own buffer has no bound."""
    log = _Log()
    log.held = []
    with outbox_to(log, 10, keeps=True) as box:
        for number in range(15):
            box.add(number)
        assert outbox_counts(box)["lost"] == 5
        assert not box.flush(0.2)
        assert log.taken == [*range(10)]
        assert outbox_counts(box) == {"sent": 0, "lost": 5, "waiting": 10}
        for told in log.held[:4]:
            told(True)
        log.held[4](False)
        assert outbox_counts(box) == {"sent": 4, "lost": 6, "waiting": 5}
        late, log.held = log.held[5:], None
        box.add(20)
        for told in late:
            told(True)
        assert box.flush(_LIMIT_S)
        assert outbox_counts(box) == {"sent": 10, "lost": 6, "waiting": 0}
