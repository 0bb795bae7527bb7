"""`freshscore backfill`, `score` and `explain`: what is stored, what is written, what is said."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from freshscore.config.settings import Settings
from freshscore.features.history import history_features
from freshscore.features.packing import Packer
from freshscore.features.program import compiled
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.features.transaction import Transaction
from freshscore.invalidation.embedded import EmbeddedState
from freshscore.scoring.registry import Registry
from tests.freshscore.stored_models import SPECIFICATION, payments, run, trained_store

HANDBOOK = FeatureSpecification.shipped("handbook")
TRANSACTION = {
    "transaction_id": "new",
    "time": "2018-05-20T12:00:00+00:00",
    "amount_minor": 12_345,
    "currency": "EUR",
    "entities": {"card": "3", "merchant": "7"},
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return trained_store(tmp_path)


def state_of(store: Path) -> EmbeddedState:
    group = Settings().store.model_copy(
        update={"path": store, "specification": "handbook", "arena_bytes": 1 << 26}
    )
    return EmbeddedState.open(Settings().model_copy(update={"store": group}))


def features_in(store: Path) -> np.ndarray:
    """What the saved store says of every card and merchant at its newest instant."""
    state = state_of(store).store
    packer = Packer(state.program, state.keys)
    frame = payments()[["CUSTOMER_ID", "TERMINAL_ID"]].drop_duplicates()
    asked = [
        Transaction(
            "?", state.newest_ms, 100, "EUR", {"card": str(card), "merchant": str(merchant)}
        )
        for card, merchant in frame.itertuples(index=False)
    ]
    return np.stack([state.features(packer.row(one), state.newest_ms) for one in asked])


def test_backfill_fills_the_store_and_repeating_it_changes_nothing(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, figures_file = tmp_path / "payments.parquet", tmp_path / "figures.json"
    words = ["backfill", "--data", data, *SPECIFICATION, "--store", store, "--json", figures_file]
    assert run(*words) == 0
    once, features = json.loads(figures_file.read_text()), features_in(store)
    assert once["files"][0]["outcomes"]["accepted"] == len(payments())
    assert once["store"]["payments"] == len(payments())
    # Columns 5 and 14: the card's payments in 30 days, the merchant's share of frauds.
    assert features[:, 5].max() > 30
    assert features[:, 14].max() > 0
    assert run(*words) == 0
    twice = json.loads(figures_file.read_text())
    assert "accepted" not in twice["files"][0]["outcomes"]
    np.testing.assert_array_equal(features_in(store), features)
    assert "files: 1 of 1" in capsys.readouterr().err


def test_backfill_of_parts_is_that_of_the_whole(store: Path, tmp_path: Path) -> None:
    frame = payments()
    parts = [tmp_path / f"part{number}.csv" for number in range(2)]
    for number, part in enumerate(parts):
        frame[number::2].to_csv(part, index=False)
    folders = [tmp_path / "of_parts", tmp_path / "of_whole"]
    for folder, files in zip(folders, (parts, [tmp_path / "payments.parquet"]), strict=True):
        assert run("backfill", "--data", *files, *SPECIFICATION, "--store", folder) == 0
    np.testing.assert_array_equal(features_in(folders[0]), features_in(folders[1]))


def test_backfill_of_a_bad_file_leaves_the_store_as_it_was(store: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "payments.parquet", tmp_path / "bad.parquet"
    bad.write_bytes(good.read_bytes()[:-50])
    words = ["backfill", "--data", good, bad, *SPECIFICATION, "--store", store]
    assert run(*words) == 2
    assert not (store / "state").exists()


def test_backfill_of_a_bad_file_makes_no_store(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("a,b\n1,2\n")
    assert run("backfill", "--data", bad, *SPECIFICATION, "--store", tmp_path / "new") == 2
    assert [one.name for one in tmp_path.iterdir()] == ["bad.csv"]


@pytest.mark.parametrize(
    "words",
    [
        ("score", "--data", "payments.csv", "--out", "payments.csv"),
        ("score", "--data", "payments.csv", "--out", "same.csv"),
        ("score", "--data", "payments.csv", "--out", "s.csv", "--json", "payments.csv"),
        ("score", "--data", "payments.csv", "--out", "s.csv", "--json", "s.csv"),
        ("features", "compute", "--data", "payments.csv", "--out", "sub/../payments.csv"),
        ("train", "--data", "payments.csv", "--columns", "map.toml", "--json", "map.toml"),
        ("train", "--data", "payments.csv", "--json", "payments.csv"),
        ("replay", "--data", "payments.csv", "--report", "payments.csv"),
        ("backfill", "--data", "other.csv", "payments.csv", "--json", "payments.csv"),
        ("models", "import", "payments.csv", "--json", "payments.csv"),
        ("models", "evaluate", "--data", "payments.csv", "--json", "payments.csv"),
        ("backfill", "--data", "payments.csv", "--store", "sub", "--json", "sub/state"),
        ("backfill", "--data", "payments.csv", "--store", "sub", "--json", "sub/../sub/secret"),
    ],
)
def test_no_command_writes_over_what_it_reads(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("payments.csv", "map.toml"):
        (tmp_path / name).write_text("as it was")
    (tmp_path / "same.csv").symlink_to("payments.csv")
    assert run(*words) == 2
    assert "are the same file" in capsys.readouterr().err
    assert {(tmp_path / name).read_text() for name in ("payments.csv", "map.toml")} == {"as it was"}
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "map.toml",
        "payments.csv",
        "same.csv",
        "sub",
    ]


def test_observing_while_scoring_gives_the_scores_of_history(store: Path, tmp_path: Path) -> None:
    """Each payment is scored on what was known then: features of history, bit for bit."""
    data, out = tmp_path / "payments.parquet", tmp_path / "scores.parquet"
    words = ["--data", data, "--out", out, *SPECIFICATION, "--store", store, "--observe"]
    assert run("score", *words) == 0
    scores = pd.read_parquet(out)
    table = read_payments(data, HANDBOOK)
    state = state_of(store)
    program = compiled(HANDBOOK)
    features = history_features(table, program, state.store.keys)
    expected = Registry(store / "models").champion().predict(features)
    np.testing.assert_array_equal(scores.score.to_numpy(), expected)
    assert scores.transaction_id.tolist() == payments().TRANSACTION_ID.tolist()
    assert state.store.newest_ms == table.time_ms.max()


def test_scoring_alone_changes_nothing_on_disk(store: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "payments.parquet", tmp_path / "scores.csv"
    assert run("backfill", "--data", data, *SPECIFICATION, "--store", store) == 0
    before = (store / "state").read_bytes()
    words = ["--data", data, "--out", out, *SPECIFICATION, "--store", store]
    assert run("score", *words, "--as-of", "2018-06-01") == 0
    assert run("score", json.dumps(TRANSACTION), *SPECIFICATION, "--store", store) == 0
    assert (store / "state").read_bytes() == before
    assert len(pd.read_csv(out)) == len(payments())


def test_bad_rows_stand_in_the_output_with_their_reason(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = payments().head(50)
    frame.loc[7, "TX_AMOUNT"] = -3.0
    data, out = tmp_path / "some.csv", tmp_path / "scores.parquet"
    figures_file = tmp_path / "figures.json"
    frame.to_csv(data, index=False)
    words = ["--data", data, "--out", out, *SPECIFICATION, "--store", store]
    assert run("score", *words, "--json", figures_file) == 0
    scores = pd.read_parquet(out)
    assert scores.row.tolist() == list(range(50))
    assert scores.score.isna().tolist() == [row == 7 for row in range(50)]
    assert scores.error[7].startswith("amount: ")
    assert scores.decision.dropna().isin(["approve", "review", "decline"]).all()
    figures = json.loads(figures_file.read_text())
    assert (figures["payments"], figures["set aside"]) == (49, 1)
    assert figures["rejected"] == {"amount": 1}
    assert "some.csv: 1 rows set aside (amount 1)" in capsys.readouterr().err


def test_one_transaction_as_argument_or_on_standard_input(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures_file = tmp_path / "figures.json"
    words = [*SPECIFICATION, "--store", store, "--json", figures_file]
    assert run("score", json.dumps(TRANSACTION), *words) == 0
    first = json.loads(figures_file.read_text())
    assert first["transaction_id"] == "new"
    assert first["as_of"] == 1_526_817_600_000
    assert first["degraded"] == []
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(TRANSACTION)))
    assert run("score", "-", *words) == 0
    assert json.loads(figures_file.read_text()) == first
    assert str(first["score"]) in capsys.readouterr().out


def test_one_transaction_is_observed_if_asked(store: Path) -> None:
    words = [*SPECIFICATION, "--store", store]
    assert run("score", json.dumps(TRANSACTION), *words, "--observe") == 0
    assert state_of(store).store.n_payments == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give either one transaction"),
        (["{}", "--data", "x.csv", "--out", "y.csv"], "give either one transaction"),
        (["--data", "x.csv"], "--data and --out go together"),
        (["{"], "the transaction is no JSON"),
        (["[" * 100_000], "the transaction is no JSON"),
        (['{"card": "\udce9"}'], "the transaction is no JSON: it is no valid Unicode"),
        ([json.dumps({**TRANSACTION, "location": [10**400, 4.0]})], "location must be"),
        (["[1]"], "is a JSON object, not list"),
        (["{}"], "missing: transaction_id"),
        ([json.dumps({**TRANSACTION, "time": "noon"})], "time is neither ISO 8601"),
        ([json.dumps({**TRANSACTION, "time": "2018-05-20T12:00:00"})], "time"),
        ([json.dumps(TRANSACTION), "--as-of", "2018-05-19"], "before the payment's own time"),
        ([json.dumps(TRANSACTION), "--model", "1999"], "no model has version"),
    ],
)
def test_what_cannot_be_scored_is_said_in_one_line(
    words: list[str],
    said: str,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shared = tmp_path_factory.getbasetemp() / "refusals"
    if not shared.exists():
        shared.mkdir()
        trained_store(shared)
        capsys.readouterr()
    assert run("score", *words, *SPECIFICATION, "--store", shared / "store") == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_model_of_another_specification_is_refused(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [json.dumps(TRANSACTION), "--spec", "payments", "--store", store]
    assert run("score", *words) == 2
    assert "was made for specification handbook" in capsys.readouterr().err


def test_explain_prints_reasons_and_writes_all_features(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, figures_file = tmp_path / "payments.parquet", tmp_path / "figures.json"
    assert run("backfill", "--data", data, *SPECIFICATION, "--store", store) == 0
    words = [json.dumps(TRANSACTION), *SPECIFICATION, "--store", store]
    capsys.readouterr()
    assert run("explain", *words, "--top", "3", "--json", figures_file) == 0
    said = capsys.readouterr().out
    explained = json.loads(figures_file.read_text())
    assert len(explained["contributions"]) == len(HANDBOOK.columns)
    for one in explained["contributions"][:3]:
        assert one["feature"] in said
        assert one["sentence"] in said
    assert explained["contributions"][3]["sentence"] not in said
    assert f"reasons that raise the score: {', '.join(explained['reasons']) or 'none'}" in said
    assert "no score of this payment was in the cache" in said
