"""The state codec: a set whatever the order, the same bits through folding, and damage refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshscore.config.errors import AsOfTooOld, DamagedState
from freshscore.features import codec
from freshscore.features import row as r
from freshscore.features.checksums import MULTIPLIER
from freshscore.features.codec import (
    buckets_of_facts,
    buckets_of_state,
    compacted,
    decode,
    encode,
    stored,
)
from freshscore.features.decoded_state import DecodedState, Stretch
from freshscore.features.past_events import BUCKETS, bucket_of_identity, by_bucket
from freshscore.features.program import N_WINDOWS, compiled
from freshscore.features.reading_decoded import DecodedReader
from freshscore.features.reading_states import changes_of
from freshscore.features.specification import FeatureSpecification
from freshscore.features.state_layout import StateLayout, state_layout
from freshscore.features.store import MemoryStore
from freshscore.features.transaction import Transaction
from tests.features.stored_states import (
    NOON_MS,
    OTHER_SECRET,
    SPECIFICATION,
    Fact,
    Ground,
    Payment,
    held,
    without_checks,
)

CARD, MERCHANT, TERMINAL = 0, 1, 2
Thing = Payment | Fact


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground()


# One identity with several contents is a conflict: few numbers, times and amounts make many.
payments = st.builds(
    Payment,
    number=st.integers(0, 7),
    time_ms=st.integers(0, 6).map(lambda s: NOON_MS + 1_000 * s),
    amount_minor=st.sampled_from((0, 1, 250, 2**40)),
    card=st.integers(0, 1),
    merchant=st.integers(0, 2),
    refund=st.booleans(),
    web=st.booleans(),
    declined=st.booleans(),
    located=st.booleans(),
)


@st.composite
def things(draw: st.DrawFn) -> list[Thing]:
    events = draw(st.lists(payments, min_size=1, max_size=14))
    facts = st.builds(
        Fact,
        payment=st.sampled_from(events),
        fact=st.integers(0, 1),
        value=st.booleans(),
        known_at_ms=st.integers(0, 3).map(lambda s: NOON_MS + 20_000 * s),
        after_ms=st.sampled_from((-3, 0, 5_000, 2**33)),
    )
    return [*events, *draw(st.lists(facts, max_size=8))]


def of_entity(ground: Ground, what: list[Thing], entity: int, token: bytes) -> list[Thing]:
    """Those of the entity's own events and facts."""
    return [
        one
        for one in what
        if ground.token(one if isinstance(one, Payment) else one.payment, entity) == token
    ]


def appended(ground: Ground, what: list[Thing], entity: int) -> bytes:
    """What blind appends of these events and facts leave."""
    layout = ground.layouts[entity]
    return b"".join(stored(ground.record(one, entity), layout) for one in what)


def stored_in(ground: Ground, what: list[Thing]) -> MemoryStore:
    store = ground.store()
    for one in what:
        ground.apply(store, one)
    return store


def records_of(state: DecodedState) -> np.ndarray:
    return without_checks(state.records.words.view(np.uint64))


def tokens(ground: Ground, what: list[Thing], entity: int) -> set[bytes]:
    return {ground.token(o if isinstance(o, Payment) else o.payment, entity) for o in what}


@given(what=things(), data=st.data())
@settings(max_examples=60)
def test_any_order_and_repetition_gives_the_set_and_version_of_the_store(
    ground: Ground, what: list[Thing], data: st.DataObject
) -> None:
    store = stored_in(ground, what)
    for entity in (CARD, MERCHANT, TERMINAL):
        layout = ground.layouts[entity]
        for token in tokens(ground, what, entity):
            mine = of_entity(ground, what, entity, token)
            shuffled = data.draw(st.permutations(mine + data.draw(st.lists(st.sampled_from(mine)))))
            cut = data.draw(st.integers(0, len(shuffled)))
            blob = appended(ground, shuffled[:cut], entity)
            if blob:
                blob = compacted(blob, layout, nonce=1).state
            blob += appended(ground, shuffled[cut:], entity)
            state = decode(blob, layout)
            records, version = held(store, entity, token)
            assert records_of(state).tolist() == records.tolist()
            assert state.version == version
            assert codec.state_version(blob, layout) == version


