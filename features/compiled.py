"""The door to numba: one decorator for every kernel, and where its machine code is kept.

Rule: a stored kernel is used only by the very sources that it was compiled from.
numba's own cache looks at the file of the outermost function alone, so a change in a kernel
that it calls would go unseen; the folder's name therefore carries a digest of all sources.
Without a folder that can be written, kernels are compiled in memory (one warning, given by the
caller of `cache_folder_problem`), never with an error.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import numba
import numba.core.config as numba_config

from freshscore.config import environment

F = TypeVar("F", bound=Callable[..., Any])

# Rooms that hold kernels; a file of theirs that changes makes a new folder.
_KERNEL_ROOMS = ("features", "scoring", "simulations")


@overload
def kernel(function: F, /) -> F: ...


@overload
def kernel(**options: Any) -> Callable[[F], F]: ...


def kernel(function: F | None = None, /, **options: Any) -> Any:
    """Compile `function` without Python objects on its first call, keeping the machine code on disk.

    Options are numba's `njit` options. Usable bare or with options.
    """
    if function is None:
        return functools.partial(kernel, **options)
    folder = cache_folder()
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
def cache_folder() -> Path | None:
    """The folder for compiled kernels of exactly these sources, or None where none can be written."""
    base = environment.cache_home()
    if base is None:
        return None
    folder = base / "freshscore" / f"kernels-{_sources_digest()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError:
        return None
    return folder


@functools.cache
def _sources_digest() -> str:
    digest = hashlib.blake2b(digest_size=10)
    digest.update(f"{sys.implementation.cache_tag} {numba.__version__} {os.name}".encode())
    package = Path(__file__).resolve().parent.parent
    for room in _KERNEL_ROOMS:
        # Installed, the rooms are neighbours below `freshscore`; in a checkout, below its root.
        for source in sorted((package / room).glob("*.py")):
            digest.update(source.name.encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()
