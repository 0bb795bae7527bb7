"""Column maps are recognised by their columns, and what they miss is said."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from freshscore.config.errors import BadFile
from freshscore.features.columns import ColumnMap, chosen_map, shown
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification

HANDBOOK = FeatureSpecification.shipped("handbook")
COLUMNS = {
    "freshscore": ("transaction_id", "time_ms", "amount_minor", "card", "merchant", "fraud"),
    "handbook": (
        *("TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT"),
        *("TX_TIME_SECONDS", "TX_TIME_DAYS", "TX_FRAUD", "TX_FRAUD_SCENARIO"),
    ),
    "sparkov": (
        *("transaction_id", "timestamp", "card_id", "merchant_id", "category", "amount"),
        *("card_lat", "card_long", "merchant_lat", "merchant_long", "is_fraud"),
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_shipped_maps_are_recognised(name: str) -> None:
    assert chosen_map(COLUMNS[name], None, "file").name == name
    assert chosen_map(COLUMNS[name], name, "file") == ColumnMap.named(name)
    fitting = [one.name for one in ColumnMap.shipped() if not one.lacking(COLUMNS[name])]
    assert fitting == [name]


def test_shipped_maps() -> None:
    assert [one.name for one in ColumnMap.shipped()] == ["freshscore", "handbook", "sparkov"]
    # The file shows what the class falls back to.
    assert ColumnMap.named("freshscore") == ColumnMap("freshscore")


@pytest.mark.parametrize("name", COLUMNS)
def test_a_missing_column_is_named_with_the_maps_tried(name: str) -> None:
    for column in ColumnMap.named(name).entities.values():
        left = [one for one in COLUMNS[name] if one != column]
        with pytest.raises(BadFile, match=rf"{name} lacks {column}[;.]"):
            chosen_map(left, None, "the file")
    with pytest.raises(BadFile) as caught:
        chosen_map(["a", "b"], None, "the file")
    for tried in COLUMNS:
        assert f"{tried} lacks" in str(caught.value)
    assert "time_ms or time" in str(caught.value)
    assert str(caught.value).endswith("It has a, b")


def test_a_map_that_was_asked_for_is_the_only_one_tried() -> None:
    with pytest.raises(
        BadFile, match=r"^f: its columns fit no column map: sparkov lacks timestamp"
    ):
        chosen_map(COLUMNS["freshscore"], "sparkov", "f")


def test_many_columns_are_cut_in_messages() -> None:
    with pytest.raises(BadFile) as caught:
        chosen_map([f"{i}" + "x" * 1_000 for i in range(1_000)], None, "f")
    assert "and 970 more" in str(caught.value)
    assert len(str(caught.value)) < 4_000


def test_what_may_be_no_name_is_shown_as_its_place(tmp_path: Path) -> None:
    """The first row of a file without a header is what the file is for."""
    row = [
        "t-10001",
        "2019-01-01",
        "4929123456781234",
        "12.50",
        "me@example.com",
        "x1234",
        "amount",
    ]
    (tmp_path / "a.csv").write_text(",".join(row) + "\n" + ",".join(row) + "\n")
    with pytest.raises(BadFile) as caught:
        read_payments(tmp_path / "a.csv", HANDBOOK)
    places = ", ".join(f"column {place}" for place in range(1, 7))
    assert str(caught.value).endswith(f"It has {places}, amount")
    (tmp_path / "b.csv").write_text("a,b,4929123456781234,b,4929123456781234\n1,2,3,4,5\n")
    with pytest.raises(BadFile, match=r"more than once: column 3, b$"):
        read_payments(tmp_path / "b.csv", HANDBOOK)


@pytest.mark.parametrize(
    "name", ["V28", "TX_AMOUNT", "card-lat", "Amount (EUR)", "nb_tx_30_day", "_merged", "Größe"]
)
def test_names_are_shown(name: str) -> None:
    assert shown(["amount", name]) == f"amount, {name}"


def test_a_map_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "bank.toml"
    file.write_text(
        """
        name = "bank"
        transaction_id = "ref"
        time = [{ column = "booked", unit = "s" }]
        amount = [{ column = "cents", unit = "minor" }]
        currency = "EUR"
        [entities]
        card = "pan_token"
        merchant = "shop"
        [facts]
        fraud = "confirmed"
        [known_at.fraud]
        column = "confirmed_at"
        unit = "s"
        """
    )
    source = pa.table(
        {
            "ref": ["a", "b"],
            "booked": [1_546_300_800, 1_546_300_860],
            "cents": [100, 200],
            "currency": ["ignored", "since the map declares one"],
            "pan_token": ["x", "y"],
            "shop": ["s", "s"],
            "confirmed": [True, None],
            "confirmed_at": [1_546_300_900, None],
        }
    )
    for columns in (str(file), ColumnMap.from_toml(file.read_text())):
        table = read_payments(source, HANDBOOK, columns=columns)
        assert table.time_ms.tolist() == [1_546_300_800_000, 1_546_300_860_000]
        assert table.amount_minor.tolist() == [100, 200]
        assert table.entities["card"].texts().to_pylist() == ["x", "y"]
        assert table.facts.known_at_ms.tolist() == [1_546_300_900_000]
    dollars = FeatureSpecification.shipped("sparkov")
    assert read_payments(source, dollars, columns=str(file)).rejected.counts() == {"currency": 2}


@pytest.mark.parametrize(
    "text",
    [
        "name = 1",
        "nome = 'x'",
        "name = 'x'\nunknown = 1",
        "name = 'x'\ntime = [{ column = 't', unit = 'days' }]",
        "name = 'x'\ntime = [{ column = 't', zone = 'Europe/Brussels' }]",
        "name = " + "[" * 100_000,
        "name = ",
    ],
)
def test_a_map_that_makes_no_sense_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(text)
    with pytest.raises(BadFile, match=re.escape("map.toml")):
        ColumnMap.named(str(tmp_path / "map.toml"))


def test_a_map_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="freshscore, handbook, sparkov"):
        ColumnMap.named("hand_book")
    with pytest.raises(BadFile, match=r"missing\.toml"):
        ColumnMap.named(str(tmp_path / "missing.toml"))
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(BadFile, match=r"latin\.toml"):
        ColumnMap.named(str(tmp_path / "latin.toml"))


def test_a_source_without_any_entity_is_refused() -> None:
    plain = {"transaction_id": ["a"], "time_ms": [10**12], "amount": [1.0]}
    with pytest.raises(BadFile, match=r"card, merchant.*there are transaction_id, time_ms, amount"):
        read_payments(pa.table(plain), HANDBOOK)
    without_entities = FeatureSpecification.from_toml(
        'name = "plain"\ncurrency = "EUR"\nfeatures = [{ name = "amount", function = "amount" }]'
    )
    assert len(read_payments(pa.table(plain), without_entities)) == 1


def test_minor_units_count_before_major_ones() -> None:
    """A file with both, such as the generator's, is read without rounding."""
    source = pa.table(
        {
            "transaction_id": ["a"],
            "time_ms": [10**12],
            "amount": [9.99],
            "amount_minor": [1_000],
            "card": ["c"],
        }
    )
    assert read_payments(source, HANDBOOK).amount_minor.tolist() == [1_000]