@given(what=things(), as_of_s=st.integers(0, 400))
@settings(max_examples=40)
def test_a_decoded_state_gives_the_features_of_the_store(
    ground: Ground, what: list[Thing], as_of_s: int
) -> None:
    store = stored_in(ground, what)
    reader = DecodedReader(ground.program)
    for request in (what[0], Payment(99, NOON_MS + 4_000, 77, card=1, merchant=2)):
        assert isinstance(request, Payment)
        states = [
            decode(blob, ground.layouts[entity]) if blob else None
            for entity in (CARD, MERCHANT, TERMINAL)
            for blob in [
                appended(
                    ground,
                    of_entity(ground, what, entity, ground.token(request, entity)),
                    entity,
                )
            ]
        ]
        row = ground.row(request)
        as_of_ms = request.time_ms + 1_000 * as_of_s
        values, change_ms = reader.features(states, row, as_of_ms)
        assert same_bits(values, store.features(row, as_of_ms))
        assert change_ms == next_change_ms(store)


def next_change_ms(store: MemoryStore) -> int:
    """The next change by time alone, as the store found it with its last read."""
    first = (changes_of(store.code_at, store.scratch_at) - store.scratch_at) // 8
    n_windows = int(store.program.code[N_WINDOWS])
    return int(store.scratch[first : first + n_windows].min())


def test_an_absent_entity_has_missing_features(ground: Ground) -> None:
    row = ground.packer.row(Transaction("t1", NOON_MS, 100, "EUR", {"card": "c0"}))
    values, _ = DecodedReader(ground.program).features([None, None, None], row, NOON_MS)
    assert same_bits(values, ground.store().features(row, NOON_MS))
    assert np.isnan(values).any()
    assert not np.isnan(values).all()


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.tobytes() == right.tobytes()


