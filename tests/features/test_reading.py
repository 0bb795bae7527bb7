"""Payments in every form give one and the same table, in arrival order."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshscore.config.errors import BadFile
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.features.transaction import Transaction
from freshscore.features.writing import write_table
from tests.features.payment_forms import (
    FORMS,
    PAYMENT,
    SPECIFICATION,
    check_structure,
    contents,
    flat,
)
from tests.features.payment_strategies import payments, times_ms

HANDBOOK = FeatureSpecification.shipped("handbook")
SPARKOV = FeatureSpecification.shipped("sparkov")
# Beside the repository, where the project's trial data lies.
SPARKOV_FILE = Path(__file__).parents[2].parent / "shared" / "data" / "sparkov_2019h1.parquet"
WEEK_MS = 7 * 86_400_000


def _own(n: int, **columns: Any) -> pa.Table:
    """n payments under freshscore's own names, a minute apart, with `columns` put in."""
    plain = {
        "transaction_id": [f"t-{i}" for i in range(n)],
        "time_ms": [1_546_300_800_000 + 60_000 * i for i in range(n)],
        "amount_minor": list(range(n)),
        "card": ["c-1"] * n,
    }
    return pa.table({name: v for name, v in (plain | columns).items() if v is not None})


@given(rows=st.lists(payments(), min_size=1, max_size=6))
def test_every_form_gives_the_same_table(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    expected = read_payments([Transaction(**row) for row in rows], SPECIFICATION)
    assert len(expected.rejected) == 0
    for name, form in FORMS.items():
        table = form(rows, folder)
        check_structure(table)
        assert contents(table) == contents(expected), name


@given(rows=st.lists(payments(), min_size=1, max_size=6))
def test_transactions_of_a_table_are_those_that_went_in(rows: list[dict[str, Any]]) -> None:
    """But for what nothing behind the door reads: another currency, an original id."""
    table = read_payments(rows, SPECIFICATION)
    back = list(table.transactions())
    assert contents(read_payments(back, SPECIFICATION))["row"] == list(range(len(rows)))
    for place, row in enumerate(table.row.tolist()):
        given_one, got = Transaction(**rows[row]), back[place]
        assert got == table.transaction(place)
        assert got.transaction_id == given_one.transaction_id
        assert (got.time, got.kind) == (given_one.time, given_one.kind)
        assert got.amount_minor == given_one.base_amount("EUR")
        assert got.entities == given_one.entities
        assert {n for n, v in got.flags.items()} == {n for n, v in given_one.flags.items() if v}
        assert got.fields == {n: v for n, v in given_one.fields.items() if v is not None}
        assert got.location == pytest.approx(given_one.location, abs=5.1e-8)


@given(
    rows=st.lists(
        st.tuples(times_ms, st.none() | times_ms, st.none() | st.booleans(), st.none() | times_ms),
        min_size=1,
        max_size=12,
    )
)
def test_arrival_order_and_facts(
    rows: list[tuple[int, int | None, bool | None, int | None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Sorted by (arrival, row); a label without its instant is known after the declared delay."""
    time, arrival, fraud, known = (list(column) for column in zip(*rows, strict=True))
    # Facts lie within 17 years of their event; times further away belong to test_bad_payments.
    known = [
        None if k is None or abs(k - t) >= 2**39 else k for k, t in zip(known, time, strict=True)
    ]
    columns = {
        "time_ms": time,
        "arrival_ms": pa.array(arrival, pa.int64()),
        "fraud": pa.array(fraud, pa.bool_()),
        "fraud_known_at": pa.array(known, pa.int64()),
    }
    source = _own(len(rows), **columns)
    file = tmp_path_factory.mktemp("arrivals") / "payments.csv"
    write_table(file, source)
    arrived = [t if a is None else a for t, a in zip(time, arrival, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: (arrived[i], i))
    facts = []
    for place, i in enumerate(order):
        at_ms = time[i] + WEEK_MS if known[i] is None else known[i]
        if fraud[i] and at_ms != time[i]:
            facts.append((place, HANDBOOK.facts.index("fraud"), True, at_ms, at_ms))
    for form in (source, source.to_pandas(), file):
        table = read_payments(form, HANDBOOK)
        check_structure(table)
        assert table.row.tolist() == order
        assert table.arrival_ms.tolist() == [arrived[i] for i in order]
        assert table.time_ms.tolist() == [time[i] for i in order]
        assert list(zip(*contents(table)["facts"], strict=True)) == facts
        assert table.ever("fraud").tolist() == [bool(fraud[i]) for i in order]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([1_546_300_800_123], pa.int64()),
        pa.array([1_546_300_800_123], pa.timestamp("ms")),
        pa.array([1_546_300_800_123], pa.timestamp("ms", "Europe/Brussels")),
        pa.array([1_546_300_800_123_999], pa.timestamp("us")),
        pa.array([1_546_300_800_123_999_999], pa.timestamp("ns", "UTC")),
        pa.array([1_546_300_800_123.0], pa.float64()),
        pa.array([1_546_300_800_123], pa.uint64()),
        pd.Series([datetime.fromtimestamp(1_546_300_800.123, UTC)], dtype=object),
        pd.Series([datetime.fromtimestamp(1_546_300_800.123, timezone(timedelta(hours=5)))]),
        pd.Series([pd.Timestamp("2019-01-01T00:00:00.123"), "damaged"], dtype=object)[:1],
    ],
)
def test_times_of_every_type(times: Any) -> None:
    """Floored to ms; timestamps without a zone are UTC."""
    table = read_payments(_own(1).to_pandas().assign(time_ms=times), HANDBOOK)
    if not isinstance(times, pd.Series):
        table = read_payments(_own(1, time_ms=times), HANDBOOK)
    assert table.time_ms.tolist() == [1_546_300_800_123]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("1546300800123", 1_546_300_800_123),
        ("2019-01-01 00:00:00.123", 1_546_300_800_123),
        ("2019-01-01T00:00:00.123Z", 1_546_300_800_123),
        ("2019-01-01T01:00:00.123+01:00", 1_546_300_800_123),
        ("2019-01-01", 1_546_300_800_000),
    ],
)
@pytest.mark.parametrize("damaged", [False, True])
def test_times_in_csv(cell: str, expected: int, damaged: bool, tmp_path: Path) -> None:
    """One damaged cell turns a whole column into text: the others keep their values."""
    bad = "b,soon,5,c\n" if damaged else ""
    (tmp_path / "a.csv").write_text(f"transaction_id,time,amount,card\na,{cell},5,c\n{bad}")
    table = read_payments(tmp_path / "a.csv", HANDBOOK)
    assert table.time_ms.tolist() == [expected]
    assert table.rejected.counts() == ({"time": 1} if damaged else {})


@pytest.mark.parametrize(
    "cell",
    ["now", "today", "NOW", "NaT", "epoch", "Jan 2019", "2019-01", "2019.1", "12:00", "now 2019"],
)
def test_what_begins_with_no_date_is_no_time(cell: str, tmp_path: Path) -> None:
    """pandas would take the clock's time for some of them, and a year's first day for others."""
    (tmp_path / "a.csv").write_text(
        f"transaction_id,time,amount,card\na,{cell},5,c\nb,2019-01-01,5,c\n"
    )
    table = read_payments(tmp_path / "a.csv", HANDBOOK)
    assert table.transaction_id.to_pylist() == ["b"]
    assert table.rejected.counts() == {"time": 1}


def test_the_sentence_of_a_wrong_time_is_true(tmp_path: Path) -> None:
    """Text in files may be without a zone; objects in frames may not."""
    (tmp_path / "a.csv").write_text("transaction_id,time,amount,card\na,soon,5,c\n")
    frame = _own(2).to_pandas().assign(time_ms=pd.Series(["soon", 10**12], dtype=object))
    said = [
        read_payments(source, HANDBOOK).rejected.problems[0].sentence
        for source in (tmp_path / "a.csv", frame)
    ]
    assert said == [
        "time is no instant in 1990 to 2100: neither ISO 8601 nor a number of ms",
        "time is no instant in 1990 to 2100: neither a datetime with a zone nor an int of ms",
    ]


def test_one_wrong_time_leaves_the_unit_of_the_others() -> None:
    columns = {"timestamp": [1_546_300_800, 1_546_300_801], "amount": [1.0, 2.0]}
    names = {"card": "card_id", "time_ms": "time", "amount_minor": "minor"}
    frame = _own(2, merchant_id=["m", "m"], **columns).to_pandas().rename(columns=names)
    frame["timestamp"] = pd.Series([1_546_300_800, "soon"], dtype=object)
    table = read_payments(frame, SPARKOV, columns="sparkov")
    assert table.time_ms.tolist() == [1_546_300_800_000]
    assert table.rejected.counts() == {"time": 1}


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        ([117.66, 0.0, 0.005, 0.015, -0.0], [11_766, 0, 0, 2, 0]),
        (np.array([117.66, 0.1], np.float32), [11_766, 10]),
        ([Decimal("117.66"), Decimal("10995116277.76")], [11_766, 2**40]),
        ([117, 0], [11_700, 0]),
        (pd.Series([117, None, 3], dtype="Int64"), [11_700, 300]),
        (pd.Series([117.5, "x", None, 3], dtype=object), [11_750, 300]),
    ],
)
def test_amounts_in_major_units(amounts: Any, expected: list[int]) -> None:
    """To the nearest minor unit, halves of the double to the even one."""
    frame = _own(len(amounts), amount_minor=None).to_pandas().assign(amount=amounts)
    assert read_payments(frame, HANDBOOK).amount_minor.tolist() == expected


def test_digits_follow_the_currency() -> None:
    source = _own(
        4,
        amount_minor=None,
        amount=[1.234, 500.0, 7.0, 1.0],
        currency=["KWD", "JPY", "EUR", "EUR"],
        base_amount_minor=[370, 310, None, 999],
    )
    assert read_payments(source, HANDBOOK).amount_minor.tolist() == [370, 310, 700, 100]
    table = read_payments(source, SPARKOV)
    assert table.amount_minor.tolist() == [370, 310, 999]
    assert table.rejected.counts() == {"currency": 1}


def test_ids_leave_as_they_came(tmp_path: Path) -> None:
    numbers = pa.array([30, 10, 20])
    table = read_payments(_own(3, transaction_id=numbers, time_ms=[7e11, 9e11, 8e11]), HANDBOOK)
    assert table.original_ids.equals(pa.array([30, 20, 10]))
    assert table.transaction_id.to_pylist() == ["30", "20", "10"]
    write_table(tmp_path / "whole.csv", _own(3, transaction_id=numbers))
    table = read_payments(tmp_path / "whole.csv", HANDBOOK)
    assert table.original_ids.equals(numbers)
    write_table(tmp_path / "padded.csv", _own(2, transaction_id=["007", "008"]))
    assert read_payments(tmp_path / "padded.csv", HANDBOOK).original_ids.to_pylist() == [
        "007",
        "008",
    ]


@pytest.mark.parametrize(
    "cards",
    [
        pa.array([12, None, 12]),
        pa.array([12.0, None, 12.0]),
        pa.array(["12", None, "12"], pa.large_string()),
        pa.array(["12", None, "12"], pa.string_view()),
        pa.array(["12", None, "12"]).dictionary_encode(),
        pa.array([12, None, 12]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([1, 0, 2]), pa.array(["9", "12", "12"])).take(
            pa.array([0, None, 2])
        ),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["12", None])),
        pd.Categorical(["12", None, "12"]),
        pd.Series([12, None, "12"], dtype=object),
        pd.Series([12.0, None, 12]),
    ],
)
def test_identifiers_of_every_type(cards: Any) -> None:
    """An id is its digits, whatever type a library made of them."""
    sources = [_own(3).to_pandas().assign(card=cards)]
    if isinstance(cards, pa.Array):
        sources.append(_own(3, card=cards))
    for source in sources:
        table = read_payments(source, HANDBOOK)
        check_structure(table)
        assert table.entities["card"].texts().to_pylist() == ["12", None, "12"]


def test_categories_are_text_whatever_their_type() -> None:
    plain = _own(3, merchant=["m"] * 3, category=[True, None, False])
    assert contents(read_payments(plain, SPARKOV))["categories"]["category"] == [
        "true",
        None,
        "false",
    ]
    numbers = _own(3, merchant=["m"] * 3, category=[1.5, 2.0, None])
    assert contents(read_payments(numbers, SPARKOV))["categories"]["category"] == ["1.5", "2", None]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([True, False, None]),
        pa.array([1, 0, None], pa.int8()),
        pa.array([1.0, 0.0, None]),
        pd.Series([True, False, None], dtype="boolean"),
        pd.Series([1, False, None], dtype=object),
    ],
)
def test_labels_of_every_type(labels: Any) -> None:
    table = read_payments(_own(3).to_pandas().assign(fraud=labels), HANDBOOK)
    assert table.ever("fraud").tolist() == [True, False, False]
    assert table.facts.known_at_ms.tolist() == [int(table.time_ms[0]) + WEEK_MS]
    with pytest.raises(KeyError):
        table.ever("stolen")


@pytest.mark.parametrize("words", ["true,false,", "True,False,", "1,0,", "t,f,", "TRUE,0,null"])
def test_labels_in_csv(words: str, tmp_path: Path) -> None:
    rows = "".join(f"{i},{10**12 + i},5,c,{w}\n" for i, w in enumerate(words.split(",")))
    (tmp_path / "a.csv").write_text("transaction_id,time_ms,amount,card,fraud\n" + rows)
    table = read_payments(tmp_path / "a.csv", HANDBOOK)
    assert table.ever("fraud").tolist() == [True, False, False]


def test_absent_numbers_in_csv(tmp_path: Path) -> None:
    """Spellings of nothing are absent in numbers, and text in categories."""
    cells = ["", "NaN", "nan", "NA", "null", "0.5"]
    rows = "".join(f"{i},{10**12 + i},5,c,{cell},{cell}\n" for i, cell in enumerate(cells))
    (tmp_path / "a.csv").write_text("transaction_id,time_ms,amount,card,risk,mcc\n" + rows)
    table = read_payments(tmp_path / "a.csv", SPECIFICATION)
    assert contents(table)["numbers"]["risk"] == [None] * 5 + [0.5]
    assert contents(table)["categories"]["mcc"] == [None, *cells[1:]]


def test_columns_that_nothing_reads_are_not_looked_at() -> None:
    source = _own(2, latitude=[91.0, 0.0], note=["x" * 300, "y"], fraud_scenario=[[1], []])
    assert len(read_payments(source, HANDBOOK)) == 2


def test_what_a_source_lacks_is_said() -> None:
    table = read_payments(_own(2), SPECIFICATION)
    absent = {"merchant", "risk", "mcc", "channel", "declined", "fraud", "location"}
    assert set(table.absent) == absent
    assert table.location is not None
    assert table.located is not None
    assert not table.located.any()
    assert contents(table)["entities"]["merchant"] == [None, None]


def test_kept_columns_come_along_in_arrival_order() -> None:
    source = _own(3, time_ms=[9e11, 7e11, 8e11], amount_minor=[1, -1, 3], score=[0.1, 0.2, 0.3])
    table = read_payments(source, HANDBOOK, keep=["score", "card"])
    assert table.kept["score"].to_pylist() == [0.3, 0.1]
    assert table.kept["card"].to_pylist() == ["c-1", "c-1"]
    with pytest.raises(BadFile, match="verdict"):
        read_payments(source, HANDBOOK, keep=["verdict"])


def test_a_source_is_a_file_a_frame_or_a_list() -> None:
    strange: tuple[Any, ...] = (5, None, {"transaction_id": "t"}, (row for row in [PAYMENT]))
    for one in strange:
        with pytest.raises(TypeError):
            read_payments(one, HANDBOOK)
    with pytest.raises(TypeError):
        read_payments([PAYMENT], SPECIFICATION, columns="freshscore")


def test_no_rows_in_memory_are_a_table_without_rows() -> None:
    sources: tuple[Any, ...] = ([], _own(0), _own(0).to_pandas(), pd.DataFrame([flat(PAYMENT)])[:0])
    for source in sources:
        table = read_payments(source, SPECIFICATION)
        check_structure(table)
        assert len(table) == len(table.rejected) == len(table.facts) == 0
        assert list(table.transactions()) == []


def test_the_shared_sparkov_file() -> None:
    """Data that this project's code did not make."""
    if not SPARKOV_FILE.exists():
        pytest.skip(f"the trial data is not beside the repository: {SPARKOV_FILE.name}")
    table = read_payments(SPARKOV_FILE, SPARKOV)
    check_structure(table)
    plain = pq.read_table(SPARKOV_FILE).to_pandas()
    assert (len(table), len(table.rejected), table.absent) == (408_140, 0, ())
    assert len(table.facts) == int(plain.is_fraud.sum()) == 2_672
    assert len(table.entities["card"].values) == 931
    assert len(table.entities["merchant"].values) == 693
    assert len(table.categories["category"].values) == 14
    assert int(table.amount_minor.sum()) == round(plain.amount.sum() * 100)
    assert (table.facts.known_at_ms - table.time_ms[table.facts.row] == WEEK_MS).all()
    at = 1_234
    row = plain.iloc[at]
    transaction = table.transaction(at)
    assert transaction.transaction_id == row.transaction_id
    assert transaction.time == row.timestamp.value // 10**6
    assert transaction.entities == {"card": row.card_id, "merchant": row.merchant_id}
    assert transaction.location == pytest.approx((row.merchant_lat, row.merchant_long), abs=1e-6)
    assert transaction.fields["category"] == row.category
    lat1, lon1, lat2, lon2 = (
        math.radians(float(row[name]))
        for name in ("card_lat", "card_long", "merchant_lat", "merchant_long")
    )
    # By the spherical law of cosines, which is not what the reader uses.
    cosine = math.sin(lat1) * math.sin(lat2) + math.cos(lat1) * math.cos(lat2) * math.cos(
        lon2 - lon1
    )
    assert transaction.fields["home_distance_km"] == pytest.approx(6371.0088 * math.acos(cosine))


def test_a_derived_field_gives_way_to_a_column_of_its_name() -> None:
    places = {name: [1.0, 2.0] for name in ("card_lat", "card_long", "merchant_lat")}
    columns = {
        "time_ms": None,
        "amount_minor": None,
        "card": None,
        "timestamp": [1_546_300_800, 1_546_300_801],
        "amount": [1.0, 2.0],
        "card_id": ["c", "c"],
        "merchant_id": ["m", "m"],
        **places,
        "merchant_long": [1.0, None],
    }
    table = read_payments(_own(2, **columns), SPARKOV)
    assert contents(table)["numbers"]["home_distance_km"] == [0.0]
    assert table.time_ms.tolist() == [1_546_300_800_000]
    assert table.rejected.counts() == {"location": 1}
    named = read_payments(_own(2, **columns, home_distance_km=[7.0, 8.0]), SPARKOV)
    assert contents(named)["numbers"]["home_distance_km"] == [7.0]


def test_csv_rows_of_another_width_are_set_aside_by_their_number(tmp_path: Path) -> None:
    """Over several of the reader's blocks, which it reads at the same time."""
    n, broken = 60_000, {17: "t-17", 30_000: "t,1,2,3,4,5", 59_999: "t-59999,5"}
    lines = [broken.get(i, f"t-{i},{10**12 + i},{i % 7}.25,card-{i % 100:040d}") for i in range(n)]
    text = "transaction_id,time_ms,amount,card\n" + "\n".join(lines[:20]) + "\n\n"
    (tmp_path / "wide.csv").write_text(text + "\n".join(lines[20:]))
    table = read_payments(tmp_path / "wide.csv", HANDBOOK)
    check_structure(table)
    assert table.rejected.row.tolist() == sorted(broken)
    assert table.rejected.counts() == {"row": 3}
    assert table.transaction_id.to_pylist() == [f"t-{row}" for row in table.row.tolist()]
    assert len(table) == n - 3


def test_arrow_written_csv_is_read_back(tmp_path: Path) -> None:
    source = _own(3, card=['a,"b"', "x\ny", None])
    arrow_csv.write_csv(source, tmp_path / "a.csv")
    table = read_payments(tmp_path / "a.csv", HANDBOOK)
    assert table.entities["card"].texts().to_pylist() == ['a,"b"', "x\ny", None]
