"""The plain oracle against values computed by hand; the vectorised one must agree on each."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import pytest

from freshscore.features.money import minor_digits
from freshscore.features.specification import (
    Aggregate,
    Condition,
    Entity,
    Feature,
    FeatureSpecification,
    WindowGroup,
)
from freshscore.features.transaction import Transaction
from freshscore.simulations import oracle as oracle_module
from freshscore.simulations.oracle import PlainOracle, history
from freshscore.simulations.oracle_set import PlainFact, identity_of, siphash128
from tests.simulations.stories import (
    HORIZON_MS,
    MONDAY_MS,
    RECORD_KEY,
    SKEW_MS,
    Observe,
    Score,
    Story,
    answer,
    answers,
    at,
    fact,
    label,
    locals_of,
    pay,
    value,
    windows,
)

NAN = math.nan


def same(found: float, expected: float) -> bool:
    return found == expected or (math.isnan(found) and math.isnan(expected))


def oracle_of(specification: FeatureSpecification) -> PlainOracle:
    return PlainOracle(specification, horizon_ms=HORIZON_MS, skew_ms=SKEW_MS, record_key=RECORD_KEY)


# -- aggregates

OVER_1_2_6 = {
    "count": 3.0,
    "sum": 9.0,
    "mean": 3.0,
    # 3 x (100^2 + 200^2 + 600^2) - 900^2 = 420,000 in square cents.
    "std": math.sqrt(420_000.0) / 3.0 / 100.0,
    "min": 1.0,
    "max": 6.0,
    "last": 2.0,
    "distinct": 2.0,
    "share": 1 / 3,
}
OVER_NOTHING = {"count": 0.0, "sum": 0.0, "distinct": 0.0}


def aggregate_of(function: str, **more: object) -> Aggregate:
    of = {"share": "fraud", "distinct": "merchant"}.get(function)
    return Aggregate(function, of=of, **more)  # type: ignore[arg-type]  # names from the tables


@pytest.mark.parametrize("function", OVER_1_2_6)
def test_each_function_over_two_events_and_the_payment_itself(function: str) -> None:
    story: Story = [
        Observe(pay("p", 1, 100)),
        Observe(pay("q", 2, 600, entities={"card": "c", "merchant": "other"})),
        fact("q", True, 2.5),
        Score(pay("r", 3, 200), at(3)),
    ]
    assert value(windows(aggregate_of(function)), story) == OVER_1_2_6[function]


@pytest.mark.parametrize("function", OVER_1_2_6)
def test_an_empty_window_gives_what_is_declared_or_zero_or_nothing(function: str) -> None:
    score = Score(pay("r", 3, 200), at(3))
    plain = windows(aggregate_of(function), current=False)
    assert same(value(plain, [score]), OVER_NOTHING.get(function, NAN))
    declared = windows(aggregate_of(function, empty=-1.5), current=False)
    assert value(declared, [score]) == -1.5


def test_std_is_exact_where_squares_exceed_doubles() -> None:
    """Two amounts that differ by two cents at the bound: the std is one cent, not rounding."""
    story: Story = [Observe(pay("p", 1, 2**40)), Score(pay("q", 2, 2**40 - 2), at(2))]
    assert value(windows(Aggregate("std")), story) == 0.01


def test_std_of_one_event_is_zero() -> None:
    assert value(windows(Aggregate("std")), [Score(pay("p", 1, 123), at(1))]) == 0.0


def test_distinct_leaves_out_events_without_that_entity() -> None:
    story: Story = [
        Observe(pay("p", 1, entities={"card": "c"})),
        Observe(pay("q", 1, entities={"card": "c", "merchant": "n"})),
        Observe(pay("r", 2, entities={"card": "c", "merchant": "n"})),
        Score(pay("s", 2, entities={"card": "c"}), at(2)),
    ]
    assert value(windows(Aggregate("distinct", of="merchant")), story) == 1.0


def test_amounts_follow_the_digits_of_the_currency_and_the_base_amount() -> None:
    group = WindowGroup("card", ("10s",), (Aggregate("sum"),))
    yen = FeatureSpecification("yen", "JPY", (Entity("card"),), (group,))
    story: Story = [
        Observe(pay("p", 1, 100, currency="JPY")),
        Score(pay("q", 2, 999, base_amount_minor=7), at(2)),
    ]
    assert value(yen, story) == 107.0


def test_digits_typed_here_are_those_of_the_money_module() -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for code in map("".join, itertools.product(letters, repeat=3)):
        assert oracle_module._MINOR_DIGITS.get(code, 2) == minor_digits(code)


# -- windows


@pytest.mark.parametrize(
    ("delay", "event_ms", "expected"),
    [
        # (as_of - 10 s, as_of]
        ("0s", 0, 0.0),
        ("0s", 1, 1.0),
        ("0s", 10_000, 1.0),
        ("0s", 10_001, 0.0),
        # (as_of - 3 s - 10 s, as_of - 3 s]
        ("3s", -3_000, 0.0),
        ("3s", -2_999, 1.0),
        ("3s", 7_000, 1.0),
        ("3s", 7_001, 0.0),
    ],
)
def test_windows_are_open_at_the_begin_and_closed_at_the_end(
    delay: str, event_ms: int, expected: float
) -> None:
    spec = windows(Aggregate("count"), delay=delay, current=False)
    story: Story = [Observe(pay("p", event_ms / 1000)), Score(pay("q", 5), at(10))]
    assert value(spec, story) == expected


@pytest.mark.parametrize(
    ("delay", "as_of", "event_ms", "expected"),
    [
        # Step 2.5 s. Begin: 11 s - 10 s = 1 s, on the line at 0; end: as_of itself.
        ("0s", 11.0, 0, 0.0),
        ("0s", 11.0, 1, 1.0),
        ("0s", 11.0, 11_000, 1.0),
        ("0s", 11.0, 11_001, 0.0),
        # Exactly on a line, the window is the exact one.
        ("0s", 12.5, 2_500, 0.0),
        ("0s", 12.5, 2_501, 1.0),
        # End: 12.6 s - 1 s = 11.6 s, on the line at 10 s; begin: 1.6 s, on the line at 0.
        ("1s", 12.6, 0, 0.0),
        ("1s", 12.6, 1, 1.0),
        ("1s", 12.6, 10_000, 1.0),
        ("1s", 12.6, 10_001, 0.0),
    ],
)
def test_grid_windows_begin_on_a_line_and_end_on_one_if_delayed(
    delay: str, as_of: float, event_ms: int, expected: float
) -> None:
    spec = windows(Aggregate("count"), delay=delay, current=False, resolution=0.25)
    story: Story = [Observe(pay("p", event_ms / 1000)), Score(pay("q", 5), at(as_of))]
    assert value(spec, story) == expected


def test_the_payment_itself_leaves_the_window_with_time() -> None:
    spec = windows(Aggregate("count"))
    scores = [Score(pay("p", 1), at(11) + late_ms) for late_ms in (-1, 0)]
    assert [list(a.values()) for a in answers(spec, scores)] == [[1.0], [0.0]]


def test_the_payment_itself_is_outside_a_delayed_window_until_the_delay_has_passed() -> None:
    spec = windows(Aggregate("count"), delay="3s")
    scores = [Score(pay("p", 1), at(4) + late_ms) for late_ms in (-1, 0)]
    assert [list(a.values()) for a in answers(spec, scores)] == [[0.0], [1.0]]


def test_current_false_leaves_the_payment_out() -> None:
    story: Story = [Observe(pay("p", 1)), Score(pay("q", 2), at(2))]
    assert value(windows(Aggregate("count"), current=False), story) == 1.0


def test_a_payment_scores_the_same_before_and_after_its_own_event() -> None:
    spec = windows(*(aggregate_of(function) for function in OVER_1_2_6))
    other, own = Observe(pay("p", 1, 300)), pay("q", 2, 500, flags={"fraud": True})
    score = Score(own, at(3))
    before, after, labelled = answers(
        spec,
        [other, score, Observe(own), score, fact("q", True, 2), score],
    )
    assert before == after == labelled
    assert before["card_count_10s"] == 2.0
    assert before["card_fraud_share_10s"] == 0.0


def test_a_request_stands_for_its_stored_copy_with_its_own_content() -> None:
    stored, asked = pay("p", 1, 300), pay("p", 2, 500)
    assert value(windows(Aggregate("sum")), [Observe(stored), Score(asked, at(2))]) == 5.0


def test_events_after_as_of_do_not_count() -> None:
    """Nor do they for a payment that is scored again at its own time, once they are known."""
    story: Story = [Observe(pay("p", 3)), Score(pay("q", 2), at(2))]
    assert value(windows(Aggregate("count")), story) == 1.0


# -- entities


def test_an_absent_entity_gives_missing_values_and_a_new_one_counts_zero() -> None:
    spec = windows(Aggregate("count"), Aggregate("sum"), current=False)
    absent, new = answers(
        spec, [Score(pay("p", 1, entities={"merchant": "m"}), at(1)), Score(pay("q", 1), at(1))]
    )
    assert all(math.isnan(number) for number in absent.values())
    assert list(new.values()) == [0.0, 0.0]


def test_an_entity_of_two_parts_is_absent_without_one_of_them() -> None:
    pair = Entity("pair", of=("card", "merchant"))
    group = WindowGroup("pair", ("10s",), (Aggregate("count"),))
    spec = FeatureSpecification("pairs", "EUR", (pair,), (group,))
    story: Story = [
        Observe(pay("p", 1)),
        Observe(pay("q", 1, entities={"card": "c"})),
        Observe(pay("r", 1, entities={"card": "c", "merchant": "n"})),
        Score(pay("s", 2), at(2)),
        Score(pay("t", 2, entities={"card": "c"}), at(2)),
    ]
    complete, partial = ([*a.values()] for a in answers(spec, story))
    assert complete == [2.0]
    assert math.isnan(partial[0])


# -- conditions


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Condition(kind="refund"), 2.0),
        (Condition(field="channel", value="web"), 2.0),
        # The payment's own facts never count.
        (Condition(fact="declined"), 1.0),
    ],
)
def test_a_condition_filters_events_and_the_payment(condition: Condition, expected: float) -> None:
    like = {"kind": "refund", "fields": {"channel": "web"}, "flags": {"declined": True}}
    story: Story = [
        Observe(pay("p", 1, **like)),
        Observe(pay("q", 1, kind="reversal", fields={"channel": "app"})),
        Observe(pay("r", 1)),
        Score(pay("s", 2, **like), at(2)),
    ]
    assert value(windows(Aggregate("count", where=condition)), story) == expected


def test_a_share_is_of_the_events_that_meet_its_condition() -> None:
    spec = windows(Aggregate("share", of="fraud", where=Condition(fact="declined")), current=False)
    declined = {"flags": {"declined": True}}
    story: Story = [
        Observe(pay("p", 1, **declined)),
        Observe(pay("q", 1, **declined)),
        Observe(pay("r", 1)),
        fact("p", True, 1),
        fact("r", True, 1),
        Score(pay("s", 2), at(2)),
    ]
    assert value(spec, story) == 0.5


# -- facts

FRAUDS = windows(Aggregate("count", where=Condition(fact="fraud")), lengths=("1m",))


@pytest.mark.parametrize(("as_of_ms", "expected"), [(4_999, 0.0), (5_000, 1.0)])
def test_a_fact_counts_from_the_instant_at_which_it_became_known(
    as_of_ms: int, expected: float
) -> None:
    story: Story = [
        Observe(pay("p", 1)),
        fact("p", True, 5, 2),
        Score(pay("q", 2), at(0) + as_of_ms),
    ]
    assert value(FRAUDS, story) == expected


def test_a_fact_can_come_before_its_event_and_waits_for_it() -> None:
    score = Score(pay("q", 2), at(9))
    story: Story = [fact("p", True, 1), score, Observe(pay("p", 2)), score]
    assert [list(a.values()) for a in answers(FRAUDS, story)] == [[0.0], [1.0]]


def test_a_fact_that_is_taken_back_is_no_longer_true() -> None:
    story: Story = [Observe(pay("p", 1)), fact("p", False, 7), fact("p", True, 5)]
    scores = [Score(pay("q", 2), at(seconds)) for seconds in (4, 6, 7)]
    found = [list(a.values()) for a in answers(FRAUDS, [*story, *scores])]
    assert found == [[0.0], [1.0], [0.0]]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        # Known at one instant: the later sender holds, then the larger value.
        ([fact("p", True, 5, 4), fact("p", False, 5, 3)], 1.0),
        ([fact("p", True, 5, 3), fact("p", False, 5, 4)], 0.0),
        ([fact("p", True, 5, 4), fact("p", False, 5, 4)], 1.0),
        # The copy known at 8 is one with that known at 5: what became known at 7 holds.
        ([fact("p", True, 8, 4), fact("p", False, 7, 4), fact("p", True, 5, 4)], 0.0),
        # Another sender's instant makes another fact.
        ([fact("p", True, 8, 6), fact("p", False, 7, 4), fact("p", True, 5, 4)], 1.0),
        # Another name changes nothing.
        ([fact("p", True, 5), fact("p", False, 6, fact="declined")], 1.0),
    ],
)
def test_of_several_facts_the_latest_known_holds(facts: list[PlainFact], expected: float) -> None:
    for order in itertools.permutations(facts):
        story: Story = [Observe(pay("p", 1)), *order, Score(pay("q", 2), at(9))]
        assert value(FRAUDS, story) == expected


def test_a_true_flag_is_a_fact_known_with_the_event_and_a_false_one_is_nothing() -> None:
    story: Story = [
        Observe(pay("p", 1, flags={"fraud": True})),
        Observe(pay("q", 1, flags={"fraud": False})),
        fact("q", True, 1, 0.5),
        Score(pay("r", 1), at(1)),
        # A copy of the flag, known later, does not move it behind what was known between.
        fact("p", True, 5, 1),
        fact("p", False, 3),
        Score(pay("r", 1), at(9)),
    ]
    assert [list(a.values()) for a in answers(FRAUDS, story)] == [[2.0], [1.0]]


def test_a_fact_that_names_another_time_is_of_another_event() -> None:
    wrong = PlainFact("p", "fraud", True, at(3), at(3), time_ms=at(2))
    right = PlainFact("p", "fraud", True, at(3), at(3), time_ms=at(1))
    score = Score(pay("q", 2), at(9))
    story: Story = [Observe(pay("p", 1)), wrong, score, right, score]
    assert [list(a.values()) for a in answers(FRAUDS, story)] == [[0.0], [1.0]]


def test_impossible_facts_are_refused() -> None:
    oracle = oracle_of(FRAUDS)
    with pytest.raises(ValueError, match="not declared"):
        oracle.label("p", "other", True, at(1), at(1))
    with pytest.raises(ValueError, match="before it was sent"):
        oracle.label("p", "fraud", True, at(2), at(1))


# -- the set


@pytest.mark.parametrize(
    ("arrival_ms", "status"),
    [
        (HORIZON_MS, "accepted"),
        (HORIZON_MS + 1, "late"),
        (-SKEW_MS, "accepted"),
        (-SKEW_MS - 1, "early"),
    ],
)
def test_an_event_is_accepted_from_horizon_to_skew_borders_included(
    arrival_ms: int, status: str
) -> None:
    spec, event = windows(Aggregate("count"), current=False), pay("p", 5)
    oracle = oracle_of(spec)
    assert oracle.observe(event, event.time + arrival_ms) == status
    n_counted = 1.0 if status == "accepted" else 0.0
    story: Story = [Observe(event, event.time + arrival_ms), Score(pay("q", 5), at(6))]
    assert value(spec, story) == n_counted


def test_a_repeated_event_counts_once_and_a_conflict_is_reported() -> None:
    oracle = oracle_of(windows(Aggregate("count")))
    assert oracle.observe(pay("p", 1)) == "accepted"
    assert oracle.observe(pay("p", 1, fields={"read_by": "nobody"})) == "repeated"
    assert oracle.observe(pay("p", 1, 99)) == "conflict"
    assert [event.amount_minor for event in oracle.events_of("card", ("c",))] == [99]
    assert oracle.observe(pay("p", 1, 99)) == "repeated"
    # What was seen but does not count is a conflict each time.
    assert oracle.observe(pay("p", 1)) == "conflict"
    assert [event.amount_minor for event in oracle.events_of("card", ("c",))] == [99]


def test_other_names_are_a_conflict_and_both_are_repeated_later() -> None:
    oracle = oracle_of(windows(Aggregate("count")))
    here, there = ({"card": name, "merchant": "m"} for name in "cd")
    assert oracle.observe(pay("p", 1, entities=here)) == "accepted"
    assert oracle.observe(pay("p", 1, entities=there)) == "conflict"
    assert oracle.observe(pay("p", 1, entities=here)) == "repeated"
    assert oracle.observe(pay("p", 1, entities=there)) == "repeated"
    assert oracle.observe(pay("p", 1, entities={"merchant": "m"})) == "conflict"


CONDITIONAL = FeatureSpecification(
    name="conflicts",
    currency="EUR",
    entities=(Entity("card"), Entity("merchant")),
    windows=(
        WindowGroup(
            "card",
            ("1m",),
            (
                Aggregate("sum"),
                Aggregate("share", of="fraud"),
                Aggregate("share", of="declined"),
                Aggregate("distinct", of="merchant"),
                Aggregate("count", where=Condition(kind="payout")),
                Aggregate("count", where=Condition(field="channel", value="web")),
            ),
        ),
    ),
    features=(Feature("distance", "distance", entity="card"),),
    facts=("fraud", "declined"),
)
WEB_PAYOUT = {"kind": "payout", "fields": {"channel": "web"}}
# Each one differs from the one before in the next part of the order, and everything behind it in
# the other direction.
SMALLEST_FIRST = (
    pay("p", 1, 900, **WEB_PAYOUT, location=(9, 9)),
    pay("p", 2, 100, **WEB_PAYOUT, location=(8, 8)),
    pay("p", 2, 200, fields={"channel": "web"}, location=(7, 7)),
    pay("p", 2, 200, kind="refund", flags={"declined": True}, location=(6, 6)),
    pay("p", 2, 200, kind="payout", flags={"declined": True}, location=(5, 5)),
    # Conditions: payout is bit 0, web bit 1.
    pay("p", 2, 200, **WEB_PAYOUT, location=(4, 4)),
    # Flags: fraud is bit 0, declined bit 1.
    pay("p", 2, 200, **WEB_PAYOUT, flags={"fraud": True}, location=(3, 3)),
    pay("p", 2, 200, **WEB_PAYOUT, flags={"declined": True}, location=(1, 4)),
    # Latitude, then longitude.
    pay("p", 2, 200, **WEB_PAYOUT, flags={"declined": True}, location=(1.5, 3)),
    pay("p", 2, 200, **WEB_PAYOUT, flags={"declined": True}, location=(2, 2)),
    pay("p", 2, 200, **WEB_PAYOUT, flags={"declined": True}, location=(2, 3)),
)  # fmt: skip


@pytest.mark.parametrize("i", range(len(SMALLEST_FIRST) - 1))
def test_of_two_contents_of_one_id_the_smaller_counts_in_either_order(i: int) -> None:
    smaller, larger = SMALLEST_FIRST[i : i + 2]
    score = Score(pay("q", 9, location=(0, 0)), at(9))
    alone = answer(CONDITIONAL, [Observe(smaller), score])
    for pair in ((smaller, larger), (larger, smaller)):
        # The larger one's flags go with it.
        assert answer(CONDITIONAL, [*map(Observe, pair), score]) == alone
    assert answer(CONDITIONAL, [Observe(larger), score]) != alone


def test_of_contents_that_differ_only_in_a_member_the_smallest_identity_counts() -> None:
    """In whichever order they come; an absent member is 0, smaller than all."""
    present = [{"card": "c", "merchant": name} for name in "mno"]
    found = set()
    for order in itertools.permutations(present):
        oracle = oracle_of(CONDITIONAL)
        for names in order:
            oracle.observe(pay("p", 1, entities=names))
        found.add(oracle.events_of("card", ("c",))[0].members)
        story: Story = [Observe(pay("p", 1, entities=names)) for names in order]
        for name in "mno":
            own = pay("q", 2, entities={"card": "c", "merchant": name})
            n_distinct = answer(CONDITIONAL, [*story, Score(own, at(2))])
            n_expected = 1.0 if ((name,),) in found else 2.0
            assert n_distinct["card_distinct_merchant_1m"] == n_expected
    assert len(found) == 1
    oracle.observe(pay("p", 1, entities={"card": "c"}))
    assert oracle.events_of("card", ("c",))[0].members == (None,)


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        # Degrees as unsigned words: first the north, then no place, then the south.
        ((1, -1), (2, 1)),
        ((1, 1), (1, -1)),
        ((90, -180), None),
        (None, (-90, 1)),
        ((-2, 1), (-1, 1)),
    ],
)
def test_places_of_one_payment_compare_as_the_words_of_a_record(
    smaller: tuple[float, float] | None, larger: tuple[float, float] | None
) -> None:
    expected = None if smaller is None else (smaller[0] * 10**7, smaller[1] * 10**7)
    for places in ((smaller, larger), (larger, smaller)):
        contents = [pay("p", 1, location=place) for place in places]
        score = Score(pay("q", 2, location=(0, 0)), at(2))
        answer(CONDITIONAL, [*map(Observe, contents), score])
        oracle = oracle_of(CONDITIONAL)
        for content in contents:
            oracle.observe(content)
        assert oracle.events_of("card", ("c",))[0].place == expected


def test_a_content_that_names_other_entities_counts_in_each() -> None:
    spec = windows(Aggregate("sum"))
    story: Story = [
        Observe(pay("p", 1, 500)),
        Observe(pay("p", 1, 300, entities={"card": "other"})),
        Score(pay("q", 2, 0), at(2)),
        Score(pay("q", 2, 0, entities={"card": "other"}), at(2)),
    ]
    assert [list(a.values()) for a in answers(spec, story)] == [[5.0], [3.0]]


def test_the_set_of_each_entity_is_shown_in_order() -> None:
    oracle = oracle_of(windows(Aggregate("distinct", of="merchant")))
    for payment in (pay("p", 2), pay("q", 1, flags={"fraud": True}), pay("p", 2)):
        oracle.observe(payment)
    label(oracle, fact("q", False, 3))
    states = oracle.states()
    assert set(states) == {("card", ("c",)), ("merchant", ("m",))}
    assert [event.transaction_id for event in states["card", ("c",)]] == ["q", "p"]
    assert states["card", ("c",)][0].members == (("m",),)
    assert states["merchant", ("m",)][0].members == ()
    assert oracle.facts_of(states["card", ("c",)][0]) == {
        PlainFact("q", "fraud", True, at(1), at(1), at(1)),
        PlainFact("q", "fraud", False, at(3), at(3), at(1)),
    }


# -- beside the last event


def by_identity(n: int) -> list[str]:
    """Ids in the order of their identities."""
    return sorted(map(str, range(n)), key=lambda name: identity_of(name.encode(), RECORD_KEY))


def test_ties_in_time_go_by_identity() -> None:
    """The payment's last event is the one just below it; the window's last, the largest."""
    small, middle, large = by_identity(3)
    spec = locals_of(
        Feature("distance", "distance", entity="card"),
        windows=(WindowGroup("card", ("10s",), (Aggregate("last"),)),),
    )
    story: Story = [
        Observe(pay(large, 1, 300, location=(50, 10))),
        Observe(pay(small, 1, 100, location=(50, 10))),
    ]
    found = answer(spec, [*story, Score(pay(middle, 1, 200, location=(50, 10)), at(1))])
    assert found == {"distance": 0.0, "card_amount_last_10s": 3.0}
    found = answer(spec, [story[1], Score(pay(large, 1, 300), at(1))])
    assert found["card_amount_last_10s"] == 3.0
    found = answer(spec, [story[0], Score(pay(small, 1, 100, location=(50, 10)), at(1))])
    assert found["card_amount_last_10s"] == 3.0
    assert math.isnan(found["distance"])


SINCE = locals_of(Feature("since", "since_last", entity="card"))


@pytest.mark.parametrize(
    ("last_ms", "expected"), [(0, NAN), (1, 9.999), (9_500, 0.5), (10_000, NAN), (10_001, NAN)]
)
def test_since_last_looks_back_over_the_reach_at_the_payments_own_time(
    last_ms: int, expected: float
) -> None:
    larger, own = reversed(by_identity(2))
    story: Story = [Observe(pay(larger, last_ms / 1000)), Score(pay(own, 10), at(20))]
    assert same(answer(SINCE, story)["since"], expected)


def test_since_last_is_from_the_last_other_event() -> None:
    story: Story = [Observe(pay(name, seconds)) for name, seconds in (("p", 1), ("q", 3), ("r", 4))]
    assert answer(SINCE, [*story, Score(pay("r", 4), at(5))])["since"] == 1.0


FIRST = locals_of(Feature("first", "first_pair", entity="card", of="merchant"))


@pytest.mark.parametrize(
    ("event", "own", "expected"),
    [
        (pay("p", 1), pay("q", 2), 0.0),
        (pay("p", 1, entities={"card": "c", "merchant": "n"}), pay("q", 2), 1.0),
        (pay("p", 1, entities={"card": "d", "merchant": "m"}), pay("q", 2), 1.0),
        (pay("p", 1, entities={"card": "c"}), pay("q", 2), 1.0),
        (pay("p", 1), pay("q", 2, entities={"card": "c"}), NAN),
        (pay("p", 1), pay("q", 2, entities={"merchant": "m"}), NAN),
        # Its own copy, what comes later, and what is beyond the reach.
        (pay("p", 1), pay("p", 2), 1.0),
        (pay("p", 3), pay("q", 2), 1.0),
        (pay("p", 0), pay("q", 10), 1.0),
        (pay("p", 0.001), pay("q", 10), 0.0),
    ],
)
def test_first_pair(event: Transaction, own: Transaction, expected: float) -> None:
    assert same(answer(FIRST, [Observe(event), Score(own, at(20))])["first"], expected)


TRAVEL = locals_of(
    Feature("distance", "distance", entity="card"), Feature("speed", "speed", entity="card")
)


def test_a_degree_of_latitude_in_half_an_hour() -> None:
    spec = locals_of(*TRAVEL.features, windows=(WindowGroup("card", ("1h",), (Aggregate("sum"),)),))
    story: Story = [
        Observe(pay("p", 0, location=(48.0, 11.0))),
        Score(pay("q", 1800, location=(49.0, 11.0)), at(1800)),
    ]
    found = answer(spec, story)
    assert found["distance"] == pytest.approx(6371.0088 * math.pi / 180, rel=1e-9)
    assert found["speed"] == found["distance"] / 0.5


def test_distance_over_the_date_line_and_between_antipodes() -> None:
    for there, degrees in (((0.0, -179.5), 1.0), ((0.0, -0.5), 180.0)):
        story: Story = [
            Observe(pay("p", 1, location=(0.0, 179.5))),
            Score(pay("q", 2, location=there), at(2)),
        ]
        found = answer(TRAVEL, story)["distance"]
        assert found == pytest.approx(6371.0088 * math.radians(degrees), rel=1e-9)


def test_places_are_rounded_to_1e_7_degrees_half_to_even() -> None:
    oracle = oracle_of(TRAVEL)
    oracle.observe(pay("p", 1, location=(0.00000025, -0.00000075)))
    assert oracle.events_of("card", ("c",))[0].place == (2, -8)


@pytest.mark.parametrize(
    ("first", "last"), [({}, {"location": (1, 1)}), ({"location": (1, 1)}, {})]
)
def test_distance_is_missing_without_both_places_of_the_last_event(
    first: dict[str, object], last: dict[str, object]
) -> None:
    """An older event that has a place does not stand in."""
    story: Story = [
        Observe(pay("o", 1, location=(1, 1))),
        Observe(pay("p", 2, **first)),
        Score(pay("q", 3, **last), at(3)),
    ]
    found = answer(TRAVEL, story)
    assert math.isnan(found["distance"])
    assert math.isnan(found["speed"])


def test_speed_is_missing_at_one_instant() -> None:
    small, large = by_identity(2)
    story: Story = [
        Observe(pay(small, 1, location=(1, 1))),
        Score(pay(large, 1, location=(1, 2)), at(1)),
    ]
    found = answer(TRAVEL, story)
    assert found["distance"] > 100
    assert math.isnan(found["speed"])


# -- the payment itself


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, (0.0, 0.0, 1.0, 0.0)),
        (7 * 3600 - 0.001, (6.0, 0.0, 1.0, 0.0)),
        (7 * 3600, (7.0, 0.0, 0.0, 0.0)),
        (5 * 86400 - 0.001, (23.0, 4.0, 0.0, 0.0)),
        (5 * 86400, (0.0, 5.0, 1.0, 1.0)),
        (7 * 86400 - 0.001, (23.0, 6.0, 0.0, 1.0)),
    ],
)
def test_hour_weekday_night_weekend_are_of_the_payments_own_time(
    seconds: float, expected: tuple[float, ...]
) -> None:
    names = ("hour", "weekday", "night", "weekend")
    spec = locals_of(*(Feature(name, name) for name in names))  # type: ignore[arg-type]  # as named
    found = answer(spec, [Score(pay("p", seconds), at(seconds) + 86_400_000)])
    assert tuple(found[name] for name in names) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"x": 2}, 2.0), ({"x": True}, 1.0), ({"x": -0.5}, -0.5), ({"x": None}, NAN), ({}, NAN)],
)
def test_plain_fields(fields: dict[str, object], expected: float) -> None:
    spec = locals_of(Feature("x", "field", of="x"))
    assert same(answer(spec, [Score(pay("p", 1, fields=fields), at(1))])["x"], expected)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"channel": "web"}, 3.0), ({"channel": "app"}, 0.0), ({"channel": "fax"}, NAN), ({}, NAN)],
)
def test_categories_are_codes_and_unseen_ones_are_missing(
    fields: dict[str, object], expected: float
) -> None:
    spec = locals_of(Feature("x", "category", of="channel"))
    assert same(answer(spec, [Score(pay("p", 1, fields=fields), at(1))])["x"], expected)


CROSS = locals_of(
    Feature("amount", "amount"),
    Feature("ratio", "ratio", to="card_amount_mean_10s"),
    Feature("of_field", "ratio", to="card_amount_mean_10s", of="x"),
    Feature("difference", "difference", to="card_amount_mean_10s"),
    Feature(
        "zscore", "zscore", to="card_amount_mean_10s", spread="card_amount_std_10s"
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        # Mean 2, std 1.
        ((100, 300), (5.0, 2.5, 3.5, 3.0, 3.0)),
        # Std 0, then mean 0, then nothing.
        ((200, 200), (5.0, 2.5, 3.5, 3.0, NAN)),
        ((0, 0), (5.0, NAN, NAN, 5.0, NAN)),
        ((), (5.0, NAN, NAN, NAN, NAN)),
    ],
)
def test_ratio_difference_and_zscore(amounts: tuple[int, ...], expected: tuple[float, ...]) -> None:
    events = [Observe(pay(f"p{i}", 1, amount)) for i, amount in enumerate(amounts)]
    found = answer(CROSS, [*events, Score(pay("q", 2, 500, fields={"x": 7}), at(2))])
    names = ("amount", "ratio", "of_field", "difference", "zscore")
    assert all(same(found[n], number) for n, number in zip(names, expected, strict=True))


def test_wrong_questions_are_refused() -> None:
    oracle = oracle_of(CROSS)
    with pytest.raises(ValueError, match="before the payment"):
        oracle.features(pay("p", 1), at(1) - 1)
    with pytest.raises(TypeError, match="'x' is a string"):
        oracle.features(pay("p", 1, fields={"x": "7"}), at(1))


# -- history and hash

MODES: tuple[Literal["known"], Literal["true"]] = ("known", "true")


def test_history_known_counts_what_had_arrived_and_true_what_had_happened() -> None:
    rows = [
        (pay("p", 1), at(4)),
        (pay("q", 2), at(2)),
        (pay("r", 3), at(3)),
        (pay("late", 3), at(9)),
        (pay("s", 5), None),
        # Of one arrival: the order of rows.
        (pay("t", 5), None),
    ]
    facts = [fact("p", True, 4.5), fact("q", True, 5.001)]
    spec = windows(Aggregate("count"), Aggregate("share", of="fraud"), current=False)
    known, true = (
        history(
            spec, rows, facts, mode, horizon_ms=HORIZON_MS, skew_ms=SKEW_MS, record_key=RECORD_KEY
        )
        for mode in MODES
    )
    assert [count for count, _ in known] == [0.0, 0.0, 1.0, 3.0, 3.0, 4.0]
    assert [share for _, share in known[-2:]] == [1 / 3, 1 / 4]
    # The late one never counts; it is asked at its own time all the same.
    assert [count for count, _ in true] == [0.0, 1.0, 2.0, 3.0, 4.0, 4.0]


def test_siphash_meets_its_published_vectors() -> None:
    """Of the authors' reference implementation: key and messages are 00, 01, 02, ..."""
    key = bytes(range(16))
    assert siphash128(b"", key).hex() == "a3817f04ba25a8e66df67214c7550293"
    assert siphash128(b"\0", key).hex() == "da87c1d86b99af44347659119b22fc45"


def test_monday_is_a_monday() -> None:
    assert MONDAY_MS % 86_400_000 == 0
