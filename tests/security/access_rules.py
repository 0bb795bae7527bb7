"""The rights that config/deploy gives to each process: the tests run with these very files."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from tests.servers.secured_kafka import Rule

_FOLDER: Final = Path(__file__).resolve().parents[2] / "config" / "deploy"
_GIVEN: Final = re.compile(
    r"--bootstrap-server here --add --allow-principal User:(\S+) --operation (\S+)"
    r" --(topic|group) (\S+)"
)
Role = Literal["scorer", "shadow", "consumer", "operator"]
ROLES: Final[tuple[Role, ...]] = ("scorer", "shadow", "consumer", "operator")


def redis_lines(
    name: str, *, password: str = "PASSWORD", namespace: str = "fs", without: str | None = None
) -> list[str]:
    """The lines of a file for Redis that begin with "user"; without: a command that all lack."""
    text = (_FOLDER / name).read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("user ")]
    assert lines, name
    lines = [line.replace(">PASSWORD", f">{password}") for line in lines]
    lines = [line.replace("~fs:*", f"~{namespace}:*") for line in lines]
    return [_without(line, without) for line in lines]


def username(role: Role) -> str:
    """Of Redis and of Kafka."""
    return f"freshscore-{role}"


def commands_of(role: Role) -> set[str]:
    """Those that a user of Redis may call: "get", "script|load"."""
    (line,) = (one for one in redis_lines("redis-users.conf") if one.split()[1] == username(role))
    return {word[1:] for word in line.split() if word.startswith("+")}


def kafka_rules(folder: Path, names: Mapping[str, str]) -> list[Rule]:
    """The rights that config/deploy/kafka-acls.sh gives: it is run, with a tool that takes notes.

    names: of topics and group, as its variables are called. folder: for the notes.
    """
    tool, notes = folder / "kafka-acls.sh", folder / "notes"
    tool.write_text(f'#!/bin/sh\necho "$@" >>"{notes}"\n', "utf-8")
    tool.chmod(0o700)
    told = {"CONNECTION": "--bootstrap-server here", "PATH": f"{folder}:/usr/bin:/bin", **names}
    subprocess.run(["sh", str(_FOLDER / "kafka-acls.sh")], env=told, check=True, timeout=60)
    found = []
    for line in notes.read_text("utf-8").splitlines():
        match = _GIVEN.fullmatch(line)
        assert match, line
        found.append(Rule(*match.groups()))
    return found


def _without(line: str, command: str | None) -> str:
    return " ".join(word for word in line.split() if word != f"+{command}")
