"""Erasing a state: whatever the order of appends, compactions and the order to erase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshscore.config.errors import DamagedState
from freshscore.features import layout as rec
from freshscore.features import redis_erasing
from freshscore.features.codec import compacted, decode, erased, state_version, stored
from freshscore.features.redis_commands import Tagged, replies_to
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_door import Nodes, Reply, command
from freshscore.features.redis_erasing import Eraser
from freshscore.features.redis_keys import tag_of
from tests.features.stored_states import NOON_MS, Fact, Ground, Payment
from tests.features.stores import SERVERS, RedisPlace, opened_nodes

CARD, MERCHANT, TERMINAL = 0, 1, 2
GROUND = Ground()
PAYMENTS = [Payment(i, NOON_MS + 1_000 * i, 100 + i, web=i % 3 == 0) for i in range(30)]
FACTS = [Fact(one, 0, True, one.time_ms + 20_000, 5_000) for one in PAYMENTS[::4]]


@given(
    seed=st.integers(0, 2**32 - 1),
    entity=st.sampled_from([CARD, MERCHANT, TERMINAL]),
    line=st.integers(0, 31),
    compactions=st.integers(0, 3),
)
def test_what_is_left_is_what_came_after_in_any_order(
    seed: int, entity: int, line: int, compactions: int
) -> None:
    """Beside a state that never saw what was erased."""
    rng = np.random.default_rng(seed)
    below_ms = NOON_MS + 1_000 * line
    said: list[Payment | Fact] = [*PAYMENTS, *FACTS, *PAYMENTS[:5]]
    parts = [_stored(one, entity) for one in said]
    layout = GROUND.layouts[entity]
    blob, order = b"", rng.permutation(len(parts))
    at = int(rng.integers(0, len(parts) + 1))
    compacted_at = rng.integers(0, len(parts), compactions)
    for step, number in enumerate([*order[:at], -1, *order[at:]]):
        if number < 0:
            blob = erased(blob, layout, below_ms=below_ms, nonce=7)
            continue
        blob += parts[number]
        if step in compacted_at:
            blob = compacted(blob, layout, nonce=3).state
    found = decode(blob, layout)
    after = [
        _stored(one, entity)
        for one in said
        if (one.time_ms if isinstance(one, Payment) else one.payment.time_ms) >= below_ms
    ]
    assert found.forgotten_below_ms == below_ms
    assert found.is_erased
    if not after:
        assert (found.records.n, found.version) == (0, 0)
        return
    expected = decode(b"".join(after), layout)
    assert np.array_equal(_plain(found.records.words), _plain(expected.records.words))
    assert found.version == expected.version


def test_what_was_folded_goes_too() -> None:
    layout = GROUND.layouts[TERMINAL]
    whole = b"".join(_stored(one, TERMINAL) for one in PAYMENTS)
    fold_ms = NOON_MS + 20_000
    folded = compacted(whole, layout, nonce=1, fold_below_ms=fold_ms).state
    assert decode(folded, layout).tiles.n
    left = decode(erased(folded, layout, below_ms=fold_ms + 3_000, nonce=2), layout)
    assert (left.tiles.n, left.folded_below_ms) == (0, fold_ms)
    assert left.records.n == sum(one.time_ms >= fold_ms + 3_000 for one in PAYMENTS)
    # Of sums nothing can be taken out by time: erased is up to where they reach.
    left = decode(erased(folded, layout, below_ms=NOON_MS + 1, nonce=2), layout)
    assert (left.tiles.n, left.forgotten_below_ms) == (0, fold_ms)


def test_a_limit_that_is_met_later_is_no_order() -> None:
    """Neither is time: both forget more than was ordered."""
    layout = GROUND.layouts[CARD]
    left = erased(b"", layout, below_ms=NOON_MS, nonce=1)
    same = compacted(left, layout, nonce=2, forget_below_ms=NOON_MS - 1).state
    later = compacted(left, layout, nonce=2, forget_below_ms=NOON_MS + 1).state
    assert [decode(one, layout).is_erased for one in (left, same, later)] == [True, True, False]


@pytest.fixture(scope="module", params=SERVERS)
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield opened_nodes(request, stack, request.param)


@pytest.fixture
def place(nodes: Nodes) -> RedisPlace:
    return RedisPlace(GROUND, nodes)


@pytest.mark.servers
def test_what_is_written_meanwhile_stays(
    place: RedisPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the state is there, and between reading and swapping, by a compactor too."""
    store = place.open()
    wanted = CARD, GROUND.token(PAYMENTS[0], CARD)
    writes = iter([PAYMENTS[:4], PAYMENTS[4:6], PAYMENTS[6:8]])

    def writing(nodes: Nodes, commands: list[Tagged]) -> list[Reply]:
        if any(word in commands[0][1] for word in (b"$3\r\nSET\r\n", b"EVALSHA")):
            some = next(writes)
            for one in some:
                store.observe(GROUND.row(one))
            if some == PAYMENTS[4:6]:
                Compactor(store).compact([wanted], only_due=False)
        return replies_to(nodes, commands)

    monkeypatch.setattr(redis_erasing, "replies_to", writing)
    Eraser(store).erase(wanted, NOON_MS + 2_000)
    assert next(writes, None) is None
    state = decode(_get(place, wanted), GROUND.layouts[CARD])
    assert state.records.n == 6
    assert state.version == state_version(
        b"".join(_stored(one, CARD) for one in PAYMENTS[2:8]), GROUND.layouts[CARD]
    )


