"""The breaker against its own table of states, kept beside it in the plainest form."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from freshscore.config.loading import load_settings
from freshscore.config.secret import jitter
from freshscore.scoring.breaker import Breaker, BreakerLimits

LIMITS = BreakerLimits(max_failures=3, open_s=0.1, max_open_s=0.5)


@dataclass
class Asked:
    """A request that was let through: its number, and what state it began in."""

    number: int
    began_in: int


@dataclass
class Table:
    """The states as the module's docstring has them; `count` changes with each change of state."""

    state: str = "closed"
    failures: int = 0
    open_s: float = 0.0
    # The while: between half of it and all of it.
    since_s: float = 0.0
    trial_ends_s: float = 0.0
    count: int = 0
    under_way: list[Asked] = field(default_factory=list)


class BreakerStates(RuleBasedStateMachine):
    """Requests come, are answered or not, in any order, while time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(LIMITS, jitter(1))
        self.table = Table()
        self.now_s = 100.0

    @rule(wait_s=strategies.sampled_from([0.0, 0.01, 0.04, 0.1, 0.3, 1.0]))
    def time_passes(self, wait_s: float) -> None:
        self.now_s += wait_s

    @rule(limit_s=strategies.sampled_from([0.02, 0.2]))
    def one_asks(self, limit_s: float) -> None:
        table, number = self.table, self.breaker.admit(self.now_s, limit_s)
        open_for_s = self.now_s - table.since_s
        if table.state == "closed":
            assert number is not None
        elif table.state == "open" and open_for_s < 0.5 * table.open_s:
            assert number is None
        elif table.state == "open" and open_for_s >= table.open_s:
            assert number is not None
        elif table.state == "half open":
            # One trial at a time, until it must be over.
            assert (number is not None) == (self.now_s >= table.trial_ends_s)
        if number is None:
            return
        if table.state != "closed":
            table.state = "half open"
            table.count += 1
            table.trial_ends_s = self.now_s + max(limit_s, table.open_s)
        table.under_way.append(Asked(number, table.count))

    @precondition(lambda self: self.table.under_way)
    @rule(which=strategies.integers(0, 10**6), is_answered=strategies.booleans())
    def one_is_over(self, which: int, is_answered: bool) -> None:
        table = self.table
        one = table.under_way.pop(which % len(table.under_way))
        if is_answered:
            self.breaker.succeed(one.number)
        else:
            self.breaker.fail(one.number, self.now_s)
        if one.began_in != table.count:
            return
        if is_answered:
            table.count += table.state != "closed"
            table.state, table.failures, table.open_s = "closed", 0, 0.0
            return
        table.failures += 1
        if table.state == "half open":
            self._opens(min(2 * table.open_s, LIMITS.max_open_s))
        elif table.failures >= LIMITS.max_failures:
            self._opens(LIMITS.open_s)

    def _opens(self, open_s: float) -> None:
        self.table.state, self.table.open_s = "open", open_s
        self.table.since_s = self.now_s
        self.table.count += 1

    @invariant()
    def both_agree(self) -> None:
        assert self.breaker.is_closed == (self.table.state == "closed")
        if self.breaker.is_quiet:
            assert self.breaker.is_closed
            assert self.table.failures == 0


TestBreakerStates = BreakerStates.TestCase
TestBreakerStates.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_forty_that_fail_together_open_it_once_and_for_the_first_while() -> None:
    breaker = Breaker(LIMITS, jitter(1))
    numbers = [breaker.admit(0.0, 0.05) for _ in range(40)]
    for number in numbers:
        assert number is not None
        breaker.fail(number, 0.05)
    assert breaker.n_opened == 1
    assert breaker.admit(0.05 + LIMITS.open_s, 0.05) is not None


def test_two_processes_do_not_come_back_at_once() -> None:
    def first_trial_s(seed: int) -> float:
        breaker, now_s = Breaker(LIMITS, jitter(seed)), 0.0
        for _ in range(LIMITS.max_failures):
            number = breaker.admit(0.0, 0.0)
            assert number is not None
            breaker.fail(number, 0.0)
        while breaker.admit(now_s, 0.0) is None:
            now_s += 0.001
        return now_s

    trials_s = [first_trial_s(seed * 10**9 + 7) for seed in range(20)]
    assert min(trials_s) >= 0.5 * LIMITS.open_s
    assert max(trials_s) <= LIMITS.open_s + 0.001
    assert max(trials_s) - min(trials_s) > 0.2 * LIMITS.open_s


def test_the_pause_doubles_up_to_its_limit() -> None:
    """The limits of the tiny profile, reached: breaker.max_failures, open_ms and max_open_ms."""
    limits = BreakerLimits.of(load_settings("tiny", env={}).breaker)
    breaker, now_s = Breaker(limits, jitter(1)), 0.0
    paused_s = []
    for _ in range(6):
        began_s = now_s
        while (number := breaker.admit(now_s, 0.0)) is None:
            now_s += 0.000_1
        paused_s.append(now_s - began_s)
        breaker.fail(number, now_s)
    # Two failures while it is closed; then the first pause, twice as long, and never above.
    assert paused_s[:2] == [0.0, 0.0]
    for found_s, full_s in zip(paused_s[2:], (0.002, 0.004, 0.005, 0.005), strict=True):
        assert 0.5 * full_s - 0.000_1 <= found_s <= full_s + 0.000_1
    number = breaker.admit(now_s + 1.0, 0.0)
    assert number is not None
    breaker.succeed(number)
    assert breaker.is_closed
    assert breaker.is_quiet
