"""A request's states answer as the codec and the memory store do, and show every damage."""

from __future__ import annotations

import base64
import ctypes
import random

import numpy as np
import pytest

from freshscore.features import tables
from freshscore.features.codec import compacted, decode, stored
from freshscore.features.memory import BYTES_AT, address_of
from freshscore.features.past_events import BUCKETS, by_bucket
from freshscore.features.redis_keys import bucket_name, slot_of, tag_of
from freshscore.features.request_kernels import WRITTEN_SHIFT, put_commands, put_tag, slot_of_tag
from freshscore.features.request_store import RequestStore
from freshscore.features.row import TOKENS
from freshscore.features.store import MemoryStore
from tests.features.stored_states import LIMITS, NOON_MS, Fact, Ground, Payment

AT_MS = NOON_MS + 130_000
INSTANTS = (AT_MS, AT_MS + 9_000, AT_MS + 70_000, AT_MS + 400_000)


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground()


def happenings(chance: random.Random, n: int) -> list[Payment | Fact]:
    """Payments of one card and merchant, in any order, with facts, repetitions and conflicts."""
    payments = [
        Payment(
            number,
            NOON_MS + chance.randrange(120_000),
            chance.randrange(1, 10**6),
            refund=chance.random() < 0.2,
            web=chance.random() < 0.5,
            declined=chance.random() < 0.2,
            located=chance.random() < 0.8,
        )
        for number in range(n)
    ]
    facts = [
        Fact(one, chance.randrange(2), chance.random() < 0.6, one.time_ms + 500, number)
        for number, one in enumerate(payments)
        if chance.random() < 0.3
    ]
    found: list[Payment | Fact] = [*payments, *facts, *payments[:3]]
    chance.shuffle(found)
    return found


def told(ground: Ground, all_of_it: list[Payment | Fact]) -> tuple[MemoryStore, list[bytes | None]]:
    """A memory store, and the bytes of each entity as they are appended."""
    store = ground.store()
    for one in all_of_it:
        ground.apply(store, one)
    states: list[bytes | None] = [
        stored(np.concatenate([ground.record(one, entity) for one in all_of_it]), layout)
        for entity, layout in enumerate(ground.layouts)
    ]
    return store, states


def agree(ground: Ground, request: RequestStore, store: MemoryStore, asked: Payment) -> None:
    row = ground.row(asked)
    versions = tuple(request.version(e) for e in range(len(ground.layouts)))
    assert versions == tuple(version or 0 for version in store.versions(row))
    for instant in INSTANTS:
        mine, theirs = request.features(row, instant), store.features(row, instant)
        assert mine.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("n", [1, 5, 40, 200])
