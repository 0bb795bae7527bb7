"""`freshscore demo`: the whole thing once, small."""

from __future__ import annotations

from pathlib import Path

import pytest

from freshscore.commands import demo
from freshscore.scoring.registry import Registry
from tests.freshscore.stored_models import run


def test_it_generates_trains_replays_and_leaves_everything_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_CUSTOMERS", 60)
    monkeypatch.setattr(demo, "_TERMINALS", 200)
    monkeypatch.setattr(demo, "_ATTACKS", 0)
    folder = tmp_path / "demo"
    assert run("demo", "--out", folder, "--seed", 3, "--json", tmp_path / "demo.json") == 0
    said = capsys.readouterr().out
    first, *_ = said.splitlines()
    assert first == "seed 3"
    assert "equality check holds" in said
    assert f"report: {folder / 'report.html'}" in said
    assert {path.name for path in folder.iterdir()} == {"payments.parquet", "models", "report.html"}
    assert Registry(folder / "models").champion().content.specification == "payments"
    # What it says to go on with works.
    words = [line.split()[1:] for line in said.splitlines() if line.startswith("  freshscore ")]
    assert [command[0] for command in words] == ["replay", "models"]
    monkeypatch.chdir(tmp_path)
    for command in words:
        assert run(*command) == 0
