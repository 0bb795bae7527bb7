"""A scorer in many threads, after a fork and after its end: every answer is right for the versions
that it reports, and one computation of a key runs at a time.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

from freshscore.config.errors import (
    AsOfTooOld,
    BadModel,
    Closed,
    DeadlineExceeded,
    ForkedScorer,
)
from freshscore.features.packing import Packer
from freshscore.features.specification import (
    Aggregate,
    Entity,
    FeatureSpecification,
    WindowGroup,
)
from freshscore.features.store import MemoryStore
from freshscore.features.transaction import Transaction
from freshscore.scoring.callable_model import CallableModel
from freshscore.scoring.result import Result
from tests.laws.law_models import (
    THRESHOLDS,
    booster_model,
    callable_model,
    digest_of_features,
)
from tests.laws.law_specifications import Scaled
from tests.laws.worlds import HOUR_MS, MINUTE_MS, MONDAY_MS, Limits, World, versions

_EVERYTHING = (
    Aggregate("count"),
    Aggregate("sum"),
    Aggregate("std"),
    Aggregate("max"),
    Aggregate("last"),
)
SPECIFICATION = FeatureSpecification(
    name="threads",
    currency="EUR",
    entities=(Entity("card"), Entity("merchant")),
    windows=(
        WindowGroup("card", ("1m", "1h"), _EVERYTHING),
        WindowGroup("merchant", ("1m", "1h"), _EVERYTHING),
    ),
    facts=("fraud",),
)
SCALED = Scaled(SPECIFICATION, 1_000, 250, HOUR_MS)
WAIT_S = 60


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def observe_all(world: World, events: Sequence[Transaction]) -> None:
    """Observe events one after the other."""
    for event in events:
        world.scorer.observe(event)


def in_threads(*calls: Callable[[], object]) -> None:
    """Run all at once; the first problem of any is raised."""
    problems: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as problem:  # noqa: BLE001  # raised again by the caller
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    if problems:
        raise problems[0]
    assert not any(thread.is_alive() for thread in threads)


def pay(name: str, at_ms: int, **entities: str) -> Transaction:
    """A payment of these entities."""
    amount = 100 + sum(map(ord, name)) * 7 % 1_000
    return Transaction(name, MONDAY_MS + at_ms, amount, "EUR", entities)


def stream(entity: str, which: str, n: int = 25) -> list[Transaction]:
    """Events of one card, or of one merchant."""
    return [pay(f"{which} {i}", 1_000 * i, **{entity: which}) for i in range(n)]


class Prefixes:
    """The versions that a state goes through, and the features that go with each."""

    def __init__(self, streams: dict[str, list[Transaction]], model: Any) -> None:
        self._streams = streams
        self._model = model
        world = World(SPECIFICATION, model)
        self._lengths: dict[tuple[str, str], int] = {}
        for which, events in streams.items():
            self._lengths[which, "00" * 16] = 0
            for n, event in enumerate(events):
                world.scorer.observe(event)
                probe = pay("probe", 0, **event.entities)
                seen = world.scorer.score(probe, as_of=world.store.newest_ms)
                (entity,) = event.entities
                self._lengths[which, seen.state_versions[entity]] = n + 1
        self._record_key = world.record_key
        self._scores: dict[tuple[object, ...], float] = {}

    def check(self, request: Transaction, result: Result) -> tuple[int, ...]:
        """Compare with the oracle on what the versions say was there; the numbers of events."""
        lengths = tuple(
            self._lengths[which, result.state_versions[entity]]
            for entity, which in request.entities.items()
        )
        key = (request, result.as_of, lengths)
        if key not in self._scores:
            oracle = World(SPECIFICATION, self._model).plain_oracle()
            for which, length in zip(request.entities.values(), lengths, strict=True):
                for event in self._streams[which][:length]:
                    oracle.observe(event)
            vector = np.array([oracle.features(request, result.as_of)])
            self._scores[key] = self._model.predict(vector)[0]
        assert result.score == self._scores[key], (request, result, lengths)
        return lengths


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", ["walked", "callable"])
def test_every_answer_is_right_for_the_versions_that_it_reports(kind: str, seed: int) -> None:
    """Each thread writes the events of one card or merchant, and asks for all of them."""
    model = booster_model(SCALED, seed) if kind == "walked" else callable_model(SCALED)
    streams = {f"c{i}": stream("card", f"c{i}") for i in range(3)}
    streams |= {f"m{i}": stream("merchant", f"m{i}") for i in range(2)}
    world = World(SPECIFICATION, model)
    answers: list[tuple[Transaction, Result]] = []
    start = threading.Barrier(len(streams))

    def write_and_read(which: str, number: int) -> None:
        start.wait(WAIT_S)
        for i, event in enumerate(streams[which]):
            world.scorer.observe(event)
            for k in range(4):
                card, merchant = f"c{(i + k + number) % 3}", f"m{k % 2}"
                request = pay(f"request {(i + k) % 12}", 0, card=card, merchant=merchant)
                as_of = MONDAY_MS + 25_000 + 3_000 * (i % 4)
                answers.append((request, world.scorer.score(request, as_of=as_of)))

    in_threads(
        *(functools.partial(write_and_read, which, number) for number, which in enumerate(streams))
    )
    prefixes = Prefixes(streams, model)
    seen = Counter(prefixes.check(request, result) for request, result in answers)
    assert len(answers) == len(streams) * 25 * 4
    assert len(seen) > 20
    assert world.scorer.stats()["requests"] == len(answers)


@pytest.mark.usefixtures("hasty")
def test_states_written_by_many_threads_at_once_are_those_of_one() -> None:
    """Tables double several times meanwhile; every event is written by two threads."""
    events = [pay(f"t{i}", i, card=f"c{i % 1_500}", merchant=f"m{i % 700}") for i in range(3_000)]
    one, many = (World(SPECIFICATION, callable_model(SCALED)) for _ in range(2))
    for event in events:
        one.scorer.observe(event)
    writers = [
        functools.partial(observe_all, many, part)
        for part in (events[0::4], events[1::4], events[2::4], events[3::4], events[::2])
    ]
    in_threads(*writers)
    assert versions(many.store) == versions(one.store)
    assert many.store.n_payments == one.store.n_payments
    assert many.store.n_records == one.store.n_records
    for event in events:
        many.scorer.observe(event)
    assert versions(many.store) == versions(one.store)


@pytest.mark.usefixtures("hasty")
def test_everything_that_threads_observe_is_counted() -> None:
    world = World(SPECIFICATION, callable_model(SCALED))
    events = [pay(f"t{i}", i, card="c") for i in range(2_000)]
    in_threads(
        *(
            functools.partial(observe_all, world, part)
            for part in (events[::4], events[1::4], events[2::4], events[3::4])
        )
    )
    assert world.scorer.stats()["feed"] == {"accepted": 2_000}


class Counting:
    """A model that counts its calls, and can be held up."""

    def __init__(self, fails: int = 0) -> None:
        self.lock = threading.Lock()
        self.calls = 0
        self.running = 0
        self.fails = fails
        self.called = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self, matrix: Any) -> Any:
        """Scores, or the failure that was ordered."""
        with self.lock:
            self.calls += 1
            self.running += 1
            fails = self.calls <= self.fails
        self.called.set()
        assert self.may_go_on.wait(WAIT_S)
        with self.lock:
            self.running -= 1
        return np.full(len(matrix), np.nan) if fails else digest_of_features(matrix)


def test_one_key_is_computed_once_however_many_threads_ask_for_it() -> None:
    """Eight payments with the same features: one call, eight answers."""
    model = Counting()
    world = World(SPECIFICATION, CallableModel(model, "counting", [THRESHOLDS]))
    results: list[Result] = []

    def ask(number: int) -> None:
        results.append(world.scorer.score(Transaction(f"t{number}", MONDAY_MS, 1, "EUR", {})))

    def let_go() -> None:
        assert model.called.wait(WAIT_S)
        model.may_go_on.set()

    in_threads(*(functools.partial(ask, n) for n in range(8)), let_go)
    assert model.calls == 1
    assert len({result.score for result in results}) == 1
    assert Counter(result.source for result in results) == {"computed": 1, "cell": 7}


def test_when_the_one_who_computes_fails_another_does() -> None:
    model = Counting(fails=2)
    world = World(SPECIFICATION, CallableModel(model, "failing", [THRESHOLDS]))
    outcomes: list[object] = []
    payment = pay("t", 0, card="c")

    def ask() -> None:
        try:
            outcomes.append(world.scorer.score(payment).score)
        except BadModel:
            outcomes.append("failed")

    model.may_go_on.set()
    in_threads(*[ask] * 6)
    assert Counter(map(type, outcomes)) == {str: 2, float: 4}
    assert model.calls == 3


def test_waits_for_several_failures_have_one_limit_together() -> None:
    """A deadline is not begun anew whenever somebody else leads."""
    model = Counting()
    world = World(SPECIFICATION, CallableModel(model, "slow", [THRESHOLDS]))
    payment = pay("t", 0, card="c")
    first: list[Result] = []
    thread = threading.Thread(target=lambda: first.append(world.scorer.score(payment)))
    thread.start()
    assert model.called.wait(WAIT_S)
    with pytest.raises(DeadlineExceeded):
        world.scorer.score(payment, deadline_ms=1)
    model.may_go_on.set()
    thread.join(WAIT_S)
    assert first[0].source == "computed"


def test_an_instant_that_becomes_too_old_during_a_wait_is_refused() -> None:
    model = Counting()
    limits = Limits(horizon_ms=MINUTE_MS)
    world = World(SPECIFICATION, CallableModel(model, "slow", [THRESHOLDS]), limits)
    payment = pay("t", 0, card="c")
    outcomes: list[object] = []

    def wait_for_it() -> None:
        try:
            outcomes.append(world.scorer.score(payment))
        except AsOfTooOld:
            outcomes.append("too old")

    leader = threading.Thread(target=wait_for_it)
    leader.start()
    assert model.called.wait(WAIT_S)
    waiter = threading.Thread(target=wait_for_it)
    waiter.start()
    while not waiting_for_a_flight(waiter):
        pass
    # Beyond what any window can reach from it: its own states know nothing of that.
    world.scorer.observe(pay("later", 2 * HOUR_MS, merchant="m"))
    model.may_go_on.set()
    leader.join(WAIT_S)
    waiter.join(WAIT_S)
    assert outcomes.count("too old") == 1
    (result,) = (outcome for outcome in outcomes if isinstance(outcome, Result))
    assert result.source == "computed"


def waiting_for_a_flight(thread: threading.Thread) -> bool:
    """Whether the thread stands in Flights.wait."""
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_filename.endswith("flights.py") and frame.f_code.co_name == "wait":
            return True
        frame = frame.f_back
    return False


def test_a_score_whose_state_has_forgotten_while_it_was_computed_is_no_memo() -> None:
    """Versions do not move when what nobody can reach is forgotten, so they cannot tell."""
    group = WindowGroup("card", ("10m",), (Aggregate("count"),), current=False)
    specification = FeatureSpecification(
        name="forgetting", currency="EUR", entities=(Entity("card"),), windows=(group,)
    )
    later_ms = 11 * MINUTE_MS

    def forgetful(matrix: Any) -> Any:
        if not world.store.n_payments > 1:
            for i in range(64):
                world.scorer.observe(pay(f"later {i}", later_ms + 2 * MINUTE_MS, card=f"d{i}"))
        return digest_of_features(matrix)

    model = CallableModel(forgetful, "forgetful", [THRESHOLDS])
    world = World(specification, model, Limits(horizon_ms=2 * MINUTE_MS))
    world.scorer.observe(pay("event", 0, card="c"))
    request = pay("request", 0, card="c")
    first = world.scorer.score(request, as_of=MONDAY_MS)
    assert first.score == digest_of_features(np.array([[1.0]]))[0]
    again = world.scorer.score(request, as_of=MONDAY_MS + later_ms)
    assert world.features(request, again.as_of).tolist() == [0.0]
    assert again.score == digest_of_features(np.array([[0.0]]))[0]


def test_two_scorers_that_pack_one_transaction_at_once_read_their_own_rows() -> None:
    """The second thread comes between any two lines of the first one's packing."""
    worlds = [
        World(SPECIFICATION, callable_model(SCALED)),
        World(FeatureSpecification.shipped("payments"), callable_model(SCALED)),
    ]
    expected = [world.row(pay("t", 0, card="c")) for world in worlds]
    code = Packer.row.__code__
    lines = lines_of(code, lambda: worlds[0].row(pay("t", 0, card="c")))
    assert len(lines) > 5
    for line in lines:
        payment = pay("t", 0, card="c")
        interrupted_at(
            line,
            code,
            functools.partial(worlds[0].row, payment),
            functools.partial(worlds[1].row, payment),
        )
        assert [world.row(payment) for world in worlds] == expected, line


