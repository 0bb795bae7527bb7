"""With what a payment is made: device, ip and email.

Not from the Handbook, and no published figures are known: plain assumptions, so that features over
these entities have something to count.
Each card has one or two devices of its own and one email; two cards of one household may share an
email, and now and then pay with each other's device.
The home ip changes every week; away from home, payments come from a small pool of addresses that
many cards share, as mobile networks have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SECOND_DEVICE_CARDS = 0.4  # cards with a second device,
SECOND_DEVICE_PAYMENTS = 0.3  # and the share of their payments made with it
PARTNER_DEVICE_PAYMENTS = 0.02
SHARED_EMAIL_HOUSEHOLDS = 0.1
AWAY_PAYMENTS = 0.3
CARDS_PER_AWAY_IP = 20
_DAYS_PER_HOME_IP = 7

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Households:
    """Which cards have a second device and which share an email; one element a card.

    home_ips, away_ips: how many addresses of each sort there are; the away ones follow the others.
    """

    second_device: Bools
    email: Int64s
    home_ips_per_card: int
    away_ips: int

    @property
    def cards(self) -> int:
        """Number of cards."""
        return len(self.email)

    @property
    def devices(self) -> int:
        """Devices are numbered below this; so are ips and emails below theirs."""
        return 2 * self.cards

    @property
    def ips(self) -> int:
        """Addresses of both sorts."""
        return self.cards * self.home_ips_per_card + self.away_ips


def households(cards: int, days: int, rng: np.random.Generator) -> Households:
    """Draw what the cards are used with for `days` days; cards 2k and 2k + 1 are a household."""
    card = np.arange(cards)
    shares = np.repeat(rng.random((cards + 1) // 2) < SHARED_EMAIL_HOUSEHOLDS, 2)[:cards]
    return Households(
        second_device=rng.random(cards) < SECOND_DEVICE_CARDS,
        email=np.where(shares, card - card % 2, card),
        home_ips_per_card=-(-days // _DAYS_PER_HOME_IP),
        away_ips=-(-cards // CARDS_PER_AWAY_IP),
    )


def devices_of(
    card: Int64s, day: int, homes: Households, rng: np.random.Generator
) -> tuple[Int64s, Int64s, Int64s]:
    """(device, ip, email) of the payments that `card` (payments,) makes on `day`."""
    payments = len(card)
    partner = np.minimum(card ^ 1, homes.cards - 1)
    owner = np.where(rng.random(payments) < PARTNER_DEVICE_PAYMENTS, partner, card)
    second = homes.second_device[owner] & (rng.random(payments) < SECOND_DEVICE_PAYMENTS)
    home_ip = card * homes.home_ips_per_card + day // _DAYS_PER_HOME_IP
    away_ip = homes.cards * homes.home_ips_per_card + rng.integers(0, homes.away_ips, payments)
    ip = np.where(rng.random(payments) < AWAY_PAYMENTS, away_ip, home_ip)
    return 2 * owner + second, ip, homes.email[card]
