"""What is paid in a simulated world: few cards at few merchants, so that everything meets.

Payments come about now, some late and some early, some beyond what is accepted; a payment is told
again, or with another content; what is known of it afterwards is told with its entities or without.
Rule: whatever is drawn is drawn from the chance that was passed in.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import msgspec

from freshscore.features.transaction import Transaction
from freshscore.simulations.world_chance import Chance

BEGIN_MS: Final = 1_700_000_000_000
_KINDS: Final = ("authorisation",) * 8 + ("refund", "verification")
_RECENT: Final = 200


class Traffic:
    """Draws payments, and remembers the last of them."""

    def __init__(self, chance: Chance, n_cards: int = 8, n_merchants: int = 4) -> None:
        self.chance = chance
        self.n_cards = n_cards
        self.n_merchants = n_merchants
        self.n_payments = 0
        self.recent: deque[Transaction] = deque(maxlen=_RECENT)

    def payment(self, now_ms: int) -> Transaction:
        """A payment that was never seen."""
        chance = self.chance
        self.n_payments += 1
        drawn = chance.random()
        behind_ms = round(chance.expovariate(1 / 300))
        if drawn < 0.06:
            behind_ms = chance.randrange(75_000)
        elif drawn < 0.09:
            behind_ms = -chance.randrange(4_000)
        kind = chance.choice(_KINDS)
        amount = 0 if kind == "verification" else chance.choice((1, 99, 100, 100, 2_500, 40_000))
        found = Transaction(
            f"p{self.n_payments}",
            now_ms - behind_ms,
            amount + (chance.randrange(50) if amount > 100 else 0),
            "EUR",
            self._entities(),
            kind=kind,
            flags={"fraud": True} if chance.random() < 0.03 else {},
        )
        self.recent.append(found)
        return found

    def other_content(self, old: Transaction) -> Transaction:
        """The same payment with another amount, at times at another instant or for others."""
        chance = self.chance
        changes: dict[str, Any] = {
            "amount_minor": old.amount_minor + chance.randrange(1, 900),
            "kind": "authorisation",
        }
        if chance.random() < 0.3:
            changes["time"] = old.time + chance.choice((-500, 1, 700))
        if chance.random() < 0.2:
            changes["entities"] = self._entities()
        names = "transaction_id time amount_minor currency entities kind flags".split()
        return Transaction(**{name: getattr(old, name) for name in names} | changes)

    def again(self) -> Transaction | None:
        """A payment that was drawn before, recent ones more often."""
        if not self.recent:
            return None
        back = min(int(self.chance.expovariate(1 / 10)), len(self.recent) - 1)
        return self.recent[-1 - back]

    def _entities(self) -> dict[str, str]:
        chance = self.chance
        # Skewed, so that some states are long and some are new.
        card = min(chance.randrange(self.n_cards), chance.randrange(self.n_cards))
        merchant = min(chance.randrange(self.n_merchants), chance.randrange(self.n_merchants))
        named = {"card": f"c{card}", "merchant": f"m{merchant}"}
        if chance.random() < 0.06:
            del named[chance.choice(("card", "merchant"))]
        return named


def raw_payment(payment: Transaction) -> bytes:
    """The message of a payment, as any producer may write it."""
    said: dict[str, Any] = {
        "transaction_id": payment.transaction_id,
        "time": payment.time,
        "amount_minor": payment.amount_minor,
        "currency": payment.currency,
        "entities": dict(payment.entities),
        "kind": payment.kind,
    }
    if payment.flags:
        said["flags"] = dict(payment.flags)
    return msgspec.json.encode(said)


def raw_label(payment: Transaction, value: bool, sent_ms: int, *, with_entities: bool) -> bytes:
    """The message of a fact of a payment."""
    said: dict[str, Any] = {
        "transaction_id": payment.transaction_id,
        "flags": {"fraud": value},
        "sent_at": sent_ms,
    }
    if with_entities:
        said |= {"entities": dict(payment.entities), "time": payment.time}
    return msgspec.json.encode(said)
