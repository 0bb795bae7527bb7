"""Naming a model version on the command line, where scores of it are meant.

Scorers may serve what no registry has (a model that is called, or of another folder), so a version
that nobody registered is a warning; one that several registered models could be is an error.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from freshscore.config.errors import NoModel

if TYPE_CHECKING:
    from freshscore.scoring.registry import Registry


def named_version(registry: Registry, given: str, otherwise: str) -> str:
    """The registered version that `given` is or begins, or `given` after a warning.

    otherwise: what follows for one that is not registered. Raises NoModel where it could be many.
    """
    versions = [*dict.fromkeys(entry.version for entry in registry.entries())]
    try:
        return registry.entry(given).version
    except NoModel:
        if any(given in version for version in versions):
            raise
    warn(
        f"no registered model has version {given!r} (there are: {', '.join(versions) or 'none'});"
        f" {otherwise}"
    )
    return given


def warn(sentence: str) -> None:
    """Say what an operator may have meant otherwise."""
    print(f"freshscore: {sentence}", file=sys.stderr)
