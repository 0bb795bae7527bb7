"""`freshscore replay`: what it prints and writes, which model it takes, and when it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from freshscore import replaying
from freshscore.scoring.registry import Registry
from freshscore.simulations.equality import Equality
from freshscore.simulations.replay import Replay
from tests.freshscore.stored_models import SPECIFICATION, payments, run, trained_store


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small file, in a folder of its own, where the report then lands too."""
    monkeypatch.chdir(tmp_path)
    frame = payments()
    frame["OLD"] = frame.TX_AMOUNT > 150
    path = tmp_path / "payments.parquet"
    frame.to_parquet(path)
    return path


def test_it_replays_with_a_model_of_what_came_before(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures_file = tmp_path / "figures.json"
    words = ["--data", data, *SPECIFICATION, "--rescore", "reuse", "--json", figures_file]
    assert run("replay", *words) == 0
    said = capsys.readouterr().out
    first, second, *_ = said.splitlines()
    assert first.startswith("seed 1; in the file: ")
    assert "simulated (shape reuse): " in first
    assert "trained now (no champion yet)" in second
    assert "it has seen nothing of what is replayed" in second
    assert "equality check holds" in said
    assert said.splitlines()[-1] == "report: freshscore-replay.html"
    assert (tmp_path / "freshscore-replay.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    figures = json.loads(figures_file.read_text())
    assert figures["equality"]["holds"] is True
    assert figures["seed"] == 1
    # What is trained for a replay is nobody's champion.
    assert not (tmp_path / "freshscore-data").exists()


def test_the_model_is_trained_on_nothing_that_is_then_replayed(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    run_replay = replaying.run_replay

    def keep(stream: Any, model: Any, *rest: Any, **options: Any) -> Any:
        seen.append((stream, model))
        return run_replay(stream, model, *rest, **options)

    monkeypatch.setattr(replaying, "run_replay", keep)
    assert run("replay", "--data", data, *SPECIFICATION, "--from", "2018-05-10") == 0
    stream, model = seen[0]
    assert stream.start_ms == 1_525_910_400_000
    rows = (model.facts.rows or 0) + (model.facts.validation_rows or 0)
    before = stream.table.time_ms < stream.start_ms - 7 * 86_400_000
    # Labels of the last week were not known yet.
    assert abs(rows - int(before.sum())) <= 1
    assert (model.facts.last_ms or 0) < stream.start_ms


def test_the_champion_is_used_if_it_fits_and_said_if_it_may_have_seen_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store = trained_store(tmp_path)
    champion = Registry(store / "models").champion()
    file = ["--data", tmp_path / "payments.parquet"]
    capsys.readouterr()
    assert run("replay", *file, *SPECIFICATION, "--store", store, "--from", "2018-05-10") == 0
    second = capsys.readouterr().out.splitlines()[1]
    assert second.startswith(f"The champion {champion.version}, trained on payments up to")
    assert run("replay", *file, *SPECIFICATION, "--store", store, "--from", "2018-04-20") == 0
    assert "it may have seen what is replayed" in capsys.readouterr().out.splitlines()[1]
    named = ["--model", champion.version.partition("-")[2][:6]]
    assert run("replay", *file, *SPECIFICATION, "--store", store, *named) == 0
    assert f"Model {champion.version}" in capsys.readouterr().out


def test_a_champion_of_another_specification_is_passed_over_but_not_one_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store = trained_store(tmp_path)
    words = ["--data", tmp_path / "payments.parquet", "--spec", "payments", "--store", store]
    capsys.readouterr()
    assert run("replay", *words, "--oracle", "none") == 0
    assert "the champion does not fit specification payments" in capsys.readouterr().out
    version = Registry(store / "models").champion().version
    assert run("replay", *words, "--model", version) == 2
    assert "was made for specification handbook" in capsys.readouterr().err


def test_an_incumbents_decisions_are_compared(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", data, *SPECIFICATION, "--incumbent", "OLD", "--json", tmp_path / "f.json"]
    assert run("replay", *words) == 0
    assert "Decisions that differ from OLD" in capsys.readouterr().out
    incumbent = json.loads((tmp_path / "f.json").read_text())["incumbent"]
    assert incumbent["compared"] > 100
    assert sum(one["payments"] for one in incumbent["differences"]) > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--incumbent", "TX_AMOUNT"], "a decision is 0 or 1"),
        (["--incumbent", "NOBODY"], "NOBODY"),
        (["--rescore", "often"], "no shape is called 'often'"),
        (["--from", "2030-01-01"], "no payment"),
        (["--to", "2010-01-01"], "no payment"),
        (["--model", "20180101"], "no model has version"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_2(
    data: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("replay", "--data", data, *SPECIFICATION, *words) == 2
    assert said in capsys.readouterr().err


def test_a_broken_law_is_exit_code_1_and_the_report_is_written_all_the_same(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(played: Replay, *rest: Any, **options: Any) -> Equality:
        return Equality(10, 1, 10, 0, ())

    monkeypatch.setattr(replaying, "checked", broken)
    report = tmp_path / "there" / "r.html"
    assert run("replay", "--data", data, *SPECIFICATION, "--report", report) == 1
    assert "equality check FAILED" in capsys.readouterr().out
    assert "Served scores differ" in report.read_text("utf-8")


def test_without_matplotlib_there_are_tables_but_no_report(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("report", "drawing"):
        monkeypatch.delitem(sys.modules, f"freshscore.simulations.{name}", raising=False)
    words = ["--data", data, *SPECIFICATION, "--oracle", "none"]
    assert run("replay", *words) == 0
    assert "freshscore[report]" in capsys.readouterr().out.splitlines()[-1]
    assert run("replay", *words, "--report", tmp_path / "r.html") == 2
    assert "freshscore[report]" in capsys.readouterr().err
