"""Two states of one entity are one set, however each is stored; damage in either is damage."""

from __future__ import annotations

import random

import pytest

from freshscore.config.errors import DamagedState
from freshscore.features.codec import compacted, decode, erased, stored
from freshscore.features.state_layout import StateLayout
from freshscore.features.uniting_states import Side, united_state
from tests.features.stored_states import NOON_MS, Fact, Ground, Payment, without_checks
from tests.features.test_request_store import happenings

SINCE_MS = NOON_MS + 60_000


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground()


def united_of(one: bytes | None, other: bytes | None, layout: StateLayout) -> bytes | None:
    return united_state(Side(one, {}), Side(other, {}), layout, since_ms=SINCE_MS)


def appended(ground: Ground, all_of_it: list[Payment | Fact], entity: int) -> bytes:
    """Records as consumers append them."""
    layout = ground.layouts[entity]
    return b"".join(stored(ground.record(one, entity), layout) for one in all_of_it)


def time_of(one: Payment | Fact) -> int:
    return one.time_ms if isinstance(one, Payment) else one.payment.time_ms


def states(
    ground: Ground, chance: random.Random, entity: int, line_ms: int = 0
) -> tuple[bytes, bytes, bytes]:
    """All that happened, and its two parts, each maybe compacted in the middle of its appends."""
    told = happenings(chance, 60)
    parts = [
        [one for one in told if (time_of(one) < SINCE_MS) is is_old] for is_old in (True, False)
    ]
    # What a process that is behind writes comes under the former token too, or instead.
    parts[0].extend(chance.sample(parts[1], len(parts[1]) // 4))
    blobs = []
    for part in parts:
        cut = chance.randrange(len(part))
        first, rest = (appended(ground, of, entity) for of in (part[:cut], part[cut:]))
        if first and chance.random() < 0.6:
            layout = ground.layouts[entity]
            first = compacted(
                first, layout, nonce=chance.getrandbits(64), forget_below_ms=line_ms
            ).state
        blobs.append(first + rest)
    return appended(ground, told, entity), blobs[0], blobs[1]


@pytest.mark.parametrize("entity", [0, 1])
def test_the_union_is_what_one_state_would_be(ground: Ground, seed: int, entity: int) -> None:
    chance, layout = random.Random(seed), ground.layouts[entity]
    for _ in range(40):
        whole, one, other = states(ground, chance, entity, line_ms=NOON_MS - 1)
        expected = decode(whole, layout)
        for united in (united_of(one, other, layout), united_of(other, one, layout)):
            assert united is not None
            found = decode(united, layout)
            records = without_checks(found.records.words.view("uint64"))
            assert (records == without_checks(expected.records.words.view("uint64"))).all()
            assert found.version == expected.version
        assert united_of(None, other, layout) == other
        assert united_of(one, None, layout) == one
    assert united_of(None, None, layout) is None


def test_damage_in_either_is_damage(ground: Ground, seed: int) -> None:
    chance, layout = random.Random(seed), ground.layouts[0]
    for _ in range(60):
        _, *both = states(ground, chance, 0)
        number = chance.randrange(2)
        at = chance.randrange(len(both[number]))
        broken = bytearray(both[number])
        broken[at] ^= 1 << chance.randrange(8)
        both[number] = bytes(broken) if chance.random() < 0.7 else both[number][: max(1, at)]
        if len(both[number]) % layout.width == 0 and len(both[number]) == max(1, at):
            continue  # An append that was lost whole leaves no trace in bytes.
        united = united_of(both[0], both[1], layout)
        assert united is not None
        with pytest.raises(DamagedState):
            decode(united, layout)


def test_what_was_erased_under_both_tokens_stays_erased(ground: Ground, seed: int) -> None:
    chance, layout = random.Random(seed), ground.layouts[0]
    below_ms = SINCE_MS + 30_000
    for _ in range(20):
        whole, one, other = states(ground, chance, 0)
        left = [
            erased(of, layout, below_ms=below_ms + number, nonce=number + 1)
            for number, of in enumerate((one, other))
        ]
        # Repetitions that come late are ignored in either.
        united = united_of(left[0] + one[-2 * layout.width :], left[1], layout)
        assert united is not None
        found = decode(united, layout)
        assert found.is_erased
        assert found.forgotten_below_ms == below_ms + 1
        times = found.records.words[:, 1] >> 16
        assert (times >= below_ms).all()
        kept = decode(whole, layout).records.words
        assert found.records.n <= int(((kept[:, 1] >> 16) >= below_ms).sum())