@pytest.mark.servers
def test_the_tombstone_of_an_entity_that_nobody_knows(place: RedisPlace) -> None:
    store = place.open()
    wanted = CARD, GROUND.token(Payment(0, NOON_MS, card=9), CARD)
    Eraser(store).erase(wanted, NOON_MS + 1_000)
    store.observe(GROUND.row(Payment(90, NOON_MS, card=9)))
    store.observe(GROUND.row(Payment(91, NOON_MS + 1_000, card=9)))
    state = decode(_get(place, wanted), GROUND.layouts[CARD])
    assert state.records.n == 1
    life_s = _asked(place, wanted, b"TTL")
    assert isinstance(life_s, int)
    assert life_s > 0


@pytest.mark.servers
def test_a_damaged_state_stays_damaged_without_its_content(place: RedisPlace) -> None:
    store = place.open()
    wanted = CARD, GROUND.token(Payment(0, NOON_MS, card=8), CARD)
    store.observe(GROUND.row(Payment(80, NOON_MS, card=8)))
    _asked(place, wanted, b"APPEND", b"torn")
    Eraser(store).erase(wanted, NOON_MS + 1_000)
    left = _get(place, wanted)
    assert _stored(Payment(80, NOON_MS, card=8), CARD)[:8] not in left
    with pytest.raises(DamagedState):
        decode(left, GROUND.layouts[CARD])


def _stored(what: Payment | Fact, entity: int) -> bytes:
    return stored(GROUND.record(what, entity), GROUND.layouts[entity])


def _plain(
    words: np.ndarray[tuple[int, int], np.dtype[np.int64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Records without their checksums."""
    cleared = words.copy()
    cleared[:, rec.TIME // 8 + 2] &= ~0xFFFFFFFF
    return cleared


def _asked(place: RedisPlace, wanted: tuple[int, bytes], *parts: bytes) -> Reply:
    key = place.open().reading.state_key(*wanted)
    asked = command(parts[0], key, *parts[1:])
    return replies_to(place.nodes, [(tag_of(wanted[1]), asked)])[0]


def _get(place: RedisPlace, wanted: tuple[int, bytes]) -> bytes:
    found = _asked(place, wanted, b"GET")
    assert isinstance(found, bytes)
    return found
