"""Where commands write: checked before the work.

Rule: what certainly cannot be written is refused at once, not after an hour, and no file is both
read and written. A disk that is full, or what changes meanwhile, is found only by writing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freshscore.config.errors import BadFile, SettingsError
from freshscore.config.secret import FILE_NAME as SECRET_FILE
from freshscore.config.secret import FORMER_FILE_NAME as FORMER_FILE

_OUTPUTS = ("json", "out", "report")
# As invalidation/embedded.py has it, which brings numba: the command line starts without.
STATE_FILE = "state"
# Names of what ships, or paths of files.
_NAMES_OR_FILES = ("columns", "spec")


def check_destinations(arguments: argparse.Namespace) -> None:
    """Raises BadFile for an output that cannot be written, SettingsError for one that is taken."""
    given = vars(arguments)
    taken = list(_inputs(given))
    for name in _OUTPUTS:
        path = given.get(name)
        if path is None:
            continue
        # --out alone goes only into folders that are there; --json alone is written in its place.
        _check_writable(path, makes_folders=name != "out", replaced=name != "json")
        for option, other in taken:
            if _is_same(path, other):
                raise SettingsError(f"--{name} and {option} are the same file, {path}")
        taken.append((f"--{name}", path))


def table_file(text: str) -> Path:
    """An option that names a table to write."""
    path = Path(text)
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise argparse.ArgumentTypeError(f"{path.name} must end in .parquet or .csv")
    return path


def _inputs(given: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    for name, value in given.items():
        option = "the model" if name == "model" else f"--{name}"
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Path) and name not in _OUTPUTS:
                yield option, one
                if name == "store":
                    yield "the saved store", one / STATE_FILE
                    yield "the store's secret", one / SECRET_FILE
                    yield "the store's former secret", one / FORMER_FILE
            elif name in _NAMES_OR_FILES and str(one).endswith(".toml"):
                yield option, Path(one)


def _is_same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _check_writable(path: Path, *, makes_folders: bool, replaced: bool) -> None:
    exists = _exists(path)
    if path.is_dir():
        raise BadFile(f"cannot write {path}: it is a folder")
    place = path if exists and not replaced else path.parent
    while makes_folders and not place.exists():
        place = place.parent
    if place != path and not place.is_dir():
        what = "is no folder" if place.exists() else "does not exist"
        raise BadFile(f"cannot write {path}: {place} {what}")
    if not os.access(place, os.W_OK):
        raise BadFile(f"cannot write {path}: {place} may not be written to")


def _exists(path: Path) -> bool:
    # Not Path.exists(): some versions of Python say False of names that are too long.
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as problem:
        raise BadFile(f"cannot write {path}: {problem.strerror}") from problem
    return True