class Log:
    """A folded log of one grid entity beside two stores that fold nothing.

    Its operations are those of a back end: append, compact with lines that move on, and keep what
    was folded, of which an interrupted compaction may leave more than it folded. `store` holds all
    that was appended; `read`, which readers must agree with, has a late event of what is folded
    early from the next compaction on.
    """

    def __init__(self, ground: Ground, entity: int) -> None:
        self.ground = ground
        self.entity = entity
        self.layout = ground.layouts[entity]
        self.store, self.read = ground.store(), ground.store()
        self.waiting: list[Thing] = []
        self.blob = b""
        self.unfolded = b""
        self.past: dict[int, bytes] = {}
        self.fold_ms = 0
        self.forget_ms = 0
        self.early_ms = 0

    def append(self, what: Thing) -> None:
        """Apply an event or fact to all."""
        self.ground.apply(self.store, what)
        if isinstance(what, Payment) and what.time_ms < self.early_ms:
            self.waiting.append(what)
        else:
            self.ground.apply(self.read, what)
        record = stored(self.ground.record(what, self.entity), self.layout)
        self.blob += record
        self.unfolded += record

    def compact(
        self, fold_ms: int, forget_ms: int = 0, *, early_ms: int = 0, interrupted: bool = False
    ) -> None:
        """Compact and fold; interrupted: what was folded is kept, the state is not swapped in."""
        state = decode(self.blob, self.layout)
        done = compacted(
            self.blob,
            self.layout,
            nonce=7,
            fold_below_ms=fold_ms,
            forget_below_ms=forget_ms,
            summarise_below_ms=early_ms,
            past=self.buckets(buckets_of_state(state)),
        )
        for bucket, records in by_bucket(done.folded, self.layout).items():
            self.past[bucket] = self.past.get(bucket, b"") + records
        if interrupted:
            return
        self.fold_ms = max(self.fold_ms, fold_ms)
        self.forget_ms = max(self.forget_ms, forget_ms)
        self.early_ms = max(self.early_ms, early_ms)
        self.blob = done.state
        self._answer([*range(BUCKETS)])

    def _answer(self, buckets: list[int]) -> None:
        """Count those late events whose buckets were asked: facts of theirs ask too."""
        for one in [*self.waiting]:
            if bucket_of_identity(int(self.ground.record(one, self.entity)[0, 0])) in buckets:
                self.ground.apply(self.read, one)
                self.waiting.remove(one)

    def forget_past(self) -> None:
        """Drop of the buckets what nobody can ask for any more, as their own compaction does."""
        line_ms = self.forget_ms if self.layout.reads_facts else self.fold_ms
        for bucket, kept in self.past.items():
            self.past[bucket] = compacted(kept, self.layout, nonce=3, forget_below_ms=line_ms).state

    def buckets(self, numbers: frozenset[int]) -> dict[int, bytes]:
        """Some of what was folded, also where there is nothing in them."""
        return {number: self.past.get(number, b"") for number in numbers}

    def check(self, request: Payment, as_of_ms: int) -> DecodedState:
        """Features and versions are those of the stores; the state that they came from."""
        row = self.ground.row(request)
        own = int.from_bytes(row[:8], "little")
        plain = decode(self.blob, self.layout)
        asked = frozenset({bucket_of_identity(own)})
        whole = self.buckets(buckets_of_state(plain) | asked)
        self._agree(decode(self.blob, self.layout, whole, own), self.store, row, as_of_ms)
        # What a score reads: the payment's bucket counts only where it has it.
        if row[:8] not in whole[bucket_of_identity(own)]:
            asked = frozenset()
        some = self.buckets(buckets_of_facts(plain) | asked)
        self._answer([*some])
        state = decode(self.blob, self.layout, some, own)
        self._agree(state, self.read, row, as_of_ms)
        # Never later; earlier only where a tile is left with nothing in it.
        if not self.waiting:
            _, change_ms = self._read(state, row, as_of_ms)
            _, unfolded_ms = self._read(decode(self.unfolded, self.layout), row, as_of_ms)
            assert change_ms <= unfolded_ms
        return state

    def _agree(self, state: DecodedState, store: MemoryStore, row: bytes, as_of_ms: int) -> None:
        got, _ = self._read(state, row, as_of_ms)
        expected = store.features(row, as_of_ms)
        for number, column in enumerate(self.ground.program.specification.columns):
            if column.aggregate is not None and column.name.startswith(self.layout.name):
                assert same_bits(got[number], expected[number]), column.name
        at = r.TOKENS + 16 * self.entity
        assert state.version == held(store, self.entity, row[at : at + 16])[1]

    def _read(self, state: DecodedState, row: bytes, as_of_ms: int) -> tuple[np.ndarray, int]:
        states: list[DecodedState | None] = [None, None, None]
        states[self.entity] = state
        return DecodedReader(self.ground.program).features(states, row, as_of_ms)


@given(data=st.data(), entity=st.sampled_from((MERCHANT, TERMINAL)))
@settings(max_examples=60)
def test_folding_early_at_any_time_changes_no_value(
    ground: Ground, data: st.DataObject, entity: int
) -> None:
    """Late and repeated events, facts, the request's own payment, a crash between two steps."""
    log = Log(ground, entity)
    events: list[Payment] = []
    now_ms = NOON_MS
    for number in range(data.draw(st.integers(5, 45))):
        now_ms += data.draw(st.sampled_from((0, 1, 999, 1_000, 3_500, 9_000)))
        kind = data.draw(st.sampled_from("eeeelrrffcccip"))
        if kind in "el" or not events:
            late_ms = data.draw(st.integers(0, 8)) * (5_000 if kind == "l" else 300)
            time_ms = max(log.fold_ms, now_ms - late_ms)
            amount = data.draw(st.integers(0, 2**40))
            event = Payment(
                number,
                time_ms,
                amount,
                refund=data.draw(st.booleans()),
                web=data.draw(st.booleans()),
                declined=data.draw(st.booleans()),
            )
            events.append(event)
            log.append(event)
        elif kind == "r":
            log.append(data.draw(st.sampled_from(events)))
        elif kind == "f":
            event = data.draw(st.sampled_from(events))
            known_ms = event.time_ms + data.draw(st.integers(0, 40)) * 1_000
            fact = data.draw(st.integers(0, 1))
            log.append(Fact(event, fact, data.draw(st.booleans()), known_ms))
        elif kind == "p":
            log.forget_past()
        else:
            early_ms = now_ms - data.draw(st.sampled_from((-1, 0, 1, 700, 2_000, 9_000)))
            fold_ms = now_ms - data.draw(st.sampled_from((9_000, 20_000, 10**6)))
            log.compact(fold_ms, early_ms=early_ms, interrupted=kind == "i")
        own_ms = max(log.fold_ms, now_ms - data.draw(st.sampled_from((0, 0, 1_000, 5_000))))
        own = Payment(1_000, own_ms, 55, web=True)
        if data.draw(st.booleans()):
            own = next((e for e in reversed(events) if e.time_ms >= log.fold_ms), own)
        later_ms = data.draw(st.sampled_from((0, 0, 1, 300, 1_000, 4_000, 15_000, 70_000)))
        log.check(own, max(own.time_ms, log.early_ms) + later_ms)


