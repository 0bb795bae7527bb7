"""`freshscore generate`: the file, the table, and what is refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from freshscore.arguments import add_shared_arguments
from freshscore.commands import generate as command
from freshscore.config.errors import BadFile, SettingsError
from freshscore.simulations import generator
from freshscore.simulations.generator import Parameters

SMALL = ["--customers", "60", "--terminals", "300", "--days", "40", "--seed", "9"]


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    add_shared_arguments(parser)
    return command.run(parser.parse_args(words))


def expected(columns: generator.Columns = "freshscore", **options: Any) -> pd.DataFrame:
    parameters = Parameters(customers=60, terminals=300, days=40, **options)
    return generator.generate(parameters, np.random.default_rng(9), columns)


def test_a_parquet_file_holds_the_payments_of_the_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "payments.parquet"
    options = ["--devices", "--attacks", "2", "--large-merchant-share", "0.05"]
    assert run("--out", str(out), *SMALL, *options) == 0
    wanted = expected(devices=True, attacks=2, large_merchant_share=0.05)
    pd.testing.assert_frame_equal(pd.read_parquet(out), wanted)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "seed 9"
    assert any("payments" in line and f"{len(wanted):,}" in line for line in printed)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_csv_file_has_the_handbooks_columns(tmp_path: Path) -> None:
    out = tmp_path / "payments.csv"
    assert run("--out", str(out), *SMALL, "--columns", "handbook", "--start", "2020-02-28") == 0
    read = pd.read_csv(out, parse_dates=["TX_DATETIME"])
    wanted = expected(columns="handbook", start_ms=1_582_848_000_000)
    pd.testing.assert_frame_equal(read, wanted, check_dtype=False)
    assert str(read.TX_DATETIME.min().date()) == "2020-02-28"


def test_the_figures_are_those_of_the_file(tmp_path: Path) -> None:
    out, figures_file = tmp_path / "p.parquet", tmp_path / "figures.json"
    run("--out", str(out), *SMALL, "--attacks", "1", "--json", str(figures_file))
    figures = {row["name"]: row["value"] for row in json.loads(figures_file.read_text())}
    frame = pd.read_parquet(out)
    assert figures["seed"] == 9
    assert figures["payments"] == len(frame)
    assert figures["cards"] == frame.card.nunique()
    assert figures["merchants"] == frame.merchant.nunique()
    assert figures["mean amount"] == pytest.approx(frame.amount.mean())
    assert figures["fraud share"] == pytest.approx(100 * frame.fraud.mean())
    assert figures["fraud 4: card testing"] == (frame.fraud_scenario == 4).sum() > 0
    assert figures["file"] == out.stat().st_size


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "payments.parquet"
    out.write_text("before")
    whole = generator.generate_tables

    def broken(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield next(whole(*arguments, **options))
        raise MemoryError("as if")

    monkeypatch.setattr(generator, "generate_tables", broken)
    with pytest.raises(MemoryError):
        run("--out", str(out), *SMALL)
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_no_payments_at_all_are_a_file_too(tmp_path: Path) -> None:
    out = tmp_path / "empty.parquet"
    # Nobody pays on one day with this seed: one customer with a small mean.
    seeds = range(50)
    few = Parameters(customers=1, terminals=1, days=1)
    empty = next(s for s in seeds if not len(generator.generate(few, np.random.default_rng(s))))
    words = ["--customers", "1", "--terminals", "1", "--days", "1", "--seed", str(empty)]
    assert run("--out", str(out), *words) == 0
    assert len(pd.read_parquet(out)) == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--columns", "handbook", "--devices"], "--devices"),
        (["--customers", "0"], "customers is 0"),
        (["--large-merchant-share", "2"], "large_merchant_share is 2"),
        (["--start", "1970-01-01"], "1990 to 2100"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, words: list[str], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        run("--out", str(tmp_path / "p.csv"), *words)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"cannot write .*nowhere/p\.csv: No such file"):
        run("--out", str(tmp_path / "nowhere" / "p.csv"), *SMALL)


def test_an_unknown_kind_of_file_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("--out", str(tmp_path / "p.xlsx"))
    assert stopped.value.code == 2
    assert "must end in .parquet or .csv" in capsys.readouterr().err
