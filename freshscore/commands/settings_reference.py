"""`freshscore settings reference`."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Print the reference file."""
    from freshscore.config.loading import reference_text

    print(reference_text(), end="")
    return 0
