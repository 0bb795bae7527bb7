"""Near states are what Redis holds, up to what the follower was told: never less, never more."""

from __future__ import annotations

import random
import struct
import sys
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshscore.features import near_kernels as n
from freshscore.features import near_ring as g
from freshscore.features.codec import compacted, stored
from freshscore.features.memory import BYTES_AT
from freshscore.features.near_states import NearRoom, NearStates
from freshscore.features.request_store import RequestStore
from freshscore.features.row import TOKENS
from tests.features.stored_states import LIMITS, NOON_MS, Ground, Payment

GROUND = Ground()
LAYOUTS = GROUND.layouts
WIDTHS = [layout.width for layout in LAYOUTS]
TOPIC = b"a topic."
EPOCH = b"an epoch"
SINCE_MS = 77
# The tokens of each entity that happen to be met; few, so that they are met again.
FEW = 6


def token_of(entity: int, number: int) -> bytes:
    """Tokens that begin their search at few slots, and some that share a note."""
    return struct.pack("<QQ", (number % 3) << 1 | entity << 60, (number + 1) << 1 | entity << 61)


def row_of(numbers: tuple[int | None, ...]) -> bytes:
    """A row with these entities; None for one that is absent."""
    tokens = b"".join(
        bytes(16) if number is None else token_of(entity, number)
        for entity, number in enumerate(numbers)
    )
    return bytes(TOKENS) + tokens + bytes(64)


