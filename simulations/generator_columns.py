"""Generated payments as arrays of numbers, and the columns that files have.

Two sets of columns: freshscore's own (a name an entity, amounts in both units, UTC milliseconds)
and the Handbook's, so that whatever reads the Handbook's files can be tried without them.
Identifiers are made here and nowhere else: within the generator an entity is a number.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Int8s = npt.NDArray[np.int8]
Int64s = npt.NDArray[np.int64]

_ID_DIGITS = 8
_TRANSACTION_DIGITS = 9


@dataclass(frozen=True)
class Payments:
    """Payments as numbers, one element each.

    time_ms: UTC. amount_minor: cents. scenario: 0 is legitimate.
    card, merchant, device, ip, email: the entity's number; the last three are (0,) where payments
    have none.
    """

    time_ms: Int64s
    card: Int64s
    merchant: Int64s
    amount_minor: Int64s
    scenario: Int8s
    device: Int64s
    ip: Int64s
    email: Int64s

    def __len__(self) -> int:
        return len(self.time_ms)


def in_time_order(parts: list[Payments]) -> Payments:
    """All `parts` as one, by time; equal times keep the order in which they came."""
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Payments)
    }
    order = np.argsort(columns["time_ms"], kind="stable")
    return Payments(
        **{name: column[order] if len(column) else column for name, column in columns.items()}
    )


def freshscore_table(payments: Payments, first_row: int, devices: bool) -> pa.Table:
    """Columns transaction_id, time_ms, amount, amount_minor, currency, kind, card, merchant,
    with `devices` also device, ip, email, then fraud, fraud_scenario.

    first_row: the number of the first payment. Amounts are in EUR, `amount` in major units.
    """
    rows = len(payments)
    numbers = np.arange(first_row, first_row + rows)
    columns = {
        "transaction_id": identifiers("t-", numbers, _TRANSACTION_DIGITS),
        "time_ms": pa.array(payments.time_ms),
        "amount": pa.array(payments.amount_minor / 100),
        "amount_minor": pa.array(payments.amount_minor),
        "currency": pa.repeat(pa.scalar("EUR"), rows),
        "kind": pa.repeat(pa.scalar("authorisation"), rows),
        "card": identifiers("c-", payments.card),
        "merchant": identifiers("m-", payments.merchant),
    }
    if devices:
        columns["device"] = identifiers("d-", payments.device)
        columns["ip"] = identifiers("i-", payments.ip)
        columns["email"] = identifiers("e-", payments.email)
    columns["fraud"] = pa.array(payments.scenario > 0)
    columns["fraud_scenario"] = pa.array(payments.scenario)
    return pa.table(columns)


def handbook_table(payments: Payments, first_row: int) -> pa.Table:
    """The Handbook's columns, in its order; TX_DATETIME is UTC without a zone, in milliseconds."""
    return pa.table(
        {
            "TRANSACTION_ID": pa.array(np.arange(first_row, first_row + len(payments))),
            "TX_DATETIME": pa.array(payments.time_ms).cast(pa.timestamp("ms")),
            "CUSTOMER_ID": pa.array(payments.card),
            "TERMINAL_ID": pa.array(payments.merchant),
            "TX_AMOUNT": pa.array(payments.amount_minor / 100),
            "TX_FRAUD": pa.array((payments.scenario > 0).astype(np.int64)),
            "TX_FRAUD_SCENARIO": pa.array(payments.scenario.astype(np.int64)),
        }
    )


def identifiers(prefix: str, numbers: Int64s, digits: int = _ID_DIGITS) -> pa.Array:
    """Strings such as "c-00000042", one for each number; more digits where a number needs them."""
    padded = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width=digits, padding="0")
    return pc.binary_join_element_wise(prefix, padded, "")
