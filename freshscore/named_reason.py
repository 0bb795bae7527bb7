"""Naming the reason of dead letters on the command line.

Rule: a reason that no letter can have is an error, which lists those that there are; a table with
nothing in it would seem to say that all is well.
"""

from __future__ import annotations

import argparse

from freshscore.config.errors import SettingsError


def add_reason_argument(parser: argparse.ArgumentParser) -> None:
    """Add --reason."""
    parser.add_argument("--reason", metavar="REASON", help="only letters with this reason")


def checked_reason(arguments: argparse.Namespace) -> str | None:
    """The reason that a command line names, None for all. Raises SettingsError for an unknown."""
    from freshscore.invalidation.messages import REASONS

    reason: str | None = arguments.reason
    if reason is not None and reason not in REASONS:
        raise SettingsError(f"no letter has reason {reason!r}; there are {', '.join(REASONS)}")
    return reason
