"""Files that are damaged, cut short, empty or of another kind are BadFile, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from freshscore.config.errors import BadFile
from freshscore.features.reading import read_payments
from freshscore.features.sources import RawColumn, Source, _unreadable, opened
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import Problem
from freshscore.features.text_columns import coded_column, identifiers
from freshscore.features.writing import write_table
from tests.features.payment_forms import PAYMENT, check_structure, contents, flat

HANDBOOK = FeatureSpecification.shipped("handbook")
HEADER = "transaction_id,time_ms,amount,card\n"


def _payments(n: int) -> pa.Table:
    rows = [flat(PAYMENT | {"transaction_id": f"t-{i}"}) for i in range(n)]
    return pa.table({name: [row[name] for row in rows] for name in rows[0]})


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "", "the file is empty"),
        ("a.csv", HEADER, "the file has no rows"),
        ("a.csv", HEADER + "\n\n", "the file has no rows"),
        ("a.csv", "\n", "the file is empty"),
        ("a.csv", "transaction_id;time_ms;amount;card\na;1;2;c\n", "fit no column map"),
        ("a.csv", HEADER.replace("card", "amount") + "a,1,2,3\n", "more than once: amount"),
        ("a.csv", HEADER.encode("utf-16"), "cannot read a.csv: its first line is no UTF-8 text"),
        ("a.csv", HEADER.encode("utf-16-be"), "cannot read a.csv: its first line is no UTF-8"),
        ("a.csv", "card_é\na".encode("latin-1"), "cannot read a.csv: its first line is no UTF-8"),
        ("a.csv", b"PAR1\x00\x15\x04\nPAR1", "cannot read a.csv: its first line is no UTF-8"),
        ("a.parquet", b"", "cannot read a.parquet"),
        ("a.parquet", b"PAR1", "cannot read a.parquet"),
        ("a.parquet", HEADER + "a,1,2,c\n" * 50, "cannot read a.parquet"),
        ("a.json", "{}", "ends in .parquet or .csv"),
        ("a", "", "ends in .parquet or .csv"),
    ],
)
def test_what_is_no_file_of_payments_is_refused(
    name: str, content: str | bytes, says: str, tmp_path: Path
) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(BadFile, match=says):
        read_payments(tmp_path / name, HANDBOOK)


@pytest.mark.parametrize("name", ["missing.parquet", "missing.csv", "folder.csv", "folder.parquet"])
def test_what_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(BadFile, match=f"cannot read {name}"):
        read_payments(str(tmp_path / name), HANDBOOK)


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", _payments(3).slice(0, 0))
    with pytest.raises(BadFile, match="no rows"):
        read_payments(tmp_path / "a.parquet", HANDBOOK)


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    twice = _payments(1).append_column("card", pa.array(["c"]))
    pq.write_table(twice, tmp_path / "a.parquet")
    frame = _payments(1).to_pandas()
    for source in (twice, tmp_path / "a.parquet", pd.concat([frame, frame[["card"]]], axis=1)):
        with pytest.raises(BadFile, match="more than once: card"):
            read_payments(source, HANDBOOK)


def test_parquet_cut_at_any_length_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "whole.parquet", _payments(200))
    whole = (tmp_path / "whole.parquet").read_bytes()
    file = tmp_path / "cut.parquet"
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(BadFile):
            read_payments(file, HANDBOOK)


def test_damaged_parquet_is_refused_or_read_as_it_was(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """Page checksums find what damage does to values; the rest of the file is its structure."""
    write_table(tmp_path / "whole.parquet", _payments(200))
    whole = bytearray((tmp_path / "whole.parquet").read_bytes())
    whole_table = read_payments(tmp_path / "whole.parquet", HANDBOOK)
    file, refused = tmp_path / "damaged.parquet", 0
    for place in rng.integers(0, len(whole), 300).tolist():
        damaged = whole.copy()
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        try:
            table = read_payments(file, HANDBOOK)
        except BadFile:
            refused += 1
        else:
            check_structure(table)
            # A name in the schema may be what was hit: that column is then another one.
            assert table.absent != whole_table.absent or contents(table) == contents(whole_table)
    assert refused > 0


def test_csv_cut_at_any_length_loses_the_last_row_at_most(tmp_path: Path) -> None:
    """A cut within the last cell cannot be seen in this format."""
    rows = [f"t-{i},{10**12 + i},5.25,card-{i}" for i in range(5)]
    whole = (HEADER + "\n".join(rows) + "\n").encode()
    for length in range(len(HEADER) + 1, len(whole) + 1):
        (tmp_path / "cut.csv").write_bytes(whole[:length])
        table = read_payments(tmp_path / "cut.csv", HANDBOOK)
        complete = whole[len(HEADER) : length].count(b"\n")
        assert table.transaction_id.to_pylist()[:complete] == [f"t-{i}" for i in range(complete)]
        assert complete <= len(table) + len(table.rejected) <= complete + 1


def test_damaged_csv_is_refused_or_loses_rows(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = [f"t-{i},{10**12 + i},5.25,card-{i}" for i in range(50)]
    whole = bytearray((HEADER + "\n".join(rows) + "\n").encode())
    for place in rng.integers(len(HEADER), len(whole), 200).tolist():
        damaged = whole.copy()
        damaged[place] = int(rng.integers(256))
        (tmp_path / "damaged.csv").write_bytes(damaged)
        try:
            table = read_payments(tmp_path / "damaged.csv", HANDBOOK)
        except BadFile:
            continue
        check_structure(table)


@pytest.mark.parametrize(
    "damage",
    ["a,", "a,1,2,3,4,"],
)
def test_cells_of_csv_that_are_no_utf8_are_wrong_alone(
    damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in Parquet; also beside rows of another width that are no UTF-8 either."""
    lines = [
        b"transaction_id,time,amount,card,note",
        b"a,2019-01-01,1,c,caf\xe9",
        b"b\xe9,2019-01-01,1,c,",
        b"c,2019-01-01\xe9,1,c,",
        b"d,2019-01-01,1\xe9,c,",
        b"e,2019-01-01,1,caf\xe9,",
        damage.encode() + b"\xe9",
        "f,2019-01-01,1,\ufffd é,".encode(),
    ]
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines))
    table = read_payments(tmp_path / "a.csv", HANDBOOK)
    check_structure(table)
    assert contents(table)["entities"]["card"] == ["c", "\ufffd é"]
    assert [(row, one.reason) for row, one in table.rejected.listed(9)] == [
        (1, "transaction_id"),
        (2, "time"),
        (3, "amount"),
        (4, "entity"),
        (5, "row"),
    ]
    assert capfd.readouterr().err == ""


