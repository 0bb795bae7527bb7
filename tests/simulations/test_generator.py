"""The generator meets the published distributions, and the same seed gives the same payments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshscore.config.errors import SettingsError
from freshscore.simulations import generator_frauds
from freshscore.simulations.generator import (
    DAY_MS,
    Columns,
    Parameters,
    generate,
    generate_tables,
)
from freshscore.simulations.generator_attacks import BurstShape
from freshscore.simulations.generator_population import terminals_within

PUBLISHED = Parameters()
SEEDS = (1, 2, 3)
# Published for the one data set there is: payments, and rows of each scenario.
PUBLISHED_PAYMENTS = 1_754_155
PUBLISHED_FRAUD_SHARE = 0.0083693
PUBLISHED_SCENARIOS = {1: 973, 2: 9_077, 3: 4_631}

SMALL = Parameters(
    customers=150,
    terminals=400,
    days=40,
    devices=True,
    attacks=3,
    attack=BurstShape(duration_ms=5_000),
    large_merchant_share=0.05,
)

Floats = npt.NDArray[np.float64]


def small(seed: int = 5, **changes: Any) -> pd.DataFrame:
    values = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    parameters = Parameters(**(values | changes))
    return generate(parameters, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def published() -> dict[int, pd.DataFrame]:
    """Full-size data sets of several seeds, entities as numbers."""
    names = {"CUSTOMER_ID": "card", "TERMINAL_ID": "merchant", "TX_AMOUNT": "amount"}
    names |= {"TX_FRAUD": "fraud", "TX_FRAUD_SCENARIO": "fraud_scenario"}
    frames = {}
    for seed in SEEDS:
        frame = generate(PUBLISHED, np.random.default_rng(seed), "handbook")
        frame["time_ms"] = frame.pop("TX_DATETIME").astype("datetime64[ms]").astype(np.int64)
        frames[seed] = frame.rename(columns=names)
    return frames


def normal_below(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2


SHARE_INSIDE_DAY = normal_below(43_200 / 20_000) - normal_below(-43_200 / 20_000)


def over_customers(per_payment: Callable[[float], float]) -> tuple[float, float]:
    """Expectation and sampling error, for 5,000 customers and 183 days, of the sum over payments of
    what has the mean `per_payment`(mean amount of the customer) and is 0 or 1.
    """
    means = np.linspace(5, 100, 2_001)
    value = np.array([per_payment(mean) for mean in means])
    days = PUBLISHED.days * SHARE_INSIDE_DAY
    # The mean payments a day are uniform in (0, 4): mean 2, mean square 16 / 3.
    expected = 2 * days * value.mean()
    variance = (16 / 3) * days**2 * (value**2).mean() - expected**2 + expected
    return PUBLISHED.customers * expected, math.sqrt(PUBLISHED.customers * variance)


def test_the_number_of_payments_is_the_expected_and_the_published_one(
    published: dict[int, pd.DataFrame],
) -> None:
    expected, error = over_customers(lambda _: 1.0)
    assert abs(PUBLISHED_PAYMENTS - expected) < 4 * error
    for frame in published.values():
        assert abs(len(frame) - expected) < 4 * error


def test_amounts_over_220_are_as_many_as_expected_and_published(
    published: dict[int, pd.DataFrame],
) -> None:
    expected, error = over_customers(lambda mean: 1 - normal_below(440 / mean - 2))
    # Some of them were overwritten by another scenario: 0.8 %, well within the error.
    assert abs(PUBLISHED_SCENARIOS[1] - expected) < 4 * error
    for frame in published.values():
        assert abs((frame.fraud_scenario == 1).sum() - expected) < 4 * error


def test_payments_of_compromised_terminals_are_as_many_as_expected_and_published(
    published: dict[int, pd.DataFrame],
) -> None:
    payments, _ = over_customers(lambda _: 1.0)
    per_terminal_day = payments / PUBLISHED.terminals / PUBLISHED.days
    terminal_days = sum(2 * min(28, PUBLISHED.days - day) for day in range(PUBLISHED.days))
    expected = terminal_days * per_terminal_day
    # A terminal serves some 78 customers who each reach some 78 terminals: 10 % between customers'
    # means, 20 % at the edges; both together below 40 %, and 366 terminals are drawn.
    error = math.hypot(0.4 * expected / math.sqrt(366), math.sqrt(expected))
    assert abs(PUBLISHED_SCENARIOS[2] - expected) < 4 * error
    for frame in published.values():
        assert abs((frame.fraud_scenario == 2).sum() - expected) < 4 * error


def test_payments_of_compromised_customers_are_as_many_as_expected_and_published(
    published: dict[int, pd.DataFrame],
) -> None:
    per_day = 2 * SHARE_INSIDE_DAY
    windows = [min(14, PUBLISHED.days - day) for day in range(PUBLISHED.days)]
    # A third, rounded down: a third of a payment less for each day's three customers.
    expected = sum(days * per_day * 3 / 3 - 1 / 3 for days in windows)
    per_customer = 14 * per_day / 3
    error = math.sqrt(3 * PUBLISHED.days * ((per_customer / math.sqrt(3)) ** 2 + per_customer))
    assert abs(PUBLISHED_SCENARIOS[3] - expected) < 4 * error
    for frame in published.values():
        assert abs((frame.fraud_scenario == 3).sum() - expected) < 4 * error


def test_the_share_of_fraud_is_the_published_one(published: dict[int, pd.DataFrame]) -> None:
    shares = [frame.fraud.mean() for frame in published.values()]
    # Three scenarios with the errors above (6 %, 2.3 %, 2.9 %) and the number of payments (0.8 %).
    assert all(abs(share / PUBLISHED_FRAUD_SHARE - 1) < 4 * 0.022 for share in shares)
    assert round(100 * float(np.mean(shares)), 2) == pytest.approx(0.84, abs=0.02)


def test_amounts_are_normal_and_redrawn_where_negative(
    published: dict[int, pd.DataFrame],
) -> None:
    """Mean amounts, and the share below each customer's mean, are those of the distribution."""
    # Of a normal with half its mean as deviation, redrawn uniform below twice the mean.
    density_at_0 = math.exp(-2) / math.sqrt(2 * math.pi)
    factor = normal_below(2) + 0.5 * density_at_0 + (1 - normal_below(2))
    for frame in published.values():
        ordinary = frame[frame.fraud_scenario < 3]
        # 5,000 means uniform in (5, 100), each weighing by a rate uniform in (0, 4).
        error = 95 / math.sqrt(12) * math.sqrt(4 / 3 / PUBLISHED.customers)
        assert abs(ordinary.amount.mean() - 52.5 * factor) < 4 * error
        assert ordinary.amount.min() >= 0
        stolen = frame[frame.fraud_scenario == 3]
        assert 4 < stolen.amount.mean() / ordinary.amount.mean() < 6


