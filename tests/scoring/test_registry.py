"""The registry: what goes in comes out, and nothing that was changed is served."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from freshscore.config.errors import BadModel, DamagedModel, NoModel, Unavailable
from freshscore.scoring import model_file
from freshscore.scoring import registry as module
from freshscore.scoring.registry import HISTORY, Entry, Registry
from tests.scoring.small_models import small_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store" / "models"


@pytest.fixture
def filled(folder: Path) -> Registry:
    """A registry of three models; the last is champion."""
    registry = Registry(folder)
    for number in range(3):
        registry.add(small_model(number), f"model {number}", 1_000 * number)
    return registry


def test_an_empty_registry_names_the_commands_that_fill_it(folder: Path) -> None:
    with pytest.raises(NoModel, match=r"freshscore train.*freshscore models import"):
        Registry(folder).champion()
    with pytest.raises(NoModel, match=r"freshscore train"):
        Registry(folder).load("2019")
    assert Registry(folder).entries() == ()
    assert not folder.exists()


def test_the_version_last_added_is_champion(filled: Registry, folder: Path) -> None:
    assert filled.champion().file == small_model(2).file
    assert [(e.version, e.role, e.why, e.at_ms) for e in filled.entries()] == [
        (small_model(n).version, "champion", f"model {n}", 1_000 * n) for n in range(3)
    ]
    assert Registry(folder).champion().version == small_model(2).version


def test_an_older_model_added_again_is_champion_again(filled: Registry) -> None:
    before = filled.load(small_model(0).version)
    assert filled.add(before, "rolled back", 9_000) == before.version
    assert filled.champion().version == before.version
    assert len(filled.entries()) == 4
    assert filled.entry(before.version).why == "rolled back"


def test_a_version_is_found_by_its_beginning_or_that_of_its_hash(filled: Registry) -> None:
    for number in range(3):
        model = small_model(number)
        stamp, _, digest = model.version.partition("-")
        for named in (model.version, stamp, digest, digest[:6]):
            assert filled.load(named).file == model.file


@pytest.mark.parametrize(("named", "problem"), [("2", "could be any of"), ("", "could be any of")])
def test_a_beginning_that_several_have_is_refused(
    filled: Registry, named: str, problem: str
) -> None:
    with pytest.raises(NoModel, match=problem):
        filled.load(named)


def test_an_unknown_version_is_named(filled: Registry) -> None:
    with pytest.raises(NoModel, match="no model has version '1999'"):
        filled.load("1999")


def test_nothing_but_models_and_history_is_left(filled: Registry, folder: Path) -> None:
    names = {f"{small_model(n).version}.model" for n in range(3)}
    assert {path.name for path in folder.iterdir()} == names | {HISTORY}


def test_an_artefact_is_not_writable(filled: Registry, folder: Path) -> None:
    path = folder / f"{small_model(0).version}.model"
    assert path.stat().st_mode & 0o222 == 0


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def test_an_artefact_with_any_byte_changed_is_refused(filled: Registry, folder: Path) -> None:
    path = folder / f"{small_model(2).version}.model"
    whole = path.read_bytes()
    step = max(1, len(whole) // 40)
    for at in [*range(0, len(whole), step), len(whole) - 1]:
        _replace(path, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedModel, match=path.name):
            filled.champion()
        _replace(path, whole[:at])
        with pytest.raises(DamagedModel, match=path.name):
            filled.champion()
    _replace(path, whole)
    assert filled.champion().version == small_model(2).version


def test_another_good_model_in_an_artefacts_place_is_refused(
    filled: Registry, folder: Path
) -> None:
    path = folder / f"{small_model(2).version}.model"
    _replace(path, small_model(1).file)
    with pytest.raises(DamagedModel, match="is another model"):
        filled.champion()
    with pytest.raises(DamagedModel, match="with other bytes"):
        filled.add(small_model(2), "again", 0)
    assert filled.load(small_model(1).version).file == small_model(1).file


def test_an_artefact_of_a_kind_that_is_not_served_is_named(filled: Registry, folder: Path) -> None:
    """A right checksum, but a link over the booster's own."""
    path = folder / f"{small_model(2).version}.model"
    content = msgspec.structs.replace(small_model(2).content, custom_link="logistic")
    _replace(path, model_file.encoded(content))
    with pytest.raises(BadModel, match=rf"{path.name}.*takes no link"):
        filled.champion()


def test_an_artefact_that_is_gone_is_said_to_be(filled: Registry, folder: Path) -> None:
    (folder / f"{small_model(2).version}.model").unlink()
    with pytest.raises(DamagedModel, match="its file is gone"):
        filled.champion()


def test_a_history_with_any_byte_changed_or_cut_off_is_refused(
    filled: Registry, folder: Path
) -> None:
    path = folder / HISTORY
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedModel, match=rf"line \d of {HISTORY}"):
            filled.entries()
    for at in {*range(1, len(whole), 7), len(whole) - 1}:
        path.write_bytes(whole[:at])
        if not whole[:at].endswith(b"\n"):
            with pytest.raises(DamagedModel, match=rf"line \d of {HISTORY}"):
                filled.champion()
    path.write_bytes(whole)
    assert len(filled.entries()) == 3


@pytest.mark.parametrize(
    "rearranged",
    [
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [lines[0], b"\n", *lines[1:]],
    ],
    ids=["first gone", "middle gone", "swapped", "empty line"],
)
def test_a_history_with_lines_taken_out_or_put_in_is_refused(
    filled: Registry, folder: Path, rearranged: Callable[[list[bytes]], list[bytes]]
) -> None:
    path = folder / HISTORY
    path.write_bytes(b"".join(rearranged(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(DamagedModel, match="nobody can say which model is the champion"):
        filled.champion()


def test_of_two_writers_at_once_the_second_writes_again(
    filled: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other writer comes between the reading and the writing of this one."""
    append = module._append
    other = [small_model(4)]

    def slow(path: Path, line: bytes) -> None:
        if other:
            Registry(folder).add(other.pop(), "the other", 7)
        append(path, line)

    monkeypatch.setattr(module, "_append", slow)
    filled.add(small_model(3), "this one", 8)
    assert [one.why for one in filled.entries()][3:] == ["the other", "this one"]
    assert filled.champion().version == small_model(3).version
    assert len((folder / HISTORY).read_bytes().splitlines()) == 6


def test_a_writer_that_never_gets_its_turn_gives_up(
    filled: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on attempts is reached."""
    append = module._append

    def late(path: Path, line: bytes) -> None:
        last = filled.entries()[-1]
        rival = Entry(last.version, "champion", "rival", 0, last.model, last.digest).sealed()
        append(path, msgspec.json.encode(rival) + b"\n")
        append(path, line)

    monkeypatch.setattr(module, "_append", late)
    with pytest.raises(Unavailable, match="try again"):
        filled.add(small_model(3), "never", 8)
    assert filled.champion().version == small_model(2).version


def test_without_a_store_it_is_that_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Registry(tmp_path / "freshscore-data" / "models").add(small_model(0), "here", 0)
    assert Registry.of(None).champion().version == small_model(0).version
    assert Registry.of(tmp_path / "freshscore-data").champion().version == small_model(0).version


def test_a_write_that_fails_leaves_no_half_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Registry(folder).add(small_model(0), "x", 0)
    assert list(folder.iterdir()) == []
