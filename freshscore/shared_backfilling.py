"""`freshscore backfill` into the states that processes share in Redis.

Rule: says what it did, up to when the files are the source and since when the states are complete;
what was refused makes the exit code 1.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freshscore.payment_files import read_file

if TYPE_CHECKING:
    from freshscore.config.settings import Settings
    from freshscore.invalidation.shared_backfill import Ended


def run_shared(arguments: argparse.Namespace, settings: Settings) -> int:
    """Load all files and say what came of it. Raises FreshscoreError."""
    from freshscore.config.clock import SystemClock
    from freshscore.invalidation.deployment import opened
    from freshscore.invalidation.past_writing import opened_backfill
    from freshscore.output import print_table, progress, write_json

    clock = SystemClock()
    files: list[Path] = arguments.data
    loaded: list[dict[str, Any]] = []
    line_s = settings.output.progress_line_s
    with (
        opened(settings, clock) as deployment,
        opened_backfill(deployment, arguments.wait) as backfill,
    ):
        print(f"cut-over: {_instant(backfill.cut_over_ms)}, from then on the log is the source")
        with progress("files", len(files), clock, line_s) as advance:
            for path in files:
                specification = deployment.program.specification
                table = read_file(path, specification, arguments.columns, settings)
                begun_s = clock.monotonic_s()
                outcomes = backfill.load(table)
                loaded.append(
                    {
                        "file": path.name,
                        "outcomes": outcomes,
                        "rejected": table.rejected.counts(),
                        "took_s": clock.monotonic_s() - begun_s,
                    }
                )
                advance(1)
        ended = backfill.end()
    print_table(["file", "what", "rows"], [row for one in loaded for row in _rows(one)])
    print_table(["states", "value"], [*_states(ended).items()])
    _say(ended)
    write_json(arguments.json, {"files": loaded, "states": ended._asdict()})
    return int(bool(ended.refused))


def _rows(loaded: dict[str, Any]) -> list[tuple[object, ...]]:
    set_aside = {f"set aside: {name}": rows for name, rows in loaded["rejected"].items()}
    return [(loaded["file"], name, rows) for name, rows in (loaded["outcomes"] | set_aside).items()]


def _states(ended: Ended) -> dict[str, object]:
    found: dict[str, object] = {"that got events": ended.n_states}
    for entity, count in ended.refused.items():
        found[f"refused, of {entity}: folded above their events"] = count
    found["complete since, before"] = _instant(ended.was_complete_since_ms)
    found["complete since, now"] = _instant(ended.complete_since_ms)
    return found


def _say(ended: Ended) -> None:
    if ended.refused:
        print("some states were folded already, so the past is not complete, and not said to be")
    elif ended.complete_since_ms == ended.was_complete_since_ms:
        print("the files do not reach from before the cut-over to it, so nothing more is complete")


def _instant(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(" ", "milliseconds")