def test_times_of_day_are_normal_and_inside_the_day(published: dict[int, pd.DataFrame]) -> None:
    for frame in published.values():
        second = (frame.time_ms.to_numpy() % DAY_MS) / 1000
        assert np.all(second == np.floor(second))
        for edge in (3_600, 21_600, 43_200, 50_000, 80_000):
            below = normal_below((edge - 43_200) / 20_000) - normal_below(-43_200 / 20_000)
            below /= SHARE_INSIDE_DAY
            error = math.sqrt(below * (1 - below) / len(frame))
            assert abs(np.mean(second < edge) - below) < 4 * error


def test_payments_of_a_day_are_poisson(published: dict[int, pd.DataFrame]) -> None:
    """Between days, a customer's payments vary as much as their mean."""
    frame = published[SEEDS[0]]
    day = (frame.time_ms - PUBLISHED.start_ms) // DAY_MS
    counts = np.zeros((PUBLISHED.customers, PUBLISHED.days))
    np.add.at(counts, (frame.card, day), 1)
    dispersion = counts.var(axis=1, ddof=1).sum() / counts.mean(axis=1).sum()
    # Of a Poisson variable a variance estimated on n days has the relative error sqrt(2 / n).
    assert abs(dispersion - 1) < 4 * math.sqrt(2 / PUBLISHED.days / len(counts)) * 1.5


