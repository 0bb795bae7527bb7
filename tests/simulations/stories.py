"""Stories for the oracles: what was observed, labelled and scored, in order, and both answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from freshscore.features.specification import (
    Aggregate,
    Condition,
    Entity,
    Feature,
    FeatureSpecification,
    WindowGroup,
)
from freshscore.features.transaction import Transaction
from freshscore.simulations.oracle import PlainOracle
from freshscore.simulations.oracle_columns import (
    ANY_TIME,
    NEVER,
    Bools,
    Floats,
    Ints,
    OracleFacts,
    OracleRequests,
    OracleRows,
    is_accepted,
    rows_of,
)
from freshscore.simulations.oracle_set import PlainFact
from freshscore.simulations.oracle_tallies import Limits
from freshscore.simulations.oracle_vectorised import VectorisedOracle

MONDAY_MS = 1_699_833_600_000  # 2023-11-13 00:00 UTC
RECORD_KEY = bytes(range(16))
HORIZON_MS, SKEW_MS = 4_000, 1_000
CATEGORIES = {"channel": {"web": 3, "app": 0}}
SUMS = (
    Aggregate("count"),
    Aggregate("sum"),
    Aggregate("mean"),
    Aggregate("std"),
    Aggregate("share", of="fraud"),
)


@dataclass(frozen=True)
class Observe:
    """An event, and when it arrived (None: at its own time)."""

    transaction: Transaction
    arrival_ms: int | None = None


@dataclass(frozen=True)
class Score:
    """A request."""

    transaction: Transaction
    as_of_ms: int


Story = Sequence[Observe | PlainFact | Score]


def at(seconds: float) -> int:
    """An instant, ms."""
    return MONDAY_MS + round(seconds * 1000)


def pay(name: str, seconds: float, amount: int = 100, /, **more: Any) -> Transaction:
    """A payment of card `c` at merchant `m`, unless `more` says otherwise."""
    arguments = {"currency": "EUR", "entities": {"card": "c", "merchant": "m"}} | more
    return Transaction(transaction_id=name, time=at(seconds), amount_minor=amount, **arguments)


def fact(
    name: str, value: bool, known: float, sent: float | None = None, fact: str = "fraud"
) -> PlainFact:
    """A fact of the payment `name`; `sent` is `known` unless given; both in seconds."""
    return PlainFact(name, fact, value, at(known if sent is None else sent), at(known))


def windows(
    *aggregates: Aggregate, lengths: tuple[str, ...] = ("10s",), **more: Any
) -> FeatureSpecification:
    """A specification of one group on `card`, exact unless `resolution` is given."""
    resolution = more.pop("resolution", None)
    mode: Literal["exact", "grid"] = "exact" if resolution is None else "grid"
    return FeatureSpecification(
        name="story",
        currency="EUR",
        entities=(Entity("card", mode=mode, resolution=resolution), Entity("merchant")),
        windows=(WindowGroup("card", lengths, aggregates, **more),),
        facts=("fraud", "declined"),
    )


def locals_of(*features: Feature, **more: Any) -> FeatureSpecification:
    """A specification of single features, beside windows of 10 s on `card` that none reads."""
    group = WindowGroup("card", ("10s",), (Aggregate("mean"), Aggregate("std")), current=False)
    arguments = {"currency": "EUR", "windows": (group,)} | more
    return FeatureSpecification(
        name="story",
        entities=(Entity("card"), Entity("merchant")),
        features=features,
        **arguments,
    )


def everything() -> FeatureSpecification:
    """Every function, condition, kind of window and feature at once; windows of seconds."""
    full = (
        *SUMS,
        Aggregate("min"),
        Aggregate("max"),
        Aggregate("last"),
        Aggregate("distinct", of="merchant"),
    )
    groups = (
        WindowGroup("card", ("2s", "10s"), full),
        WindowGroup("card", ("5s",), _with(full, fact="declined"), delay="3s", current=False),
        WindowGroup("card", ("4s",), _with(full, kind="refund")),
        WindowGroup("merchant", ("3s", "9s"), SUMS),
        WindowGroup("merchant", ("6s",), _with(SUMS, fact="declined")),
        WindowGroup("merchant", ("7s",), SUMS, delay="2s", current=False),
        WindowGroup("card_merchant", ("8s",), _with(full, field="channel", value="web")),
        WindowGroup("shop", ("4s", "8s"), SUMS),
        WindowGroup("shop", ("5s",), _with(SUMS, fact="fraud"), delay="2s", current=False),
    )
    return FeatureSpecification(
        name="everything",
        currency="EUR",
        entities=(
            Entity("card"),
            Entity("merchant"),
            Entity("device"),
            Entity("card_merchant", of=("card", "merchant")),
            Entity("shop", of=("merchant",), mode="grid", resolution=0.25),
        ),
        windows=groups,
        features=_features(),
        facts=("fraud", "declined"),
    )


def _with(aggregates: tuple[Aggregate, ...], **condition: str) -> tuple[Aggregate, ...]:
    # A declared `empty` is tried on one of them only, or the default would never show.
    where = Condition(**condition)
    return tuple(
        Aggregate(a.function, of=a.of, where=where, empty=-7.5 if a.function == "max" else None)
        for a in aggregates
    )


def _features() -> tuple[Feature, ...]:
    simple = ("amount", "hour", "weekday", "night", "weekend")
    return (
        *(Feature(name, name) for name in simple),  # type: ignore[arg-type]  # as declared there
        Feature("risk", "field", of="risk"),
        Feature("channel", "category", of="channel"),
        Feature("since_last", "since_last", entity="card"),
        Feature("distance", "distance", entity="card"),
        Feature("speed", "speed", entity="card"),
        Feature("first_at_merchant", "first_pair", entity="card", of="merchant"),
        Feature("first_device", "first_pair", entity="merchant", of="device"),
        Feature("ratio", "ratio", to="card_amount_mean_10s"),
        Feature("risk_ratio", "ratio", to="card_amount_sum_2s", of="risk"),
        Feature("difference", "difference", to="card_amount_last_10s"),
        Feature("zscore", "zscore", to="merchant_amount_mean_9s", spread="merchant_amount_std_9s"),
    )


def plain_answers(specification: FeatureSpecification, story: Story) -> Floats:
    """float64[scores, columns] of the plain oracle, told the story step by step."""
    oracle = PlainOracle(
        specification, horizon_ms=HORIZON_MS, skew_ms=SKEW_MS, record_key=RECORD_KEY
    )
    found = [np.zeros((0, len(specification.columns)))]
    for step in story:
        if isinstance(step, Observe):
            oracle.observe(step.transaction, step.arrival_ms)
        elif isinstance(step, Score):
            features = oracle.features(step.transaction, step.as_of_ms, CATEGORIES)
            found.append(np.array([features]))
        else:
            label(oracle, step)
    return np.concatenate(found)


def label(oracle: PlainOracle, f: PlainFact) -> None:
    """Tell the oracle a fact."""
    oracle.label(f.transaction_id, f.name, f.value, f.sender_ms, f.known_at_ms, f.time_ms)


def vectorised_answers(
    specification: FeatureSpecification, story: Story, limits: Limits | None = None
) -> Floats:
    """float64[scores, columns] of the vectorised oracle, told the story as columns."""
    payments = [(i, step) for i, step in enumerate(story) if not isinstance(step, PlainFact)]
    applied = [position_of(i, step) for i, step in payments]
    rows = columns_of(specification, [step.transaction for _, step in payments], applied)
    scores = [
        (row, i, step.as_of_ms) for row, (i, step) in enumerate(payments) if isinstance(step, Score)
    ]
    requests = OracleRequests(
        ints(row for row, _, _ in scores),
        ints(as_of_ms for _, _, as_of_ms in scores),
        ints(i for _, i, _ in scores),
    )
    labels = [(i, step) for i, step in enumerate(story) if isinstance(step, PlainFact)]
    ids = [step.transaction.transaction_id for _, step in payments]
    facts = facts_of(specification, labels, dict(zip(ids, rows.transaction.tolist(), strict=True)))
    return VectorisedOracle(specification, rows, facts, limits).features(requests)


def position_of(position: int, step: Observe | Score) -> int:
    """Where an event was applied; NEVER if it was refused or only scored."""
    if isinstance(step, Score):
        return NEVER
    time_ms = step.transaction.time
    arrival_ms = time_ms if step.arrival_ms is None else step.arrival_ms
    accepted = is_accepted(ints([time_ms]), ints([arrival_ms]), HORIZON_MS, SKEW_MS)
    return position if accepted[0] else NEVER


def columns_of(
    specification: FeatureSpecification, transactions: Sequence[Transaction], applied: Any
) -> OracleRows:
    """Rows of `transactions`."""
    return rows_of(
        specification,
        transactions,
        ints(applied),
        record_key=RECORD_KEY,
        categories=CATEGORIES,
    )


def facts_of(
    specification: FeatureSpecification,
    labels: Sequence[tuple[int, PlainFact]],
    codes: Mapping[str, int],
) -> OracleFacts:
    """Columns of (position, fact)."""
    facts = [f for _, f in labels]
    return OracleFacts(
        transaction=ints(codes.get(f.transaction_id, -1) for f in facts),
        name=ints(specification.facts.index(f.name) for f in facts),
        value=np.array([f.value for f in facts], np.bool_),
        sender_ms=ints(f.sender_ms for f in facts),
        known_at_ms=ints(f.known_at_ms for f in facts),
        time_ms=ints(ANY_TIME if f.time_ms is None else f.time_ms for f in facts),
        applied=ints(i for i, _ in labels),
    )


def ints(values: Any) -> Ints:
    """int64 of anything that can be listed."""
    return np.array(list(values), np.int64)


def differ(a: Floats, b: Floats) -> Bools:
    """Where two matrices differ, bit for bit; any NaN equals any other."""
    same: Bools = (a.view(np.int64) == b.view(np.int64)) | (np.isnan(a) & np.isnan(b))
    return ~same


def answers(specification: FeatureSpecification, story: Story) -> list[dict[str, float]]:
    """Name -> value for each score, on which both oracles agree."""
    plain = plain_answers(specification, story)
    assert not differ(plain, vectorised_answers(specification, story)).any()
    return [dict(zip(specification.feature_names, row, strict=True)) for row in plain.tolist()]


def answer(specification: FeatureSpecification, story: Story) -> dict[str, float]:
    """The only answer of a story with one score."""
    (found,) = answers(specification, story)
    return found


def value(specification: FeatureSpecification, story: Story) -> float:
    """The only value of a story with one score of one feature."""
    (found,) = answer(specification, story).values()
    return found
