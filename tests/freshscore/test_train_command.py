"""`freshscore train`: the champion, the figures, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from freshscore.scoring.registry import HISTORY, Registry
from tests.freshscore.stored_models import SPECIFICATION, payments, run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "payments.parquet"
    payments().to_parquet(path)
    return path


def test_what_was_trained_is_champion(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, figures_file = tmp_path / "store", tmp_path / "figures.json"
    words = ["--data", data, *SPECIFICATION, "--store", store]
    assert run("train", *words, "--json", figures_file) == 0
    champion = Registry(store / "models").champion()
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "seed 7"
    assert f"champion of {store}: {champion.version}" in said.out
    assert "trees: 8 of 8 (100 %)" in said.err
    figures = json.loads(figures_file.read_text())
    assert figures["version"] == champion.version
    assert figures["payments trained on"] + figures["later payments held back"] == len(payments())
    assert figures["rejected"] == {}
    assert not (store / "state").exists()


def test_without_a_folder_it_goes_where_the_other_commands_look(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", "--data", data, *SPECIFICATION) == 0
    assert (tmp_path / "freshscore-data" / "models" / HISTORY).exists()
    assert run("models", "show") == 0


def test_training_again_gives_the_same_content(data: Path, tmp_path: Path) -> None:
    contents = set()
    for number in range(2):
        figures_file = tmp_path / f"figures{number}.json"
        words = ["--data", data, *SPECIFICATION, "--store", tmp_path / f"store{number}"]
        assert run("train", *words, "--json", figures_file) == 0
        contents.add(json.loads(figures_file.read_text())["content, whenever made"])
    assert len(contents) == 1


def test_dates_bound_what_is_trained_on(data: Path, tmp_path: Path) -> None:
    store, figures_file = tmp_path / "store", tmp_path / "figures.json"
    limits = ["--from", "2018-04-10", "--to", "2018-05-10T12:00:00+00:00"]
    words = ["--data", data, *SPECIFICATION, "--store", store, *limits]
    assert run("train", *words, "--json", figures_file) == 0
    figures = json.loads(figures_file.read_text())
    times = payments().TX_DATETIME
    inside = (times >= "2018-04-10") & (times < "2018-05-10 12:00")
    counted = figures["payments trained on"] + figures["later payments held back"]
    assert counted == inside.sum()
    assert run("train", *words[:6], "--known-by", "2018-05-01", "--json", figures_file) == 0
    matured = json.loads(figures_file.read_text())
    counted = matured["payments trained on"] + matured["later payments held back"]
    assert counted == (times <= "2018-04-24").sum()


def test_bad_rows_are_counted_and_listed_and_the_good_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = payments()
    frame.loc[[3, 5, 8], "TX_AMOUNT"] = [-1.0, np.nan, np.inf]
    data, figures_file = tmp_path / "bad.parquet", tmp_path / "figures.json"
    frame.to_parquet(data)
    words = ["--data", data, *SPECIFICATION, "--store", tmp_path / "store"]
    assert run("train", *words, "--json", figures_file) == 0
    said = capsys.readouterr().err
    assert "bad.parquet: 3 rows set aside (amount 3)" in said
    assert all(f"row {row}: amount: " in said for row in (3, 5, 8))
    assert json.loads(figures_file.read_text())["rejected"] == {"amount": 3}


def test_the_listing_of_bad_rows_has_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = payments()
    frame.loc[:9, "TX_AMOUNT"] = -1.0
    data = tmp_path / "bad.parquet"
    frame.to_parquet(data)
    words = ["--data", data, *SPECIFICATION, "--store", tmp_path / "store"]
    assert run("train", *words, "--settings", "input.max_listed_rows=2") == 0
    said = capsys.readouterr().err
    assert said.count("  row ") == 2
    assert "and 8 more" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--label", "chargeback"], "no fact 'chargeback'"),
        (["--from", "2030-01-01"], "none of them to train on"),
        (["--spec", "nothing"], "no specification 'nothing' ships"),
        (["--columns", "sparkov"], "sparkov lacks"),
        (["--cohort", "a=country:BE"], "field 'country'"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(
    words: list[str], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    assert run("train", "--data", data, *SPECIFICATION, "--store", store, *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not store.exists()


@pytest.mark.parametrize("words", [["--from", "soon"], ["--cohort", "a"]])
def test_wrong_words_are_wrong_usage(words: list[str], data: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run("train", "--data", data, *words)
    assert ended.value.code == 2


def test_a_file_without_a_good_row_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "bad.parquet"
    payments().head(9).assign(TX_AMOUNT=-1.0).to_parquet(data)
    assert run("train", "--data", data, *SPECIFICATION, "--store", tmp_path / "s") == 2
    assert "none of its 9 rows is a payment" in capsys.readouterr().err