def message_of(groups: list[tuple[int, bytes, bytes]]) -> tuple[bytes, np.ndarray]:
    """Bytes that hold the records of groups (entity, token, records), and where they lie."""
    data = bytes(8)
    words = []
    for entity, token, records in groups:
        low, high = struct.unpack("<2q", token)
        words.append([entity, low, high, len(records) // WIDTHS[entity], len(data)])
        data += records
    return data, np.array(words, np.int64).reshape(-1, 5)


class Event(NamedTuple):
    """One event of the log: which entity of each kind it is about."""

    numbers: tuple[int | None, ...]

    def records(self, offset: int) -> list[tuple[int, bytes, bytes]]:
        """Entity, token, and a record that says which event it is of."""
        return [
            (entity, token_of(entity, number), struct.pack("<q", offset + 1).ljust(WIDTHS[entity]))
            for entity, number in enumerate(self.numbers)
            if number is not None
        ]


@dataclass
class Exchange:
    """An exchange that was answered, and whose answer is still under way."""

    row: bytes
    room: NearRoom
    states: list[bytes | None]
    summary: bytes


@dataclass
class World:
    """A log, a Redis that is told of it, a follower, and near states: obvious, and slow."""

    near: NearStates
    log: list[Event] = field(default_factory=list)
    redis: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    marker: int = 0
    published: int = 0
    stream: list[tuple[int, int]] = field(default_factory=list)
    under_way: list[Exchange] = field(default_factory=list)
    known: np.ndarray = field(default_factory=lambda: np.zeros((1, 4), np.int64))
    now_s: int = 0
    n_hits: int = 0

    def __post_init__(self) -> None:
        self.room = self.near.room()
        self.known[0, 0] = int.from_bytes(TOPIC, "little")
        self.near.know(self.known)
        self.near.flush(is_open=True)

    @property
    def heard(self) -> int:
        """Events that the follower has applied."""
        return int(self.known[0, 2])

    def happen(self, event: Event) -> None:
        """An event reaches the log, and Redis."""
        self.log.append(event)
        self.apply_log()

    def apply_log(self) -> None:
        """Redis is told what it lacks."""
        for offset in range(self.marker, len(self.log)):
            for entity, token, record in self.log[offset].records(offset):
                self.redis[entity, token] = self.redis.get((entity, token), b"") + record
        self.marker = len(self.log)

    def publish(self) -> None:
        """What Redis holds is published."""
        if self.published < self.marker:
            self.stream.append((self.published, self.marker))
            self.published = self.marker

    def follow(self, n_messages: int = 1) -> None:
        """The follower applies messages."""
        for begin, end in self.stream[:n_messages]:
            groups = [group for at in range(begin, end) for group in self.log[at].records(at)]
            data, words = message_of(groups)
            self.near.apply(id(data) + BYTES_AT, words, 0, len(words))
            self.known[0, 2] = max(self.heard, end)
        del self.stream[:n_messages]

    def ask(self, row: bytes) -> None:
        """An exchange is sent and answered."""
        room = self.near.room()
        self.near.draw(room)
        self.under_way.append(Exchange(row, room, self.fetched(row), self.summary()))

    def fetched(self, row: bytes) -> list[bytes | None]:
        """What Redis holds of the entities of a row."""
        tokens = [row[at : at + 16] for at in range(TOKENS, TOKENS + 16 * len(LAYOUTS), 16)]
        return [self.redis.get((entity, token)) for entity, token in enumerate(tokens)]

    def summary(self) -> bytes:
        """How far Redis says that it has got."""
        marker = struct.pack("<8s3q", TOPIC, 0, self.marker, 0)
        return struct.pack("<8s3q", EPOCH, 1, SINCE_MS, 1) + marker

    def answer(self, which: int, *, adds: bool = True) -> None:
        """What an exchange brought is admitted, or not."""
        if self.under_way:
            one = self.under_way.pop(which % len(self.under_way))
            self.near.admit(
                one.row,
                one.states,
                one.room,
                summaries=(one.summary,),
                complete_since_ms=SINCE_MS,
                now_s=self.now_s,
                adds=adds,
            )

    def fail_over(self, n_lost: int) -> None:
        """Redis loses the last events that it was told of."""
        self.marker = max(0, self.marker - n_lost)
        self.redis.clear()
        for offset, event in enumerate(self.log[: self.marker]):
            for entity, token, record in event.records(offset):
                self.redis[entity, token] = self.redis.get((entity, token), b"") + record

    def check(self, row: bytes) -> None:
        """What is near is what was published and followed, and nothing that never happened."""
        states = self.near.look(row, self.room, self.now_s)
        if states is None:
            return
        self.n_hits += 1
        for entity, state in enumerate(states):
            token = row[TOKENS + 16 * entity :][:16]
            mine = _offsets(state, entity)
            due, ever = set[int](), set[int]()
            for offset, event in enumerate(self.log):
                if any((e, t) == (entity, token) for e, t, _ in event.records(offset)):
                    ever.add(offset)
                    if offset < self.heard:
                        due.add(offset)
            assert due <= mine <= ever, (entity, due - mine, mine - ever)
            assert (state is None) == (not mine)


def _offsets(state: bytes | None, entity: int) -> set[int]:
    """The events that a state counts."""
    width = WIDTHS[entity]
    return {
        struct.unpack_from("<q", state, at)[0] - 1
        for at in range(0, len(state or b""), width)
        if state is not None
    }


def check_structure(near: NearStates) -> None:
    """The ring, the table and the counts agree."""
    words = {at: int(near._head[at // 8]) for at in range(0, g.HEAD_BYTES, 8)}
    block = near._block[words[g.BLOCK] - near._block.ctypes.data :]
    at, live, held = words[g.HEAD], 0, 0
    while at < words[g.TAIL]:
        place = block[at % words[g.BLOCK_BYTES] :][: g.PLACE_HEAD].view(np.int64)
        size, owner = int(place[g.SIZE // 8]), int(place[g.OWNER // 8])
        assert size > 0
        assert size % 64 == 0
        if owner:
            live += size
            held += 1
            low, high = (int(one) for one in place[g.TOKEN // 8 :][:2].view(np.uint64))
            slot = g.sought(near._at, np.uint64(low), np.uint64(high))
            assert g.placed(near._at, slot) == place.ctypes.data
        at += size
    assert at == words[g.TAIL]
    assert words[g.TAIL] - words[g.HEAD] <= words[g.BLOCK_BYTES]
    assert (live, held) == (words[g.LIVE], words[g.HELD])


def small_near(max_bytes: int = 1 << 14, **limits: int) -> NearStates:
    """Near states that are full soon."""
    return NearStates(LAYOUTS, max_bytes, **limits)


ROWS = st.tuples(*[st.one_of(st.none(), st.integers(0, FEW)) for _ in LAYOUTS])
STEPS = st.one_of(
    st.tuples(st.just("happen"), ROWS),
    st.tuples(st.just("publish"), st.none()),
    st.tuples(st.just("follow"), st.integers(1, 3)),
    st.tuples(st.just("ask"), ROWS),
    st.tuples(st.just("answer"), st.integers(0, 5)),
    st.tuples(st.just("answer_scan"), st.integers(0, 5)),
    st.tuples(st.just("look"), ROWS),
    st.tuples(st.just("flush"), st.none()),
    st.tuples(st.just("fail_over"), st.integers(1, 4)),
    st.tuples(st.just("again"), st.none()),
    st.tuples(st.just("wait"), st.integers(1, 40)),
)


def do(world: World, what: str, given_: object) -> None:
    """One step."""
    match what, given_:
        case "happen", tuple():
            world.happen(Event(given_))
        case "publish", _:
            world.publish()
        case "follow", int():
            world.follow(given_)
        case "ask", tuple():
            world.ask(row_of(given_))
        case (("answer" | "answer_scan"), int()):
            world.answer(given_, adds=what == "answer")
        case "look", tuple():
            world.check(row_of(given_))
        case "flush", _:
            world.near.flush(is_open=True)
        case "fail_over", int():
            world.fail_over(given_)
        case "again", _:
            world.apply_log()
        case "wait", int():
            world.now_s += given_


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, min_size=10, max_size=80))
def test_near_states_hold_what_was_followed_and_nothing_else(
    steps: list[tuple[str, object]],
) -> None:
    """Whatever is admitted, appended, evicted, lost and flushed, in whatever order."""
    world = World(small_near(most_grown=4, most_age_s=30))
    for what, given_ in steps:
        do(world, what, given_)
    check_structure(world.near)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_in_a_long_run_with_a_full_block(seed: int) -> None:
    """Many entities that do not fit, so that places are moved, evicted and padded."""
    print("seed", seed)
    chance = random.Random(seed)
    world = World(small_near(1 << 15))
    for _ in range(3_000):
        what = chance.choice(["happen", "publish", "follow", "ask", "answer", "look", "known"])
        numbers = tuple(
            None if chance.random() < 0.1 else min(int(chance.expovariate(0.1)), 80)
            for _ in LAYOUTS
        )
        if what == "known":
            # One that was met lately.
            if world.log:
                world.check(
                    row_of(world.log[-1 - chance.randrange(min(5, len(world.log)))].numbers)
                )
        else:
            do(world, what, 3 if what in {"follow", "answer"} else numbers)
        if what == "ask" and chance.random() < 0.9:
            world.answer(-1)
    check_structure(world.near)
    counts = world.near.counts
    assert all(counts[what] > 0 for what in ("hits", "moved", "evicted", "not_admitted")), counts
    assert world.n_hits > 50


def test_what_comes_during_an_exchange_is_not_missed() -> None:
    """Told between the exchange and its answer: the answer is not admitted; a later one is."""
    world = World(small_near())
    numbers = (1,) + (None,) * (len(LAYOUTS) - 1)
    row = row_of(numbers)
    world.ask(row)
    world.happen(Event(numbers))
    world.publish()
    world.follow()
    world.answer(0)
    assert world.near.look(row, world.room, 0) is None
    world.ask(row)
    world.answer(0)
    states = world.near.look(row, world.room, 0)
    assert states == world.fetched(row)
    assert world.room.complete_since_ms == SINCE_MS


def test_what_comes_of_others_during_an_exchange_does_not_refuse_it() -> None:
    """Or nothing would ever be admitted where many messages come during each exchange."""
    world = World(small_near())
    mine, others = ((number, *[None] * (len(LAYOUTS) - 1)) for number in (1, 2))
    world.happen(Event(mine))
    world.publish()
    world.follow()
    world.ask(row_of(mine))
    for _ in range(5):
        world.happen(Event(others))
        world.publish()
        world.follow()
    world.answer(0)
    assert world.near.look(row_of(mine), world.room, 0) == world.fetched(row_of(mine))


def test_tickets_know_any_number_of_partitions() -> None:
    """More than a room has room for at first; of another table a ticket is worth nothing."""
    world = World(small_near())
    topic = int.from_bytes(TOPIC, "little")
    known = np.array([[topic, number, 5, 0] for number in range(200)], np.int64)
    row = row_of((1,) * len(LAYOUTS))
    head = struct.pack("<8s3q", EPOCH, 1, SINCE_MS, 200)
    for lost, number, is_held in ((0, 1, True), (1, 1, False), (0, 2, False)):
        world.near.know(known)
        world.ask(row)
        markers = known.copy()
        markers[150, 2] -= lost
        world.under_way[0].summary = head + markers.tobytes()
        for _ in range(1, number):
            world.near.know(known.copy())
        world.answer(0)
        assert (world.near.look(row, world.room, 0) is not None) == is_held


def test_without_tickets_the_law_breaks() -> None:
    """A canary: the same race, with a ticket drawn too late."""
    world = World(small_near())
    numbers = (1,) + (None,) * (len(LAYOUTS) - 1)
    world.ask(row_of(numbers))
    world.happen(Event(numbers))
    world.publish()
    world.follow()
    world.near.draw(world.under_way[0].room)
    # As it would be where the summary were not looked at either.
    world.under_way[0].summary = world.summary()
    world.answer(0)
    with pytest.raises(AssertionError):
        world.check(row_of(numbers))


def test_what_a_failed_over_redis_lacks_is_not_admitted() -> None:
    """Its marker is behind what was followed; and what was held of that entity is given up."""
    world = World(small_near())
    numbers = tuple(range(len(LAYOUTS)))
    row = row_of(numbers)
    world.happen(Event(numbers))
    world.happen(Event(numbers))
    world.publish()
    world.follow()
    world.ask(row)
    world.answer(0)
    assert world.near.look(row, world.room, 0) is not None
    world.fail_over(1)
    world.check(row)
    world.ask(row)
    world.answer(0)
    assert world.near.look(row, world.room, 0) is None
    world.apply_log()
    world.ask(row)
    world.answer(0)
    assert world.near.look(row, world.room, 0) == world.fetched(row)


def test_a_flush_refuses_what_was_asked_for_before_it() -> None:
    """And a block that is closed admits nothing."""
    world = World(small_near())
    row = row_of((1,) * len(LAYOUTS))
    world.ask(row)
    world.near.flush(is_open=True)
    world.answer(0)
    assert world.near.look(row, world.room, 0) is None
    world.near.flush(is_open=False)
    world.ask(row)
    world.answer(0)
    assert world.near.look(row, world.room, 0) is None
    assert world.near.counts["held"] == 0


def test_entities_without_a_state_are_held_and_absent_ones_are_no_miss() -> None:
    """A new card is known to be new; its first event is appended to nothing."""
    world = World(small_near())
    numbers = (1, *[None] * (len(LAYOUTS) - 1))
    row = row_of(numbers)
    world.ask(row)
    world.answer(0)
    assert world.near.look(row, world.room, 0) == [None] * len(LAYOUTS)
    world.happen(Event(numbers))
    world.publish()
    world.follow()
    assert world.near.look(row, world.room, 0) == world.fetched(row)


def test_states_that_double_or_grow_old_are_fetched_anew() -> None:
    """Redis compacts what has doubled; what is too old may lack what nobody told of."""
    near = small_near(1 << 20, most_grown=8, most_age_s=10)
    world = World(near)
    numbers = (1, *[None] * (len(LAYOUTS) - 1))
    row = row_of(numbers)
    world.ask(row)
    world.answer(0)
    widest = max(WIDTHS)
    for count in range(1, 8 * widest // WIDTHS[0] + 2):
        world.happen(Event(numbers))
        world.publish()
        world.follow()
        is_held = near.look(row, world.room, 0) is not None
        assert is_held == (count * WIDTHS[0] <= 8 * widest)
    world.ask(row)
    world.answer(0)
    assert near.look(row, world.room, 10) is not None
    assert near.look(row, world.room, 11) is None
    assert near.counts["dropped"] >= 2


def test_what_is_asked_for_often_survives_a_scan() -> None:
    """A thousand entities asked for once pass; those asked for again and again are still there."""
    world = World(small_near(1 << 15))
    often = [row_of((number, *[None] * (len(LAYOUTS) - 1))) for number in range(20)]
    for row in often:
        world.ask(row)
        world.answer(0)
    for number in range(1_000, 2_000):
        if number % 20 == 0:
            for row in often:
                assert world.near.look(row, world.room, 0) is not None
        world.ask(row_of((number, *[None] * (len(LAYOUTS) - 1))))
        world.answer(0)
    assert world.near.counts["evicted"] > 800


def test_rows_of_a_table_replace_and_do_not_displace() -> None:
    """With adds=False what is held is brought up to date, and nothing else is held."""
    world = World(small_near())
    held, other = (row_of((number,) * len(LAYOUTS)) for number in (1, 2))
    world.ask(held)
    world.answer(0)
    world.happen(Event((1,) * len(LAYOUTS)))
    for row in (held, other):
        world.ask(row)
        world.answer(0, adds=False)
    assert world.near.look(held, world.room, 0) == world.fetched(held)
    assert world.near.look(other, world.room, 0) is None


def test_a_state_larger_than_any_place_is_not_held() -> None:
    """And what was held of it before is given up."""
    near = small_near()
    room = near.room()
    near.know(np.array([[int.from_bytes(TOPIC, "little"), 0, 0, 0]], np.int64))
    near.flush(is_open=True)
    row = row_of((1, *[None] * (len(LAYOUTS) - 1)))
    summary = World(small_near()).summary()
    for n_bytes in (WIDTHS[0], 100 * WIDTHS[0]):
        states: list[bytes | None] = [bytes(n_bytes), *[None] * (len(LAYOUTS) - 1)]
        near.draw(room)
        near.admit(
            row,
            states,
            room,
            summaries=(summary,),
            complete_since_ms=0,
            now_s=0,
        )
        assert (near.look(row, room, 0) == states) == (n_bytes == WIDTHS[0])
    check_structure(near)


def test_a_state_that_is_folded_early_is_not_held() -> None:
    """The request's own payment may be in a tile, and must be looked for in Redis each time."""
    entity = next(e for e, layout in enumerate(LAYOUTS) if layout.is_grid)
    records = b"".join(
        stored(GROUND.record(Payment(i, NOON_MS + i), entity), LAYOUTS[entity]) for i in range(20)
    )
    row = row_of(tuple(1 if e == entity else None for e in range(len(LAYOUTS))))
    for early_ms, is_held in ((0, True), (NOON_MS + 10, False), (0, True)):
        world = World(small_near())
        made = compacted(records, LAYOUTS[entity], nonce=1, summarise_below_ms=early_ms)
        world.ask(row)
        world.under_way[0].states[entity] = made.state
        world.answer(0)
        assert (world.near.look(row, world.room, 0) is not None) == is_held


def test_generations_of_the_table_come_round() -> None:
    """The last one clears it, so that no slot of a former round is ever met."""
    world = World(small_near())
    row = row_of((3,) * len(LAYOUTS))
    world.near._head[g.GENERATION // 8] = n.LAST_GENERATION - 1
    world.ask(row)
    world.answer(0)
    assert world.near.look(row, world.room, 0) is not None
    world.near.flush(is_open=True)
    assert world.near._head[g.GENERATION // 8] == 1
    assert not world.near._table.any()
    assert world.near.look(row, world.room, 0) is None


def test_too_few_bytes_are_refused() -> None:
    """A block in which no place fits."""
    with pytest.raises(ValueError, match="at least"):
        NearStates(LAYOUTS, 1_000)


def test_a_look_is_read_as_an_exchange_would_be() -> None:
    """Versions and features on near states, appended ones included, are those of fetched bytes."""
    near = small_near(1 << 20)
    near.know(np.array([[int.from_bytes(TOPIC, "little"), 0, 0, 0]], np.int64))
    near.flush(is_open=True)
    room = near.room()
    payments = [Payment(number, NOON_MS + 700 * number, 100 + number) for number in range(60)]
    early, late = payments[:40], payments[40:]
    compact: list[bytes | None] = []
    fetched: list[bytes | None] = []
    groups = []
    asked = Payment(999, NOON_MS + 60_000)
    for entity, layout in enumerate(LAYOUTS):
        records = [stored(GROUND.record(one, entity), layout) for one in payments]
        state = compacted(b"".join(records[:40]), layout, nonce=1).state
        compact.append(state)
        fetched.append(state + b"".join(records[40:]))
        groups += [(entity, GROUND.token(asked, entity), one) for one in records[40:]]
    row = GROUND.row(asked)
    assert len(early) + len(late) == 60
    near.draw(room)
    near.admit(
        row,
        compact,
        room,
        summaries=(World(small_near()).summary(),),
        complete_since_ms=5,
        now_s=0,
    )
    data, words = message_of(groups)
    near.apply(id(data) + BYTES_AT, words, 0, len(words))
    found = near.look(row, room, 0)
    assert found == fetched
    mine, theirs = (RequestStore(GROUND.program, GROUND.keys, LIMITS) for _ in range(2))
    assert mine.take(row, found)
    assert theirs.take(row, fetched)
    for entity in range(len(LAYOUTS)):
        assert mine.version(entity) == theirs.version(entity) != 0
    assert (
        mine.features(row, asked.time_ms).tobytes() == theirs.features(row, asked.time_ms).tobytes()
    )


def test_threads_never_see_less_than_was_followed() -> None:
    """One appends, publishes and follows; three ask, admit and look: nothing known is missing."""
    near = small_near(1 << 20, most_grown=10_000)
    world = World(near)
    rows = [row_of((number, number % 2, None)[: len(LAYOUTS)]) for number in range(4)]
    stop, troubles, hits = threading.Event(), list[str](), list[int]()

    def write() -> None:
        chance = random.Random(1)
        # Until enough was seen, or for so long that something is wrong.
        for _ in range(8_000):
            if len(hits) > 400:
                break
            number = chance.randrange(4)
            world.happen(Event((number, number % 2, None)[: len(LAYOUTS)]))
            if chance.random() < 0.7:
                world.publish()
                world.follow(3)
            stop.wait(1e-4)
        stop.set()

    def score(seed: int) -> None:
        chance, room = random.Random(seed), near.room()
        while not stop.is_set():
            row = chance.choice(rows)
            heard = world.heard
            states = near.look(row, room, 0)
            if states is not None:
                hits.append(seed)
                _check_thread(world, row, states, heard, troubles)
            if states is None or chance.random() < 0.05:
                _admit_thread(world, row, room)

    threads = [threading.Thread(target=write)]
    threads += [threading.Thread(target=score, args=(seed,)) for seed in range(3)]
    before_s = sys.getswitchinterval()
    # So that threads meet between any two steps.
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before_s)
    assert not troubles
    assert len(hits) > 400
    check_structure(near)


def _admit_thread(world: World, row: bytes, room: NearRoom) -> None:
    world.near.draw(room)
    # The summary before the states, as nodes are asked.
    summary = world.summary()
    states = world.fetched(row)
    world.near.admit(row, states, room, summaries=(summary,), complete_since_ms=0, now_s=0)


def _check_thread(
    world: World, row: bytes, states: list[bytes | None], heard: int, troubles: list[str]
) -> None:
    tokens = [row[TOKENS + 16 * entity :][:16] for entity in range(len(LAYOUTS))]
    for entity, state in enumerate(states):
        mine = _offsets(state, entity)
        for offset in range(heard):
            for e, token, _ in world.log[offset].records(offset):
                if (e, token) == (entity, tokens[entity]) and offset not in mine:
                    troubles.append(f"entity {entity} lacks {offset} of {heard}")
