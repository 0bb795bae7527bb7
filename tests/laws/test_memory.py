"""The arena under load: segments that grow, shrink, move and empty, many of them larger than half a
region; after every step each lies where it should, and the states are those of a roomy store.
"""

from __future__ import annotations

import ctypes
import itertools
import random

import pytest

from freshscore.config.errors import StoreFull
from freshscore.features import arena, tables
from freshscore.features.specification import (
    Aggregate,
    Entity,
    FeatureSpecification,
    WindowGroup,
)
from freshscore.features.store import MemoryStore
from freshscore.features.transaction import Transaction
from tests.laws.law_models import callable_model
from tests.laws.law_specifications import Scaled
from tests.laws.worlds import MINUTE_MS, MONDAY_MS, Limits, World, entity_rows, versions

SPECIFICATION = FeatureSpecification(
    name="memory",
    currency="EUR",
    entities=(Entity("card"), Entity("merchant"), Entity("pair", of=("card", "merchant"))),
    windows=(
        WindowGroup("card", ("1m",), (Aggregate("count"), Aggregate("sum"))),
        WindowGroup("merchant", ("1m",), (Aggregate("max"), Aggregate("distinct", of="card"))),
        WindowGroup("pair", ("10s",), (Aggregate("count"),)),
    ),
)
SCALED = Scaled(SPECIFICATION, 100, 100, MINUTE_MS)
ROOMY = Limits(horizon_ms=MINUTE_MS)


def payments(seed: int, n: int) -> list[Transaction]:
    """Some cards and one merchant have most of them, in bursts between long pauses."""
    chance = random.Random(seed)
    at_ms = 0
    made = []
    for number in range(n):
        at_ms += chance.choice((1, 5, 20)) if chance.random() < 0.998 else 5 * MINUTE_MS
        card = min(chance.randrange(200), chance.randrange(200), chance.randrange(200))
        merchant = 0 if chance.random() < 0.6 else chance.randrange(50)
        late = chance.randrange(MINUTE_MS) if chance.random() < 0.1 else 0
        time_ms = MONDAY_MS + at_ms - late
        entities = {"card": f"c{card}", "merchant": f"m{merchant}"}
        made.append(Transaction(f"t{number}", time_ms, number, "EUR", entities))
    return made


def word(address: int) -> int:
    """The int64 at an address."""
    return ctypes.c_int64.from_address(address).value


def problem_of(store: MemoryStore) -> str | None:
    """What is wrong in the arena, or None."""
    segments = []
    for e, layout in enumerate(store.program.entities):
        head = store.address + tables.ENTITY + tables.ENTITY_HEAD * e
        block_bytes = 8 * word(head + tables.BLOCK_WORDS)
        for number, row in enumerate(entity_rows(store, e)):
            at, count, capacity = (
                int(row[name // 8]) for name in (tables.RECORDS, tables.COUNT, tables.CAPACITY)
            )
            if not 0 <= count <= capacity or (at == 0) != (capacity == 0):
                return f"{layout.name} {number}: {count} records of {capacity} at {at}"
            if at == 0:
                continue
            start = at - arena.SEGMENT_HEAD
            size = arena.SEGMENT_HEAD + 8 * layout.words * capacity
            size += block_bytes * (capacity // 32) if capacity >= 128 else 0
            if (word(start), word(start + 8)) != (e << 32 | number, size):
                return f"{layout.name} {number}: another's segment, or of another size"
            segments.append((start, size))
    return overlap_of(segments) or regions_problem(store, segments)


def overlap_of(segments: list[tuple[int, int]]) -> str | None:
    """Whether two segments lie over one another."""
    ordered = sorted(segments)
    for (start, size), (following, _) in itertools.pairwise(ordered):
        if start + size > following:
            return f"segments at {start} and {following} overlap"
    return None


def regions_problem(store: MemoryStore, segments: list[tuple[int, int]]) -> str | None:
    """Whether every region says how much of it is live."""
    held = store._arena
    base, region_bytes = word(held.address + arena.BASE), held.region_bytes
    live = [0] * len(held._states)
    for start, size in segments:
        first, last = ((at - base) // region_bytes for at in (start, start + size - 1))
        if size <= region_bytes // 2 and first != last:
            return f"a segment of {size} bytes crosses a border of regions"
        if size > region_bytes // 2:
            if set(held._states[first : last + 1].tolist()) != {arena.REGION_OF_RUN}:
                return f"a large segment has regions {first} to {last}, which are others' too"
            continue
        live[first] += size
    for region, (state, is_live) in enumerate(zip(held._states.tolist(), live, strict=True)):
        if max(state, 0) != is_live:
            return f"region {region} says {state} and has {is_live} live bytes"
    used = sum(state != arena.REGION_FREE for state in held._states.tolist())
    if (used, sum(size for _, size in segments)) != (held.word(arena.USED), held.word(arena.LIVE)):
        return "the arena counts its regions or bytes wrong"
    return None


# Regions of 16 and 32 kilobytes: segments of some 200 and 400 records are runs of their own.
@pytest.mark.parametrize("arena_bytes", [1 << 18, 1 << 19])
def test_every_segment_lies_where_it_should_after_every_step(arena_bytes: int, seed: int) -> None:
    small = World(
        SPECIFICATION, callable_model(SCALED), Limits(horizon_ms=MINUTE_MS, arena_bytes=arena_bytes)
    )
    roomy = World(SPECIFICATION, callable_model(SCALED), ROOMY)
    runs = 0
    for number, payment in enumerate(payments(seed, 4_000)):
        try:
            small.scorer.observe(payment)
        except StoreFull:
            assert problem_of(small.store) is None, number
            continue
        roomy.scorer.observe(payment)
        if number % 4 == 0:
            assert problem_of(small.store) is None, number
            runs += arena.REGION_OF_RUN in small.store._arena._states
    assert runs > 0
    assert versions(small.store) == versions(roomy.store)
    newest = small.store.newest_ms
    assert small.feed.counts["accepted"] > 3_000
    for payment in payments(seed, 4_000)[-50:]:
        as_of = max(newest, payment.time)
        assert small.fresh_score(payment, as_of) == roomy.fresh_score(payment, as_of)


def test_canary_a_segment_given_to_two_is_found(seed: int) -> None:
    world = World(SPECIFICATION, callable_model(SCALED), ROOMY)
    for payment in payments(seed, 300):
        world.scorer.observe(payment)
    assert problem_of(world.store) is None
    rows = entity_rows(world.store, 0)
    rows[1, tables.RECORDS // 8] = rows[0, tables.RECORDS // 8]
    assert problem_of(world.store) is not None
