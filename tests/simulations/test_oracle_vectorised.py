"""The two oracles against each other, on random stories; and that a difference would show."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshscore.features.specification import Aggregate, Condition, FeatureSpecification
from freshscore.features.transaction import Transaction
from freshscore.simulations.oracle import history
from freshscore.simulations.oracle_columns import (
    ALWAYS,
    NEVER,
    OracleFacts,
    OracleRequests,
    arrival_positions,
    history_requests,
    identities,
    is_accepted,
)
from freshscore.simulations.oracle_set import PlainFact, identity_of
from freshscore.simulations.oracle_tallies import Limits
from freshscore.simulations.oracle_vectorised import VectorisedOracle
from tests.simulations.stories import (
    CATEGORIES,
    HORIZON_MS,
    MONDAY_MS,
    RECORD_KEY,
    SKEW_MS,
    Observe,
    Score,
    Story,
    columns_of,
    differ,
    everything,
    facts_of,
    ints,
    pay,
    plain_answers,
    vectorised_answers,
    windows,
)

EVERYTHING = everything()
# Few of everything, so that most steps meet.
NAMES = st.sampled_from("pqrstu")
# Half seconds and their neighbours: on the borders of windows and of grid steps, and beside them.
INSTANTS_MS = st.builds(
    lambda half_seconds, beside_ms: MONDAY_MS + 500 * half_seconds + beside_ms,
    st.integers(0, 40),
    st.sampled_from((0, 0, 0, -1, 1)),
)


def maybe(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.one_of(values, values, st.none())


@st.composite
def payments(draw: st.DrawFn) -> Transaction:
    named = {
        "card": draw(maybe(st.sampled_from("ab"))),
        "merchant": draw(maybe(st.sampled_from("mn"))),
        "device": draw(maybe(st.sampled_from("xyz"))),
    }
    return Transaction(
        transaction_id=draw(NAMES),
        time=draw(INSTANTS_MS),
        amount_minor=draw(st.sampled_from((0, 100, 250, 999, 2**40))),
        currency="EUR",
        entities={name: key for name, key in named.items() if isinstance(key, str)},
        kind=draw(st.sampled_from(("authorisation", "refund", "reversal"))),
        fields={
            "channel": draw(st.sampled_from(("web", "app", "fax", None))),
            "risk": draw(st.sampled_from((0, 1.5, True, None))),
        },
        location=draw(st.sampled_from((None, (48.1, 11.5), (48.2, 179.9), (-10.0, -179.9)))),
        flags={"declined": draw(st.booleans()), "fraud": draw(st.sampled_from((False, True)))},
    )


@st.composite
def observations(draw: st.DrawFn) -> Observe:
    payment = draw(payments())
    late = draw(maybe(st.integers(-3, 10)))
    return Observe(payment, payment.time + 500 * late if isinstance(late, int) else None)


@st.composite
def scores(draw: st.DrawFn) -> Score:
    payment = draw(payments())
    return Score(
        payment, payment.time + draw(st.sampled_from((0, 0, 1, 500, 2_000, 5_000, 12_000)))
    )


@st.composite
def labels(draw: st.DrawFn) -> PlainFact:
    # Few instants, so that many facts are copies of one another.
    sender_ms = MONDAY_MS + 5_000 * draw(st.integers(0, 3))
    return PlainFact(
        draw(NAMES),
        draw(st.sampled_from(("fraud", "declined"))),
        draw(st.booleans()),
        sender_ms,
        sender_ms + draw(st.sampled_from((0, 1, 500, 3_000, 8_000))),
        draw(st.one_of(st.none(), st.none(), INSTANTS_MS)),
    )


@st.composite
def repeated(draw: st.DrawFn) -> Story:
    """Steps of which some come again later, as they were, and what is to be seen of them all."""
    step = st.one_of(observations(), observations(), observations(), labels(), labels(), scores())
    steps = draw(st.lists(step, min_size=12, max_size=30))
    again = draw(st.lists(st.sampled_from(steps), max_size=6))
    return [*steps, *again, *draw(st.lists(scores(), min_size=4, max_size=4))]


LIMITS = st.builds(Limits, st.sampled_from((1, 2, 64)), st.sampled_from((1, 9, 10**6)))


def check_agreement(story: Story, limits: Limits) -> None:
    found = vectorised_answers(EVERYTHING, story, limits)
    assert not differ(plain_answers(EVERYTHING, story), found).any()


@settings(max_examples=150)
@given(story=repeated(), limits=LIMITS)
def test_both_oracles_agree_on_any_story(story: Story, limits: Limits) -> None:
    """Late, repeated and conflicting events; facts late, early, copied, taken back; any as_of."""
    check_agreement(story, limits)


@pytest.mark.soak
@settings(max_examples=5_000)
@given(story=repeated(), limits=LIMITS)
def test_both_oracles_agree_on_thousands_of_stories(story: Story, limits: Limits) -> None:
    check_agreement(story, limits)


@settings(max_examples=60)
@given(
    events=st.lists(observations(), max_size=15),
    facts=st.lists(labels(), max_size=8),
    is_known=st.booleans(),
)
def test_both_oracles_agree_on_both_modes_of_history(
    events: list[Observe], facts: list[PlainFact], is_known: bool
) -> None:
    rows = [(event.transaction, event.arrival_ms) for event in events]
    expected = history(
        EVERYTHING,
        rows,
        facts,
        "known" if is_known else "true",
        horizon_ms=HORIZON_MS,
        skew_ms=SKEW_MS,
        record_key=RECORD_KEY,
        categories=CATEGORIES,
    )
    times_ms = ints(tx.time for tx, _ in rows)
    arrivals_ms = ints(tx.time if arrival is None else arrival for tx, arrival in rows)
    positions = arrival_positions(arrivals_ms)
    accepted = is_accepted(times_ms, arrivals_ms, HORIZON_MS, SKEW_MS)
    columns = columns_of(EVERYTHING, [tx for tx, _ in rows], np.where(accepted, positions, NEVER))
    ids = (tx.transaction_id for tx, _ in rows)
    codes = dict(zip(ids, columns.transaction.tolist(), strict=True))
    # In a file, a fact counts by its known-at alone.
    known = facts_of(EVERYTHING, [(-1, f) for f in facts], codes)
    requests = history_requests(columns, positions if is_known else None)
    found = VectorisedOracle(EVERYTHING, columns, known).features(requests)
    expected_matrix = np.array(expected, np.float64).reshape(len(rows), len(EVERYTHING.columns))
    assert not differ(expected_matrix, found).any()


def long_story(generator: np.random.Generator, n_events: int, n_scores: int) -> Story:
    """A large merchant: events in time but for a twentieth, labels after 5 s, and scores."""
    steps: list[tuple[int, Observe | PlainFact | Score]] = []
    times_ms = MONDAY_MS + np.sort(generator.integers(0, 30_000, n_events))
    for i, time_ms in enumerate(times_ms.tolist()):
        late_ms = int(generator.integers(0, 4_000)) if generator.random() < 0.05 else 0
        seconds = (time_ms - MONDAY_MS) / 1000
        event = pay(f"e{i}", seconds, int(generator.integers(1, 10**6)))
        steps.append((time_ms + late_ms, Observe(event, time_ms + late_ms)))
        if generator.random() < 0.2:
            known_ms = time_ms + 5_000
            steps.append((known_ms, PlainFact(f"e{i}", "fraud", True, known_ms, known_ms)))
        if generator.random() < n_scores / n_events:
            as_of_ms = time_ms + late_ms + int(generator.integers(0, 6_000))
            steps.append((as_of_ms, Score(event, as_of_ms)))
    return [step for _, step in sorted(steps, key=lambda step: step[0])]


LARGE = windows(
    Aggregate("count"),
    Aggregate("std"),
    Aggregate("share", of="fraud"),
    lengths=("4s", "20s"),
)
LARGE_DELAYED = windows(
    Aggregate("mean"), Aggregate("share", of="fraud"), lengths=("15s",), delay="5s", current=False
)


@pytest.mark.parametrize("specification", [LARGE, LARGE_DELAYED])
def test_sums_over_whole_blocks_are_those_over_their_events(
    specification: FeatureSpecification, rng: np.random.Generator
) -> None:
    story = long_story(rng, n_events=1500, n_scores=60)
    expected = plain_answers(specification, story)
    assert len(expected) > 30
    for limits in (Limits(), Limits(block=16, pairs=3_000)):
        assert not differ(expected, vectorised_answers(specification, story, limits)).any()


def test_a_block_whose_facts_are_half_known_is_opened() -> None:
    """Two events of one block; each one's fact known, or told, just before or after the request."""
    specification = windows(
        Aggregate("share", of="fraud"), Aggregate("sum", where=Condition(fact="fraud"))
    )
    as_of_ms = MONDAY_MS + 9_000
    events = [Observe(pay(name, 5, amount)) for name, amount in (("p", 100), ("q", 700))]
    cases = list(itertools.product((-1, 0, 1), (False, True)))
    for of_p, of_q in itertools.product(cases, cases):
        told: tuple[list[PlainFact], list[PlainFact]] = ([], [])
        for name, (beside_ms, is_after) in (("p", of_p), ("q", of_q)):
            known_ms = as_of_ms + beside_ms
            told[is_after].append(PlainFact(name, "fraud", True, known_ms, known_ms))
        story: Story = [*events, *told[0], Score(pay("r", 9), as_of_ms), *told[1]]
        found = vectorised_answers(specification, story, Limits(block=2))
        assert not differ(plain_answers(specification, story), found).any()