@pytest.mark.parametrize("entity", [MERCHANT, TERMINAL])
def test_a_repetition_of_what_the_same_compaction_folds_counts_once(
    ground: Ground, entity: int
) -> None:
    """It was late, so it became a record; then it came again, and both met a compaction."""
    log = Log(ground, entity)
    log.append(Payment(0, NOON_MS, 100))
    log.compact(0, early_ms=NOON_MS + 1)
    late = Payment(1, NOON_MS, 7)
    log.append(late)
    log.compact(0, early_ms=NOON_MS + 1)
    assert decode(log.blob, log.layout).records.n == 1
    log.append(late)
    log.compact(0, early_ms=NOON_MS + 1)
    state = log.check(Payment(1_000, NOON_MS + 1, 55), NOON_MS + 1)
    assert (state.records.n, state.tiles.n) == (0, 1)


@pytest.mark.parametrize("entity", [MERCHANT, TERMINAL])
def test_a_repetition_of_what_the_same_compaction_forgets_counts_once(
    ground: Ground, entity: int
) -> None:
    """A late event became a record and came again; both lie before what the next one forgets."""
    log, line_ms = Log(ground, entity), NOON_MS + 1
    late = Payment(1, NOON_MS, 7)
    log.append(Payment(0, NOON_MS, 100))
    log.compact(0, early_ms=line_ms)
    log.append(late)
    log.compact(0, early_ms=line_ms)
    log.append(late)
    held = decode(log.blob, log.layout)
    assert held.deferred
    nothing = dict.fromkeys(codec.buckets_of_state(held), b"")
    lines = {"forget_below_ms": line_ms, "fold_below_ms": line_ms}
    short = compacted(log.blob, log.layout, nonce=1, past=nothing, **lines).state
    state = decode(short, log.layout)
    assert state.version == held.version
    assert (state.records.n, state.deferred) == (0, b"")


@given(data=st.data(), entity=st.sampled_from((MERCHANT, TERMINAL)))
@settings(max_examples=60)
def test_folding_at_any_time_changes_no_value(
    ground: Ground, data: st.DataObject, entity: int
) -> None:
    log = Log(ground, entity)
    events: list[Payment] = []
    now_ms = NOON_MS
    for number in range(data.draw(st.integers(5, 45))):
        now_ms += data.draw(st.sampled_from((0, 1, 999, 1_000, 3_500, 9_000)))
        kind = data.draw(st.sampled_from("eeeeffcci"))
        if kind == "e" or not events:
            late_ms = data.draw(st.integers(0, 8)) * 1_000
            event = Payment(
                number,
                max(log.fold_ms, now_ms - late_ms),
                data.draw(st.integers(0, 2**40)),
                refund=data.draw(st.booleans()),
                web=data.draw(st.booleans()),
                declined=data.draw(st.booleans()),
            )
            events.append(event)
            log.append(event)
        elif kind == "f":
            event = data.draw(st.sampled_from(events))
            known_ms = event.time_ms + data.draw(st.integers(0, 40)) * 1_000
            fact = data.draw(st.integers(0, 1))
            log.append(Fact(event, fact, data.draw(st.booleans()), known_ms))
        else:
            behind_ms = data.draw(st.sampled_from((0, 0, 1, 700, 2_000, 9_000, 20_000)))
            log.compact(now_ms - behind_ms, interrupted=kind == "i")
            # Repetitions, some of what was folded.
            for repeated in data.draw(st.lists(st.sampled_from(events), max_size=3)):
                log.append(repeated)
        own_ms = max(log.fold_ms, now_ms - data.draw(st.sampled_from((0, 0, 1_000, 5_000))))
        own = Payment(1_000, own_ms, 55, web=True)
        if data.draw(st.booleans()):
            own = next((e for e in reversed(events) if e.time_ms >= log.fold_ms), own)
        later_ms = data.draw(st.sampled_from((0, 0, 1, 300, 1_000, 4_000, 15_000, 70_000)))
        log.check(own, own.time_ms + later_ms)


