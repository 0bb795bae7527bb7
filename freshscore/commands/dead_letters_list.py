"""`freshscore dead-letters list`: what was refused and why, by its position in the log."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from freshscore.arguments import settings_of
from freshscore.named_reason import add_reason_argument, checked_reason

if TYPE_CHECKING:
    from freshscore.invalidation.dead_letters import DeadLetter

COLUMNS = ["topic", "partition", "offset", "arrived", "reason", "bytes", "digest", "what"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which letters."""
    add_reason_argument(parser)
    parser.add_argument(
        "--all",
        action="store_true",
        help="list every position, not only the first (settings: input.max_listed_rows)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Count all open letters and list their positions. Raises SettingsError, Unavailable."""
    import msgspec

    from freshscore.invalidation.letter_reading import read_letters
    from freshscore.output import print_table, write_json

    reason = checked_reason(arguments)
    settings = settings_of(arguments)
    most = sys.maxsize if arguments.all else settings.input.max_listed_rows
    counts: Counter[str] = Counter()
    listed: list[dict[str, Any]] = []
    n_listed = 0
    for part in read_letters(settings.kafka):
        found = [one for one in part.values() if reason in (None, one.reason)]
        counts.update(one.reason for one in found)
        shown = found[: max(0, most - n_listed)]
        n_listed += len(shown)
        if shown:
            print_table(COLUMNS, [_row(one) for one in shown])
        if arguments.json is not None:
            listed += [msgspec.to_builtins(one) for one in shown]
    total = sum(counts.values())
    if n_listed < total:
        print(f"and {total - n_listed:,} more; --all lists them")
    print_table(["reason", "letters"], [*sorted(counts.items()), ("all", total)])
    write_json(arguments.json, {"reasons": counts, "letters": listed})
    return 0


def _row(letter: DeadLetter) -> tuple[object, ...]:
    arrived = datetime.fromtimestamp(letter.arrival_ms / 1_000, UTC)
    return (
        letter.topic,
        letter.partition,
        letter.offset,
        arrived.isoformat(" ", "milliseconds"),
        letter.reason,
        letter.length,
        letter.digest,
        letter.detail,
    )
