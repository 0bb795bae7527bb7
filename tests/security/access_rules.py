"""The user of Redis that docs/shared.md tells operators to make: the tests run as that one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "shared.md"
USERNAME: Final = "freshscore"


def documented_user(namespace: str, password: str) -> str:
    """The line of redis.conf, with a namespace and a password in it."""
    (line,) = re.findall(r"^user freshscore .*$", _page(), re.MULTILINE)
    assert ">PASSWORD ~fs:*" in line
    return str(line).replace(">PASSWORD ~fs:*", f">{password} ~{namespace}:*")


def documented_for_clusters() -> str:
    """What the user of a Redis Cluster has beside that line."""
    (words,) = re.findall(r"^A Redis Cluster needs these too: `(.*)`\.$", _page(), re.MULTILINE)
    return str(words)


def _page() -> str:
    return _PAGE.read_text("utf-8")


def commands_in(line: str) -> set[str]:
    """Those that a user may call: "get", "script|load"."""
    return {word[1:] for word in line.split() if word.startswith("+")}


def without(line: str, command: str) -> str:
    """The line of a user that lacks one."""
    words = line.split()
    words.remove(f"+{command}")
    return " ".join(words)