@pytest.mark.parametrize("name", ["_grow_payments", "_grow_entities"])
def test_whoever_comes_between_two_lines_of_a_tables_growth_finds_everything(name: str) -> None:
    """Not an event is counted twice, and none is lost, when another thread is there first."""
    n = int(1_024 * 0.7)
    n_cards = n if name == "_grow_entities" else 7
    events = [pay(f"t{i}", i, card=f"c{i % n_cards}", merchant=f"m{i % 7}") for i in range(n)]
    one_more, another = (pay(f"more {i}", n + i, card=f"more {i}") for i in range(2))
    whole = filled([*events, one_more, another])
    code = getattr(MemoryStore, name).__code__
    lines = lines_of(code, lambda: filled(events).scorer.observe(one_more))
    assert len(lines) > 5
    for line in lines:
        world = filled(events)

        def meddle(world: World = world) -> None:
            for event in (events[3], events[-1], another):
                world.scorer.observe(event)

        interrupted_at(line, code, lambda: world.scorer.observe(one_more), meddle)  # noqa: B023  # called at once
        assert versions(world.store) == versions(whole.store), line
        assert world.store.n_records == whole.store.n_records
        assert world.store.n_payments == whole.store.n_payments


def filled(events: list[Transaction]) -> World:
    """A world with these events."""
    world = World(SPECIFICATION, callable_model(SCALED))
    for event in events:
        world.scorer.observe(event)
    return world


