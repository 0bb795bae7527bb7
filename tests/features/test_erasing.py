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
from freshscore.features import redis_compaction, redis_erasing
from freshscore.features.codec import (
    buckets_of_state,
    compacted,
    decode,
    erased,
    state_version,
    stored,
)
from freshscore.features.past_events import by_bucket
from freshscore.features.redis_commands import Tagged, replies_to
from freshscore.features.redis_compaction import OVERTAKEN, SWAPPED, Compactor
from freshscore.features.redis_door import Nodes, Reply, command
from freshscore.features.redis_erasing import Eraser
from freshscore.features.redis_keys import tag_of
from freshscore.features.redis_scripts import DROP, KEEP, Script
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
    after = [_stored(one, entity) for one in said if _time_ms(one) >= below_ms]
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


@given(
    seed=st.integers(0, 2**32 - 1),
    entity=st.sampled_from([MERCHANT, TERMINAL]),
    line=st.integers(0, 31),
    compactions=st.integers(1, 6),
)
def test_what_was_folded_early_goes_too_and_what_came_late_is_not_lost(
    seed: int, entity: int, line: int, compactions: int
) -> None:
    """Beside a state that never saw what was erased, and folded nothing."""
    rng = np.random.default_rng(seed)
    said: list[Payment | Fact] = [*PAYMENTS, *FACTS, *PAYMENTS[::3]]
    layout = GROUND.layouts[entity]
    blob, past = b"", dict[int, bytes]()
    order = [*rng.permutation(len(said)).tolist()]
    order.insert(int(rng.integers(0, len(order) + 1)), -1)
    folds_at = rng.integers(0, len(order), compactions)
    for step, number in enumerate(order):
        if number < 0:
            blob = erased(blob, layout, below_ms=NOON_MS + 1_000 * line, nonce=7)
            past.clear()
        else:
            blob += _stored(said[number], entity)
        if step in folds_at:
            early_ms = NOON_MS + 500 * int(rng.integers(0, 62))
            asked = buckets_of_state(decode(blob, layout))
            known = {bucket: past.get(bucket, b"") for bucket in asked}
            made = compacted(blob, layout, nonce=3, summarise_below_ms=early_ms, past=known)
            blob = made.state
            for bucket, records in by_bucket(made.folded, layout).items():
                past[bucket] = past.get(bucket, b"") + records
    asked = buckets_of_state(decode(blob, layout))
    found = decode(blob, layout, {bucket: past.get(bucket, b"") for bucket in asked})
    line_ms = found.forgotten_below_ms
    assert found.is_erased
    assert line_ms >= NOON_MS + 1_000 * line
    after = [_stored(one, entity) for one in said if _time_ms(one) >= line_ms]
    assert found.version == (decode(b"".join(after), layout).version if after else 0)


def test_erased_is_up_to_where_what_was_folded_early_reaches() -> None:
    layout = GROUND.layouts[TERMINAL]
    whole = b"".join(_stored(one, TERMINAL) for one in PAYMENTS)
    early_ms = NOON_MS + 20_000
    held = compacted(whole, layout, nonce=1, summarise_below_ms=early_ms).state
    late = [Payment(100 + n, NOON_MS + 1_000 * n) for n in (3, 19, 20)]
    held += b"".join(_stored(one, TERMINAL) for one in late)
    assert len(decode(held, layout).deferred) == 2 * layout.width
    for below_ms, line_ms in ((NOON_MS + 1, early_ms), (early_ms + 3_000, early_ms + 3_000)):
        left = decode(erased(held, layout, below_ms=below_ms, nonce=2), layout)
        assert (left.tiles.n, left.summarised_below_ms, left.deferred) == (0, 0, b"")
        assert left.forgotten_below_ms == line_ms
        assert left.records.n == sum(one.time_ms >= line_ms for one in (*PAYMENTS, *late))


def test_a_late_event_that_no_tile_can_have_stays_and_counts() -> None:
    """S of a state may outlive its tiles; what it made wait is a record after an erasure."""
    layout = GROUND.layouts[TERMINAL]
    held = _stored(Payment(0, NOON_MS + 9_000), TERMINAL)
    held = compacted(held, layout, nonce=1, summarise_below_ms=NOON_MS + 5_000).state
    held += b"".join(_stored(Payment(n, NOON_MS + 1_000 * n), TERMINAL) for n in (1, 3))
    assert len(decode(held, layout).deferred) == 2 * layout.width
    left = decode(erased(held, layout, below_ms=NOON_MS + 2_000, nonce=2), layout)
    assert (left.records.n, left.deferred, left.forgotten_below_ms) == (2, b"", NOON_MS + 2_000)


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


