"""Results reach their file whole or not at all."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshscore.config.errors import BadFile
from freshscore.features.writing import write_table

COLUMNS = {
    "transaction_id": pa.array([3, 1]),
    "amount": np.array([0.1, math.nan]),
    "name": ["a,b", None],
}


@pytest.mark.parametrize("name", ["out.parquet", "OUT.PARQUET"])
def test_columns_reach_parquet(name: str, tmp_path: Path) -> None:
    write_table(tmp_path / name, {"old": [1]})
    write_table(str(tmp_path / name), COLUMNS)
    table = pq.read_table(tmp_path / name)
    assert table.column_names == [*COLUMNS]
    assert table["transaction_id"].to_pylist() == [3, 1]
    assert table["name"].to_pylist() == ["a,b", None]
    amounts = table["amount"]
    assert amounts.null_count == 0
    assert math.isnan(amounts.to_pylist()[1])
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_columns_reach_csv(tmp_path: Path) -> None:
    write_table(tmp_path / "out.csv", {"old": [1]})
    write_table(tmp_path / "out.csv", pa.table(COLUMNS))
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines == ['"transaction_id","amount","name"', '3,0.1,"a,b"', "1,nan,"]
    assert [one.name for one in tmp_path.iterdir()] == ["out.csv"]


@given(values=st.lists(st.floats(), min_size=1))
def test_doubles_survive_csv(values: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    """To the bit, which is what a comparison of files needs."""
    path = tmp_path_factory.mktemp("doubles") / "out.csv"
    write_table(path, {"x": np.array(values)})
    back = [float(line) for line in path.read_text().splitlines()[1:]]
    assert (
        np.array(back).tobytes() == np.array([v if v == v else math.nan for v in values]).tobytes()
    )


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"\.parquet or \.csv"):
        write_table(tmp_path / "out.json", COLUMNS)
    assert not [*tmp_path.iterdir()]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_table(path, {"a": [1]})
    before = path.read_bytes()
    with pytest.raises(pa.ArrowInvalid):
        # Lists have no form in CSV: the writer finds out after the header.
        write_table(path, {"a": pa.array([[1, 2]])})
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["out.csv"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"cannot write out\.csv: No such file"):
        write_table(tmp_path / "missing" / "out.csv", COLUMNS)
    (tmp_path / "taken.csv").mkdir()
    with pytest.raises(BadFile, match=r"cannot write taken\.csv"):
        write_table(tmp_path / "taken.csv", COLUMNS)
    assert [one.name for one in tmp_path.iterdir()] == ["taken.csv"]