def lines_of(code: CodeType, run: Callable[[], object]) -> list[int]:
    """The lines of one function that `run` goes through."""
    found: list[int] = []
    interrupted_at(None, code, run, lambda: None, found)
    return found


def interrupted_at(
    line: int | None,
    code: CodeType,
    run: Callable[[], object],
    call: Callable[[], object],
    seen: list[int] | None = None,
) -> None:
    """Run, with `call` made before one line of one function, as another thread might."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not code:
            return None
        if event == "line":
            if seen is not None:
                seen.append(frame.f_lineno)
            if frame.f_lineno == line:
                sys.settrace(None)
                call()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_scorer_used_after_a_fork_says_to_open_it_in_the_worker() -> None:
    world = World(SPECIFICATION, callable_model(SCALED))
    payment = pay("t", 0, card="c")
    world.scorer.observe(payment)
    before = world.scorer.score(payment)
    child = os.fork()
    if child == 0:
        # Nothing may escape from here: the child must never run the rest of the tests.
        os._exit(0 if raises_forked(world, payment) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert world.scorer.score(payment).score == before.score


def raises_forked(world: World, payment: Transaction) -> bool:
    """Whether every use of the scorer says that it belongs to another process."""
    try:
        for call in uses_of(world, payment):
            try:
                call()
            except ForkedScorer as problem:
                if "open one in each worker" in str(problem):
                    continue
            return False
        world.scorer.close()
        return True
    except BaseException:  # noqa: BLE001  # of a forked child, that only answers
        return False


def uses_of(world: World, payment: Transaction) -> list[Callable[[], object]]:
    """Every way to use a scorer."""
    scorer = world.scorer
    return [
        lambda: scorer.score(payment),
        lambda: scorer.score_many([payment]),
        lambda: scorer.explain(payment),
        lambda: scorer.observe(payment),
        lambda: scorer.label("t", fraud=True),
        lambda: scorer.flush(1.0),
        scorer.stats,
    ]


def test_a_closed_scorer_says_so_and_closing_twice_is_closing_once() -> None:
    world = World(SPECIFICATION, callable_model(SCALED))
    payment = pay("t", 0, card="c")
    before = versions(world.store)
    with world.scorer as scorer:
        scorer.score(payment)
    world.scorer.close()
    for call in uses_of(world, payment):
        with pytest.raises(Closed):
            call()
    assert versions(world.store) == before


@pytest.mark.usefixtures("hasty")
def test_canary_a_lost_event_is_found_by_its_versions(seed: int) -> None:
    """An answer that reports the versions of one moment and the score of another."""
    model = booster_model(SCALED, seed)
    streams = {"c0": stream("card", "c0")}
    world = World(SPECIFICATION, model)
    prefixes = Prefixes(streams, callable_model(SCALED))
    for event in streams["c0"]:
        world.scorer.observe(event)
    request = pay("request", 0, card="c0")
    with pytest.raises(AssertionError):
        prefixes.check(request, world.scorer.score(request, as_of=MONDAY_MS + 30_000))