@pytest.fixture
def early(nodes: Nodes) -> Iterator[RedisPlace]:
    """Where grids with more than 16 records are folded early."""
    changed = Nodes.open(
        nodes.settings.model_copy(update={"grid_records": 16, "compact_records": 4})
    )
    try:
        yield RedisPlace(GROUND, changed)
    finally:
        changed.close()


@pytest.mark.servers
@pytest.mark.parametrize("entity", [MERCHANT, TERMINAL])
def test_what_was_folded_early_is_in_no_key_afterwards(early: RedisPlace, entity: int) -> None:
    """Nor does a payment that comes again find what it was."""
    store = early.open()
    wanted = entity, GROUND.token(PAYMENTS[0], entity)
    for one in PAYMENTS:
        store.observe(GROUND.row(one))
    assert Compactor(store).compact([wanted], now_ms=NOON_MS + 60_000) == {SWAPPED: 1}
    early_ms = decode(_get(early, wanted), GROUND.layouts[entity]).summarised_below_ms
    assert early_ms > NOON_MS + 10_000
    assert store.reading.past_bytes(*wanted) > 0
    late = [Payment(90, early_ms - 1), Payment(91, early_ms), PAYMENTS[2]]
    for one in late:
        store.observe(GROUND.row(one))
    Eraser(store).erase(wanted, NOON_MS + 1_000)
    assert store.reading.past_bytes(*wanted) == 0
    for one in (PAYMENTS[3], Payment(92, early_ms + 1)):
        store.observe(GROUND.row(one))
    Compactor(store).compact([wanted], now_ms=NOON_MS + 60_000, only_due=False)
    after = [one for one in (*PAYMENTS, *late) if one.time_ms >= early_ms]
    row = GROUND.row(Payment(99, NOON_MS + 60_000))
    assert store.versions(row)[entity] == state_version(
        b"".join(_stored(one, entity) for one in (*after, Payment(92, early_ms + 1))),
        GROUND.layouts[entity],
    )


@pytest.mark.servers
@pytest.mark.parametrize("is_guarded", [True, False])
def test_a_compactor_that_had_read_before_brings_nothing_back(
    early: RedisPlace, monkeypatch: pytest.MonkeyPatch, is_guarded: bool
) -> None:
    """It keeps nothing of a state that is another by now; a canary keeps it all the same."""
    store = early.open()
    wanted = MERCHANT, GROUND.token(PAYMENTS[0], MERCHANT)
    for one in PAYMENTS:
        store.observe(GROUND.row(one))
    keep = KEEP
    if not is_guarded:
        text = KEEP.text.replace("then return -1 end", "then end")
        assert text != KEEP.text
        keep = Script(text)
        load = command(b"SCRIPT", b"LOAD", text.encode())
        assert replies_to(early.nodes, [(tag_of(wanted[1]), load)]) == [keep.digest]
        monkeypatch.setattr(redis_compaction, "KEEP", keep)

    def erasing(nodes: Nodes, commands: list[Tagged]) -> list[Reply]:
        if any(keep.digest in one for _, one in commands):
            Eraser(store).erase(wanted, NOON_MS + 40_000)
        return replies_to(nodes, commands)

    with monkeypatch.context() as patched:
        patched.setattr(redis_compaction, "replies_to", erasing)
        counted = Compactor(store).compact([wanted], now_ms=NOON_MS + 60_000)
    assert counted == {OVERTAKEN: 1}
    assert (store.reading.past_bytes(*wanted) == 0) == is_guarded


@pytest.mark.servers
def test_what_is_folded_while_a_state_is_erased_keeps_its_buckets(
    early: RedisPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else a repetition of it would count: so it is erased with the rest."""
    store = early.open()
    wanted = MERCHANT, GROUND.token(PAYMENTS[0], MERCHANT)
    for one in PAYMENTS:
        store.observe(GROUND.row(one))
    compactions = iter([1])

    def compacting(nodes: Nodes, commands: list[Tagged]) -> list[Reply]:
        if any(DROP.digest in one for _, one in commands) and next(compactions, 0):
            Compactor(store).compact([wanted], now_ms=NOON_MS + 60_000, only_due=False)
            assert store.reading.past_bytes(*wanted) > 0
        return replies_to(nodes, commands)

    monkeypatch.setattr(redis_erasing, "replies_to", compacting)
    Eraser(store).erase(wanted, NOON_MS + 1)
    assert store.reading.past_bytes(*wanted) == 0
    state = decode(_get(early, wanted), GROUND.layouts[MERCHANT])
    assert (state.tiles.n, state.summarised_below_ms) == (0, 0)
    assert state.records.n == sum(one.time_ms >= state.forgotten_below_ms for one in PAYMENTS)


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


def _time_ms(what: Payment | Fact) -> int:
    return what.time_ms if isinstance(what, Payment) else what.payment.time_ms


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