def test_blank_lines_before_the_header_are_none(tmp_path: Path) -> None:
    rows = "a,1000000000000,5,c\nb,1\nc,1000000000001,5,c\n"
    for blank in ("\n", "\n\r\n", "\ufeff\n"):
        (tmp_path / "a.csv").write_bytes((blank + HEADER + rows).encode())
        table = read_payments(tmp_path / "a.csv", HANDBOOK)
        assert table.row.tolist() == [0, 2]
        assert table.rejected.row.tolist() == [1]


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (UnicodeDecodeError("utf-8", b"4929", 0, 1, "invalid"), "UnicodeDecodeError"),
        (OSError("Couldn't read, quoted: '4929'"), "Couldn't read, quoted:"),
        (ValueError("\n4929"), "ValueError"),
        (OSError(), "OSError"),
    ],
)
def test_a_reason_is_never_empty_and_shows_nothing(problem: Exception, said: str) -> None:
    assert str(_unreadable(Path("a.csv"), problem)) == f"cannot read a.csv: {said}"


def test_no_repr_of_what_is_read_shows_content() -> None:
    secret = "4929-secret"
    source = _payments(2).drop_columns(["card", "transaction_id"])
    for name in ("card", "transaction_id"):
        source = source.append_column(name, pa.array([secret, f"{secret}-2"]))
    table = read_payments(source, HANDBOOK)
    assert repr(table).startswith("PaymentTable(2 payments of specification 'handbook'")
    assert repr(table.entities["card"]) == "Coded(2 rows, 2 distinct)"
    raw = RawColumn("card", source["card"].combine_chunks())
    found = opened(source)
    loaded = found.load(["card"], [])
    columns = [identifiers(raw, "ids"), coded_column(raw, "ids"), Problem("a", "b"), loaded]
    for one in (table, table.entities, table.rejected, table.facts, raw, found, *columns):
        assert "secret" not in repr(one)
    first_row = Source("a.csv", (secret,), found.load)
    assert repr(first_row) == "Source('a.csv', 1 columns)"


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("transaction_id", pa.array([True])),
        ("transaction_id", pa.array([b"t-1"])),
        ("transaction_id", pa.array([[1]])),
        ("time_ms", pa.array(["2019-01-01"])),
        ("time_ms", pa.array([True])),
        ("amount_minor", pa.array(["12"])),
        ("amount_minor", pa.array([True])),
        ("amount_minor", pa.array([10**12], pa.timestamp("ms"))),
        ("card", pa.array([True])),
        ("card", pa.array([{"a": 1}])),
        ("kind", pa.array([True])),
        ("currency", pa.array([b"EUR"])),
        ("fraud", pa.array(["true"])),
        ("fraud_known_at", pa.array(["2019-01-01"])),
    ],
)
def test_a_column_of_another_type_is_refused_in_a_file(
    column: str, values: pa.Array, tmp_path: Path
) -> None:
    """All rows would be set aside one by one, and nobody told that the file is another one."""
    source = pa.table({name: [cell] for name, cell in flat(PAYMENT).items() if name != column})
    write_table(tmp_path / "a.parquet", source.append_column(column, values))
    with pytest.raises(BadFile, match=rf"column '{column}' holds"):
        read_payments(tmp_path / "a.parquet", HANDBOOK)


