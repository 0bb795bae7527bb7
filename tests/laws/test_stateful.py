"""Laws 1, 2, 3 and 8 as a machine: hypothesis chooses the steps, the plain oracle knows the answer.

Unlike the campaigns it compares after every step and shrinks what fails to a few steps; and it uses
the slow oracle, so its worlds stay small. Instants are multiples of half a second and windows of
seconds, so that borders are met all the time.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from freshscore.config.errors import AsOfTooOld, UnknownTransaction
from freshscore.features.transaction import KINDS, Transaction
from freshscore.scoring.serving import ServableModel
from tests.laws.damage import prolong_memos, widen_boxes
from tests.laws.law_models import booster_model, callable_model
from tests.laws.law_specifications import Scaled
from tests.laws.records import different_bits
from tests.laws.traffic import changed
from tests.laws.worlds import MONDAY_MS, Limits, World, versions
from tests.simulations.stories import everything

HORIZON_MS = 20_000
STEP_MS = 500
FACTS = ("fraud", "declined")
payments = Bundle("payments")
steps = st.integers(0, 6).map(lambda n: n * STEP_MS)
amounts = st.sampled_from([0, 1, 100, 2_500, 2**40])


@functools.cache
def scaled() -> Scaled:
    """Every function, condition, kind of window and feature at once."""
    return Scaled(everything(), 400, STEP_MS, HORIZON_MS)


@functools.cache
def model_of(kind: str) -> ServableModel:
    """The same for every example."""
    return booster_model(scaled(), 3) if kind == "walked" else callable_model(scaled())


class Machine(RuleBasedStateMachine):
    """A scorer and the plain oracle, told the same."""

    kind = "walked"

    @initialize(
        cache_bytes=st.sampled_from([1 << 13, 1 << 20]),
        max_steps=st.sampled_from([1, 3, 50]),
        probe_share=st.sampled_from([0.0, 1.0]),
    )
    def open(self, cache_bytes: int, max_steps: int, probe_share: float) -> None:
        limits = Limits(
            horizon_ms=HORIZON_MS,
            skew_ms=1_000,
            cache_bytes=cache_bytes,
            max_steps=max_steps,
            probe_share=probe_share,
            arena_bytes=1 << 20,
            max_entities=1_000,
        )
        self.world = World(scaled().specification, model_of(self.kind), limits)
        self.oracle = self.world.plain_oracle()
        self.clock_ms = MONDAY_MS
        self.n = 0
        self.first: dict[str, Transaction] = {}

    @rule(
        target=payments,
        ahead=steps,
        card=st.sampled_from("ab"),
        merchant=st.sampled_from(["x", "y", None]),
        device=st.sampled_from(["d", None]),
        amount=amounts,
        kind=st.sampled_from(KINDS),
        channel=st.sampled_from(["web", "app", "other", None]),
        flags=st.dictionaries(st.sampled_from(FACTS), st.booleans(), max_size=2),
        place=st.sampled_from([None, (50.0, 4.0), (-33.9, 151.2)]),
    )
    def pay(
        self,
        ahead: int,
        card: str,
        merchant: str | None,
        device: str | None,
        amount: int,
        kind: str,
        channel: str | None,
        flags: dict[str, bool],
        place: tuple[float, float] | None,
    ) -> Transaction:
        self.clock_ms += ahead
        self.n += 1
        entities = {"card": card, "merchant": merchant, "device": device}
        return Transaction(
            f"t{self.n}",
            self.clock_ms,
            0 if kind == "verification" else amount,
            "EUR",
            {name: which for name, which in entities.items() if which is not None},
            kind=kind,
            fields={"channel": channel, "risk": 1.5},
            location=place,
            flags=flags,
        )

    @rule(target=payments, payment=payments, amount=amounts, back=steps)
    def with_other_content(self, payment: Transaction, amount: int, back: int) -> Any:
        if payment.kind == "verification" or amount == payment.amount_minor:
            return multiple()
        return changed(payment, amount_minor=amount, time=payment.time - back)

    @rule(payment=payments)
    def observe(self, payment: Transaction) -> None:
        world = self.world
        before = dict(world.feed.counts)
        world.scorer.observe(payment)
        if world.feed.counts.get("beyond reach") == before.get("beyond reach"):
            self.oracle.observe(payment)
            self.first.setdefault(payment.transaction_id, payment)

    @rule(
        payment=payments,
        fact=st.sampled_from(FACTS),
        value=st.booleans(),
        later=steps,
        told=st.booleans(),
    )
    def label(self, payment: Transaction, fact: str, value: bool, later: int, told: bool) -> None:
        known_at = payment.time + later
        name = payment.transaction_id
        arguments: dict[str, Any] = {"known_at": known_at, fact: value}
        if told:
            arguments |= {"entities": payment.entities, "time": payment.time}
            about = payment
        else:
            about = self.first.get(name, payment)
        try:
            self.world.scorer.label(name, **arguments)
        except UnknownTransaction:
            assert name not in self.first
            return
        self.oracle.label(name, fact, value, known_at, known_at, about.time)

    @rule(payment=payments, later=steps, times=st.integers(1, 3))
    def score(self, payment: Transaction, later: int, times: int) -> None:
        for _ in range(times):
            as_of = max(payment.time, self.clock_ms) + later
            self.check(payment, as_of)

    @rule(payment=payments, later=steps)
    def score_at_its_own_time(self, payment: Transaction, later: int) -> None:
        self.check(payment, payment.time + later)

    @rule(payment=payments)
    def score_now(self, payment: Transaction) -> None:
        self.check(payment, None)

    def check(self, payment: Transaction, as_of: int | None) -> None:
        """The answer, its features, and the score at later instants before `valid_until`."""
        world = self.world
        newest = world.store.newest_ms
        at = max(payment.time, newest) if as_of is None else as_of
        is_too_old = newest > 0 and min(at, payment.time) < newest - HORIZON_MS
        try:
            result = world.scorer.score(payment, as_of=as_of)
        except AsOfTooOld:
            assert is_too_old
            return
        assert not is_too_old
        assert result.as_of == at
        for instant in sorted({at, result.valid_until - 1, (at + result.valid_until) // 2}):
            vector = np.array([self.oracle.features(payment, instant, world.model.codes)])
            assert not different_bits(world.features(payment, instant)[None], vector).any()
            assert result.score == world.model.predict(vector)[0]

    @invariant()
    def probes_agree(self) -> None:
        if hasattr(self, "world"):
            assert self.world.scorer.stats()["mismatches"] == 0


class CallableMachine(Machine):
    """The same with a callable."""

    kind = "callable"


class WideBoxes(Machine):
    """Boxes that hold for everything."""

    def check(self, payment: Transaction, as_of: int | None) -> None:
        widen_boxes(self.world)
        super().check(payment, as_of)


class LongMemos(CallableMachine):
    """Memos that are valid for a second too long."""

    def check(self, payment: Transaction, as_of: int | None) -> None:
        prolong_memos(self.world, 1_000)
        super().check(payment, as_of)


SETTINGS = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("machine", [Machine, CallableMachine])
def test_whatever_hypothesis_does_every_answer_is_right(machine: type[Machine]) -> None:
    run_state_machine_as_test(machine, settings=SETTINGS)


@pytest.mark.soak
@pytest.mark.parametrize("machine", [Machine, CallableMachine])
@pytest.mark.parametrize("chunk", range(20))
def test_whatever_hypothesis_does_for_long_every_answer_is_right(
    machine: type[Machine], chunk: int
) -> None:
    run_state_machine_as_test(
        machine, settings=settings(SETTINGS, max_examples=500, stateful_step_count=80)
    )


@pytest.mark.parametrize("machine", [WideBoxes, LongMemos])
def test_canary_the_machine_finds_a_broken_cache(machine: type[Machine]) -> None:
    # Found is enough: shrinking what is broken on purpose takes minutes.
    only_find = settings(
        SETTINGS,
        max_examples=1_000,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        database=None,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=only_find)


def test_reading_moves_no_version() -> None:
    machine = Machine()
    machine.open(1 << 20, 3, 0.0)
    payment = Transaction("t", MONDAY_MS, 100, "EUR", {"card": "a", "merchant": "x"})
    machine.observe(payment)
    before = versions(machine.world.store)
    for later in range(0, 60_000, 1_500):
        machine.check(payment, payment.time + later)
    assert versions(machine.world.store) == before