def test_scenarios_mark_what_they_say(published: dict[int, pd.DataFrame]) -> None:
    frame = published[SEEDS[0]]
    assert (frame.amount[frame.fraud_scenario == 0] <= 220).all()
    assert (frame.amount[frame.fraud_scenario == 1] > 220).all()
    cents = (frame.amount[frame.fraud_scenario == 3] * 100).round()
    assert (cents % 5 == 0).all()
    assert (frame.fraud == (frame.fraud_scenario > 0)).all()


def test_all_payments_of_a_compromised_terminal_are_fraud(
    published: dict[int, pd.DataFrame],
) -> None:
    """No legitimate payment lies in the 28 days that a terminal's first fraud opens."""
    frame = published[SEEDS[0]]
    day = (frame.time_ms - PUBLISHED.start_ms) // DAY_MS
    compromised = frame[frame.fraud_scenario == 2]
    first = day[compromised.index].groupby(compromised.merchant).min()
    last = day[compromised.index].groupby(compromised.merchant).max()
    one_term = first.index[last - first < 28]
    assert len(one_term) > 100
    at_it = frame.merchant.isin(one_term)
    between = at_it & (day >= frame.merchant.map(first)) & (day <= frame.merchant.map(last))
    assert (frame.fraud[between] == 1).all()


def test_terminals_stay_compromised_for_28_days() -> None:
    plan = generator_frauds.fraud_plan(
        np.full((60, 9), 2, dtype=np.uint8), 500, np.random.default_rng(3)
    )
    for day in range(60):
        compromised = set(np.flatnonzero(plan.compromised_terminals(day, 500)))
        wanted = {int(t) for start in range(60) if start <= day < start + 28
                  for t in plan.terminals[start]}  # fmt: skip
        assert compromised == wanted


