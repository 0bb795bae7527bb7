"""The system clock, as the rest of the house sees it."""

from __future__ import annotations

import time

from freshscore.config.clock import Clock, SystemClock, readable


def test_system_clock_is_a_clock_in_the_promised_units() -> None:
    clock: Clock = SystemClock()
    before_ms = time.time() * 1000
    now_ms = clock.now_ms()
    assert isinstance(now_ms, int)
    assert before_ms - 1 <= now_ms <= time.time() * 1000


def test_monotonic_time_never_steps_back() -> None:
    clock = SystemClock()
    seen = [clock.monotonic_s() for _ in range(1000)]
    assert seen == sorted(seen)


def test_instants_are_written_for_people() -> None:
    assert readable(1_772_366_400_007) == "2026-03-01 12:00:00.007 UTC"
    assert readable(10**20) == f"{10**20} ms"
