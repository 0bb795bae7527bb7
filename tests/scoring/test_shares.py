"""A share of cards: the same cards everywhere and for good, and as many as were asked for."""

from __future__ import annotations

import pytest
from numpy.typing import NDArray

from freshscore import Closed, Scorer

_SECRET = "ab" * 32


def model(matrix: NDArray) -> NDArray:  # type: ignore[type-arg]  # of any numbers
    """Any scores."""
    return matrix[:, 0] * 0.0


def payment(number: int, **entities: str) -> dict[str, object]:
    return {
        "transaction_id": f"p-{number}",
        "time": 1_700_000_000_000 + number,
        "amount_minor": 100 + number,
        "currency": "EUR",
        "entities": entities,
    }


def test_a_share_is_of_cards_not_of_payments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the payment says, in every process under the secret; another secret, others."""
    monkeypatch.setenv("FRESHSCORE_SECRET", _SECRET)
    cards = [f"card-{number}" for number in range(4_000)]
    with Scorer.open(model=model) as scorer, Scorer.open(model=model) as other:
        found = [scorer.share_of(payment(i, card=card)) for i, card in enumerate(cards)]
        again = [
            other.share_of(payment(9_000 + i, card=card, merchant="m"))
            for i, card in enumerate(cards)
        ]
        assert scorer.share_of(payment(1)) == 1.0
    assert found == again
    assert min(found) >= 0.0
    assert max(found) < 1.0
    # Binomial: 4,000 cards give 200 +- 14.
    assert 140 <= sum(one < 0.05 for one in found) <= 260
    monkeypatch.setenv("FRESHSCORE_SECRET", "cd" * 32)
    with Scorer.open(model=model) as scorer:
        assert scorer.share_of(payment(0, card=cards[0])) != found[0]
    with pytest.raises(Closed):
        scorer.share_of(payment(1))
