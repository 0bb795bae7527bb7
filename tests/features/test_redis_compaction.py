"""Compaction in Redis: nothing is lost between reading and swapping, and everything is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from freshscore.config.errors import DamagedState, Unavailable, WrongSecret
from freshscore.features import past_events, redis_compaction, tables
from freshscore.features.codec import decode
from freshscore.features.past_events import BUCKETS, bucket_of_identity
from freshscore.features.program import compiled
from freshscore.features.redis_commands import Tagged, replies_to
from freshscore.features.redis_compaction import (
    ABSENT,
    DAMAGED,
    FULL,
    NOT_DUE,
    OVERTAKEN,
    SWAPPED,
    Compactor,
    crossed,
)
from freshscore.features.redis_door import Nodes, Reply, command
from freshscore.features.redis_keys import tag_of
from freshscore.features.redis_progress import topic_digest
from freshscore.features.redis_reading import STATE_DAMAGED, STATE_LOST
from freshscore.features.redis_scripts import KEEP, PROGRESS, SWAP
from freshscore.features.redis_store import RedisStore
from freshscore.features.request_store import RequestStore
from freshscore.features.specification import FeatureSpecification
from freshscore.features.state_layout import state_fingerprints
from tests.features.stored_states import (
    LIMITS,
    NOON_MS,
    OTHER_SECRET,
    SPECIFICATION,
    Fact,
    Ground,
    Payment,
)
from tests.features.stores import EPOCH, SERVERS, RedisPlace, client_of, opened_nodes

CARD, MERCHANT, TERMINAL = 0, 1, 2


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground()


@pytest.fixture(scope="module", params=SERVERS)
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield opened_nodes(request, stack, request.param)


@pytest.fixture
def place(ground: Ground, nodes: Nodes) -> RedisPlace:
    return RedisPlace(ground, nodes)


def observe(place: RedisPlace, *payments: Payment) -> None:
    store = place.open()
    for payment in payments:
        store.observe(place.ground.row(payment))


def ask(place: RedisPlace, payment: Payment, entity: int, *parts: bytes) -> Reply:
    """The reply to a command about a payment's state; its key is put behind the first part."""
    token = place.ground.token(payment, entity)
    key = place.open().reading.state_key(entity, token)
    asked = command(parts[0], key, *parts[1:])
    return replies_to(place.nodes, [(tag_of(token), asked)])[0]


def wanted(place: RedisPlace, payment: Payment, entity: int) -> list[tuple[int, bytes]]:
    return [(entity, place.ground.token(payment, entity))]


def kept_in(place: RedisPlace, token: bytes) -> list[int]:
    """The numbers of a merchant's buckets that hold something."""
    reading = place.open().reading
    asked = [
        (tag_of(token), command(b"STRLEN", reading.past_key(MERCHANT, token, number)))
        for number in range(BUCKETS)
    ]
    lengths = replies_to(place.nodes, asked)
    return [number for number, length in enumerate(lengths) if length]


def some(n: int, first: int = 0) -> list[Payment]:
    return [Payment(i, NOON_MS + 10 * i, 100 + i) for i in range(first, first + n)]


def test_a_state_is_due_once_it_has_doubled(place: RedisPlace, ground: Ground) -> None:
    compactor = Compactor(place.open())
    least = place.nodes.settings.compact_records
    observe(place, *some(least - 1))
    target = wanted(place, Payment(0, NOON_MS), CARD)
    assert compactor.compact(target) == {NOT_DUE: 1}
    observe(place, *some(1, least - 1))
    assert compactor.compact(target) == {SWAPPED: 1}
    assert compactor.compact(target) == {NOT_DUE: 1}
    observe(place, *some(least, least))
    assert compactor.compact(target) == {SWAPPED: 1}
    state = decode(ask(place, Payment(0, NOON_MS), CARD, b"GET"), ground.layouts[CARD])
    assert (state.generation, state.n_compacted, state.n_appended) == (2, 2 * least, 0)


