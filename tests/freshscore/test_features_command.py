"""`freshscore features compute`: what is written, in which order, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from freshscore.features.history import history_features
from freshscore.features.program import compiled
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.scoring.training_sets import training_keys
from tests.features.handbook_in_pandas import handbook_features
from tests.freshscore.stored_models import payments, run

HANDBOOK = FeatureSpecification.shipped("handbook")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "payments.parquet"
    payments().to_parquet(path)
    return path


def test_the_file_has_the_handbooks_features_in_its_own_order(data: Path, tmp_path: Path) -> None:
    shuffled = payments().sample(frac=1.0, random_state=3).reset_index(drop=True)
    shuffled.to_parquet(data)
    out, figures = tmp_path / "features.parquet", tmp_path / "figures.json"
    assert run(*_words(data, out), "--json", figures) == 0
    written = pd.read_parquet(out)
    assert list(written.columns) == ["transaction_id", "time", *HANDBOOK.feature_names]
    assert written["transaction_id"].tolist() == shuffled["TRANSACTION_ID"].tolist()
    assert written["transaction_id"].dtype == shuffled["TRANSACTION_ID"].dtype
    assert (written["time"].dt.tz_localize(None) == shuffled["TX_DATETIME"]).all()
    in_time = payments()
    expected = handbook_features(in_time).set_index(in_time["TRANSACTION_ID"])
    found = written.set_index("transaction_id").loc[in_time["TRANSACTION_ID"]]
    for name in HANDBOOK.feature_names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12)
    said = json.loads(figures.read_text())
    assert said["payments"] == len(in_time)
    assert (said["specification"], said["mode"], said["rejected"]) == ("handbook", "known", {})


def test_csv_and_parquet_have_the_same_values(data: Path, tmp_path: Path) -> None:
    parquet, csv = tmp_path / "features.parquet", tmp_path / "features.csv"
    for out in (parquet, csv):
        assert run(*_words(data, out, "payments")) == 0
    one = pd.read_parquet(parquet)
    other = pd.read_csv(csv)
    assert one["device_count_1h"].isna().all()
    pd.testing.assert_frame_equal(
        one.drop(columns="time"),
        other.drop(columns="time"),
        check_dtype=False,
        check_exact=True,
    )


def test_modes_differ_where_payments_arrive_late(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "transaction_id": ["a", "b"],
            "time_ms": [1_600_000_000_000, 1_600_000_060_000],
            "arrival_ms": [1_600_000_120_000, 1_600_000_060_000],
            "amount_minor": [100, 200],
            "card": ["c", "c"],
            "merchant": ["m", "m"],
        }
    )
    data = tmp_path / "late.parquet"
    frame.to_parquet(data)
    counts = {}
    for mode in ("known", "true"):
        out = tmp_path / f"{mode}.parquet"
        assert run(*_words(data, out), "--mode", mode) == 0
        counts[mode] = pd.read_parquet(out)["card_count_1d"].tolist()
    assert counts == {"known": [1.0, 1.0], "true": [1.0, 2.0]}


def test_categories_are_written_as_they_are(tmp_path: Path) -> None:
    specification = tmp_path / "own.toml"
    specification.write_text(
        'name = "own"\ncurrency = "EUR"\n'
        'features = [{ name = "shop", function = "category", of = "mcc" }]\n'
    )
    data, out = tmp_path / "payments.csv", tmp_path / "features.parquet"
    data.write_text(
        "transaction_id,time_ms,amount_minor,mcc\na,1600000000000,1,5411\nb,1600000000001,2,\n"
    )
    assert run(*_words(data, out, specification)) == 0
    assert pq.read_table(out)["shop"].to_pylist() == ["5411", None]


def test_rows_set_aside_are_counted_and_not_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = payments()
    frame.loc[5, "TX_AMOUNT"] = -1.0
    frame.to_parquet(data)
    out = tmp_path / "features.parquet"
    assert run(*_words(data, out)) == 0
    assert len(pd.read_parquet(out)) == len(frame) - 1
    assert "1 rows set aside" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("--spec", "nothing"),
        ("--data", "missing.parquet"),
        ("--out", "features.txt"),
        ("--out", "no/such/folder/features.parquet"),
        ("--mode", "guessed"),
    ],
)
def test_bad_usage_is_refused_and_nothing_written(
    data: Path, tmp_path: Path, words: tuple[str, str]
) -> None:
    out = tmp_path / "features.parquet"
    assert _code_of(*_words(data, out), *words) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["payments.parquet"]


def test_a_feature_called_like_a_column_of_the_file_is_refused(data: Path, tmp_path: Path) -> None:
    specification = tmp_path / "own.toml"
    specification.write_text(
        'name = "own"\ncurrency = "EUR"\nfeatures = [{ name = "time", function = "hour" }]\n'
    )
    assert run(*_words(data, tmp_path / "features.parquet", specification)) == 2


def test_the_file_has_what_history_gives_bit_for_bit(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    assert run(*_words(data, out)) == 0
    table = read_payments(data, HANDBOOK)
    program = compiled(HANDBOOK)
    expected = history_features(table, program, training_keys(program))
    found = pd.read_parquet(out)[list(HANDBOOK.feature_names)].to_numpy()
    assert np.array_equal(found, expected, equal_nan=True)


def _code_of(*words: object) -> object:
    """The exit code, also where the parser is who ends."""
    try:
        return run(*words)
    except SystemExit as end:
        return end.code


def _words(data: Path, out: Path, specification: str | Path = "handbook") -> tuple[object, ...]:
    return ("features", "compute", "--spec", specification, "--data", data, "--out", out)