def test_features_and_versions_are_those_of_a_store_that_was_told_the_same(
    ground: Ground, rng: np.random.Generator, n: int
) -> None:
    chance = random.Random(int(rng.integers(2**31)))
    request = RequestStore(ground.program, ground.keys, LIMITS)
    for _ in range(5):
        all_of_it = happenings(chance, n)
        store, states = told(ground, all_of_it)
        own = next(one for one in all_of_it if isinstance(one, Payment))
        for asked in (Payment(9_999, AT_MS), own):
            assert request.take(ground.row(asked), states)
            agree(ground, request, store, asked)
        cut = [
            None
            if state is None
            else compacted(
                state[: 8 * len(state) // 16 // layout.width * layout.width], layout, nonce=1
            ).state
            + state[8 * len(state) // 16 // layout.width * layout.width :]
            if len(state) >= 2 * layout.width
            else state
            for state, layout in zip(states, ground.layouts, strict=True)
        ]
        assert request.take(ground.row(own), cut)
        agree(ground, request, store, own)


def test_folded_states_count_by_their_tiles(ground: Ground, rng: np.random.Generator) -> None:
    chance = random.Random(int(rng.integers(2**31)))
    request = RequestStore(ground.program, ground.keys, LIMITS)
    store, states = told(ground, happenings(chance, 150))
    asked = Payment(9_999, AT_MS)
    for below_ms in (30_000, 60_000, 110_000):
        folded = [
            compacted(state or b"", layout, nonce=2, fold_below_ms=NOON_MS + below_ms).state
            for state, layout in zip(states, ground.layouts, strict=True)
        ]
        assert request.take(ground.row(asked), folded)
        agree(ground, request, store, asked)


def test_late_facts_of_folded_events_are_reported_and_count_with_the_past(
    ground: Ground, rng: np.random.Generator
) -> None:
    chance = random.Random(int(rng.integers(2**31)))
    request = RequestStore(ground.program, ground.keys, LIMITS)
    all_of_it: list[Payment | Fact] = [
        one for one in happenings(chance, 80) if isinstance(one, Payment)
    ]
    store, states = told(ground, all_of_it)
    merchant = 1
    layout = ground.layouts[merchant]
    made = compacted(states[merchant] or b"", layout, nonce=3, fold_below_ms=NOON_MS + 100_000)
    oldest = min((one for one in all_of_it if isinstance(one, Payment)), key=lambda p: p.time_ms)
    late = Fact(oldest, 0, True, AT_MS - 1_000, 5)
    ground.apply(store, late)
    with_fact = [
        (state or b"") + stored(ground.record(late, entity), ground.layouts[entity])
        for entity, state in enumerate(states)
    ]
    with_fact[merchant] = made.state + stored(ground.record(late, merchant), layout)
    asked = Payment(9_999, AT_MS)
    row = ground.row(asked)
    assert not request.take(row, with_fact)
    assert (request.late, request.damaged) == ([merchant], [])
    state = with_fact[merchant] or b""
    past = by_bucket(made.folded, layout)
    assert request.buckets(row, merchant, state) & past.keys() == request.buckets(
        ground.row(oldest), merchant, made.state
    )
    with_fact[merchant] = request.with_past(row, merchant, state, past)
    request.take(row, with_fact)
    agree(ground, request, store, asked)


def test_a_state_of_one_entity_is_not_anothers(ground: Ground) -> None:
    """What an earlier request left is gone, and absent entities stay absent."""
    request = RequestStore(ground.program, ground.keys, LIMITS)
    store, states = told(ground, happenings(random.Random(1), 30))
    own = Payment(1, NOON_MS)
    request.take(ground.row(own), states)
    other = Payment(9_998, AT_MS, card=5, merchant=6)
    assert request.take(ground.row(other), [None, None, None])
    agree(ground, request, store, other)


def test_every_flipped_bit_and_every_cut_is_seen_as_the_codec_sees_it(ground: Ground) -> None:
    request = RequestStore(ground.program, ground.keys, LIMITS)
    _, states = told(ground, happenings(random.Random(2), 12))
    row = ground.row(Payment(9_999, AT_MS))
    layout = ground.layouts[1]
    whole = (
        compacted(
            (states[1] or b"")[: 8 * layout.width], layout, nonce=4, fold_below_ms=NOON_MS + 50_000
        ).state
        + (states[1] or b"")[8 * layout.width :]
    )
    assert decode(whole, layout).records.n > 0
    assert not request.take(row, [None, whole, None]) or request.version(1)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        assert not request.take(row, [None, bytes(damaged), None])
        assert request.damaged == [1]
        assert request.version(1) == 0
    for length in range(len(whole)):
        _, problem = _decodes(whole[:length], ground)
        complete = request.take(row, [None, whole[:length], None])
        assert (request.damaged == [1]) is problem
        assert complete or problem or request.late == [1]


def _decodes(state: bytes, ground: Ground) -> tuple[object, bool]:
    try:
        return decode(state, ground.layouts[1]), False
    except ValueError:
        return None, True


def test_degraded_bits_and_instants_are_what_was_said(ground: Ground) -> None:
    request = RequestStore(ground.program, ground.keys, LIMITS)
    row = ground.row(Payment(1, AT_MS))
    request.take(row, [None, None, None], 5, 7, tables.STATE_LOST)
    words = request.head
    assert words[tables.DEGRADED // 8] == tables.STATE_LOST
    assert words[tables.NEWEST // 8] == 5
    assert words[tables.COMPLETE_SINCE // 8] == 7
    request.take(row, [b"no state", None, None], 5, 7, tables.STATE_LOST)
    assert words[tables.DEGRADED // 8] == tables.STATE_LOST | tables.STATE_DAMAGED


def test_what_a_state_forgot_is_put_down_to_time_or_to_its_limit(ground: Ground) -> None:
    """To time as far as the watermark goes, and to nothing but the limit where none is known."""
    request = RequestStore(ground.program, ground.keys, LIMITS)
    own = Payment(9_999, AT_MS)
    _, states = told(ground, [Payment(n, NOON_MS + n) for n in range(9)])
    line_ms = NOON_MS + 5
    cut = compacted(states[0] or b"", ground.layouts[0], nonce=1, forget_below_ms=line_ms).state
    held_ms = ground.program.specification.held_ms
    passed_ms = line_ms + LIMITS.horizon_ms + held_ms
    lost = (tables.ENTITY + tables.ROWS) // 8

    def taken(watermark_ms: int) -> tuple[int, int]:
        """What the limit took, and from when on requests can be answered."""
        assert request.take(ground.row(own), [cut, None, None], watermark_ms)
        row_at = int(request.head[lost])
        held_from_ms = watermark_ms - int(request.head[tables.HORIZON // 8])
        return ctypes.c_int64.from_address(row_at + tables.LOST).value, held_from_ms

    assert taken(passed_ms) == (0, line_ms + held_ms)
    for watermark_ms in (passed_ms - 1, 0):
        lost_ms, held_from_ms = taken(watermark_ms)
        assert lost_ms == line_ms
        assert held_from_ms < 0


def test_tags_and_slots_are_those_that_keys_have(rng: np.random.Generator) -> None:
    tokens = [bytes(16), b"\xff" * 16, *(rng.bytes(16) for _ in range(500))]
    for token in tokens:
        out = bytearray(22)
        at = address_of(np.frombuffer(out, np.uint8))
        put_tag(id(token) + BYTES_AT, at)
        assert bytes(out) == tag_of(token)
        assert bytes(out) == base64.urlsafe_b64encode(token).rstrip(b"=")
        assert slot_of_tag(at) == slot_of(bytes(out))


def test_commands_are_written_for_entities_that_are_there(ground: Ground) -> None:
    row = bytearray(ground.row(Payment(1, AT_MS)))
    row[TOKENS + 16 : TOKENS + 32] = bytes(16)
    held = bytes(row)
    texts = [b"<%d:" % entity + b"." * 22 + b">" for entity in range(3)]
    texts[2] = texts[2][:-1] + b"|" + b"." * 22 + b":...>"
    described = np.array(
        [(id(text) + BYTES_AT, len(text), 3, entity, 0, 0) for entity, text in enumerate(texts)],
        np.int64,
    )
    described[2, 4:] = (26, 49)
    out, slots = bytearray(100), np.zeros(3, np.int64)
    found = put_commands(
        id(held) + BYTES_AT,
        address_of(described),
        3,
        address_of(np.frombuffer(out, np.uint8)),
        address_of(slots),
    )
    tags = [tag_of(held[TOKENS + 16 * entity : TOKENS + 16 * entity + 16]) for entity in range(3)]
    bucket = bucket_name(int.from_bytes(held[:8], "little") % BUCKETS)
    written = b"<0:%b><2:%b|%b:%b>" % (tags[0], tags[2], tags[2], bucket)
    assert bytes(out[: found >> WRITTEN_SHIFT]) == written
    assert found & (1 << WRITTEN_SHIFT) - 1 == 0b101
    assert slots.tolist() == [slot_of(tags[0]), -1, slot_of(tags[2])]
