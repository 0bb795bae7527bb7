"""Random traffic: payments of few cards at few merchants, repeated, late, early, in conflict, known
to be fraud afterwards, and scored again and again.

A campaign draws one step at a time; what it has drawn is remembered here, so that later steps can
come back to it.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from freshscore.features.money import MAX_AMOUNT_MINOR
from freshscore.features.transaction import Transaction
from tests.laws.law_specifications import CHANNELS, FACTS, Scaled
from tests.laws.worlds import MONDAY_MS

_KINDS = ("authorisation",) * 6 + ("refund", "verification", "reversal", "payout")
_PLACES = ((50.85, 4.35), (48.2, 16.37), (51.5, 0.12), (60.1, 24.9))


@dataclass
class Paid:
    """A payment that was drawn: its contents so far, and what was known of it."""

    contents: list[Transaction]
    is_observed: bool = False
    has_facts: bool = False

    @property
    def first(self) -> Transaction:
        """What came first under this id."""
        return self.contents[0]


@dataclass
class Traffic:
    """Where a campaign has come to; `chance` is seeded by its maker.

    newest_ms: the newest event time that was accepted. recent: payments to come back to.
    """

    scaled: Scaled
    chance: random.Random
    n_cards: int = 6
    n_merchants: int = 3
    newest_ms: int = MONDAY_MS
    n_payments: int = 0
    recent: deque[Paid] = field(default_factory=lambda: deque(maxlen=150))

    def new(self) -> Paid:
        """A payment that was never seen, at about the newest instant, on the lattice of times."""
        chance, lattice = self.chance, self.scaled.lattice_ms
        self.n_payments += 1
        ahead = chance.expovariate(1 / self.scaled.gap_ms) if chance.random() < 0.8 else 0.0
        behind = chance.randrange(self.scaled.horizon_ms) if chance.random() < 0.1 else 0
        time_ms = self.newest_ms + round(ahead) - behind
        if chance.random() < 0.9:
            time_ms -= time_ms % lattice
        paid = Paid([self._payment(f"p{self.n_payments}", time_ms)])
        self.recent.append(paid)
        return paid

    def again(self) -> Paid | None:
        """A payment that was drawn before, recent ones more often."""
        if not self.recent:
            return None
        back = min(int(self.chance.expovariate(1 / 12)), len(self.recent) - 1)
        return self.recent[-1 - back]

    def other_content(self, paid: Paid) -> Transaction:
        """The same id with another amount, and often more that differs."""
        chance, old = self.chance, paid.first
        other = (old.amount_minor + chance.randrange(1, 9_000)) % (MAX_AMOUNT_MINOR + 1)
        changes: dict[str, Any] = {"amount_minor": other}
        changes["kind"] = "authorisation" if old.kind == "verification" else old.kind
        if chance.random() < 0.3:
            changes["time"] = old.time + chance.choice((-1, 1, 4)) * self.scaled.lattice_ms
        if chance.random() < 0.3:
            changes["entities"] = self._entities()
        if chance.random() < 0.3:
            changes["fields"] = self._fields()
        return changed(old, **changes)

    def instant(self, paid: Transaction) -> int:
        """An `as_of` at or after the payment's own time, mostly near the newest instant."""
        chance = self.chance
        start = max(paid.time, self.newest_ms)
        if chance.random() < 0.2:
            start = paid.time
        ahead = chance.expovariate(1 / (4 * self.scaled.gap_ms)) if chance.random() < 0.5 else 0.0
        instant = start + round(ahead)
        if chance.random() < 0.5:
            # On the lattice, where windows end and begin, or just beside it.
            instant -= instant % self.scaled.lattice_ms
            instant += chance.choice((-1, 0, 0, 1))
        return max(instant, paid.time)

    def fact(self) -> tuple[str, bool]:
        """A fact and its value."""
        declared = self.scaled.specification.facts or FACTS
        return self.chance.choice(declared), self.chance.random() < 0.7

    def _payment(self, name: str, time_ms: int) -> Transaction:
        chance = self.chance
        kind = chance.choice(_KINDS)
        amount = chance.choice((0, 1, 99, 100, 100, 2_500, 2**40, chance.randrange(50_000)))
        currency, base = self.scaled.specification.currency, None
        if kind == "verification":
            amount = 0
        elif chance.random() < 0.1:
            currency, base = "JPY", amount
        flags = {}
        if chance.random() < 0.2:
            flags = {chance.choice(self.scaled.specification.facts): chance.random() < 0.8}
        return Transaction(
            name,
            time_ms,
            amount,
            currency,
            self._entities(),
            kind=kind,
            base_amount_minor=base,
            fields=self._fields(),
            location=chance.choice(_PLACES) if chance.random() < 0.7 else None,
            flags=flags,
        )

    def _entities(self) -> dict[str, str]:
        chance = self.chance
        # Skewed, so that some states are long and some are new.
        card = min(chance.randrange(self.n_cards), chance.randrange(self.n_cards))
        merchant = min(chance.randrange(self.n_merchants), chance.randrange(self.n_merchants))
        named = {
            "card": f"c{card}",
            "merchant": f"m{merchant}",
            "device": f"d{chance.randrange(4)}",
            "ip": f"i{chance.randrange(5)}",
            "email": f"e{card}",
        }
        return {name: which for name, which in named.items() if chance.random() < 0.93}

    def _fields(self) -> dict[str, Any]:
        chance = self.chance
        return {
            "risk": chance.choice((None, 0, 1.5, -2.0, True, chance.random())),
            "channel": chance.choice((*CHANNELS, "unseen", None)),
            "category": chance.choice((*CHANNELS, "unseen", None)),
            "home_distance_km": chance.choice((None, 0.0, chance.random() * 100)),
        }


def changed(transaction: Transaction, **changes: Any) -> Transaction:
    """The same transaction with other values."""
    names = (
        "transaction_id time amount_minor currency entities kind base_amount_minor original_id"
        " fields location flags"
    ).split()
    values = {name: getattr(transaction, name) for name in names} | changes
    if "amount_minor" in changes and values["base_amount_minor"] is not None:
        values["base_amount_minor"] = changes["amount_minor"]
    return Transaction(**values)
