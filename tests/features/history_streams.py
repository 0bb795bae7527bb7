"""Random streams of payments for history: as a table, for the oracle, and as a live replay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from freshscore.config.secret import Secret
from freshscore.features.history import Acceptance
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import Program, compiled
from freshscore.features.reading import read_payments
from freshscore.features.specification import (
    Aggregate,
    Condition,
    Entity,
    Feature,
    FeatureSpecification,
    WindowGroup,
)
from freshscore.features.store import MemoryStore, StoreLimits
from freshscore.features.table import FactTable, PaymentTable
from freshscore.features.transaction import Transaction
from freshscore.simulations.oracle import history
from freshscore.simulations.oracle_set import PlainFact

Floats = NDArray[np.float64]
START_MS = 1_699_833_600_000  # 2023-11-13 00:00 UTC, a Monday
SECRET = Secret(bytes(range(32)), "this test")
CATEGORIES = {"channel": {"web": 3, "app": 0}}
ACCEPTANCE = Acceptance(horizon_ms=4_000, skew_ms=1_000)
FACTS = ("fraud", "declined")
ENTITIES = ("card", "merchant", "device")
FIELDS = ("channel", "risk")


@dataclass(frozen=True)
class Fact:
    """A fact of the payment in row `row`."""

    row: int
    name: int
    value: bool
    sender_ms: int
    known_at_ms: int


@dataclass(frozen=True)
class Stream:
    """Payments with their arrivals, and facts, in any order."""

    transactions: list[Transaction]
    arrivals_ms: list[int]
    facts: list[Fact]

    def table(self, spec: FeatureSpecification) -> PaymentTable:
        """The stream as a table."""
        table = read_payments(pd.DataFrame([*map(self._cells, range(len(self)))]), spec)
        assert len(table.rejected) == 0
        place = np.argsort(table.row)
        facts = sorted(self.facts, key=lambda f: (place[f.row], f.name))
        found = FactTable(
            np.array([place[f.row] for f in facts], np.int64),
            np.array([f.name for f in facts], np.uint8),
            np.array([f.value for f in facts], np.bool_),
            np.array([f.sender_ms for f in facts], np.int64),
            np.array([f.known_at_ms for f in facts], np.int64),
        )
        return replace(table, facts=found)

    def __len__(self) -> int:
        """Number of payments."""
        return len(self.transactions)

    def _cells(self, i: int) -> dict[str, Any]:
        transaction = self.transactions[i]
        latitude, longitude = transaction.location or (None, None)
        cells = {
            "transaction_id": transaction.transaction_id,
            "time_ms": transaction.time,
            "arrival_ms": self.arrivals_ms[i],
            "amount_minor": transaction.amount_minor,
            "kind": transaction.kind,
            "latitude": latitude,
            "longitude": longitude,
        }
        for name in FACTS:
            cells[name] = transaction.flags.get(name, False)
            cells[f"{name}_known_at"] = transaction.time
        for name in ENTITIES:
            cells[name] = transaction.entities.get(name)
        for name in FIELDS:
            cells[name] = transaction.fields.get(name)
        return cells


def keys_of(program: Program) -> Keys:
    """Keys of the tests' secret."""
    return Keys(program, SECRET)


def oracle_history(
    spec: FeatureSpecification, stream: Stream, mode: Literal["known", "true"]
) -> Floats:
    """The plain oracle's matrix, by row of the stream."""
    facts = [
        PlainFact(
            stream.transactions[f.row].transaction_id,
            spec.facts[f.name],
            f.value,
            f.sender_ms,
            f.known_at_ms,
            stream.transactions[f.row].time,
        )
        for f in stream.facts
    ]
    return np.array(
        history(
            spec,
            list(zip(stream.transactions, stream.arrivals_ms, strict=True)),
            facts,
            mode,
            horizon_ms=ACCEPTANCE.horizon_ms,
            skew_ms=ACCEPTANCE.skew_ms,
            record_key=SECRET.key("record"),
            categories=CATEGORIES,
        )
    ).reshape(len(stream.transactions), len(spec.columns))