def test_an_event_whose_step_has_not_ended_is_in_the_tile_of_its_line(ground: Ground) -> None:
    log = Log(ground, TERMINAL)
    for number, time_ms in enumerate((0, 900, 1_000, 1_001, 1_500)):
        log.append(Payment(number, NOON_MS + time_ms))
    # Steps of a second, which end with their line: the third event is in the first step.
    log.compact(NOON_MS + 1_600)
    for as_of_ms in (1_600, 1_999, 2_000, 10_900, 11_000, 11_001, 12_500):
        state = log.check(Payment(9, NOON_MS + 1_600), NOON_MS + as_of_ms)
        assert (state.tiles.n, state.records.n) == (3, 0)
        assert state.tiles.words[-1, 0] == NOON_MS + 2_000
    # What comes of that step later joins it.
    log.append(Payment(5, NOON_MS + 1_700))
    log.compact(NOON_MS + 2_000)
    state = log.check(Payment(9, NOON_MS + 2_000), NOON_MS + 2_000)
    assert (state.tiles.n, state.records.n) == (3, 0)


def test_a_fact_of_a_folded_event_is_reported_and_counts_with_what_was_folded(
    ground: Ground,
) -> None:
    log = Log(ground, MERCHANT)
    event = Payment(1, NOON_MS, 500)
    log.append(event)
    log.append(Payment(2, NOON_MS + 100, 900))
    log.compact(NOON_MS + 30_000)
    assert decode(log.blob, log.layout).records.n == 0
    log.append(Fact(event, 1, True, NOON_MS + 20_000))
    assert decode(log.blob, log.layout).n_without_event == 1
    assert decode(log.blob, log.layout, log.past).n_without_event == 0
    request = Payment(3, NOON_MS + 40_000)
    log.check(request, NOON_MS + 50_000)
    log.compact(NOON_MS + 30_000)
    state = log.check(request, NOON_MS + 50_000)
    assert (state.records.n, state.tiles.n) == (2, 1)


def test_folded_and_forgotten_records_stay_in_the_version_and_repetitions_stay_out(
    ground: Ground,
) -> None:
    for entity, what in ((CARD, 0), (TERMINAL, NOON_MS + 50_000)):
        layout = ground.layouts[entity]
        events: list[Thing] = [Payment(n, NOON_MS + 1_000 * n) for n in range(60)]
        blob = appended(ground, events, entity)
        version = codec.state_version(blob, layout)
        line = NOON_MS + 30_000
        short = compacted(blob, layout, nonce=1, forget_below_ms=line, fold_below_ms=what).state
        assert len(short) < len(blob) * 3 // 4
        again = decode(short + blob, layout)
        assert again.version == version == codec.state_version(short, layout)
        assert again.records.n == decode(short, layout).records.n
        assert again.forgotten_below_ms == line


