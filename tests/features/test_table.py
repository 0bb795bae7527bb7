"""Tables keep their order, facts and codes through selection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import Coded, Problem, Rejected
from tests.features.payment_forms import SPECIFICATION, check_structure, contents
from tests.features.payment_strategies import payments

HANDBOOK = FeatureSpecification.shipped("handbook")


@given(
    codes=st.lists(st.integers(-1, 4), max_size=12),
    rows=st.lists(st.integers(0, 11), max_size=12),
)
def test_coded_columns_against_lists(codes: list[int], rows: list[int]) -> None:
    names = ["a", "b", "", "d", "é"]
    texts = [None if code < 0 else names[code] for code in codes]
    column = Coded(np.array(codes, np.int32), pa.array(names))
    assert column.texts().to_pylist() == texts
    compacted = column.compacted()
    assert compacted.texts().to_pylist() == texts
    assert compacted.values.to_pylist() == [name for name in names if name in texts]
    rows = [row for row in rows if row < len(codes)]
    taken = column.take(np.array(rows, np.int64))
    assert taken.texts().to_pylist() == [texts[row] for row in rows]


@given(
    rows=st.lists(payments(), max_size=8),
    chosen=st.sets(st.integers(0, 7)),
    labels=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_take_is_the_table_of_the_taken_rows(
    rows: list[dict[str, Any]], chosen: set[int], labels: list[bool]
) -> None:
    whole = read_payments(rows, SPECIFICATION)
    at = sorted(place for place in chosen if place < len(whole))
    taken = whole.take(at)
    check_structure(taken)
    again = contents(read_payments([rows[row] for row in taken.row.tolist()], SPECIFICATION))
    # Row numbers are those of the source that was read.
    assert contents(taken) | {"row": None} == again | {"row": None}
    assert taken.row.tolist() == [whole.row.tolist()[place] for place in at]
    assert taken.original_ids.to_pylist() == taken.transaction_id.to_pylist()


def _labelled(fraud: list[bool]) -> pa.Table:
    n = len(fraud)
    columns = {
        "transaction_id": [f"t-{i}" for i in range(n)],
        "time_ms": [10**12 + i for i in range(n)],
        "amount": [1.0] * n,
        "card": ["c"] * n,
        "fraud": fraud,
    }
    return pa.table(columns)


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(0, 20), st.integers(0, 20))
def test_between_keeps_the_facts_of_its_payments(fraud: list[bool], first: int, size: int) -> None:
    whole = read_payments(_labelled(fraud), HANDBOOK)
    part = whole.between(10**12 + first, 10**12 + first + size)
    check_structure(part)
    assert part.time_ms.tolist() == whole.time_ms.tolist()[first : first + size]
    assert part.ever("fraud").tolist() == fraud[first : first + size]
    assert part.facts.row.tolist() == [i for i, f in enumerate(fraud[first : first + size]) if f]


def test_take_keeps_arrival_order_or_refuses() -> None:
    table = read_payments(_labelled([True, False, True]), HANDBOOK)
    for rows in ([1, 0], [1, 1]):
        with pytest.raises(ValueError, match="ascend"):
            table.take(rows)
    with pytest.raises(IndexError):
        table.take([3])


def test_transactions_in_any_order() -> None:
    n = 10_000
    table = read_payments(_labelled([False] * n), HANDBOOK)
    rows = np.arange(n)[::-3]
    ids = [transaction.transaction_id for transaction in table.transactions(rows)]
    assert ids == [f"t-{row}" for row in rows.tolist()]


def test_rejected_rows_are_counted_and_listed() -> None:
    problems = (Problem("time", "late"), Problem("amount", "low"), Problem("amount", "high"))
    rejected = Rejected(np.array([2, 5, 6, 9]), np.array([1, 0, 2, 2], np.int32), problems)
    assert rejected.counts() == {"amount": 3, "time": 1}
    assert rejected.listed(2) == [(2, problems[1]), (5, problems[0])]
    assert len(rejected.listed(100)) == len(rejected) == 4
    empty = Rejected(np.array([], np.int64), np.array([], np.int32), ())
    assert empty.counts() == {}
    assert empty.listed(5) == []