def live_history(table: PaymentTable, acceptance: Acceptance | None) -> Floats:
    """Each payment scored at its own time by a memory store, then observed; by row of the table.

    Facts are told to the store when they become known, to every copy of their payment with the same
    event time.
    """
    program = compiled(table.specification)
    keys = keys_of(program)
    # A horizon that forgets nothing: history answers for late rows too, of any lateness.
    limits = StoreLimits(20_000, 50_000, 30_000, 2**41, 1 << 26)
    store = MemoryStore(program, keys, limits)
    packer = Packer(program, keys, CATEGORIES)
    transactions = list(table.transactions())
    rows = [packer.row(transaction) for transaction in transactions]
    accepted = [True] * len(rows) if acceptance is None else acceptance.of(table).tolist()
    facts = _facts_by_instant(table, transactions)
    arrivals_ms = table.arrival_ms.tolist()
    out = np.empty((len(rows), program.n_columns))
    for i, transaction in enumerate(transactions):
        while facts and facts[-1].known_at_ms <= arrivals_ms[i]:
            fact = facts.pop()
            store.label(
                rows[fact.row], fact.name, fact.value, fact.known_at_ms, fact.sender_ms, False
            )
        out[i] = store.features(rows[i], transaction.time)
        if accepted[i]:
            store.observe(rows[i])
    return out


def _facts_by_instant(table: PaymentTable, transactions: list[Transaction]) -> list[Fact]:
    """The facts of every copy, the last to become known first."""
    copies: dict[tuple[str, int], list[int]] = {}
    for row, transaction in enumerate(transactions):
        copies.setdefault((transaction.transaction_id, transaction.time), []).append(row)
    columns = (
        table.facts.row,
        table.facts.name,
        table.facts.value,
        table.facts.sender_ms,
        table.facts.known_at_ms,
    )
    facts = [
        Fact(copy, name, value, sender_ms, known_at_ms)
        for row, name, value, sender_ms, known_at_ms in zip(
            *(column.tolist() for column in columns), strict=True
        )
        for copy in copies[transactions[row].transaction_id, transactions[row].time]
    ]
    return sorted(facts, key=lambda fact: -fact.known_at_ms)


def same(one: Floats, other: Floats) -> bool:
    """Equal bit for bit; any NaN equals any other."""
    equal = (one.view(np.int64) == other.view(np.int64)) | (np.isnan(one) & np.isnan(other))
    return bool(equal.all())


def with_time(transaction: Transaction, time_ms: int) -> Transaction:
    """The same payment at another time."""
    return Transaction(
        transaction_id=transaction.transaction_id,
        time=time_ms,
        amount_minor=transaction.amount_minor,
        currency=transaction.currency,
        entities=transaction.entities,
        kind=transaction.kind,
        fields=transaction.fields,
        location=transaction.location,
        flags=transaction.flags,
    )


def random_stream(rng: np.random.Generator, n: int, trouble: float = 0.3) -> Stream:
    """n payments of few entities within seconds; trouble: share that is repeated, late or tied."""
    transactions: list[Transaction] = []
    arrivals_ms: list[int] = []
    for number in range(n):
        if transactions and rng.random() < trouble / 3:
            again = transactions[rng.integers(len(transactions))]
            if rng.random() < 0.5:
                again = _payment(rng, again.transaction_id, n, trouble)
            transactions.append(again)
        else:
            transactions.append(_payment(rng, f"t{number}", n, trouble))
        late = rng.random() < trouble
        arrivals_ms.append(transactions[-1].time + (int(rng.integers(-3, 12)) * 500 if late else 0))
    return Stream(transactions, arrivals_ms, _facts(rng, transactions))


