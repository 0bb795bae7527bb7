"""Shapes of traffic: how often, when and with what content payments are scored again.

A shape is a set of shares and delays; `preset` has the named ones.

No share of re-scored payments has been published. The preset "reuse" takes the assumption under
which the re-use of scores was measured for this project: 35 % of payments are scored again 1 to 3
times (half of these within 5 s, as clients repeat; 30 % within a minute, as gateways do; 20 %
within 30 minutes, as review queues do), 5 % are tried again under a new payment id, and a few
bursts of card testing run across. The rest follows published facts:

- 5 to 10 % of card payments are declined, 80 to 90 % of failures are soft and tried again; the
  schemes allow 15 to 20 attempts in 30 days (Visa), 10 declines a day (Mastercard);
- gateways treat repetitions within 30 s to 5 min as the same payment;
- one attacked merchant saw about 23 authorisations a second, each often with another card;
- one payment may be scored before authentication, and before and after authorisation;
- most alerts are confirmed within a week, chargebacks come in 30 to 90 days, some after 120.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from freshscore.config.errors import SettingsError
from freshscore.simulations.generator_attacks import BurstShape

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
DAY_MS: Final = 24 * 60 * MINUTE_MS
PRESETS: Final = ("burst", "none", "reuse", "stages")

Int64s = npt.NDArray[np.int64]


class TouchKind(enum.IntEnum):
    """What happens to a payment at one instant; kinds up to REVIEW are scores."""

    FIRST = 0
    STAGE = 1
    CLIENT_RETRY = 2
    GATEWAY_RETRY = 3
    REVIEW = 4
    OBSERVE = 5
    DECLINED_FACT = 6
    FRAUD_FACT = 7


@dataclass(frozen=True)
class Delay:
    """One part of a mixture: with probability `share`, uniform from low_ms to high_ms."""

    share: float
    low_ms: int
    high_ms: int

    def __post_init__(self) -> None:
        _check_share("share", self.share)
        _check_range("low_ms to high_ms", (self.low_ms, self.high_ms))


@dataclass(frozen=True)
class Rescore(Delay):
    """A delay after the first score, and who asks again then."""

    kind: TouchKind


@dataclass(frozen=True)
class Stage:
    """One of the stages at which a payment is scored.

    share: of the payments that reached the stage before. after_ms: lowest and highest delay since
    then. adds: fields and entities that are known from this stage on. amount_changed_share: of the
    payments whose amount is another from this stage on, by a factor within amount_factor.
    """

    name: str
    share: float = 1.0
    after_ms: tuple[int, int] = (0, 0)
    adds: tuple[str, ...] = ()
    amount_changed_share: float = 0.0
    amount_factor: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        _check_share("share", self.share)
        _check_share("amount_changed_share", self.amount_changed_share)
        _check_range("after_ms", self.after_ms)
        _check_range("amount_factor", self.amount_factor)


@dataclass(frozen=True)
class Shape:
    """How traffic runs; shares are of payments, pairs are the lowest and highest value.

    rescored_share, rescores, rescore_delays: scores of the same payment again.
    declined_share, retried_share (of the declined), retries, retry_delays: the same purchase as a
    new payment. declined_known_ms: after the score, when the fact `declined` becomes known; None
    for no such fact.
    event_lag_ms, event_jitter_ms: from a payment to its event in the aggregates; a jitter that
    exceeds the gaps between payments reorders events.
    late_share, late_ms: events with another lag than that. duplicate_share, duplicate_ms: events
    delivered twice, the second so much later.
    stages, observed_stage: stages in order, and the index of that whose content the event has.
    bursts, burst: card testing. label_delays: from a fraud to the fact.
    """

    name: str
    rescored_share: float = 0.0
    rescores: tuple[int, int] = (1, 1)
    rescore_delays: tuple[Rescore, ...] = ()
    declined_share: float = 0.0
    retried_share: float = 0.0
    retries: tuple[int, int] = (1, 1)
    retry_delays: tuple[Delay, ...] = ()
    declined_known_ms: int | None = None
    event_lag_ms: int = SECOND_MS
    event_jitter_ms: int = 0
    late_share: float = 0.0
    late_ms: tuple[int, int] = (MINUTE_MS, 60 * MINUTE_MS)
    duplicate_share: float = 0.0
    duplicate_ms: tuple[int, int] = (0, MINUTE_MS)
    stages: tuple[Stage, ...] = field(default_factory=lambda: (Stage("authorisation"),))
    observed_stage: int = 0
    bursts: int = 0
    burst: BurstShape = field(default_factory=BurstShape)
    label_delays: tuple[Delay, ...] = field(
        default_factory=lambda: (Delay(1.0, 7 * DAY_MS, 7 * DAY_MS),)
    )

    def __post_init__(self) -> None:
        for name in (
            "rescored_share",
            "declined_share",
            "retried_share",
            "late_share",
            "duplicate_share",
        ):
            _check_share(name, getattr(self, name))
        for name in ("rescores", "retries", "late_ms", "duplicate_ms"):
            _check_range(name, getattr(self, name))
        for name, needed in (
            ("rescore_delays", self.rescored_share > 0),
            ("retry_delays", self.declined_share * self.retried_share > 0),
            ("label_delays", True),
        ):
            total = sum(delay.share for delay in getattr(self, name))
            if needed and abs(total - 1) > 1e-9:
                raise SettingsError(f"the shares of {name} sum to {total:g}; they must sum to 1")
        for name in ("event_lag_ms", "event_jitter_ms", "bursts"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        self._check_stages()

    def hidden(self, stage: int) -> tuple[str, ...]:
        """Fields and entities that a payment does not have yet at `stage`, an index of stages."""
        return tuple(name for later in self.stages[stage + 1 :] for name in later.adds)

    def _check_stages(self) -> None:
        if not 0 <= self.observed_stage < len(self.stages):
            raise SettingsError(
                f"observed_stage is {self.observed_stage}; it must be 0 to {len(self.stages) - 1}"
            )
        # Every attempt is an event, with the content that the file has.
        for stage in self.stages[: self.observed_stage + 1]:
            if stage.share < 1 or stage.amount_changed_share > 0:
                raise SettingsError(
                    f"stage {stage.name!r} is not after the observed one: every payment reaches"
                    " it, and with its own amount"
                )


def delays_ms(mixture: tuple[Delay, ...], size: int, rng: np.random.Generator) -> Int64s:
    """(size,) delays drawn from `mixture`, ms."""
    return drawn_delays(mixture, size, rng)[1]


def drawn_delays(
    mixture: tuple[Delay, ...], size: int, rng: np.random.Generator
) -> tuple[Int64s, Int64s]:
    """(size,) parts of `mixture` by index, and (size,) delays drawn from them, ms."""
    upto = np.cumsum([delay.share for delay in mixture])
    part = np.minimum(np.searchsorted(upto, rng.random(size), side="right"), len(mixture) - 1)
    low = np.array([delay.low_ms for delay in mixture])[part]
    high = np.array([delay.high_ms for delay in mixture])[part]
    return part, rng.integers(low, high + 1)


def confirmed_fraud_delays() -> tuple[Delay, ...]:
    """Label delays as published: alerts confirmed within a week, chargebacks much later."""
    return (
        Delay(0.60, 60 * MINUTE_MS, 7 * DAY_MS),
        Delay(0.35, 30 * DAY_MS, 90 * DAY_MS),
        Delay(0.05, 90 * DAY_MS, 150 * DAY_MS),
    )


def preset(name: str, event_lag_ms: int = SECOND_MS) -> Shape:
    """The shape called `name`, one of PRESETS; change parts of it with dataclasses.replace.

    none: one score and one event a payment. reuse: see the module. burst: the same with more and
    longer card testing. stages: three stages a payment and nothing else.
    """
    if name == "none":
        return Shape(name, event_lag_ms=event_lag_ms)
    if name == "stages":
        return Shape(name, event_lag_ms=event_lag_ms, stages=_card_stages(), observed_stage=1)
    if name not in PRESETS:
        raise SettingsError(f"no shape is called {name!r}; known are {', '.join(PRESETS)}")
    return Shape(
        name,
        rescored_share=0.35,
        rescores=(1, 3),
        rescore_delays=_reuse_delays(),
        # 6.25 % declined, of which 80 % try again: 5 % of payments.
        declined_share=0.0625,
        retried_share=0.8,
        retry_delays=_retry_delays(),
        event_lag_ms=event_lag_ms,
        bursts=20 if name == "burst" else 3,
        burst=BurstShape(duration_ms=(MINUTE_MS if name == "burst" else 20 * SECOND_MS)),
    )


def _reuse_delays() -> tuple[Rescore, ...]:
    return (
        # Below 200 ms nobody has noticed yet that an answer is missing.
        Rescore(0.5, 200, 5 * SECOND_MS, TouchKind.CLIENT_RETRY),
        Rescore(0.3, 5 * SECOND_MS, MINUTE_MS, TouchKind.GATEWAY_RETRY),
        Rescore(0.2, MINUTE_MS, 30 * MINUTE_MS, TouchKind.REVIEW),
    )


def _retry_delays() -> tuple[Delay, ...]:
    # A cardholder tries again at once, or after having looked for money or another card.
    return (
        Delay(0.5, 2 * SECOND_MS, MINUTE_MS),
        Delay(0.5, MINUTE_MS, 30 * MINUTE_MS),
    )


def _card_stages() -> tuple[Stage, ...]:
    return (
        Stage("pre-authentication"),
        # The authentication brings the device's fingerprint.
        Stage("authorisation", after_ms=(2 * SECOND_MS, 90 * SECOND_MS), adds=("device",)),
        # Tips and partial deliveries.
        Stage(
            "capture",
            share=0.9,
            after_ms=(SECOND_MS, 25 * MINUTE_MS),
            amount_changed_share=0.1,
            amount_factor=(0.5, 1.2),
        ),
    )


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise SettingsError(f"{name} is {share}; it must be 0 to 1")


def _check_range(name: str, pair: tuple[float, float]) -> None:
    if not 0 <= pair[0] <= pair[1]:
        raise SettingsError(f"{name} is {pair[0]} to {pair[1]}; it must be rising, from 0 on")
