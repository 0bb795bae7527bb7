"""Naming one entity on the command line: by the keyed hash, or by an identifier that is asked for.

Rule: an identifier is read from a terminal without echo, or from standard input; never from the
arguments, where other users of the machine and the shell's history would see it, and it is shown
nowhere.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from freshscore.config.errors import BadTransaction

if TYPE_CHECKING:
    from freshscore.invalidation.deployment import Deployment

_HASH_DIGITS = 32


def add_entity_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add --entity and --hash."""
    parser.add_argument(
        "--entity",
        metavar="NAME",
        required=required,
        help="kind of entity, as the specification calls it: card, merchant, ...",
    )
    parser.add_argument(
        "--hash",
        metavar="HEX",
        type=keyed_hash,
        help="its keyed hash, 32 hexadecimal digits (default: the identifier is asked for)",
    )


def keyed_hash(text: str) -> bytes:
    """An option that names an entity by its keyed hash."""
    try:
        token = bytes.fromhex(text)
    except ValueError:
        token = b""
    if text == "0" * _HASH_DIGITS:
        raise argparse.ArgumentTypeError("32 zeros stand for an entity that is absent")
    if len(text) != _HASH_DIGITS or not any(token):
        # Whoever gives an identifier by mistake must not find it in a log.
        raise argparse.ArgumentTypeError("no keyed hash: it needs 32 hexadecimal digits")
    return token


def named_entity(arguments: argparse.Namespace, deployment: Deployment) -> tuple[int, list[bytes]]:
    """Number and token of the entity that a command line names; during a rotation both tokens.

    A keyed hash names just one state.
    Raises SettingsError for one that the specification does not have, BadTransaction for an
    impossible identifier.
    """
    from freshscore.invalidation.entity_reading import entity_number, tokens_of

    number = entity_number(deployment.program, arguments.entity)
    if arguments.hash is not None:
        return number, [arguments.hash]
    parts = deployment.program.entities[number].parts
    return number, tokens_of(deployment, number, [_asked(part) for part in parts])


def with_former(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One answer for `--json` of the figures of each token that `named_entity` gives."""
    first, *former = figures
    return first | ({"former": former[0]} if former else {})


def _asked(part: str) -> str:
    if sys.stdin.isatty():
        return getpass.getpass(f"{part}: ")
    line = sys.stdin.readline()
    if not line:
        raise BadTransaction(f"no identifier of {part} on standard input; or give --hash")
    return line.rstrip("\r\n")
