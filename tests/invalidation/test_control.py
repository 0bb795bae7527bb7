"""Leases and invalidations on a real Redis: who has been told, and who serves nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from freshscore.config.settings import RedisSettings
from freshscore.features.redis_door import Nodes
from freshscore.invalidation.control import (
    COHORT,
    ENTITY,
    EVERYTHING,
    Control,
    Invalidation,
    Renewal,
)
from freshscore.scoring.leases import LeaseKeeper
from tests.servers.fixtures import OwnRedis
from tests.servers.redis_servers import RedisServer

_LEASE_MS = 60_000
_GONE = Invalidation(ENTITY, "00" * 16)


@pytest.fixture
def control(redis_server: RedisServer, namespace: str) -> Iterator[Control]:
    nodes = Nodes.open(RedisSettings(url=redis_server.url))
    yield Control(nodes, namespace)
    nodes.close()


def test_a_renewal_tells_what_came_since_the_last(control: Control) -> None:
    """In order, once each; and the operator sees who has not carried it out."""
    seen = control.renew("a", _LEASE_MS, -1).generation
    assert control.renew("a", _LEASE_MS, seen).told == ()
    number, leases = control.invalidate(_GONE)
    last, _ = control.invalidate(Invalidation(COHORT, "gb card not present"))
    assert (leases, last > number > seen) == (1, True)
    assert control.behind(last) == (1, 1)
    renewal = control.renew("a", _LEASE_MS, seen)
    assert renewal.told == (_GONE, Invalidation(COHORT, "gb card not present"))
    assert control.behind(last) == (1, 1)
    control.renew("a", _LEASE_MS, renewal.generation)
    assert control.behind(last) == (0, 1)


def test_who_has_seen_nothing_gives_up_everything(control: Control) -> None:
    """A new scorer, and one whose Redis was made anew with fewer invalidations than it has seen."""
    for _ in range(3):
        control.invalidate(_GONE)
    assert control.renew("new", _LEASE_MS, -1).told == (Invalidation(EVERYTHING, ""),)
    assert control.renew("old", _LEASE_MS, 99).told == (Invalidation(EVERYTHING, ""),)


def test_what_a_failover_has_lost_is_not_taken_for_what_came_after(
    control: Control, redis_server: RedisServer, namespace: str
) -> None:
    """A replica without the last number gives another one to what it is told then."""
    control.invalidate(_GONE)
    names = [f"{namespace}:{{control}}:{name}" for name in ("generation", "log")]
    with redis_server.client() as client:
        replicated = [client.dump(name) for name in names]
        lost, _ = control.invalidate(_GONE)
        assert control.renew("a", _LEASE_MS, lost).told == ()
        for name, dumped in zip(names, replicated, strict=True):
            client.restore(name, 0, dumped, replace=True)
    number, _ = control.invalidate(_GONE)
    assert number != lost
    assert control.behind(number) == (1, 1)
    renewal = control.renew("a", _LEASE_MS, lost)
    assert renewal == Renewal(number, (Invalidation(EVERYTHING, ""),))
    control.renew("a", _LEASE_MS, renewal.generation)
    assert control.behind(number) == (0, 1)
    # The operator who was told the lost one learns that it did not last.
    assert control.behind(lost) == (1, 1)


def test_what_the_log_no_longer_holds_is_everything(control: Control) -> None:
    seen = control.renew("a", _LEASE_MS, -1).generation
    for _ in range(1_001):
        control.invalidate(_GONE)
    assert control.renew("a", _LEASE_MS, seen).told == (Invalidation(EVERYTHING, ""),)


def test_a_lease_that_ends_or_is_given_back_counts_no_more(control: Control) -> None:
    control.renew("short", 1, -1)
    control.renew("gone", _LEASE_MS, -1)
    control.release("gone")
    number, _ = control.invalidate(_GONE)
    ends = control.behind(number)
    while ends != (0, 0):  # one millisecond, by the server's clock
        ends = control.behind(number)


class _Clock:
    """A monotonic clock that stands."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def monotonic_s(self) -> float:
        return self.at_s

    def now_ms(self) -> int:
        return 0


def test_a_keeper_carries_out_what_it_is_told_before_its_lease_is_longer(control: Control) -> None:
    """And says so at once, so that the operator does not wait for a heartbeat."""
    clock = _Clock()
    carried: list[Invalidation] = []
    until: list[float] = []

    def carry_out(told: Sequence[Invalidation]) -> None:
        carried.extend(told)
        until.append(keeper.until_s)

    keeper = LeaseKeeper(control, "a", 5.0, 0.005, carry_out, clock)
    keeper.start()
    try:
        assert keeper.until_s == 105.0
        assert carried == [Invalidation(EVERYTHING, "")]
        assert until == [0.0]
        clock.at_s = 103.0
        number, _ = control.invalidate(_GONE)
        while control.behind(number) != (0, 1):
            pass
        assert carried[-1] == _GONE
    finally:
        keeper.close()
    assert keeper.until_s == 0.0
    assert control.behind(number) == (0, 0)


def test_without_redis_a_lease_is_not_longer(own_redis: OwnRedis) -> None:
    """It stays as it was, and ends by the clock of the process."""
    server = own_redis()
    nodes = Nodes.open(RedisSettings(url=server.url, timeout_ms=200))
    clock = _Clock()
    keeper = LeaseKeeper(Control(nodes, "fs"), "a", 5.0, 0.005, lambda told: None, clock)
    keeper.start()
    server.kill()
    clock.at_s = 104.0
    missed = keeper.n_missed
    while keeper.n_missed < missed + 2:
        pass
    assert keeper.until_s == 105.0
    keeper.close()
    nodes.close()
