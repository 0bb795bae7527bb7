"""The door to environment variables and to the folders that they name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def variables() -> Mapping[str, str]:
    """The process environment, read when called."""
    return os.environ


def cache_home() -> Path | None:
    """The user's cache folder (XDG rules), or None where there is no home to put one in."""
    named = os.environ.get("FRESHSCORE_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None
