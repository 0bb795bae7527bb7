"""`freshscore backfill`: past payments and facts into a store.

One of this process is filled before it serves; shared states while the stream runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from freshscore.payment_files import (
    add_columns_argument,
    add_specification_argument,
    add_store_argument,
    read_file,
    stored_settings_of,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which files into which store."""
    parser.add_argument(
        "--data",
        metavar="FILE",
        type=Path,
        nargs="+",
        required=True,
        help="payments and what became known of them: Parquet or CSV; all files in one run",
    )
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=float,
        default=0.0,
        help="shared states: hold folding, and let consumers begin for so long; what they have"
        " folded already takes no past any more (default: 0)",
    )
    add_columns_argument(parser)
    add_specification_argument(parser)
    add_store_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Load all files, print what was counted; 1 if shared states refused some of it.

    Raises FreshscoreError, OSError.
    """
    from freshscore.config.clock import SystemClock
    from freshscore.features.packing import Packer
    from freshscore.invalidation.embedded import EmbeddedState
    from freshscore.invalidation.feed import Feed
    from freshscore.output import print_table, progress, write_json

    settings = stored_settings_of(arguments)
    if settings.store.backend == "redis":
        from freshscore.shared_backfilling import run_shared

        return run_shared(arguments, settings)
    state = EmbeddedState.open(settings)
    program = state.store.program
    packer = Packer(program, state.store.keys)
    feed = Feed(state.store, packer, state.acceptance, state.begin_writing)
    loaded: list[dict[str, Any]] = []
    files: list[Path] = arguments.data
    with progress("files", len(files), SystemClock(), settings.output.progress_line_s) as advance:
        for path in files:
            table = read_file(path, program.specification, arguments.columns, settings)
            outcomes = feed.load(table)
            rejected = table.rejected.counts()
            loaded.append({"file": path.name, "outcomes": outcomes, "rejected": rejected})
            advance(1)
    # After all files: a store is saved whole, so one that was interrupted is as it was.
    state.close()
    print_table(["file", "what", "rows"], [row for one in loaded for row in _rows(one)])
    store = {
        "payments": state.store.n_payments,
        "entities": state.store.n_entities,
        "records": state.store.n_records,
        "newest_ms": state.store.newest_ms,
    }
    print_table(["store", "value"], list(store.items()))
    write_json(arguments.json, {"files": loaded, "store": store})
    return 0


def _rows(loaded: dict[str, Any]) -> list[tuple[object, ...]]:
    set_aside = {f"set aside: {name}": rows for name, rows in loaded["rejected"].items()}
    return [(loaded["file"], name, rows) for name, rows in (loaded["outcomes"] | set_aside).items()]
