"""Bad rows are set aside for the same reason in every form, as Transaction refuses them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from freshscore.config.errors import BadTransaction
from freshscore.features.objects import reason_of
from freshscore.features.reading import read_payments
from freshscore.features.transaction import Transaction
from tests.features.payment_forms import FORMS, PAYMENT, SPECIFICATION, check_structure, contents

OBJECTS = ("list", "frame")
TEXT = ("list", "frame", "csv")
TYPED = ("list", "frame", "parquet")
ALL = tuple(FORMS)
LONG = "x" * 257
NOT_UNICODE = "\ud800"
NAN, INFINITE = float("nan"), float("inf")

# What is changed in a good payment, the reason that it is counted by, and the forms that can say
# it: a typed column holds no mixture, CSV has no empty strings, and only objects have types.
Case = tuple[dict[str, Any], str, tuple[str, ...]]
CASES: dict[str, Case] = {
    "no id": ({"transaction_id": None}, "transaction_id", ALL),
    "empty id": ({"transaction_id": ""}, "transaction_id", ALL),
    "long id": ({"transaction_id": LONG}, "transaction_id", ALL),
    "long id in bytes": ({"transaction_id": "é" * 129}, "transaction_id", ALL),
    "id of no Unicode": ({"transaction_id": NOT_UNICODE}, "transaction_id", OBJECTS),
    "id that is a truth": ({"transaction_id": True}, "transaction_id", OBJECTS),
    "id that is a number": ({"transaction_id": 7}, "transaction_id", ("list",)),
    "no time": ({"time": None}, "time", ALL),
    "time in words": ({"time": "yesterday"}, "time", TEXT),
    "impossible date": ({"time": "2019-02-30 00:00:00"}, "time", TEXT),
    "naive datetime": ({"time": datetime(2019, 1, 1)}, "time", OBJECTS),
    "time in seconds": ({"time": 1_546_300_800}, "time", ALL),
    "time in microseconds": ({"time": 1_546_300_800_000_000}, "time", ALL),
    "time before 1990": ({"time": -1}, "time", ALL),
    "time beyond 64 bits": ({"time": 2**63}, "time", TEXT),
    "time that is a truth": ({"time": True}, "time", OBJECTS),
    "time that is NaN": ({"time": NAN}, "time", ALL),
    "no amount": ({"amount_minor": None}, "amount", ALL),
    "NaN amount": ({"amount_minor": NAN}, "amount", ALL),
    "infinite amount": ({"amount_minor": INFINITE}, "amount", ALL),
    "negative infinite amount": ({"amount_minor": -INFINITE}, "amount", ALL),
    "negative amount": ({"amount_minor": -1}, "amount", ALL),
    "amount above the limit": ({"amount_minor": 2**40 + 1}, "amount", ALL),
    "amount beyond 64 bits": ({"amount_minor": 10**30}, "amount", TEXT),
    "amount beyond doubles": ({"amount_minor": 10**400}, "amount", OBJECTS),
    "broken amount": ({"amount_minor": 10.5}, "amount", ALL),
    "amount in words": ({"amount_minor": "ten"}, "amount", TEXT),
    "amount as text": ({"amount_minor": "12"}, "amount", OBJECTS),
    "amount that is a truth": ({"amount_minor": True}, "amount", (*OBJECTS, "csv")),
    "no currency": ({"currency": None}, "currency", ALL),
    "empty currency": ({"currency": ""}, "currency", ALL),
    "small currency": ({"currency": "eur"}, "currency", ALL),
    "long currency": ({"currency": "EURO"}, "currency", ALL),
    "currency number": ({"currency": 978}, "currency", TEXT),
    "empty identifier": ({"entities": {"card": "", "merchant": "m"}}, "entity", TYPED),
    "long identifier": ({"entities": {"card": LONG}}, "entity", ALL),
    "identifier of no Unicode": ({"entities": {"card": NOT_UNICODE}}, "entity", OBJECTS),
    "identifier that is a truth": ({"entities": {"card": True}}, "entity", OBJECTS),
    "identifier that is a fraction": ({"entities": {"card": 1.5}}, "entity", OBJECTS),
    "identifier that is a number": ({"entities": {"card": 7}}, "entity", ("list",)),
    "unknown kind": ({"kind": "purchase"}, "kind", ALL),
    "kind in capitals": ({"kind": "REFUND"}, "kind", ALL),
    "kind None": ({"kind": None}, "kind", ("list",)),
    "verification of an amount": ({"kind": "verification"}, "kind", ALL),
    "negative base amount": ({"base_amount_minor": -5}, "base_amount", ALL),
    "infinite base amount": ({"base_amount_minor": INFINITE}, "base_amount", ALL),
    "large base amount": ({"base_amount_minor": 2**41}, "base_amount", ALL),
    "base amount in words": ({"base_amount_minor": "five"}, "base_amount", TEXT),
    "long original id": ({"original_id": LONG}, "original_id", ALL),
    "empty original id": ({"original_id": ""}, "original_id", TYPED),
    "long field": ({"fields": {"mcc": LONG}}, "field", ALL),
    "field of a strange type": ({"fields": {"risk": [1.0]}}, "field", OBJECTS),
    "latitude beyond the pole": ({"location": (90.5, 0.0)}, "location", ALL),
    "longitude beyond the line": ({"location": (0.0, -180.5)}, "location", ALL),
    "infinite latitude": ({"location": (INFINITE, 0.0)}, "location", ALL),
    "half a location": ({"location": (1.0, None)}, "location", ALL),
    "location in words": ({"location": ("north", "east")}, "location", TEXT),
    "flag in words": ({"flags": {"fraud": "perhaps"}}, "flag", TEXT),
    "flag that is a number": ({"flags": {"fraud": 2}}, "flag", TEXT),
}
# What only the specification knows to be wrong: Transaction takes them, reading does not.
CASES_OF_SPECIFICATION: dict[str, Case] = {
    "other currency without base amount": ({"currency": "USD"}, "currency", ALL),
    "text in a number": ({"fields": {"risk": "high"}}, "field", TEXT),
    "number beyond doubles": ({"fields": {"risk": 10**400}}, "field", OBJECTS),
    "number in a category": ({"fields": {"mcc": 5411}}, "field", ("list",)),
    "undeclared flag": ({"flags": {"stolen": True}}, "flag", ("list",)),
    "verification worth something": (
        {"kind": "verification", "amount_minor": 0, "currency": "USD", "base_amount_minor": 5},
        "kind",
        ALL,
    ),
}
_ALL_CASES = CASES | CASES_OF_SPECIFICATION


def _payments(change: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A good payment, a bad one and another good one."""
    return [
        PAYMENT | {"transaction_id": "first"},
        {**PAYMENT, "transaction_id": "bad", **change},
        PAYMENT | {"transaction_id": "last", "time": PAYMENT["time"] + 1},
    ]


