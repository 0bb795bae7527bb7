"""Payments that shaping adds to a table: purchases tried again after a decline, and card testing.

A new payment names the row of the table that it copies; `with_new_payments` makes the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from freshscore.config.errors import BadFile
from freshscore.features.money import minor_digits
from freshscore.simulations.generator_attacks import ATTACK_SCENARIO, SHARED, burst
from freshscore.simulations.shapes import Shape, delays_ms

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PaymentColumns:
    """What shaping needs of a table of payments in time order, one element each."""

    time_ms: Int64s
    amount_minor: Int64s
    fraud: Bools

    def __post_init__(self) -> None:
        if not len(self.time_ms) == len(self.amount_minor) == len(self.fraud):
            raise ValueError("columns of different lengths")
        if np.any(self.time_ms[1:] < self.time_ms[:-1]):
            raise BadFile("the payments are not in time order")

    def __len__(self) -> int:
        return len(self.time_ms)


@dataclass(frozen=True)
class NewPayments:
    """Payments that the table does not have, in time order, one element each.

    source_row: the row that everything is copied from which no other column here gives.
    merchant_row: the row that the merchant is copied from.
    in_burst: card testing; else the purchase of source_row tried again.
    number: of the burst, from 0; or of the attempt, from 1.
    new_card: whether the card is one that the table does not have.
    """

    source_row: Int64s
    merchant_row: Int64s
    time_ms: Int64s
    amount_minor: Int64s
    fraud: Bools
    in_burst: Bools
    number: Int64s
    new_card: Bools

    def __len__(self) -> int:
        return len(self.time_ms)


def new_payments(
    payments: PaymentColumns,
    shape: Shape,
    declined: Bools,
    first_row: int,
    rng: np.random.Generator,
) -> NewPayments:
    """Draw what `shape` adds to the rows from `first_row` on; `declined` (rows,) says which are."""
    retries_rng, bursts_rng = rng.spawn(2)
    parts = [_retries(payments, shape, declined, retries_rng)]
    if first_row < len(payments):
        parts += [
            _burst(payments, shape, number, first_row, burst_rng)
            for number, burst_rng in enumerate(bursts_rng.spawn(shape.bursts))
        ]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in NewPayments.__dataclass_fields__
    }
    order = np.argsort(columns["time_ms"], kind="stable")
    return NewPayments(**{name: column[order] for name, column in columns.items()})


def with_new_payments(
    frame: pd.DataFrame, added: NewPayments, *, card: str = "card", merchant: str = "merchant"
) -> pd.DataFrame:
    """`frame` with a row for each of `added` after its own, so that rows keep their numbers.

    frame: the table that was shaped: transaction_id, time_ms, amount_minor and columns `card` and
    `merchant`; amount, fraud, fraud_scenario, device, ip and email are kept right where present.
    The attempts of a burst share one of the last three. Raises BadFile if an id is taken.
    """
    rows = frame.iloc[added.source_row].reset_index(drop=True)
    source_ids = rows["transaction_id"].astype(str).tolist()
    labels = _labels(added)
    new_ids = [
        label if in_burst else f"{source}~{label}"
        for label, source, in_burst in zip(labels, source_ids, added.in_burst, strict=True)
    ]
    # Not Series.isin: it takes eleven seconds for two million strings.
    if not set(new_ids).isdisjoint(frame["transaction_id"].tolist()):
        raise BadFile("the file has transaction ids of the form that simulated payments get")
    rows["transaction_id"] = new_ids
    rows["time_ms"] = added.time_ms
    rows["amount_minor"] = added.amount_minor
    rows[merchant] = frame[merchant].to_numpy()[added.merchant_row]
    _replace(rows, card, added.new_card, [f"{label}-card" for label in labels])
    if "amount" in rows:
        rows["amount"] = added.amount_minor / _minor_units(rows)
    if "fraud" in rows:
        rows["fraud"] = added.fraud
    if "fraud_scenario" in rows:
        rows.loc[added.in_burst, "fraud_scenario"] = ATTACK_SCENARIO
    _mark_attackers(rows, added, labels)
    return pd.concat([frame, rows], ignore_index=True)


def _retries(
    payments: PaymentColumns, shape: Shape, declined: Bools, rng: np.random.Generator
) -> NewPayments:
    rows = np.flatnonzero(declined & (rng.random(len(declined)) < shape.retried_share))
    attempts = rng.integers(shape.retries[0], shape.retries[1] + 1, len(rows))
    source = np.repeat(rows, attempts)
    first = np.repeat(np.cumsum(attempts) - attempts, attempts)
    waited = np.concatenate([[0], np.cumsum(delays_ms(shape.retry_delays, len(source), rng))])
    return NewPayments(
        source_row=source,
        merchant_row=source,
        time_ms=payments.time_ms[source] + waited[1:] - waited[first],
        amount_minor=payments.amount_minor[source],
        fraud=payments.fraud[source],
        in_burst=np.zeros(len(source), dtype=np.bool_),
        number=np.arange(len(source)) - first + 1,
        new_card=np.zeros(len(source), dtype=np.bool_),
    )


def _burst(
    payments: PaymentColumns, shape: Shape, number: int, first_row: int, rng: np.random.Generator
) -> NewPayments:
    """Burst `number`, at any time between `first_row` and the end of the table."""
    first_ms, last_ms = int(payments.time_ms[first_row]), int(payments.time_ms[-1])
    start_ms = int(rng.integers(first_ms, max(first_ms, last_ms - shape.burst.duration_ms) + 1))
    attacked = int(rng.integers(first_row, len(payments)))
    drawn = burst(shape.burst, rng)
    elsewhere = first_row + (drawn.merchant_choice * (len(payments) - first_row)).astype(np.int64)
    return NewPayments(
        source_row=first_row + (drawn.card_choice * (len(payments) - first_row)).astype(np.int64),
        merchant_row=np.where(drawn.other_merchant, elsewhere, attacked),
        time_ms=start_ms + drawn.offset_ms,
        amount_minor=drawn.amount_minor,
        fraud=np.ones(len(drawn), dtype=np.bool_),
        in_burst=np.ones(len(drawn), dtype=np.bool_),
        number=np.full(len(drawn), number),
        new_card=~drawn.known_card,
    )


def _labels(added: NewPayments) -> list[str]:
    """A name for each new payment: "retry2", "burst0-417"."""
    return [
        f"burst{number}-{row}" if in_burst else f"retry{number}"
        for row, (number, in_burst) in enumerate(zip(added.number, added.in_burst, strict=True))
    ]


def _mark_attackers(rows: pd.DataFrame, added: NewPayments, labels: list[str]) -> None:
    """In each burst one of the SHARED columns that `rows` have is one value, the others all new."""
    present = [name for name in SHARED if name in rows]
    for place, name in enumerate(present):
        values = [
            f"burst{number}-{name}" if number % len(present) == place else f"{label}-{name}"
            for label, number in zip(labels, added.number, strict=True)
        ]
        _replace(rows, name, added.in_burst, values)


def _replace(rows: pd.DataFrame, name: str, where: Bools, values: list[str]) -> None:
    rows[name] = rows[name].astype(str).where(~where, pd.Series(values, index=rows.index))


def _minor_units(rows: pd.DataFrame) -> npt.NDArray[np.float64]:
    if "currency" not in rows:
        return np.full(len(rows), 100.0)
    units = {code: 10.0 ** minor_digits(code) for code in rows["currency"].unique()}
    return rows["currency"].map(units).to_numpy(dtype=np.float64)
