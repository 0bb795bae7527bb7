"""`freshscore secret next`: the successor of the identifier secret, in a file of its own.

It is written, never shown; what it is for is in docs/shared.md. No server is asked: the first
consumer that starts with both secrets announces the rotation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from freshscore.arguments import settings_of
from freshscore.payment_files import instant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """When it begins, and where it goes."""
    parser.add_argument(
        "--from",
        dest="since",
        metavar="INSTANT",
        type=instant,
        required=True,
        help="payments from this instant on are hashed under it: a date, or a date and time (UTC"
        " unless it says); later than the last process has been restarted with both secrets",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="where to write it, mode 0600: the new value of FRESHSCORE_SECRET",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the file. Raises SettingsError."""
    from freshscore.config.clock import SystemClock, readable
    from freshscore.config.errors import SettingsError
    from freshscore.config.secret import shared_secret, write_secret
    from freshscore.output import write_json

    secret = shared_secret(settings_of(arguments).store.path)
    now_ms = SystemClock().now_ms()
    if secret.former is not None:
        raise SettingsError("a rotation is under way: FRESHSCORE_FORMER_SECRET is set")
    if arguments.since <= now_ms:
        raise SettingsError(
            f"--from is {readable(arguments.since)}, it is {readable(now_ms)}: a secret begins in"
            " the future, for all processes must know it before"
        )
    successor = secret.successor(arguments.since)
    write_secret(successor, arguments.out)
    print(
        f"{arguments.out}: key {successor.key_id}, after key {secret.key_id}. Before it begins,"
        " restart every process, a consumer first, with FRESHSCORE_SECRET set to what the file"
        " holds, and FRESHSCORE_FORMER_SECRET to the secret as it was"
    )
    figures = {
        "key_id": successor.key_id,
        "former_id": secret.key_id,
        "since_ms": arguments.since,
    }
    write_json(arguments.json, figures)
    return 0
