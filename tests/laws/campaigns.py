"""A campaign: thousands of random steps through the Scorer, every answer checked by an oracle.

While it runs, what was applied, asked and answered is written down. At its end the vectorised
oracle (simulations/oracle_vectorised.py, which shares no code with the kernels) evaluates every
request on the set that had been applied by then, at the `as_of` that the answer reports, and
everything is compared bit for bit: features, scores, and scores at later instants before
`valid_until`. So laws 1 to 3 are checked on every answer.
A broken law is a `LawBroken` with the seed and the step; the same seed gives the same campaign.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from freshscore.config.errors import AsOfTooOld, EventRefused
from freshscore.features.transaction import Transaction
from freshscore.scoring.result import Result
from tests.laws.law_models import expected_decision, law_model
from tests.laws.law_specifications import Scaled, mixed, shipped
from tests.laws.records import Records
from tests.laws.traffic import Paid, Traffic
from tests.laws.worlds import HOUR_MS, MINUTE_MS, Limits, World


class LawBroken(AssertionError):
    """What a campaign raises."""


@dataclass(frozen=True)
class Plan:
    """What a campaign is about; `specification` ships under this name, or is "mixed"."""

    seed: int
    specification: str = "mixed"
    model: str = "walked"
    steps: int = 5_000

    def scaled(self) -> Scaled:
        """Its specification."""
        if self.specification == "mixed":
            return mixed(np.random.default_rng(self.seed))
        return shipped(self.specification)

    def limits(self, scaled: Scaled) -> Limits:
        """Random, but out of the way of what a campaign asks for; the cache often overflows."""
        rng = np.random.default_rng([self.seed, 1])
        return Limits(
            horizon_ms=scaled.horizon_ms,
            skew_ms=MINUTE_MS,
            arena_bytes=int(rng.choice([1 << 22, 1 << 25])),
            cache_bytes=int(rng.choice([1 << 14, 1 << 17, 1 << 22])),
            probe_share=float(rng.choice([0.0, 0.3])),
            cap_ms=int(rng.choice([20_000, 5 * MINUTE_MS, 24 * HOUR_MS])),
            max_steps=int(rng.choice([1, 3, 16, 100])),
        )


@dataclass
class Outcome:
    """What a campaign came to."""

    steps: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    absorbed: int = 0


class Campaign:
    """One run; `world` and `records` may be looked at, and damaged, between steps."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.scaled = plan.scaled()
        model = law_model(plan.model, self.scaled, plan.seed)
        self.world = World(self.scaled.specification, model, plan.limits(self.scaled))
        self.traffic = Traffic(self.scaled, random.Random(plan.seed))
        self.records = Records(self.world)
        self.outcome = Outcome()
        spec = self.scaled.specification
        self._looks_back = any(f.entity is not None for f in spec.features)

    def run(self) -> Outcome:
        """All steps, then the checks; raises LawBroken."""
        for _ in range(self.plan.steps):
            self.step()
        self.check()
        return self.outcome

    def step(self) -> None:
        """One random step."""
        self.outcome.steps += 1
        draw = self.traffic.chance.random()
        old = self.traffic.again() if draw >= 0.35 else None
        if old is None:
            self._new()
        elif draw < 0.40:
            self._score(self.traffic.other_content(old))
        elif draw < 0.70:
            self._score(old.contents[-1])
        elif draw < 0.82:
            self._label(old)
        elif draw < 0.96:
            self._observe(old, old.first)
        elif not old.has_facts:
            self._observe(old, self.traffic.other_content(old))

    def check(self) -> None:
        """Compare everything that was written down; raises LawBroken."""
        problem = self.records.problem()
        if problem is None and self.world.scorer.stats()["mismatches"]:
            problem = "a probe found a score that differs"
        if problem is not None:
            raise LawBroken(f"{self.plan}: {problem}")

    def _new(self) -> None:
        chance = self.traffic.chance
        paid = self.traffic.new()
        if chance.random() < 0.5:
            self._score(paid.first)
        if chance.random() < 0.8:
            self._observe(paid, paid.first)
            if chance.random() < 0.5:
                self._score(paid.first)

    def _observe(self, paid: Paid, content: Transaction) -> None:
        arrival = self._arrival(content)
        limits, records = self.world.limits, self.records
        # Law 3: by the message alone.
        is_late = arrival is not None and content.time < arrival - limits.horizon_ms
        is_early = arrival is not None and content.time > arrival + limits.skew_ms
        before = dict(self.world.feed.counts)
        try:
            self.world.scorer.observe(content, arrival=arrival)
        except EventRefused:
            self._expect(is_late or is_early, "an event was refused", content)
            self.outcome.refused["late" if is_late else "early"] += 1
            return
        self._expect(not (is_late or is_early), "an event was taken", content)
        counts = self.world.feed.counts
        (outcome,) = (name for name in counts if counts[name] != before.get(name, 0))
        if outcome == "beyond reach":
            line = self.traffic.newest_ms - self.scaled.specification.held_ms
            self._expect(
                content.time < line - limits.horizon_ms, "an event is beyond reach", content
            )
            return
        expected = records.expected_outcomes(content)
        self._expect(outcome in expected, f"observing is {outcome}, not {expected}", content)
        self.traffic.newest_ms = max(self.traffic.newest_ms, content.time)
        records.apply(content)
        if content not in paid.contents:
            paid.contents.append(content)
        paid.is_observed = True

    def _arrival(self, content: Transaction) -> int | None:
        chance, limits = self.traffic.chance, self.world.limits
        if chance.random() < 0.7:
            return None
        # Borders included: exactly at the horizon, exactly at the skew, and one beyond.
        edge = chance.choice((limits.horizon_ms, -limits.skew_ms))
        if chance.random() < 0.3:
            return content.time + edge + chance.choice((-1, 0, 1))
        return content.time + chance.randrange(-limits.skew_ms, limits.horizon_ms)

    def _label(self, paid: Paid) -> None:
        chance, scorer = self.traffic.chance, self.world.scorer
        newest = self.traffic.newest_ms
        if paid.first.time < newest - self.scaled.specification.held_ms:
            return
        name, value = self.traffic.fact()
        known_at = chance.choice((newest, paid.first.time, newest + chance.randrange(600_000)))
        paid.has_facts = True
        if chance.random() < 0.5 and len(paid.contents) == 1 and paid.is_observed:
            scorer.label(paid.first.transaction_id, known_at=known_at, **cast("Any", {name: value}))
            self.records.label(paid.first, name, value, known_at, known_at)
            return
        sender = known_at - chance.choice((0, 0, 1_000))
        # Every content names its own entities and time, so each is told.
        for content in paid.contents:
            fact = self.scaled.specification.facts.index(name)
            row = self.world.row(content)
            self.world.store.label(row, fact, value, known_at, sender, False)
            self.records.label(content, name, value, sender, known_at)

    def _score(self, payment: Transaction) -> None:
        chance = self.traffic.chance
        as_of = None if chance.random() < 0.5 else self.traffic.instant(payment)
        newest, horizon = self.traffic.newest_ms, self.world.limits.horizon_ms
        store_newest = self.world.store.newest_ms
        at = max(payment.time, store_newest) if as_of is None else as_of
        is_too_old = store_newest > 0 and (
            at < newest - horizon or (self._looks_back and payment.time < newest - horizon)
        )
        try:
            result = self.world.scorer.score(payment, as_of=as_of)
        except AsOfTooOld:
            self._expect(is_too_old, "an instant was refused", payment)
            self.outcome.refused["too old"] += 1
            return
        self._expect(not is_too_old, "an instant was taken that is too old", payment)
        self._expect(result.as_of == at, f"as_of is {result.as_of}, not {at}", payment)
        self._expect(not result.degraded, "the answer is degraded", payment)
        assert result.score is not None  # a served score is a number
        expected = expected_decision(self.world.model, payment.fields, result.score)
        self._expect(result.decision == expected, f"it is not decided {expected}", payment)
        self.outcome.answers[str(result.source)] += 1
        self.records.answered(payment, result)
        if chance.random() < 0.3:
            self._look_ahead(payment, result)

    def _look_ahead(self, payment: Transaction, result: Result) -> None:
        """Law 2: the same score at any instant before valid_until, if nothing happens."""
        if result.valid_until <= result.as_of + 1:
            return
        chance = self.traffic.chance
        last = result.valid_until - 1
        for instant in {last, chance.randrange(result.as_of, last + 1)}:
            self.records.promised(payment, instant, result.score)

    def _expect(self, holds: bool, what: str, payment: Transaction) -> None:
        if not holds:
            raise LawBroken(f"{self.plan}, step {self.outcome.steps}: {what}: {payment}")


def campaign(plan: Plan) -> Outcome:
    """Run one."""
    return Campaign(plan).run()


def damaged_campaign(plan: Plan, damage: Callable[[World], None]) -> None:
    """A campaign in whose world something is broken after every step; for canaries."""
    run = Campaign(plan)
    for _ in range(plan.steps):
        run.step()
        damage(run.world)
    run.check()