def test_compaction_forgets_nothing_that_a_window_reaches(ground: Ground) -> None:
    events = [Payment(n, NOON_MS + 1_000 * n, n) for n in range(300)]
    reach_ms = ground.program.specification.reach_ms
    as_of_ms = events[-1].time_ms
    for entity in (CARD, MERCHANT, TERMINAL):
        log = Log(ground, entity)
        for event in events:
            log.append(event)
        fold_ms = as_of_ms - 5_000
        log.compact(fold_ms, fold_ms - reach_ms)
        state = log.check(Payment(1_000, as_of_ms), as_of_ms + 7)
        assert state.records.n < (200 if entity == CARD else 40)
        log.compact(as_of_ms, as_of_ms - 10_000)
        state = decode(log.blob, log.layout)
        assert (state.records.words[:, 1] >> 16).min(initial=as_of_ms) >= as_of_ms - 10_000
        assert state.tiles.words[:, :1].min(initial=as_of_ms) >= as_of_ms - 10_000


def test_tiles_melt_together_as_short_windows_pass(ground: Ground) -> None:
    """Their number follows from windows and resolution, not from events."""
    log = Log(ground, MERCHANT)
    for n in range(2_000):
        log.append(Payment(n, NOON_MS + 200 * n, n))
    now_ms = NOON_MS + 400_000
    log.compact(now_ms - 1_000)
    state = log.check(Payment(5_000, now_ms), now_ms)
    # Five windows, four steps each and the one that was begun; none twice.
    assert 5 < state.tiles.n <= 5 * (4 + 1)
    assert state.records.n <= 30
    assert (np.diff(state.tiles.words[:, 0]) > 0).all()


def test_a_request_below_the_fold_is_refused(ground: Ground) -> None:
    log = Log(ground, TERMINAL)
    log.append(Payment(1, NOON_MS))
    log.compact(NOON_MS + 60_000)
    with pytest.raises(AsOfTooOld, match="terminal"):
        log.check(Payment(2, NOON_MS + 59_999), NOON_MS + 70_000)
    log.check(Payment(2, NOON_MS + 60_000), NOON_MS + 70_000)


def test_lines_never_go_back(ground: Ground) -> None:
    log = Log(ground, MERCHANT)
    for n in range(20):
        log.append(Payment(n, NOON_MS + 1_000 * n))
    log.compact(NOON_MS + 15_000, NOON_MS - 5_000)
    log.compact(NOON_MS, NOON_MS - 90_000)
    state = decode(log.blob, log.layout)
    assert state.folded_below_ms == NOON_MS + 15_000
    assert state.forgotten_below_ms == NOON_MS - 5_000
    assert state.generation == 2


def test_what_no_tile_holds_cannot_be_taken_out(ground: Ground) -> None:
    log = Log(ground, MERCHANT)
    log.append(Payment(1, NOON_MS))
    log.append(Fact(Payment(9, NOON_MS - 60_000), 0, True, NOON_MS))
    log.compact(NOON_MS + 9_000)
    past = by_bucket(appended(ground, [Payment(9, NOON_MS - 60_000)], MERCHANT), log.layout)
    with pytest.raises(DamagedState, match="not in its tiles"):
        decode(log.blob, log.layout, past)


def damaged_state(ground: Ground) -> tuple[bytes, int, StateLayout]:
    """A state with tiles, compacted records, and two that were appended; where those begin."""
    log = Log(ground, MERCHANT)
    for n in range(12):
        log.append(Payment(n, NOON_MS + 2_000 * n, 100 + n, refund=n % 2 == 0))
    log.append(Fact(Payment(11, NOON_MS + 22_000, 111), 0, True, NOON_MS + 30_000))
    log.compact(NOON_MS + 15_000, early_ms=NOON_MS + 19_000)
    front = len(log.blob)
    log.append(Payment(20, NOON_MS + 25_000))
    log.append(Payment(21, NOON_MS + 24_000))
    return log.blob, front, log.layout


def test_every_flipped_bit_is_found(ground: Ground) -> None:
    blob, _, layout = damaged_state(ground)
    decode(blob, layout)
    for at in range(len(blob)):
        for bit in range(8):
            broken = bytearray(blob)
            broken[at] ^= 1 << bit
            with pytest.raises(DamagedState, match="merchant"):
                decode(bytes(broken), layout)


