"""`freshscore models evaluate`: the protocol's figures, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from freshscore.scoring.registry import Registry
from freshscore.simulations import evaluation
from freshscore.simulations.evaluation import Evaluation
from freshscore.simulations.generator import Parameters
from freshscore.simulations.protocol import Performance, Split
from tests.freshscore.stored_models import payments, run

SMALL = ("--customers", "50", "--terminals", "100")
# 60 days hold a training week, a week of delay and a test.
START = ("--start", "2018-05-01")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "payments.parquet"
    payments(60).to_parquet(path)
    return path


def test_seeds_are_printed_first_and_each_has_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures_file = tmp_path / "figures.json"
    words = [*SMALL, *START, "--seeds", "3", "4", "--json", figures_file]
    assert run("models", "evaluate", *words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        "Handbook protocol: training 7 days from 2018-05-01, test 7 days from 2018-05-15;"
        " a model trained there",
        "seeds 3 4",
    ]
    figures = json.loads(figures_file.read_text())
    assert [one["seed"] for one in figures["seeds"]] == [3, 4]
    for one, metric in zip(figures["summary"], ("AUC ROC", "average precision"), strict=False):
        values = [of_seed[metric] for of_seed in figures["seeds"]]
        assert one["metric"] == metric
        assert one["mean"] == pytest.approx(sum(values) / 2)
        assert (one["lowest"], one["highest"]) == (min(values), max(values))
        assert "handbook.md" not in one


def test_a_file_is_evaluated_and_perfect_scores_bound_the_precision(
    data: Path, tmp_path: Path
) -> None:
    figures_file = tmp_path / "figures.json"
    words = ["--data", data, "--spec", "handbook", *START, "--json", figures_file]
    assert run("models", "evaluate", *words) == 0
    figures = json.loads(figures_file.read_text())
    times = payments(60).TX_DATETIME
    assert figures["trained on"] == ((times >= "2018-05-01") & (times < "2018-05-08")).sum()
    assert 0.5 < figures["AUC ROC"] <= 1.0
    assert figures["card precision@100"] <= figures["perfect card precision"]


def test_a_registered_model_is_evaluated_as_it_is(data: Path, tmp_path: Path) -> None:
    store, figures_file = tmp_path / "store", tmp_path / "figures.json"
    spec = ("--spec", "handbook", "--store", store)
    assert run("train", "--data", data, *spec, "--to", "2018-05-08") == 0
    version = Registry(store / "models").champion().version
    words = ["--data", data, *spec, *START, "--model", version]
    assert run("models", "evaluate", *words, "--json", figures_file) == 0
    figures = json.loads(figures_file.read_text())
    assert figures["trained on"] == 0
    assert figures["AUC ROC"] > 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "1"], "--seeds generates payments"),
        (["--start", "2019-01-01"], "no payments to train on in the 7 days from 2019-01-01"),
        (["--start", "2018-05-23"], "no payments to test with"),
        (["--start", "2018-05-01T12:00"], "it must be a midnight"),
        (["--label", "late"], "has no fact 'late'"),
        (["--model", "1999"], "no model has version '1999'"),
    ],
)
def test_what_cannot_be_evaluated_is_said(
    words: list[str], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ["--spec", "handbook", "--store", tmp_path]
    start = [] if "--start" in words else START
    assert run("models", "evaluate", "--data", data, *spec, *start, *words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("auc_roc", "code"), [(0.884 - 0.029, 0), (0.884 - 0.031, 1)])
def test_figures_far_from_the_published_ones_fail_the_check(
    auc_roc: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean over the seeds counts, each metric within its own distance."""
    found = Performance(100, 10, auc_roc, 0.647, 0.290)
    one = Evaluation(trained=100, trained_frauds=10, performance=found, best=found)
    monkeypatch.setattr(evaluation, "evaluated", lambda *arguments, **options: one)
    monkeypatch.setattr(
        evaluation, "generated_payments", lambda *arguments: pa.Table.from_pandas(payments(2))
    )
    assert run("models", "evaluate", "--seeds", "1") == code
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    missed = [words[:2] for words in rows if words[-1:] == ["no"]]
    assert missed == ([["AUC", "ROC"]] if code else [])


def test_generated_payments_begin_before_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "evaluate", *SMALL, "--start", "2018-03-01") == 2
    assert "after the training does" in capsys.readouterr().err


def test_the_published_split_is_the_default() -> None:
    """No other part of the command says when the Handbook trains and tests."""
    days = (Split().test_end_ms - Parameters().start_ms) / 86_400_000
    assert days == 136
