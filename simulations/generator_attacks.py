"""Card testing: bursts of small authorisations, mostly at one merchant, each on another card.

One burst is a Poisson stream. The default rate is the published one of an attacked merchant, 23
authorisations a second; that attack went on for two days, a burst here lasts for a minute unless
told otherwise.
Most tried cards are unknown (numbers that were enumerated or bought), a few belong to customers.
Amounts are small enough to go unnoticed. What the attempts share besides the merchant (a device, an
ip, an email) is for the caller, who knows which of them its payments have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from freshscore.config.errors import SettingsError

ATTACK_SCENARIO = 4
# What the attempts of a burst can have in common; burst number b shares SHARED[b % 3].
SHARED = ("device", "ip", "email")

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BurstShape:
    """How a burst looks; shares are of its attempts, `amount_minor` the lowest and highest."""

    duration_ms: int = 60_000
    rate_per_s: float = 23.0
    known_card_share: float = 0.1
    other_merchant_share: float = 0.05
    amount_minor: tuple[int, int] = (50, 500)

    def __post_init__(self) -> None:
        if not 1 <= self.duration_ms < 86_400_000:
            raise SettingsError(f"duration_ms is {self.duration_ms}; it must be 1 to 86399999")
        if not 0 < self.rate_per_s <= 100_000:
            raise SettingsError(f"rate_per_s is {self.rate_per_s}; it must be above 0, to 100000")
        for name in ("known_card_share", "other_merchant_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be 0 to 1")
        if not 0 <= self.amount_minor[0] <= self.amount_minor[1] <= 2**40:
            raise SettingsError(f"amount_minor is {self.amount_minor}; it must rise from 0 on")


@dataclass(frozen=True)
class Burst:
    """The attempts of one burst in time order, one element each.

    offset_ms: since the burst's start.
    known_card: whether the card is a customer's.
    other_merchant: whether the attempt is made elsewhere than at the attacked merchant.
    card_choice, merchant_choice: in [0, 1), to pick a known card and another merchant with.
    """

    offset_ms: Int64s
    amount_minor: Int64s
    known_card: Bools
    other_merchant: Bools
    card_choice: Floats
    merchant_choice: Floats

    def __len__(self) -> int:
        return len(self.offset_ms)


def burst(shape: BurstShape, rng: np.random.Generator) -> Burst:
    """Draw one burst."""
    attempts = int(rng.poisson(shape.rate_per_s * shape.duration_ms / 1000))
    low, high = shape.amount_minor
    return Burst(
        offset_ms=np.sort(rng.integers(0, shape.duration_ms, attempts)),
        amount_minor=rng.integers(low, high + 1, attempts),
        known_card=rng.random(attempts) < shape.known_card_share,
        other_merchant=rng.random(attempts) < shape.other_merchant_share,
        card_choice=rng.random(attempts),
        merchant_choice=rng.random(attempts),
    )
