"""Below which instant states take no event: one by one and all at once, on one node and three."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_door import Nodes
from freshscore.invalidation import state_lines
from freshscore.invalidation.state_lines import lines_of, lines_of_tokens
from tests.features.stored_states import NOON_MS, Ground, Payment
from tests.features.stores import SERVERS, RedisPlace, opened_nodes

CARD, MERCHANT = 0, 1
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground()


@pytest.fixture(scope="module", params=SERVERS)
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield opened_nodes(request, stack, request.param)


def test_lines_are_those_of_the_headers(
    ground: Ground, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absent, appended, forgotten and folded; asked for in one exchange, and in several."""
    place = RedisPlace(ground, nodes)
    store = place.open()
    payments = [Payment(i, NOON_MS + i, card=i, merchant=i) for i in range(40)]
    for payment in payments[:30]:
        store.observe(ground.row(payment))
    of_cards = [ground.token(payment, CARD) for payment in payments]
    of_shops = [ground.token(payment, MERCHANT) for payment in payments]
    compactor = Compactor(store)
    cards = [(CARD, token) for token in of_cards[:10]]
    compactor.compact(cards, forget_below_ms=NOON_MS - DAY_MS, only_due=False)
    shops = [(MERCHANT, token) for token in of_shops[:20]]
    compactor.compact(shops, fold_below_ms=NOON_MS + 5, only_due=False)
    expected = {
        CARD: [NOON_MS - DAY_MS] * 10 + [0] * 30,
        MERCHANT: [NOON_MS + 5 if _is_grid(ground) else 0] * 20 + [0] * 20,
    }
    for entity, tokens in ((CARD, of_cards), (MERCHANT, of_shops)):
        words = np.frombuffer(b"".join(tokens), np.uint64).reshape(-1, 2)
        assert lines_of(store, [(entity, token) for token in tokens]).tolist() == expected[entity]
        assert lines_of_tokens(store, entity, words).tolist() == expected[entity]
        with monkeypatch.context() as patched:
            patched.setattr(state_lines, "_MANY_AT_ONCE", 7)
            patched.setattr(state_lines, "_AT_ONCE", 3)
            assert lines_of_tokens(store, entity, words).tolist() == expected[entity]
            patched.setattr(state_lines, "_headers", lambda *_: None)
            assert lines_of_tokens(store, entity, words).tolist() == expected[entity]


def _is_grid(ground: Ground) -> bool:
    return ground.layouts[MERCHANT].is_grid