def test_a_state_cut_short_is_refused_unless_whole_appends_are_missing(ground: Ground) -> None:
    blob, front, layout = damaged_state(ground)
    whole = decode(blob, layout)
    for length in range(len(blob)):
        if length >= front and (length - front) % layout.width == 0:
            state = decode(blob[:length], layout)
            missing = (len(blob) - length) // layout.width
            assert state.records.n == whole.records.n - missing
            assert state.version != whole.version
            continue
        with pytest.raises(DamagedState):
            decode(blob[:length], layout)


def test_a_lost_doubled_or_moved_compacted_record_is_found(ground: Ground) -> None:
    blob, front, layout = damaged_state(ground)
    first = front - layout.width * decode(blob[:front], layout).records.n
    one = slice(first, first + layout.width)
    two = slice(first + layout.width, first + 2 * layout.width)
    for broken in (
        blob[:first] + blob[two.start :],
        blob[:first] + blob[one] + blob[first:],
        blob[:first] + blob[two] + blob[one] + blob[two.stop :],
    ):
        with pytest.raises(DamagedState):
            decode(broken, layout)


@given(noise=st.binary(min_size=0, max_size=400))
def test_noise_is_refused(ground: Ground, noise: bytes) -> None:
    for entity in (CARD, MERCHANT):
        with pytest.raises(DamagedState):
            decode(noise, ground.layouts[entity])
        with pytest.raises(DamagedState):
            decode(b"fsstate\x01" + noise, ground.layouts[entity])


@given(
    words=st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6),
    bit=st.integers(0, 6 * 64 - 1),
)
@settings(max_examples=300)
def test_the_checksum_of_a_record_finds_every_flipped_bit(
    ground: Ground, words: list[int], bit: int
) -> None:
    layout = ground.layouts[CARD]
    whole = bytearray(stored(np.array([words], np.uint64), layout))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamagedState, match="record 0 of 1"):
        decode(bytes(whole), layout)


def test_the_multiplier_keeps_every_bit_of_the_last_word_in_the_checksum() -> None:
    for bit in range(64):
        upper = (int(MULTIPLIER) << bit) % 2**64 >> 32
        assert upper not in (0, 2**32 - 1)
    assert int(MULTIPLIER) % 2 == 1


def test_a_state_of_another_layout_is_refused(ground: Ground) -> None:
    other_text = SPECIFICATION.replace("resolution = 0.25", "resolution = 0.2")
    assert other_text != SPECIFICATION
    other = compiled(FeatureSpecification.from_toml(other_text))
    blob, front, layout = damaged_state(ground)
    changed = state_layout(other, ground.keys, MERCHANT)
    assert changed.record_fingerprint == layout.record_fingerprint
    for part in (blob, blob[front:]):
        with pytest.raises(DamagedState):
            decode(part, changed)


def test_fingerprints_cover_records_and_tiles_and_nothing_else(ground: Ground) -> None:
    def layouts(text: str) -> list[StateLayout]:
        program = compiled(FeatureSpecification.from_toml(text))
        return [state_layout(program, ground.keys, e) for e in range(3)]

    before = layouts(SPECIFICATION)
    longer = layouts(SPECIFICATION.replace('["20s", "3m"]', '["30s", "5m"]'))
    assert [one.fingerprint for one in longer] == [one.fingerprint for one in before]
    currency = layouts(SPECIFICATION.replace("EUR", "USD"))
    facts = layouts(SPECIFICATION.replace('"declined"]\n\nf', '"declined", "late"]\n\nf'))
    for changed in (currency, facts):
        for one, other in zip(changed, before, strict=True):
            assert one.record_fingerprint != other.record_fingerprint
            assert one.fingerprint != other.fingerprint
    windows = layouts(SPECIFICATION.replace('["10s", "1m"]', '["10s", "2m"]'))
    assert windows[TERMINAL].fingerprint != before[TERMINAL].fingerprint
    assert windows[MERCHANT].fingerprint == before[MERCHANT].fingerprint
    assert len({one.fingerprint for one in before}) == 3


def test_the_version_is_keyed(ground: Ground) -> None:
    blob = appended(ground, [Payment(1, NOON_MS)], CARD)
    other = replace(ground.layouts[CARD], words=ground.layouts[CARD].words.copy())
    assert other.words is not ground.layouts[CARD].words
    elsewhere = Ground(secret=OTHER_SECRET).layouts[CARD]
    assert elsewhere.fingerprint == ground.layouts[CARD].fingerprint
    assert codec.state_version(blob, elsewhere) != codec.state_version(blob, ground.layouts[CARD])
    assert "words" not in repr(elsewhere)


