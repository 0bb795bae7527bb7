"""The door to numba: one decorator for every kernel, and where its machine code is kept.

Rule: a stored kernel is used only by the very sources that it was compiled from.
numba's own cache looks at the file of the outermost function alone, so a change in a kernel
that it calls would go unseen; so a folder's name carries a digest of all sources that its kernels
can have been made from. A folder that nothing has used for a month is removed when one is made.
Without a folder that can be written, kernels are compiled in memory, with one warning in a process
and never with an error.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import numba
import numba.core.config as numba_config

from freshscore.config import environment

_IMPORT = re.compile(r"^from (freshscore\.[\w.]+) import (\([^)]*\)|.*)$", re.MULTILINE)
_WORD = re.compile(r"\w+")

F = TypeVar("F", bound=Callable[..., Any])

# A month: longer than between two uses of what is in use at all; each change of the sources leaves
# folders behind.
_UNUSED_S = 30 * 86_400

# Rooms that may hold kernels.
_KERNEL_ROOMS = ("config", "features", "invalidation", "scoring")


@overload
def kernel(function: F, /) -> F: ...


@overload
def kernel(**options: Any) -> Callable[[F], F]: ...


def kernel(function: F | None = None, /, **options: Any) -> Any:
    """Compile `function` without Python objects on its first call; keep its code on disk.

    Options are numba's `njit` options. Usable bare or with options.
    """
    if function is None:
        return functools.partial(kernel, **options)
    folder = cache_folder(function.__module__)
    if folder is None:
        return numba.njit(**options)(function)
    before = numba_config.CACHE_DIR
    numba_config.CACHE_DIR = str(folder)
    try:
        return numba.njit(cache=True, **options)(function)
    finally:
        numba_config.CACHE_DIR = before


def entry_point(function: Any, n_arguments: int) -> Callable[..., Any]:
    """The compiled form of a kernel of `n_arguments` integers, without the dispatcher before it.

    It saves 100 ns a call and checks nothing, so callers pass int addresses and int64 values only.
    """
    signature = (numba.int64,) * n_arguments
    function.compile(signature)
    compiled: Callable[..., Any] = function.overloads[signature].entry_point
    return compiled


@functools.cache
def cache_folder(module: str) -> Path | None:
    """The folder for the kernels of `module` as its sources are, or None where none can be written.

    Their digest covers all that the module imports of this package, directly or not.
    """
    base = environment.cache_home()
    if base is None:
        _warn_once("there is no home folder")
        return None
    folder = base / "freshscore" / f"kernels-{_digest(module)}"
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        # A file in it proves that it can be written, and dates the folder's last use.
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as problem:
        _warn_once(f"{base / 'freshscore'} cannot be written ({problem.strerror})")
        return None
    if is_new:
        _remove_unused(folder)
    return folder


@functools.cache
def _warn_once(problem: str) -> None:
    warnings.warn(
        f"compiled code cannot be kept: {problem}; every process compiles it anew, which takes"
        " seconds. FRESHSCORE_CACHE_DIR names another folder",
        RuntimeWarning,
        stacklevel=2,
    )


def _remove_unused(new: Path) -> None:
    """Remove the folders beside `new` that nothing has used for a month.

    Never an error: another process may remove the same ones; and where it begins to use one of
    them at this moment, numba compiles again what it does not find.
    """
    try:
        oldest_s = new.stat().st_mtime - _UNUSED_S
        unused = [one for one in new.parent.glob("kernels-*") if one.stat().st_mtime < oldest_s]
    except OSError:
        return
    for folder in unused:
        shutil.rmtree(folder, ignore_errors=True)


def _digest(module: str) -> str:
    digest = hashlib.blake2b(digest_size=10)
    digest.update(f"{sys.implementation.cache_tag} {numba.__version__} {os.name}".encode())
    texts = _sources()
    for name in sorted(_imported(module)):
        digest.update(name.encode() + texts[name].encode())
    return digest.hexdigest()


@functools.cache
def _sources() -> dict[str, str]:
    """Module -> source, of the rooms that may hold kernels."""
    # Installed, the rooms are neighbours below `freshscore`; in a checkout, below its root.
    package = Path(__file__).resolve().parent.parent
    return {
        f"freshscore.{room}.{path.stem}": path.read_text(encoding="utf-8")
        for room in _KERNEL_ROOMS
        for path in (package / room).glob("*.py")
    }


def _imported(module: str) -> set[str]:
    """The module and all that it imports of these rooms, directly or not."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and name in _sources():
            found.add(name)
            waiting += _direct_imports(name)
    return found


@functools.cache
def _direct_imports(module: str) -> list[str]:
    imports: list[str] = []
    for source, names in _IMPORT.findall(_sources()[module]):
        # `from room import module` and `from room.module import name` look alike.
        imports += [source, *(f"{source}.{one}" for one in _WORD.findall(names))]
    return imports
