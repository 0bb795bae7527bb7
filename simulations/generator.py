"""The generator: card payments with known frauds, of any size, the same for the same seed.

Customers, terminals, times, amounts and three fraud scenarios follow the simulator of the Fraud
Detection Handbook (Le Borgne, Siblini, Lebichot, Bontempi; chapter 3), so that the published
statistics and model results can be compared with.
Added here, all off unless asked for: devices, ips and emails; bursts of card testing that share one
of them (scenario 4); one merchant with a given share of all payments.

Every day draws from a stream of its own, split off the generator that is passed in.
So a day's payments hang on the seed and the parameters only, never on the chunk that they are made
in, and an option leaves alone what it does not concern.
A payment's time is a whole second, as in the Handbook; those of bursts are milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from freshscore.config.errors import SettingsError
from freshscore.features.transaction import EARLIEST_MS, LATEST_MS
from freshscore.simulations.generator_attacks import ATTACK_SCENARIO, SHARED, BurstShape, burst
from freshscore.simulations.generator_columns import (
    Floats,
    Int64s,
    Payments,
    freshscore_table,
    handbook_table,
    in_time_order,
)
from freshscore.simulations.generator_devices import Households, devices_of, households
from freshscore.simulations.generator_frauds import (
    AMOUNT_FACTOR,
    LARGE_AMOUNT_MINOR,
    FraudPlan,
    fraud_plan,
)
from freshscore.simulations.generator_population import SIDE, Population, population

DAY_MS = 86_400_000
DAY_S = 86_400
TIME_OF_DAY_S = (43_200.0, 20_000.0)  # mean and standard deviation; kept if inside the day
DAYS_PER_CHUNK = 28

Columns = Literal["freshscore", "handbook"]


@dataclass(frozen=True)
class Parameters:
    """What is generated; the defaults are those of the published data set.

    start_ms: midnight UTC of the first day, ms. radius: of the terminals that a customer uses, on
    a square of 100 x 100. attacks: bursts of card testing in all. large_merchant_share: of all
    payments, 0 for no such merchant; it is never compromised, and no burst is made there, so its
    share of the others is larger.
    """

    customers: int = 5_000
    terminals: int = 10_000
    days: int = 183
    start_ms: int = 1_522_540_800_000  # 2018-04-01
    radius: float = 5.0
    devices: bool = False
    attacks: int = 0
    attack: BurstShape = field(default_factory=BurstShape)
    large_merchant_share: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("customers", 1, 10**8),
            ("terminals", 1, 10**8),
            ("days", 1, 10**4),
            ("attacks", 0, 10**5),
        ):
            if not low <= getattr(self, name) <= high:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be {low} to {high}")
        if not 0 < self.radius <= 2 * SIDE:
            raise SettingsError(f"radius is {self.radius}; it must be above 0, to {2 * SIDE:g}")
        if not 0 <= self.large_merchant_share < 1:
            raise SettingsError(
                f"large_merchant_share is {self.large_merchant_share}; it must be 0 to below 1"
            )
        if self.start_ms % DAY_MS:
            raise SettingsError(f"start_ms is {self.start_ms}; it must be a midnight UTC")
        last_ms = self.start_ms + self.days * DAY_MS
        if self.start_ms < EARLIEST_MS or last_ms > LATEST_MS:
            raise SettingsError(
                f"{self.days} days from {self.start_ms} ms on lie outside {EARLIEST_MS} to"
                f" {LATEST_MS} ms (1990 to 2100)"
            )


@dataclass(frozen=True)
class _Plan:
    """All that is drawn before the first payment.

    counts: (days, customers) payments. large_share: of payments that are in no burst, the large
    merchant's.
    """

    people: Population
    homes: Households
    counts: np.ndarray[tuple[int, int], np.dtype[np.uint8]]
    frauds: FraudPlan
    large_share: float
    attacks: dict[int, list[Payments]]
    second_upto: Floats
    days: list[np.random.Generator]


def generate(
    parameters: Parameters, rng: np.random.Generator, columns: Columns = "freshscore"
) -> pd.DataFrame:
    """All payments in time order, one row each; see generator_columns for the columns."""
    frame: pd.DataFrame = pa.concat_tables(
        generate_tables(parameters, rng, columns=columns)
    ).to_pandas()
    return frame


def generate_tables(
    parameters: Parameters,
    rng: np.random.Generator,
    *,
    columns: Columns = "freshscore",
    days_per_chunk: int = DAYS_PER_CHUNK,
) -> Iterator[pa.Table]:
    """The same payments in Arrow tables of `days_per_chunk` days; memory is that of one chunk."""
    plan = _plan(parameters, rng)
    rows = 0
    for start in range(0, parameters.days, days_per_chunk):
        stop = min(start + days_per_chunk, parameters.days)
        payments = in_time_order([_day(parameters, plan, day) for day in range(start, stop)])
        if columns == "handbook":
            yield handbook_table(payments, rows)
        else:
            yield freshscore_table(payments, rows, parameters.devices)
        rows += len(payments)


def _plan(parameters: Parameters, rng: np.random.Generator) -> _Plan:
    people_rng, homes_rng, counts_rng, frauds_rng, attacks_rng = rng.spawn(5)
    people = population(parameters.customers, parameters.terminals, parameters.radius, people_rng)
    homes = households(parameters.customers, parameters.days, homes_rng)
    upto, inside = _time_of_day()
    counts = np.empty((parameters.days, parameters.customers), dtype=np.uint8)
    for day in range(parameters.days):
        # Times outside the day are dropped; so many payments fewer are drawn. A mean of at most 4
        # never reaches the limit of a byte.
        counts[day] = counts_rng.poisson(people.per_day * inside)
    attacks = _attacks(parameters, homes, attacks_rng)
    return _Plan(
        people=people,
        homes=homes,
        counts=counts,
        frauds=fraud_plan(counts, parameters.terminals, frauds_rng),
        large_share=_large_share(parameters, int(counts.sum(dtype=np.int64)), attacks),
        attacks=attacks,
        second_upto=upto,
        days=rng.spawn(parameters.days),
    )


def _large_share(
    parameters: Parameters, ordinary: int, attacks: dict[int, list[Payments]]
) -> float:
    """The share of `ordinary` payments that makes the large merchant's one of all, bursts too."""
    in_bursts = sum(len(attack) for day in attacks.values() for attack in day)
    wanted = parameters.large_merchant_share * (ordinary + in_bursts)
    if wanted > ordinary:
        raise SettingsError(
            f"large_merchant_share is {parameters.large_merchant_share} of {ordinary + in_bursts:,}"
            f" payments, but only {ordinary:,} are in no burst, where the merchant can be paid"
        )
    return wanted / max(ordinary, 1)