@pytest.mark.parametrize("name", CASES)
def test_transaction_refuses(name: str) -> None:
    change, reason, _ = CASES[name]
    with pytest.raises(BadTransaction) as caught:
        Transaction(**(PAYMENT | change))
    assert reason_of(caught.value) == reason


@pytest.mark.parametrize("name", CASES_OF_SPECIFICATION)
def test_transaction_alone_cannot_know(name: str) -> None:
    """Otherwise the case belongs into the other table."""
    Transaction(**(PAYMENT | CASES_OF_SPECIFICATION[name][0]))


@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name, case in _ALL_CASES.items() for form in case[2]]
)
def test_bad_rows_are_set_aside_and_good_ones_go_on(name: str, form: str, tmp_path: Path) -> None:
    change, reason, _ = _ALL_CASES[name]
    table = FORMS[form](_payments(change), tmp_path)
    check_structure(table)
    assert table.transaction_id.to_pylist() == ["first", "last"]
    assert table.row.tolist() == [0, 2]
    assert table.rejected.counts() == {reason: 1}
    assert contents(table)["rejected"] == [(1, reason)]
    good = contents(FORMS["list"](_payments({"transaction_id": "good"}), tmp_path))
    assert contents(table)["numbers"]["risk"] == [good["numbers"]["risk"][i] for i in (0, 2)]
    assert contents(table)["entities"]["card"] == ["c-1", "c-1"]


