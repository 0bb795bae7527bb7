"""Where compiled code is kept: one warning where it cannot be, and nothing left behind for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from freshscore.config import environment
from freshscore.features import compiled

MODULE = "freshscore.features.siphash"
DAY_S = 86_400


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for compiled code, which this process has not looked at."""
    monkeypatch.setenv("FRESHSCORE_CACHE_DIR", str(tmp_path))
    return tmp_path / "freshscore"


def folder_of(module: str) -> Path | None:
    """`cache_folder`, as a new process would find it."""
    return compiled.cache_folder.__wrapped__(module)


def aged(folder: Path, days: float) -> Path:
    """A folder of kernels that was last used so many days ago."""
    (folder / "features").mkdir(parents=True, exist_ok=True)
    (folder / "features" / "kernel.nbc").write_bytes(b"code")
    at_s = (folder / "features" / "kernel.nbc").stat().st_mtime - days * DAY_S
    os.utime(folder, (at_s, at_s))
    return folder


def test_process_that_cannot_keep_its_kernels_says_so_once(tmp_path: Path) -> None:
    """On stderr, whatever imports them: the folder, and what to set."""
    (tmp_path / "file").write_text("", encoding="ascii")
    nowhere = str(tmp_path / "file" / "cache")
    ran = subprocess.run(
        [sys.executable, "-W", "always", "-c", "import freshscore.features.evaluation"],
        env={**os.environ, "FRESHSCORE_CACHE_DIR": nowhere},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr.count("RuntimeWarning") == 1
    assert f"{nowhere}/freshscore cannot be written (Not a directory)" in ran.stderr
    assert ran.stderr.count("FRESHSCORE_CACHE_DIR names another folder") == 1


def test_without_a_home_folder_kernels_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cache_home", lambda: None)
    compiled._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="no home folder.*FRESHSCORE_CACHE_DIR"):
        assert folder_of(MODULE) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert folder_of(MODULE) is None


def test_folder_that_can_be_written_needs_no_warning(caches: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = folder_of(MODULE)
    assert folder is not None
    assert folder.parent == caches
    assert list(folder.iterdir()) == []


def test_new_folder_removes_those_that_nothing_used_for_a_month(caches: Path) -> None:
    old, young = aged(caches / "kernels-old", 31), aged(caches / "kernels-young", 29)
    foreign = aged(caches / "models", 31)
    made = folder_of(MODULE)
    assert sorted(caches.iterdir()) == sorted([made or caches, young, foreign])
    aged(old, 31)
    folder_of(MODULE)
    assert old.exists()


def test_use_dates_a_folder(caches: Path) -> None:
    """An old folder that is still in use stays when the next is made."""
    used = folder_of(MODULE)
    assert used is not None
    aged(used, 31)
    folder_of(MODULE)
    assert folder_of("freshscore.features.memory") != used
    assert (used / "features" / "kernel.nbc").exists()


def test_many_that_remove_the_same_folders_do_not_fail(caches: Path) -> None:
    made = folder_of(MODULE)
    assert made is not None
    old = [aged(caches / f"kernels-{number}", 31) for number in range(50)]
    (caches / "kernels-gone").symlink_to(caches / "nowhere")
    compiled._remove_unused(made)  # as if another had just removed one of them
    (caches / "kernels-gone").unlink()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compiled._remove_unused, [made] * 8))
    compiled._remove_unused(made)
    assert [folder for folder in old if folder.exists()] == []