def _payment(rng: np.random.Generator, name: str, n: int, trouble: float) -> Transaction:
    # Half seconds are the borders of windows and grid steps; beside them is one side or the other.
    time_ms = START_MS + 500 * int(rng.integers(0, max(8, n // 2)))
    if rng.random() > trouble:
        time_ms += int(rng.integers(-1, 400))
    named = {
        "card": _some(rng, "ab"),
        "merchant": _some(rng, "mn"),
        "device": _some(rng, "xyz"),
    }
    places = (None, (48.1, 11.5), (48.2, 179.9), (-10.0, -179.9))
    return Transaction(
        transaction_id=name,
        time=time_ms,
        amount_minor=_one(rng, (0, 100, 250, 999, 999, int(rng.integers(10**6)), 2**40)),
        currency="EUR",
        entities={name: key for name, key in named.items() if key is not None},
        kind=_one(rng, ("authorisation", "authorisation", "refund", "reversal")),
        fields={
            "channel": _one(rng, ("web", "app", "fax", None)),
            "risk": _one(rng, (0, 1.5, True, None)),
        },
        location=_one(rng, places),
        flags={name: bool(rng.random() < 0.3) for name in FACTS},
    )


def _one(rng: np.random.Generator, values: tuple[Any, ...]) -> Any:
    return values[rng.integers(len(values))]


def _some(rng: np.random.Generator, names: str) -> str | None:
    return None if rng.random() < 0.15 else str(_one(rng, tuple(names)))


def _facts(rng: np.random.Generator, transactions: list[Transaction]) -> list[Fact]:
    facts = []
    for _ in range(len(transactions)):
        row = int(rng.integers(len(transactions)))
        # Few instants, so that many facts are copies of one another, or know of each other.
        sender_ms = transactions[row].time + 1_000 * int(rng.integers(-1, 3)) + 1
        known_at_ms = sender_ms + int(_one(rng, (0, 1, 500, 3_000, 8_000)))
        name = int(rng.integers(len(FACTS)))
        facts.append(Fact(row, name, bool(rng.random() < 0.7), sender_ms, known_at_ms))
    return facts


def random_specification(rng: np.random.Generator) -> FeatureSpecification:
    """A few groups of windows of seconds over exact, grid and composite entities."""
    groups = [_group(rng, number) for number in range(int(rng.integers(1, 5)))]
    means = [
        f"{group.entity}_{aggregate.stem}_{group.lengths[0]}"
        for group in groups
        for aggregate in group.aggregates
        if aggregate.function in ("mean", "sum", "std", "count")
    ]
    cross = []
    functions: tuple[Any, ...] = ("ratio", "difference")
    for number, function in enumerate(functions):
        if means and rng.random() < 0.5:
            of = _one(rng, (None, "risk"))
            to = _one(rng, tuple(means))
            cross.append(Feature(f"cross{number}", function, of=of, to=to))
    cross += _zscores(rng, groups)
    return FeatureSpecification(
        name="random",
        currency="EUR",
        entities=(
            Entity("card"),
            Entity("merchant"),
            Entity("device"),
            Entity("pair", of=("card", "merchant")),
            Entity("shop", of=("merchant",), mode="grid", resolution=0.3),
        ),
        windows=tuple(groups),
        features=(*_some_features(rng), *cross),
        facts=FACTS,
    )


def _group(rng: np.random.Generator, number: int) -> WindowGroup:
    entity = _one(rng, ("card", "merchant", "device", "pair", "shop"))
    functions = ["count", "sum", "mean", "std", "share"]
    if entity != "shop":
        functions += ["min", "max", "last", "distinct"]
    chosen = rng.choice(functions, size=int(rng.integers(1, 5)), replace=False).tolist()
    conditions = (
        None,
        None,
        Condition(kind="refund"),
        Condition(fact="declined"),
        Condition(fact="fraud"),
        Condition(field="channel", value="web"),
    )
    where = _one(rng, conditions)
    aggregates = tuple(
        Aggregate(
            function,
            of={"share": "fraud", "distinct": _one(rng, ("card", "pair", "device"))}.get(function),
            where=where,
            name=f"g{number}_{function}",
            empty=_one(rng, (None, None, -1.0)),
        )
        for function in chosen
    )
    lengths = tuple(
        f"{s}s" for s in rng.choice([1, 2, 3, 5, 8], size=int(rng.integers(1, 3)), replace=False)
    )
    delay = _one(rng, ("0s", "0s", "2s", "3s"))
    return WindowGroup(entity, lengths, aggregates, delay=delay, current=bool(rng.random() < 0.6))


def _zscores(rng: np.random.Generator, groups: list[WindowGroup]) -> list[Feature]:
    """A zscore of each group that has a mean and a std: its aggregates share one condition."""
    found = []
    for number, group in enumerate(groups):
        stems = {aggregate.function: aggregate.stem for aggregate in group.aggregates}
        if {"mean", "std"} <= set(stems):
            to, spread = (
                f"{group.entity}_{stems[function]}_{_one(rng, group.lengths)}"
                for function in ("mean", "std")
            )
            of = _one(rng, (None, "risk"))
            found.append(Feature(f"zscore{number}", "zscore", of=of, to=to, spread=spread))
    return found


def _some_features(rng: np.random.Generator) -> list[Feature]:
    features = [
        Feature("amount", "amount"),
        Feature("hour", "hour"),
        Feature("weekday", "weekday"),
        Feature("night", "night"),
        Feature("weekend", "weekend"),
        Feature("risk", "field", of="risk"),
        Feature("channel", "category", of="channel"),
        Feature("since_card", "since_last", entity="card"),
        Feature("since_pair", "since_last", entity="pair"),
        Feature("distance", "distance", entity="card"),
        Feature("speed", "speed", entity="merchant"),
        Feature("first_at_merchant", "first_pair", entity="card", of="merchant"),
        Feature("first_device", "first_pair", entity="merchant", of="device"),
        Feature("first_pair", "first_pair", entity="device", of="pair"),
    ]
    return [feature for feature in features if rng.random() < 0.4]