@pytest.mark.parametrize("form", FORMS)
def test_the_first_problem_counts(form: str, tmp_path: Path) -> None:
    """In the order of Transaction's checks, so that forms agree on rows with several problems."""
    changes = [change for change, _, forms in CASES.values() if forms == ALL]
    for earlier, later in itertools.pairwise(changes):
        both = {**later, **earlier}
        table = FORMS[form](_payments(both), tmp_path)
        with pytest.raises(BadTransaction) as caught:
            Transaction(**(PAYMENT | both))
        assert table.rejected.counts() == {reason_of(caught.value): 1}, both


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (5, "row"),
        (None, "row"),
        ("t-1", "row"),
        (PAYMENT | {"amout": 1}, "row"),
        ({"transaction_id": "t-1"}, "time"),
        ({**PAYMENT, "entities": ["c-1"]}, "entity"),
        ({**PAYMENT, "entities": {1: "c-1"}}, "entity"),
        ({**PAYMENT, "fields": None}, "field"),
        ({**PAYMENT, "fields": {1: 2}}, "field"),
        ({**PAYMENT, "flags": ["fraud"]}, "flag"),
        ({**PAYMENT, "location": "here"}, "location"),
        ({**PAYMENT, "location": (NAN, 1.0)}, "location"),
    ],
)
def test_what_is_no_transaction_at_all_is_set_aside(row: Any, reason: str) -> None:
    table = read_payments([PAYMENT, row], SPECIFICATION)
    assert len(table) == 1
    assert table.rejected.counts() == {reason: 1}


def test_a_file_of_bad_rows_gives_a_table_without_payments(tmp_path: Path) -> None:
    for form in FORMS.values():
        table = form([PAYMENT | {"amount_minor": -1}] * 3, tmp_path)
        assert len(table) == 0
        assert table.rejected.counts() == {"amount": 3}
        check_structure(table)


def test_problems_never_show_content(tmp_path: Path) -> None:
    secret = "4929-secret-" * 25
    for form in FORMS.values():
        for change in ({"transaction_id": secret}, {"entities": {"card": secret}}):
            listed = form(_payments(change), tmp_path).rejected.listed(10)
            assert "secret" not in str(listed)


_CARD = "4929123456789012"
_GROUPED = "4929 1234 5678 9012"
_LONG_NAME = "n" * 65


@pytest.mark.parametrize("name", [_CARD, _GROUPED, "4929-1234", f"card{_CARD}", _LONG_NAME])
@pytest.mark.parametrize(
    "change",
    [
        lambda name: {"entities": {name: 7}},
        lambda name: {"entities": {name: ""}},
        lambda name: {"entities": {name: NOT_UNICODE}},
        lambda name: {"fields": {name: LONG}},
        lambda name: {"fields": {name: [1.0]}},
        lambda name: {"flags": {name: 2}},
        lambda name: {name: 1},
    ],
)
def test_a_name_that_may_be_an_identifier_is_not_shown(
    name: str, change: Callable[[str], dict[str, Any]]
) -> None:
    """Somebody has put a card where its name belongs."""
    with pytest.raises(BadTransaction) as caught:
        Transaction.of(PAYMENT | change(name))
    assert name not in str(caught.value)
    assert "4929" not in str(caught.value)


def test_other_names_are_shown_and_hidden_ones_have_a_length() -> None:
    with pytest.raises(BadTransaction, match="entity 'card_2' must be a string"):
        Transaction.of(PAYMENT | {"entities": {"card_2": 7}})
    with pytest.raises(BadTransaction, match="entity <a name of 16 characters> must be a string"):
        Transaction.of(PAYMENT | {"entities": {_CARD: 7}})
    with pytest.raises(BadTransaction, match="unknown: colour, <a name of 16 characters>; known"):
        Transaction.of(PAYMENT | {"colour": 1, _CARD: 1})
    shown = repr(Transaction(**(PAYMENT | {"entities": {_CARD: "c", "card": "d"}})))
    assert "entities=<<a name of 16 characters>, card>" in shown