def test_a_writer_sees_from_the_length_alone_when_a_state_may_be_due() -> None:
    width, least = 32, 4
    lengths = [width * n for n in range(70)]
    at = [n for n in range(1, 70) if crossed(lengths[n - 1], lengths[n], width, least)]
    assert at == [4, 8, 16, 32, 64]
    assert crossed(0, width * 1_000, width, least)


def test_what_is_appended_while_a_state_is_compacted_stays(
    place: RedisPlace, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe(place, *some(20))
    between = some(5, 20)

    def appending(nodes: Nodes, commands: list[Tagged]) -> list[Reply]:
        if commands and b"EVALSHA" in commands[0][1]:
            observe(place, *between)
        return replies_to(nodes, commands)

    monkeypatch.setattr(redis_compaction, "replies_to", appending)
    target = wanted(place, Payment(0, NOON_MS), CARD)
    assert Compactor(place.open()).compact(target, only_due=False) == {SWAPPED: 1}
    state = decode(ask(place, Payment(0, NOON_MS), CARD, b"GET"), ground.layouts[CARD])
    assert (state.records.n, state.n_compacted, state.n_appended) == (25, 20, 5)


def test_of_two_compactors_one_is_overtaken(
    place: RedisPlace, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe(place, *some(20))
    target = wanted(place, Payment(0, NOON_MS), CARD)
    inner: list[dict[str, int]] = []

    def racing(nodes: Nodes, commands: list[Tagged]) -> list[Reply]:
        if commands and b"EVALSHA" in commands[0][1] and not inner:
            inner.append({})
            inner[0] = dict(Compactor(place.open()).compact(target, only_due=False))
        return replies_to(nodes, commands)

    monkeypatch.setattr(redis_compaction, "replies_to", racing)
    assert Compactor(place.open()).compact(target, only_due=False) == {OVERTAKEN: 1}
    assert inner == [{SWAPPED: 1}]
    state = decode(ask(place, Payment(0, NOON_MS), CARD, b"GET"), ground.layouts[CARD])
    assert (state.records.n, state.generation) == (20, 1)


def test_a_prefix_of_equal_length_and_other_content_is_not_replaced(
    place: RedisPlace, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a replica that lost one append and got another would show."""
    observe(place, *some(3))
    target = wanted(place, Payment(0, NOON_MS), CARD)
    other = Payment(77, NOON_MS + 5)

    def changing(nodes: Nodes, commands: list[Tagged]) -> list[Reply]:
        if commands and b"EVALSHA" in commands[0][1]:
            record = place.open().maker.event(ground.row(other), CARD)
            ask(place, Payment(0, NOON_MS), CARD, b"SETRANGE", b"%d" % len(record), record)
        return replies_to(nodes, commands)

    monkeypatch.setattr(redis_compaction, "replies_to", changing)
    assert Compactor(place.open()).compact(target, only_due=False) == {OVERTAKEN: 1}
    state = decode(ask(place, Payment(0, NOON_MS), CARD, b"GET"), ground.layouts[CARD])
    assert (state.records.n, state.generation) == (3, 0)


def test_every_append_and_compaction_extends_the_life(place: RedisPlace) -> None:
    payment = Payment(0, NOON_MS)
    ttl_s = place.open().ttl_s
    for renew in (
        lambda: observe(place, payment),
        lambda: Compactor(place.open()).compact(wanted(place, payment, CARD), only_due=False),
    ):
        observe(place, payment)
        ask(place, payment, CARD, b"EXPIRE", b"100")
        renew()
        assert ttl_s - 60 <= ask(place, payment, CARD, b"TTL") <= ttl_s


def test_a_bare_append_extends_no_life(place: RedisPlace) -> None:
    """Why writers must: an active key would vanish at its first limit."""
    payment = Payment(0, NOON_MS)
    observe(place, payment)
    ask(place, payment, CARD, b"EXPIRE", b"100")
    record = place.open().maker.event(place.ground.row(Payment(1, NOON_MS)), CARD)
    ask(place, payment, CARD, b"APPEND", record)
    assert ask(place, payment, CARD, b"TTL") <= 100


def test_any_damage_is_said_and_nothing_is_half_read(place: RedisPlace, ground: Ground) -> None:
    payment = Payment(0, NOON_MS)
    row = ground.row(payment)
    for compact in (False, True):
        observe(place, *some(4))
        if compact:
            place.compact()
        blob = ask(place, payment, CARD, b"GET")
        for at in range(0, len(blob), 7):
            flipped = bytes([blob[at] ^ 0x10])
            ask(place, payment, CARD, b"SETRANGE", b"%d" % at, flipped)
            read = place.open().read_states([row])[0]
            assert read.problems == (STATE_DAMAGED, None, None)
            assert read.states[CARD] is None
            with pytest.raises(DamagedState):
                place.open().features(row, NOON_MS)
            with pytest.raises(DamagedState):
                place.open().versions(row)
            counted = Compactor(place.open()).compact(wanted(place, payment, CARD), only_due=False)
            assert counted == {DAMAGED: 1}
            ask(place, payment, CARD, b"SETRANGE", b"%d" % at, blob[at : at + 1])
        assert place.open().read_states([row])[0].problems == (None, None, None)
        ask(place, payment, CARD, b"SET", blob[:-1])
        assert place.open().read_states([row])[0].problems == (STATE_DAMAGED, None, None)
        ask(place, payment, CARD, b"DEL")


def test_a_node_without_its_epoch_answers_for_nothing(place: RedisPlace, ground: Ground) -> None:
    payment = Payment(0, NOON_MS)
    observe(place, payment)
    names = place.open().names
    for tag in place.nodes.tags:
        replies_to(place.nodes, [(tag.encode(), command(b"DEL", names.progress(tag)))])
    read = place.open().read_states([ground.row(payment)])[0]
    assert set(read.problems) == {STATE_LOST}
    with pytest.raises(DamagedState, match="state lost"):
        place.open().features(ground.row(payment), NOON_MS)


def test_an_absent_candidate_is_counted(place: RedisPlace) -> None:
    counted = Compactor(place.open()).compact(place.candidates())
    assert counted == {ABSENT: len(place.candidates())}


def test_a_state_at_its_limit_forgets_its_oldest_and_says_so(
    place: RedisPlace, ground: Ground, nodes: Nodes
) -> None:
    limits = replace(LIMITS, max_events_per_entity=16)
    store = RedisStore(
        ground.program, ground.keys, limits, nodes, place.clock, namespace=place.namespace
    )
    observe(place, *some(100))
    row = ground.row(Payment(999, NOON_MS + 2_000))
    before = store.versions(row)
    target = wanted(place, Payment(0, NOON_MS), CARD)
    assert Compactor(store).compact(target) == {SWAPPED: 1}
    state = store.read_states([row])[0].states[CARD]
    assert state is not None
    assert state.records.n == 15
    assert state.forgotten_below_ms == NOON_MS + 10 * 84 + 1
    assert store.too_many_events(state, NOON_MS + 2_000)
    assert not store.too_many_events(state, NOON_MS + 2_000 + store.held_ms)
    # From this watermark on, time alone may have made it forget as much.
    late_ms = state.forgotten_below_ms + limits.horizon_ms + store.held_ms
    assert store.too_many_events(state, NOON_MS + 2_000, late_ms - 1)
    assert not store.too_many_events(state, NOON_MS + 2_000, late_ms)
    assert store.versions(row) == before
    # What comes late is below that instant, and is no new record.
    observe(place, Payment(3, NOON_MS + 30, 103))
    assert store.versions(row) == before


def test_what_was_folded_stays_bounded_and_lives_as_long(
    place: RedisPlace, ground: Ground, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past_events, "BUCKETS", 1)
    compactor = Compactor(place.open())
    least = nodes.settings.compact_records
    for turn in range(4):
        first = turn * least
        begin_ms = NOON_MS + 200_000 * turn
        events = [Payment(first + n, begin_ms + 10 * n) for n in range(least)]
        observe(place, *events, *events)
        fold_ms = begin_ms + 100_000
        compactor.compact(wanted(place, events[0], MERCHANT), fold_below_ms=fold_ms)
    token = ground.token(Payment(0, NOON_MS), MERCHANT)
    key = place.open().reading.past_key(MERCHANT, token, 0)
    asked = [(tag_of(token), command(verb, key)) for verb in (b"GET", b"TTL")]
    past, ttl_s = replies_to(nodes, asked)
    state = decode(past, ground.layouts[MERCHANT])
    assert state.generation > 0
    assert state.records.n == 4 * least
    assert len(past) < 2 * 4 * least * ground.layouts[MERCHANT].width
    assert 0 < ttl_s <= place.open().ttl_s


def test_a_grid_with_more_events_within_the_horizon_than_its_limit_says_so(
    place: RedisPlace, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole while it only grows, bounded after compaction: answers then say what is gone."""
    monkeypatch.setattr(redis_compaction, "_GRID_RECORDS", 64)
    store, memory = place.open(), ground.store()
    events = some(200)
    observe(place, *events)
    for one in events:
        ground.apply(memory, one)
    asked = ground.row(Payment(999, NOON_MS + 2_000))
    assert _taken(place, ground, asked, MERCHANT) == (200, 0)
    assert Compactor(store).compact(wanted(place, events[0], MERCHANT)) == {SWAPPED: 1}
    line_ms = events[-61].time_ms + 1
    assert _taken(place, ground, asked, MERCHANT) == (60, line_ms)
    assert store.versions(asked)[MERCHANT] == memory.versions(asked)[MERCHANT]


def test_no_more_is_folded_than_can_be_kept(
    place: RedisPlace, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then records forget, and say so: no event is folded whose later facts could not count."""
    width = ground.layouts[MERCHANT].width
    monkeypatch.setattr(past_events, "BUCKETS", 1)
    monkeypatch.setattr(redis_compaction, "_GRID_RECORDS", 64)
    store, memory = place.open(), ground.store()
    compactor = Compactor(store)
    compactor._most_of_bucket = 100 * width
    target = wanted(place, Payment(0, NOON_MS), MERCHANT)
    events = [Payment(i, NOON_MS + 100_000 * (i // 90) + 10 * i, 100 + i) for i in range(180)]
    for turn, expected in enumerate(({SWAPPED: 1}, {FULL: 1, SWAPPED: 1})):
        mine = events[90 * turn : 90 * turn + 90]
        observe(place, *mine)
        for one in mine:
            ground.apply(memory, one)
        fold_ms = NOON_MS + 100_000 * (turn + 1)
        assert compactor.compact(target, fold_below_ms=fold_ms, only_due=False) == expected
    asked = ground.row(Payment(999, NOON_MS + 210_000))
    assert store.versions(asked)[MERCHANT] == memory.versions(asked)[MERCHANT]
    n, lost_ms = _taken(place, ground, asked, MERCHANT)
    assert n == 60
    assert lost_ms == events[-61].time_ms + 1
    # With room again the rest is folded, and nothing more is forgotten.
    compactor._most_of_bucket = 300 * width
    fold_ms = NOON_MS + 205_000
    assert compactor.compact(target, fold_below_ms=fold_ms, only_due=False) == {SWAPPED: 1}
    assert _taken(place, ground, asked, MERCHANT)[1] == lost_ms
    assert store.versions(asked)[MERCHANT] == memory.versions(asked)[MERCHANT]


def _with(nodes: Nodes, **settings: int) -> Iterator[Nodes]:
    """Nodes like these, under other settings."""
    changed = Nodes.open(nodes.settings.model_copy(update=settings))
    try:
        yield changed
    finally:
        changed.close()


@pytest.fixture
def tiny(nodes: Nodes) -> Iterator[Nodes]:
    yield from _with(nodes, grid_records=16, compact_records=4)


@pytest.fixture
def narrow(nodes: Nodes) -> Iterator[Nodes]:
    yield from _with(nodes, grid_records=16, compact_records=4, past_max_bytes=512 * 1_024)


def test_a_grid_with_many_records_is_folded_early_but_for_its_newest(
    ground: Ground, tiny: Nodes
) -> None:
    """However many come within the horizon, a score reads a bounded number of records."""
    place = RedisPlace(ground, tiny)
    store, memory = place.open(), ground.store()
    compactor = Compactor(store)
    target = wanted(place, Payment(0, NOON_MS), MERCHANT)
    for turn in range(40):
        events = some(10, 10 * turn)
        observe(place, *events, *events[:3])
        for one in events:
            ground.apply(memory, one)
        now_ms = events[-1].time_ms
        assert compactor.compact(target, now_ms=now_ms) == {SWAPPED: 1}
        asked = ground.row(Payment(999, now_ms + 1))
        assert _taken(place, ground, asked, MERCHANT)[0] <= 16
        assert store.versions(asked)[MERCHANT] == memory.versions(asked)[MERCHANT]
    # One that the tiles have, under its own time and later: it does not count beside itself.
    for number in (3, 200, 398):
        own = Payment(number, NOON_MS + 10 * number, 100 + number)
        row = ground.row(own)
        assert store.features(row, now_ms).tobytes() == memory.features(row, now_ms).tobytes()
    # Nothing is due where nothing came.
    assert compactor.compact(target, now_ms=now_ms) == {NOT_DUE: 1}


def test_nothing_is_folded_early_ahead_of_the_clock_or_without_one(
    ground: Ground, tiny: Nodes
) -> None:
    place = RedisPlace(ground, tiny)
    observe(place, *some(60))
    target = wanted(place, Payment(0, NOON_MS), MERCHANT)
    for now_ms, n_left in ((0, 60), (NOON_MS + 95, 50), (NOON_MS + 10_000, 8)):
        Compactor(place.open()).compact(target, now_ms=now_ms, only_due=False)
        asked = ground.row(Payment(999, NOON_MS + 20_000))
        assert _taken(place, ground, asked, MERCHANT)[0] == n_left


def test_a_late_event_makes_a_grid_due_and_counts_once(ground: Ground, tiny: Nodes) -> None:
    """With a repetition beside it, and one of an event that a tile has."""
    place = RedisPlace(ground, tiny)
    store, memory = place.open(), ground.store()
    compactor = Compactor(store)
    target = wanted(place, Payment(0, NOON_MS), MERCHANT)
    events = some(60)
    observe(place, *events)
    now_ms = events[-1].time_ms
    assert compactor.compact(target, now_ms=now_ms) == {SWAPPED: 1}
    late = Payment(500, NOON_MS + 55, 7)
    observe(place, late, events[2], late)
    for one in (*events, late):
        ground.apply(memory, one)
    asked = ground.row(Payment(999, now_ms + 1))
    # Whoever reads with what was folded knows at once; a score does from the compaction on.
    assert store.versions(asked)[MERCHANT] == memory.versions(asked)[MERCHANT]
    assert _taken(place, ground, asked, MERCHANT)[0] == 8
    for n_left in (9, 8):
        assert compactor.compact(target, now_ms=now_ms, only_due=n_left == 9) == {SWAPPED: 1}
        assert _taken(place, ground, asked, MERCHANT)[0] == n_left
        assert store.versions(asked)[MERCHANT] == memory.versions(asked)[MERCHANT]
    row = ground.row(late)
    assert store.features(row, now_ms).tobytes() == memory.features(row, now_ms).tobytes()


def test_a_crash_between_keeping_and_swapping_loses_and_doubles_nothing(
    ground: Ground, tiny: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = RedisPlace(ground, tiny)
    store, memory = place.open(), ground.store()
    compactor = Compactor(store)
    target = wanted(place, Payment(0, NOON_MS), MERCHANT)

    def crashing(nodes: Nodes, commands: list[Tagged]) -> list[Reply]:
        if any(SWAP.digest in one[1] for one in commands):
            raise Unavailable("the compactor has crashed")
        return replies_to(nodes, commands)

    for turn in range(6):
        events = some(30, 30 * turn)
        late = Payment(1_000 + turn, max(NOON_MS, events[0].time_ms - 200), 9)
        observe(place, *events, late, *events[:2])
        for one in (*events, late):
            ground.apply(memory, one)
        now_ms = events[-1].time_ms
        with monkeypatch.context() as patched:
            patched.setattr(redis_compaction, "replies_to", crashing)
            with pytest.raises(Unavailable, match="crashed"):
                compactor.compact(target, now_ms=now_ms, only_due=False)
        for _ in range(2):
            asked = ground.row(Payment(9_999, now_ms + 1))
            assert store.versions(asked)[MERCHANT] == memory.versions(asked)[MERCHANT]
            for own in (late, events[0], Payment(9_999, now_ms + 1)):
                row = ground.row(own)
                mine = store.features(row, now_ms + 1)
                assert mine.tobytes() == memory.features(row, now_ms + 1).tobytes()
            compactor.compact(target, now_ms=now_ms, only_due=False)


def test_what_was_kept_and_lost_by_a_failover_is_not_swapped_in(
    ground: Ground, tiny: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that lacks the last of the appends takes over before the swap."""
    place = RedisPlace(ground, tiny)
    store, memory = place.open(), ground.store()
    compactor = Compactor(store)
    target = wanted(place, Payment(0, NOON_MS), MERCHANT)
    events = some(40)
    observe(place, *events)
    for one in events:
        ground.apply(memory, one)
    now_ms = events[-1].time_ms
    lost: list[bytes] = []

    def failing_over(nodes: Nodes, commands: list[Tagged]) -> list[Reply]:
        replies = replies_to(nodes, commands)
        if not lost and any(KEEP.digest in one[1] for one in commands):
            token = target[0][1]
            last = kept_in(place, token)[-1]
            key = store.reading.past_key(MERCHANT, token, last)
            lost.append(key)
            replies_to(nodes, [(tag_of(token), command(b"UNLINK", key))])
        return replies

    with monkeypatch.context() as patched:
        patched.setattr(redis_compaction, "replies_to", failing_over)
        assert compactor.compact(target, now_ms=now_ms, only_due=False) == {OVERTAKEN: 1}
    assert lost
    assert compactor.compact(target, now_ms=now_ms) == {SWAPPED: 1}
    observe(place, *events)
    compactor.compact(target, now_ms=now_ms, only_due=False)
    asked = ground.row(Payment(9_999, now_ms + 1))
    assert store.versions(asked)[MERCHANT] == memory.versions(asked)[MERCHANT]


def test_no_more_is_folded_early_than_a_bucket_can_keep(ground: Ground, narrow: Nodes) -> None:
    """Half a megabyte is one record in each bucket: of two in one bucket none is folded early."""
    place = RedisPlace(ground, narrow)
    store = place.open()
    of: dict[int, list[int]] = {}
    number = 0
    while not any(len(same) == 2 for same in of.values()):
        row = ground.row(Payment(number, NOON_MS))
        of.setdefault(bucket_of_identity(int.from_bytes(row[:8], "little")), []).append(number)
        number += 1
    pair = next(same for same in of.values() if len(same) == 2)
    target = wanted(place, Payment(0, NOON_MS), MERCHANT)
    observe(place, *(Payment(n, NOON_MS + n) for n in pair), *some(20, 5_000))
    now_ms = NOON_MS + 10**6
    counted = Compactor(store).compact(target, now_ms=now_ms)
    assert counted == {FULL: 1, SWAPPED: 1}
    asked = ground.row(Payment(9_999, now_ms))
    assert _taken(place, ground, asked, MERCHANT)[0] == 22


def test_what_nobody_can_ask_for_leaves_its_bucket(
    ground: Ground, tiny: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once F has passed it, where no window reads facts."""
    monkeypatch.setattr(past_events, "BUCKETS", 1)
    place = RedisPlace(ground, tiny)
    compactor = Compactor(place.open())
    compactor._most_of_bucket = 10**6
    token = ground.token(Payment(0, NOON_MS), TERMINAL)
    reading = place.open().reading
    lengths = []
    for turn in range(30):
        events = some(32, 32 * turn)
        observe(place, *events)
        now_ms = events[-1].time_ms
        compactor.compact([(TERMINAL, token)], now_ms=now_ms, fold_below_ms=now_ms - 1_000)
        key = reading.past_key(TERMINAL, token, 0)
        past = replies_to(place.nodes, [(tag_of(token), command(b"GET", key))])[0] or b""
        lengths.append(len(past) // ground.layouts[TERMINAL].width)
    # Some 100 events lie within the horizon of a second.
    assert max(lengths) < 400


def _taken(place: RedisPlace, ground: Ground, row: bytes, entity: int) -> tuple[int, int]:
    """How many records a score would read of an entity, and below which instant it misses some."""
    store = place.open()
    tokens = store.maker.tokens(row)
    asked = []
    for number, token in enumerate(tokens):
        assert token is not None
        asked.append((tag_of(token), command(b"GET", store.reading.state_key(number, token))))
    request = RequestStore(ground.program, ground.keys, LIMITS)
    request.take(row, replies_to(place.nodes, asked), NOON_MS)
    of_state = request._rows[entity]
    return int(of_state[tables.COUNT // 8]), int(of_state[tables.LOST // 8])


def test_progress_never_goes_back_and_names_current_topics(
    place: RedisPlace, ground: Ground
) -> None:
    store = place.open()

    def write(n_partitions: int, topics: str, *triples: tuple[str, int, int]) -> list[int]:
        fields = [b"%d" % n_partitions, topics.encode()]
        for field, offset, arrival_ms in triples:
            fields += [field.encode(), b"%d" % offset, b"%d" % arrival_ms]
        asked = []
        for tag in place.nodes.tags:
            keys = [store.names.markers(tag), store.names.progress(tag)]
            asked.append((tag.encode(), command(b"EVALSHA", PROGRESS.digest, b"2", *keys, *fields)))
        return replies_to(place.nodes, asked)

    n = place.nodes.n
    assert write(2, "t1", ("m:t1:0", 10, NOON_MS)) == [1] * n
    for progress in store.reading.progress():
        assert progress is not None
        assert (progress.epoch, progress.watermark_ms) == (EPOCH, 0)
    write(2, "t1", ("m:t1:0", 7, NOON_MS - 5), ("m:t1:1", 3, NOON_MS + 50))
    for progress in store.reading.progress():
        assert progress is not None
        assert progress.watermark_ms == NOON_MS
        found = [(m.topic, m.partition, m.offset, m.arrival_ms) for m in progress.markers]
        topic = topic_digest("t1")
        assert found == [(topic, 0, 10, NOON_MS), (topic, 1, 3, NOON_MS + 50)]
    assert store.read_states([ground.row(Payment(0, NOON_MS))])[0].watermark_ms == NOON_MS
    assert store.newest_ms == NOON_MS
    write(1, "t2", ("m:t2:0", 1, NOON_MS + 90))
    assert [len(p.markers) for p in store.reading.progress() if p] == [1] * n
    for tag in place.nodes.tags:
        replies_to(place.nodes, [(tag.encode(), command(b"DEL", store.names.markers(tag)))])
    assert write(1, "t2", ("m:t2:0", 2, NOON_MS)) == [0] * n


def test_states_of_other_layouts_have_an_epoch_of_their_own(
    place: RedisPlace, ground: Ground, nodes: Nodes
) -> None:
    """Lost, not new: under a changed specification nothing was counted yet."""
    payment = Payment(0, NOON_MS)
    observe(place, payment)
    changed = SPECIFICATION.replace('mode = "grid"\nresolution = 0.25', 'mode = "exact"')
    other = Ground(program=compiled(FeatureSpecification.from_toml(changed)))
    ours, theirs = state_fingerprints(ground.program), state_fingerprints(other.program)
    assert [one == its for one, its in zip(ours, theirs, strict=True)] == [True, False, True]
    assert list(ours) == [layout.fingerprint for layout in ground.layouts]
    store = RedisStore(other.program, other.keys, LIMITS, nodes, namespace=place.namespace)
    row = other.row(payment)
    assert store.read_states([row])[0].problems == (STATE_LOST,) * 3
    assert set(store.reading.progress()) == {None}
    store.begin(bytes(8), 5)
    assert {p.epoch for p in store.reading.progress() if p} == {bytes(8)}
    assert {p.epoch for p in place.open().reading.progress() if p} == {EPOCH}
    assert store.read_states([row])[0].problems == (None,) * 3
    assert place.open().read_states([ground.row(payment)])[0].problems == (None,) * 3


def test_an_epoch_is_given_once_and_to_one_secret(place: RedisPlace, nodes: Nodes) -> None:
    place.open().begin(bytes(8), 5)
    assert {p.epoch for p in place.open().reading.progress() if p} == {EPOCH}
    other = Ground(secret=OTHER_SECRET)
    store = RedisStore(other.program, other.keys, LIMITS, nodes, namespace=place.namespace)
    with pytest.raises(WrongSecret):
        store.begin(EPOCH)


def test_many_rows_are_read_in_one_call(place: RedisPlace, ground: Ground) -> None:
    observe(place, *(Payment(n, NOON_MS, card=n, merchant=n) for n in range(3)))
    rows = [ground.row(Payment(9, NOON_MS, card=n, merchant=3 - n)) for n in range(4)]
    together = place.open().read_states(rows)
    for row, read in zip(rows, together, strict=True):
        alone = place.open().read_states([row])[0]
        assert [s and s.version for s in read.states] == [s and s.version for s in alone.states]


def test_no_identifier_and_no_raw_token_is_in_redis(place: RedisPlace, nodes: Nodes) -> None:
    secretive = Payment(424_242, NOON_MS, card=131_313, located=False)
    store = place.open()
    store.observe(place.ground.row(secretive))
    store.label(place.ground.row(secretive), 0, True, NOON_MS, NOON_MS, False)
    n_found = 0
    with client_of(nodes) as client:
        for key in client.scan_iter(match=f"{place.namespace}:*"):
            n_found += 1
            held = client.dump(key)
            assert b"131313" not in key + held
            assert b"424242" not in key + held
    assert n_found >= 4


def test_facts_alone_are_kept_with_the_state(place: RedisPlace, ground: Ground) -> None:
    store = place.open()
    fact = Fact(Payment(1, NOON_MS), 1, True, NOON_MS)
    row = ground.row(fact.payment)
    assert store.label(row, fact.fact, True, fact.known_at_ms, fact.sender_ms, False) == "accepted"
    state = store.read_states([row])[0].states[CARD]
    assert state is not None
    assert state.records.n == 1