def test_a_column_of_another_type_in_a_frame_is_rows_set_aside() -> None:
    """A frame is a batch: each of its rows gets an answer."""
    frame = _payments(2).to_pandas()
    changes: dict[str, tuple[Any, str]] = {
        "transaction_id": (True, "transaction_id"),
        "time_ms": ("2019-01-01", "time"),
        "amount_minor": ("12", "amount"),
        "card": (True, "entity"),
        "fraud": ("true", "flag"),
    }
    frame = frame.rename(columns={"time": "time_ms"})
    for column, (value, reason) in changes.items():
        table = read_payments(frame.assign(**{column: value}), HANDBOOK)
        assert table.rejected.counts() == {reason: 2}


def test_strings_in_parquet_that_are_no_unicode(tmp_path: Path) -> None:
    """Arrow does not look at the bytes that it reads."""
    bad = pa.array([b"ok", b"\xff\xfe", b"\xc3\xa9"]).cast(pa.binary()).view(pa.string())
    good = _payments(3)
    for column, reason in (("transaction_id", "transaction_id"), ("card", "entity")):
        place = good.schema.get_field_index(column)
        write_table(tmp_path / "a.parquet", good.set_column(place, column, bad))
        table = read_payments(tmp_path / "a.parquet", HANDBOOK)
        check_structure(table)
        assert table.row.tolist() == [0, 2]
        assert table.rejected.counts() == {reason: 1}


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + (HEADER + "a,1000000000000,5,c\n").encode())
    assert len(read_payments(tmp_path / "a.csv", HANDBOOK)) == 1


def test_several_row_groups_are_one_table(tmp_path: Path) -> None:
    """Each group has a dictionary of its own, in another order."""
    cards = pa.array([f"c-{i % 7}" for i in range(100)]).dictionary_encode()
    source = _payments(100).drop_columns(["card"]).append_column("card", cards)
    with pq.ParquetWriter(tmp_path / "a.parquet", source.schema) as writer:
        for start in range(0, 100, 9):
            piece = source.slice(start, 9)
            again = pa.array(piece["card"].to_pylist()).dictionary_encode()
            writer.write_table(piece.set_column(piece.num_columns - 1, "card", again))
    table = read_payments(tmp_path / "a.parquet", HANDBOOK)
    check_structure(table)
    assert table.entities["card"].texts().to_pylist() == [f"c-{i % 7}" for i in range(100)]