def _time_of_day() -> tuple[Floats, float]:
    """The distribution function of the second of the day, (86400,), and the share inside a day."""
    mean, deviation = TIME_OF_DAY_S
    below = np.array(
        [math.erf((second - mean) / (deviation * math.sqrt(2))) / 2 for second in range(DAY_S + 1)]
    )
    inside = float(below[-1] - below[0])
    return (below[1:] - below[0]) / inside, inside


def _day(parameters: Parameters, plan: _Plan, day: int) -> Payments:
    """The payments of one day, in time order."""
    # Split, so that each option draws from a stream of its own.
    rng, large_rng, devices_rng = plan.days[day].spawn(3)
    counts = plan.counts[day].astype(np.int64)
    card = np.repeat(np.arange(parameters.customers), counts)
    second = np.searchsorted(plan.second_upto, rng.random(len(card)), side="right")
    amount_minor = _amounts(plan.people.mean_amount[card], rng)
    merchant = _merchants(card, plan.people, rng)
    if parameters.large_merchant_share:
        large = large_rng.random(len(card)) < plan.large_share
        merchant[large] = parameters.terminals

    scenario = np.where(amount_minor > LARGE_AMOUNT_MINOR, 1, 0).astype(np.int8)
    # One more terminal than there are: the large merchant, never compromised.
    scenario[plan.frauds.compromised_terminals(day, parameters.terminals + 1)[merchant]] = 2
    times_chosen = plan.frauds.times_chosen(day, np.cumsum(counts) - counts, len(card))
    scenario[times_chosen > 0] = 3

    none = np.empty(0, dtype=np.int64)
    device, ip, email = (
        devices_of(card, day, plan.homes, devices_rng) if parameters.devices else (none,) * 3
    )
    ordinary = Payments(
        time_ms=parameters.start_ms + day * DAY_MS + second * 1000,
        card=card,
        merchant=merchant,
        amount_minor=amount_minor * AMOUNT_FACTOR**times_chosen,
        scenario=scenario,
        device=device,
        ip=ip,
        email=email,
    )
    return in_time_order([ordinary, *plan.attacks.get(day, [])])