def test_a_third_of_two_weeks_of_three_customers_is_chosen(rng: np.random.Generator) -> None:
    """As many as it should be, each at most once a compromise, all of them payments there are."""
    counts = rng.poisson(2, (30, 3)).astype(np.uint8)
    plan = generator_frauds.fraud_plan(counts, 10, rng)
    # Three customers only, so each day's compromise takes them all.
    wanted = sum(int(counts[start : start + 14].sum()) // 3 for start in range(30))
    assert len(plan.customer) == wanted
    for day in range(30):
        rows = counts[day].astype(np.int64)
        first_row = np.cumsum(rows) - rows
        times = plan.times_chosen(day, first_row, int(rows.sum()))
        assert times.max(initial=0) <= min(day + 1, 14)
        assert times.sum() == plan.first_of_day[day + 1] - plan.first_of_day[day]
    assert plan.first_of_day[-1] == wanted


def test_customers_use_the_terminals_around_them() -> None:
    frame = generate(Parameters(customers=800, days=60, radius=1.0), np.random.default_rng(8))
    merchants = frame.groupby("card").merchant.nunique()
    # 10,000 terminals on 100 x 100: pi within the radius on average, of those who reach any.
    reached = math.pi / (1 - math.exp(-math.pi))
    assert merchants.mean() == pytest.approx(reached, rel=0.1)
    assert merchants.max() < 15


@given(
    st.integers(1, 40),
    st.integers(1, 60),
    st.sampled_from([0.5, 3.0, 7.0, 33.4, 60.0, 141.0]),
    st.integers(0, 2**32),
)
def test_terminals_within_equals_comparing_all_pairs(
    customers: int, terminals: int, radius: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    here = rng.uniform(0, 100, (customers, 2))
    there = rng.uniform(0, 100, (terminals, 2))
    first, reachable = terminals_within(here, there, radius)
    for customer in range(customers):
        near = [
            number
            for number in range(terminals)
            if sum((here[customer] - there[number]) ** 2) < radius * radius
        ]
        assert sorted(reachable[first[customer] : first[customer + 1]]) == near


@pytest.mark.parametrize("columns", ["freshscore", "handbook"])
def test_chunks_of_any_length_give_the_same_bytes(columns: Columns) -> None:
    whole = None
    for days in (1, 3, 28, 1_000):
        chunks = generate_tables(
            SMALL, np.random.default_rng(5), columns=columns, days_per_chunk=days
        )
        table = pa.concat_tables(chunks).combine_chunks()
        whole = whole or table
        assert table.equals(whole)


def test_the_seed_decides() -> None:
    pd.testing.assert_frame_equal(small(5), small(5))
    assert not small(5).equals(small(6))


def test_options_leave_alone_what_they_do_not_concern() -> None:
    # Of bursts the large merchant has none, so its share of the others depends on them.
    every = small(large_merchant_share=0.0)
    ordinary = every[every.fraud_scenario != 4].reset_index(drop=True)
    ids = ["transaction_id"]
    pd.testing.assert_frame_equal(
        ordinary.drop(columns=ids),
        small(attacks=0, large_merchant_share=0.0).drop(columns=ids),
        check_dtype=True,
    )
    without_attacks = small(attacks=0)
    without_devices = small(attacks=0, devices=False)
    pd.testing.assert_frame_equal(
        without_attacks.drop(columns=["device", "ip", "email"]), without_devices
    )
    plain = small(attacks=0, devices=False, large_merchant_share=0.0)
    elsewhere = without_devices.merchant != "m-00000400"
    kept = ["time_ms", "amount", "card"]
    pd.testing.assert_frame_equal(plain[kept], without_devices[kept])
    assert (plain.merchant[elsewhere] == without_devices.merchant[elsewhere]).all()


def test_payments_come_in_time_order_with_rising_ids() -> None:
    frame = small()
    assert frame.time_ms.is_monotonic_increasing
    assert frame.transaction_id.tolist() == [f"t-{row:09d}" for row in range(len(frame))]
    assert (frame.amount == frame.amount_minor / 100).all()
    assert (frame.currency == "EUR").all()
    assert (frame.kind == "authorisation").all()
    first_ms, end_ms = SMALL.start_ms, SMALL.start_ms + SMALL.days * DAY_MS
    assert frame.time_ms.between(first_ms, end_ms - 1).all()


def test_attacks_share_one_thing_over_many_cards() -> None:
    """Some 23 a second, small amounts, mostly at one merchant; device, ip and email in turn."""
    frame = small(attack=BurstShape())
    tests = frame[frame.fraud_scenario == 4]
    assert tests.amount_minor.between(50, 500).all()
    shared = [tests[name].value_counts() for name in ("device", "ip", "email")]
    for counts, name in zip(shared, ("device", "ip", "email"), strict=True):
        assert counts.iloc[0] > 1_000
        assert counts.iloc[1] == 1
        burst = tests[tests[name] == counts.index[0]]
        assert abs(len(burst) - 23 * 60) < 4 * math.sqrt(23 * 60)
        assert burst.time_ms.max() - burst.time_ms.min() < 60_000
        assert burst.card.nunique() > 0.85 * len(burst)
        assert burst.merchant.value_counts().iloc[0] > 0.9 * len(burst)
        known = burst.card.isin(frame.card[frame.fraud_scenario == 0])
        assert 0.05 < known.mean() < 0.15
    outside = frame[frame.fraud_scenario != 4]
    assert not outside.device.isin(tests.device).any()
    assert not outside.ip.isin(tests.ip).any()


@pytest.mark.parametrize("attacks", [0, 30])
def test_one_merchant_can_have_a_twentieth_of_all_payments(attacks: int) -> None:
    """Bursts counted, of which it has none."""
    frame = small(customers=600, attacks=attacks, attack=BurstShape())
    large = frame.merchant == "m-00000400"
    assert abs(large.mean() - 0.05) < 4 * math.sqrt(0.05 * 0.95 / len(frame))
    assert not (frame.fraud_scenario[large] == 2).any()
    assert frame.card[large].nunique() > 400


def test_a_share_that_bursts_leave_no_room_for_is_refused() -> None:
    with pytest.raises(SettingsError, match="in no burst"):
        small(customers=20, attacks=30, attack=BurstShape(), large_merchant_share=0.9)


def test_cards_have_their_own_devices_and_email_and_changing_ips() -> None:
    frame = small(customers=600, attacks=0)
    number = {name: frame[name].str[2:].astype(int) for name in ("card", "device")}
    own = number["device"] // 2 == number["card"]
    assert abs(own.mean() - 0.98) < 4 * math.sqrt(0.98 * 0.02 / len(frame))
    devices = frame[own].groupby("card").device.nunique()
    assert set(devices) == {1, 2}
    assert frame.groupby("card").email.nunique().max() == 1
    assert frame.groupby("email").card.nunique().max() == 2
    assert frame.groupby("card").ip.nunique().mean() > 5
    assert frame.groupby("ip").card.nunique().max() > 5


def test_handbook_columns_hold_the_same_payments() -> None:
    parameters = Parameters(customers=100, terminals=300, days=20, attacks=1)
    ours = generate(parameters, np.random.default_rng(2))
    theirs = generate(parameters, np.random.default_rng(2), "handbook")
    assert list(theirs.columns) == [
        "TRANSACTION_ID",
        "TX_DATETIME",
        "CUSTOMER_ID",
        "TERMINAL_ID",
        "TX_AMOUNT",
        "TX_FRAUD",
        "TX_FRAUD_SCENARIO",
    ]
    assert theirs.TRANSACTION_ID.tolist() == list(range(len(ours)))
    assert (pd.to_datetime(ours.time_ms, unit="ms") == theirs.TX_DATETIME).all()
    assert [f"c-{number:08d}" for number in theirs.CUSTOMER_ID] == ours.card.tolist()
    assert [f"m-{number:08d}" for number in theirs.TERMINAL_ID] == ours.merchant.tolist()
    assert (ours.amount == theirs.TX_AMOUNT).all()
    assert (ours.fraud == theirs.TX_FRAUD).all()
    assert (ours.fraud_scenario == theirs.TX_FRAUD_SCENARIO).all()


@pytest.mark.parametrize(
    "parameters",
    [
        Parameters(customers=1, terminals=1, days=1, radius=200.0, devices=True, attacks=2),
        Parameters(customers=2, terminals=1, days=3, radius=200.0, large_merchant_share=0.5),
    ],
)
def test_the_smallest_sizes_work(parameters: Parameters) -> None:
    frame = generate(parameters, np.random.default_rng(1))
    assert set(frame.fraud_scenario) <= {0, 1, 2, 3, 4}
    assert frame.time_ms.is_monotonic_increasing


def test_customers_without_a_terminal_do_not_pay() -> None:
    lonely = Parameters(customers=5, terminals=1, days=3, radius=1e-6, devices=True)
    frame = generate(lonely, np.random.default_rng(1))
    assert len(frame) == 0
    assert {"transaction_id", "device", "fraud"} <= set(frame.columns)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("customers", 0),
        ("terminals", 10**9),
        ("days", 0),
        ("attacks", -1),
        ("radius", 0.0),
        ("radius", float("nan")),
        ("large_merchant_share", 1.0),
        ("start_ms", 1_522_540_800_001),
        ("start_ms", 0),
    ],
)
def test_impossible_parameters_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(
        SettingsError, match="days from" if value == 0 and name == "start_ms" else name
    ):
        Parameters(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("duration_ms", DAY_MS),
        ("rate_per_s", 0.0),
        ("known_card_share", 1.5),
        ("other_merchant_share", -0.1),
        ("amount_minor", (5, 4)),
    ],
)
def test_impossible_bursts_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=name):
        BurstShape(**{name: value})