def test_unsorted_records_are_not_encoded(ground: Ground) -> None:
    layout = ground.layouts[CARD]
    blob = appended(ground, [Payment(1, NOON_MS), Payment(2, NOON_MS - 1)], CARD)
    backwards = DecodedState(layout, Stretch(layout.width, blob, 0, 2), Stretch(8))
    with pytest.raises(ValueError, match="sorted"):
        encode(backwards)


def pure_fold(words: tuple[int, ...], fold: int) -> int:
    """The fold, in plain Python."""
    for word in words:
        fold = (fold ^ word) * 0x243F6A8885A308D3 % 2**64
        fold ^= fold >> 32
    return fold


def words_of(blob: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(blob) // 8}Q", blob)


def records_in(blob: bytes, width: int) -> Iterator[bytes]:
    for at in range(0, len(blob), width):
        yield blob[at : at + width]


def test_the_bytes_are_those_that_the_layout_promises(ground: Ground) -> None:
    """Header, tiles, records and checksums, rebuilt from the page in plain Python."""
    blob, front, layout = damaged_state(ground)
    (
        magic,
        version,
        fingerprint,
        generation,
        nonce,
        fold,
        forgotten,
        low,
        high,
        sizes,
        early,
        seal,
    ) = struct.unpack_from("<7sB3Q2q3QqQ", blob)
    assert (magic, version, fingerprint, generation, nonce) == (
        b"fsstate",
        2,
        layout.fingerprint,
        1,
        7,
    )
    assert (fold, forgotten, early) == (NOON_MS + 15_000, 0, NOON_MS + 19_000)
    assert high << 64 | low == decode(blob[:front], layout).version
    n_tiles, n_records = sizes >> 40, sizes & (2**40 - 1)
    records_at = 88 + n_tiles * layout.tile_width
    assert (n_tiles > 0, records_at + n_records * layout.width) == (True, front)
    expected_seal = pure_fold(words_of(blob[:80] + blob[88:records_at]), 1)
    for number, record in enumerate(records_in(blob[records_at:], layout.width)):
        words = list(words_of(record))
        check, words[3] = words[3] % 2**32, words[3] & 0xFFFFFFFF00000000
        record_fold = pure_fold(tuple(words), layout.fingerprint)
        assert check == record_fold >> 32
        if number < n_records:
            expected_seal = pure_fold((record_fold,), expected_seal)
    assert seal == expected_seal


GOLDEN = (
    # header
    "66737374617465026040017b7c470c490100000000000000efcdab8967452301"
    "205e47d08b0100000000000000000000d5f00fca673ca92870a4e0a845ee606b"
    "0200000000040000607d47d08b01000070a6e69c916ff604"
    # tile
    "001047d08b01000001000000000000006400000000000000"
    # tile
    "103747d08b01000001000000000000006500000000000000"
    # tile
    "505647d08b01000001000000000000006600000000000000"
    # tile
    "787947d08b01000001000000000000006700000000000000"
    # record
    "3c1e7a26f2c1a9920040a09c47d08b010000680000000000220f6b3500000000"
    # record
    "3c1e7a26f2c1a9920080a09c47d08b01010050d347d08b017267b77403000000"
)


def test_golden_bytes(ground: Ground) -> None:
    """A stored state must be readable by every later version: these bytes never change."""
    layout = ground.layouts[TERMINAL]
    events = [Payment(n, NOON_MS + 9_000 * n, 100 + n, declined=n == 1) for n in range(5)]
    blob = appended(ground, [*events, Fact(events[4], 0, True, NOON_MS + 50_000, 3)], TERMINAL)
    blob = compacted(
        blob,
        layout,
        nonce=0x0123456789ABCDEF,
        fold_below_ms=NOON_MS + 20_000,
        summarise_below_ms=NOON_MS + 28_000,
    ).state
    assert blob.hex() == GOLDEN