def test_a_difference_would_be_seen(rng: np.random.Generator) -> None:
    """The canary: one event less, or facts known one millisecond later, and the harness says so."""
    story = long_story(rng, n_events=600, n_scores=200)
    first = next(step for step in story if isinstance(step, Observe))
    fraud = PlainFact(first.transaction.transaction_id, "fraud", True, MONDAY_MS, MONDAY_MS + 5_000)
    score = Score(pay("q", 1), MONDAY_MS + 5_000)
    expected = plain_answers(LARGE, [fraud, *story, score])
    later = replace(fraud, known_at_ms=fraud.known_at_ms + 1)
    (row, *_), (column, *_) = np.nonzero(
        differ(expected, vectorised_answers(LARGE, [later, *story, score]))
    )
    assert row == len(expected) - 1
    assert LARGE.feature_names[column] == "card_fraud_share_20s"
    less = [step for step in story if step != first]
    assert differ(expected, vectorised_answers(LARGE, [fraud, *less, score])).any()


def test_a_request_has_seen_exactly_the_smaller_positions() -> None:
    specification = windows(Aggregate("count"), current=False)
    rows = columns_of(specification, [pay("p", 1), pay("q", 1), pay("r", 2)], [5, ALWAYS, NEVER])
    oracle = VectorisedOracle(specification, rows, OracleFacts.none())
    applied = ints([0, 5, 6, NEVER])
    requests = OracleRequests(ints([2] * 4), ints([MONDAY_MS + 2_000] * 4), applied)
    assert oracle.features(requests)[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert oracle.features(history_requests(rows, None))[:, 0].tolist() == [1.0, 1.0, 2.0]


def test_identities_are_those_of_the_plain_oracle() -> None:
    texts = [bytes(range(n)) for n in range(40)] + [b"x" * n for n in (255, 256, 257)] + [b"", b"a"]
    expected = [identity_of(text, RECORD_KEY) for text in texts]
    assert identities(texts, RECORD_KEY).tolist() == expected


def test_bad_columns_and_requests_are_refused() -> None:
    specification = windows(Aggregate("count"))
    rows = columns_of(specification, [pay("p", 1), pay("q", 2)], [0, 1])
    with pytest.raises(ValueError, match="amount_minor has 1 rows where time_ms has 2"):
        replace(rows, amount_minor=rows.amount_minor[:1])
    oracle = VectorisedOracle(specification, rows, facts_of(specification, [], {}))
    requests = history_requests(rows, None)
    with pytest.raises(ValueError, match="1 requests have an as_of before"):
        oracle.features(replace(requests, as_of_ms=requests.as_of_ms - ints([0, 1])))