def _amounts(mean: Floats, rng: np.random.Generator) -> Int64s:
    """Cents: normal with half the mean as deviation, redrawn uniform in (0, 2 mean) if negative."""
    amount = mean * (1 + 0.5 * rng.standard_normal(len(mean)))
    negative = amount < 0
    amount[negative] = 2 * mean[negative] * rng.random(np.count_nonzero(negative))
    return np.rint(amount * 100).astype(np.int64)


def _merchants(card: Int64s, people: Population, rng: np.random.Generator) -> Int64s:
    """For each payment one of the terminals that its customer reaches."""
    reached = np.diff(people.first)[card]
    choice = (rng.random(len(card)) * reached).astype(np.int64)
    merchant: Int64s = people.reachable[people.first[card] + choice].astype(np.int64)
    return merchant


def _attacks(
    parameters: Parameters, homes: Households, rng: np.random.Generator
) -> dict[int, list[Payments]]:
    """The bursts of each day; entities that nobody had before are numbered on from the others."""
    by_day: dict[int, list[Payments]] = {}
    before = 0
    for number, attack_rng in enumerate(rng.spawn(parameters.attacks)):
        day = int(attack_rng.integers(parameters.days))
        attack = _attack(parameters, homes, number, day, before, attack_rng)
        by_day.setdefault(day, []).append(attack)
        before += len(attack)
    return by_day


def _attack(
    parameters: Parameters,
    homes: Households,
    number: int,
    day: int,
    before: int,
    rng: np.random.Generator,
) -> Payments:
    """Burst `number`, on `day`, inside that day; `before` attempts were made in earlier ones."""
    start_ms = int(rng.integers(DAY_MS - parameters.attack.duration_ms + 1))
    attacked = int(rng.integers(parameters.terminals))
    drawn = burst(parameters.attack, rng)
    fresh = before + np.arange(len(drawn))
    known = (drawn.card_choice * parameters.customers).astype(np.int64)
    elsewhere = (drawn.merchant_choice * parameters.terminals).astype(np.int64)
    entities = {"device": homes.devices, "ip": homes.ips, "email": homes.cards}
    columns = {name: first + fresh for name, first in entities.items()}
    columns[SHARED[number % len(SHARED)]][:] = entities[SHARED[number % len(SHARED)]] + before
    if not parameters.devices:
        columns = dict.fromkeys(columns, np.empty(0, dtype=np.int64))
    return Payments(
        time_ms=parameters.start_ms + day * DAY_MS + start_ms + drawn.offset_ms,
        card=np.where(drawn.known_card, known, parameters.customers + fresh),
        merchant=np.where(drawn.other_merchant, elsewhere, attacked),
        amount_minor=drawn.amount_minor,
        scenario=np.full(len(drawn), ATTACK_SCENARIO, dtype=np.int8),
        **columns,
    )
