"""`freshscore settings reference`."""

from __future__ import annotations

import argparse
import re
from typing import Any, Final

# The comments above a setting; either may go on over several lines.
_COMMENTS: Final = re.compile(r"^# unit: (.*(?:\n#  .*)*)\n# why: (.*(?:\n#  .*)*)$", re.MULTILINE)
_LINE_BREAK: Final = re.compile(r"\n# +")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Print the reference file; as JSON name, default, unit and reason of each setting."""
    from freshscore.config.loading import flat, reference_text
    from freshscore.config.settings import Settings
    from freshscore.output import write_json

    text = reference_text()
    print(text, end="")
    # Both in the order of the file.
    figures = [
        _figures(name, default, *comments)
        for (name, default), comments in zip(flat(Settings()), _COMMENTS.findall(text), strict=True)
    ]
    write_json(arguments.json, figures)
    return 0


def _figures(name: str, default: object, unit: str, why: str) -> dict[str, Any]:
    unit, why = (_LINE_BREAK.sub(" ", comment) for comment in (unit, why))
    return {"name": name, "default": default, "unit": unit, "why": why}
