"""An incumbent's decisions beside freshscore's, in count and money."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from freshscore.config.errors import BadFile
from freshscore.simulations.incumbents import compared_decisions, incumbent_decisions


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([True, False, None], [2, 0, -1]),
        ([1, 0, None], [2, 0, -1]),
        ([1.0, 0.0, float("nan")], [2, 0, -1]),
        ([" Declined", "approve", None, "REVIEW", ""], [2, 0, -1, 1, -1]),
    ],
)
def test_decisions_are_truths_numbers_or_words(values: list[Any], wanted: list[int]) -> None:
    assert incumbent_decisions(pa.array(values), "old").tolist() == wanted
    coded = pa.array(values).dictionary_encode() if isinstance(values[0], str) else pa.array(values)
    assert incumbent_decisions(pa.chunked_array([coded]), "old").tolist() == wanted


@pytest.mark.parametrize(
    ("values", "named"),
    [([0.3, 0.9], "0.3"), ([2, 1], "2"), (["perhaps"], "perhaps"), ([[1]], "list")],
)
def test_anything_else_is_refused_by_name(values: list[Any], named: str) -> None:
    with pytest.raises(BadFile, match=named) as problem:
        incumbent_decisions(pa.array(values), "old")
    assert "'old'" in str(problem.value)


def test_differences_are_counted_in_payments_and_money_with_the_frauds_among_them() -> None:
    incumbent = np.array([0, 0, 2, 2, -1, 0], np.int8)
    own = np.array([0, 2, 0, 0, 2, 2], np.uint8)
    amount_minor = np.array([100, 200, 300, 400, 500, 600])
    fraud = np.array([False, True, False, True, True, False])
    found = compared_decisions("old", incumbent, own, amount_minor, fraud)
    assert (found.compared, found.amount_minor, found.unknown) == (5, 1_600, 1)
    assert [
        (d.incumbent, d.freshscore, d.payments, d.amount_minor, d.frauds, d.fraud_minor)
        for d in found.differences
    ] == [
        ("approve", "decline", 2, 800, 1, 200),
        ("decline", "approve", 2, 700, 1, 400),
    ]


def test_without_labels_nothing_is_said_of_frauds() -> None:
    one = np.array([0], np.int8)
    found = compared_decisions("old", one, np.array([1], np.uint8), np.array([100]), None)
    assert [(d.frauds, d.fraud_minor) for d in found.differences] == [(None, None)]
