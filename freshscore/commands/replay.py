"""`freshscore replay`: a file through the production scorer, and what re-use gives there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from freshscore.arguments import seed
from freshscore.config.errors import BadFile, SettingsError
from freshscore.payment_files import (
    add_data_argument,
    add_specification_argument,
    add_store_argument,
    instant,
    read_file,
    rejected_figures,
    stored_settings_of,
)

if TYPE_CHECKING:
    from freshscore.features.table import PaymentTable

_REPORT = Path("freshscore-replay.html")
# Without --from: this part of the file's time is history, the rest is replayed.
_HISTORY_SHARE = 0.75
_DAY_MS = 86_400_000
_CHECK_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, which part of it, how traffic runs, the model, and where the report goes."""
    add_data_argument(parser)
    add_specification_argument(parser)
    parser.add_argument(
        "--model",
        metavar="VERSION",
        help="version, or the beginning of it or of its hash (default: the champion if it fits,"
        " else a model trained on the part of the file that is not replayed)",
    )
    parser.add_argument(
        "--rescore",
        metavar="SHAPE",
        default="none",
        help="simulate that payments are scored again: reuse (the assumption of most figures),"
        " stages, burst, or none (default)",
    )
    parser.add_argument(
        "--incumbent",
        metavar="COLUMN",
        help="column with the decisions of whoever decided before: 0 or 1 (declined), or words",
    )
    parser.add_argument(
        "--from",
        dest="start_ms",
        metavar="DATE",
        type=instant,
        help="replay from this instant on; what is before is history (default: the last quarter)",
    )
    parser.add_argument(
        "--to",
        dest="before_ms",
        metavar="DATE",
        type=instant,
        help="leave out payments from here on",
    )
    parser.add_argument(
        "--oracle",
        choices=("sample", "all", "none"),
        default="sample",
        help="recompute features independently: of a sample in plain Python (default;"
        " replay.oracle_share), of all answers with the vectorised oracle, or of none",
    )
    parser.add_argument("--seed", metavar="N", type=seed, default=1, help="of what is simulated")
    parser.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        help=f"the report, one HTML file (default: {_REPORT})",
    )
    add_store_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Replay and print; 1 if a served score was not the fresh one.

    Raises FreshscoreError, OSError.
    """
    from dataclasses import asdict

    import numpy as np

    from freshscore import replaying
    from freshscore.config.clock import SystemClock
    from freshscore.config.secret import shared_secret
    from freshscore.output import print_table, write_json, writing
    from freshscore.simulations.incumbents import incumbent_decisions
    from freshscore.simulations.outcome_tables import figures_of
    from freshscore.simulations.shapes import preset
    from freshscore.simulations.streaming import stream_of

    report_of = replaying.report_writer()
    if report_of is None and arguments.report is not None:
        raise SettingsError(
            "the report's pictures need matplotlib: pip install 'freshscore[report]'"
        )
    shape = preset(arguments.rescore)
    settings = stored_settings_of(arguments)
    specification = replaying.specification_of(settings)
    keep = [] if arguments.incumbent is None else [arguments.incumbent]
    table = read_file(arguments.data, specification, arguments.columns, settings, keep)
    if arguments.incumbent is not None:
        # Before the work: a column without decisions is refused.
        incumbent_decisions(table.kept[arguments.incumbent], arguments.incumbent)
    table = _until(table, arguments.before_ms)
    start_ms = _start_ms(table) if arguments.start_ms is None else arguments.start_ms
    stream_rng, replay_rng = np.random.default_rng(arguments.seed).spawn(2)
    stream = stream_of(table, shape, start_ms, stream_rng)
    replaying.say_composition(stream, arguments.seed)
    clock = SystemClock()
    chosen = replaying.chosen_model(stream, settings, clock, arguments.model)
    print(chosen.said, flush=True)
    shared = settings.store.backend == "redis"
    secret = shared_secret(settings.store.path) if shared else None
    if shared:
        stream = stream.within_reach(1_000 * settings.store.horizon_s)
    outcome, records = replaying.run_replay(
        stream,
        chosen.model,
        settings,
        replay_rng,
        clock,
        oracle=arguments.oracle,
        incumbent=arguments.incumbent,
        secret=secret,
    )
    replaying.print_outcome(outcome)
    figures = {
        "seed": arguments.seed,
        "model": chosen.said,
        **figures_of(outcome),
        "rejected": rejected_figures(table),
    }
    holds = outcome.equality.holds
    beside = None
    if shared:
        from freshscore.shared_replaying import run_shared

        beside = run_shared(stream, chosen.model, settings, records, clock)
        print_table(["through Kafka and Redis", "value"], beside.rows())
        print(beside.verdict)
        figures["shared"] = dict(beside.rows())
        figures["shared_troubles"] = [asdict(one) for one in beside.troubles]
        holds = holds and beside.equality.holds
    write_json(arguments.json, figures)
    if report_of is None:
        print("no report: its pictures need matplotlib (pip install 'freshscore[report]')")
    else:
        path = arguments.report or _REPORT
        title = f"Replay of {arguments.data.name}"
        page = report_of(outcome, arguments.seed, title, chosen.said, beside)
        with writing(path):
            replaying.write_report(path, page)
        print(f"report: {path}")
    return 0 if holds else _CHECK_FAILED


def _until(table: PaymentTable, before_ms: int | None) -> PaymentTable:
    import numpy as np

    from freshscore.simulations.streaming import played_at_ms

    if before_ms is None:
        return table
    rows = np.flatnonzero(played_at_ms(table) < before_ms)
    if not len(rows):
        raise BadFile(f"the file has no payment before {before_ms} ms")
    return table.take(rows)


def _start_ms(table: PaymentTable) -> int:
    """Where the replay begins unless that is said: at a midnight, if the file has many."""
    from freshscore.simulations.streaming import played_at_ms

    played_ms = played_at_ms(table)
    first_ms, last_ms = int(played_ms.min()), int(played_ms.max())
    start_ms = first_ms + int((last_ms - first_ms) * _HISTORY_SHARE)
    midnight_ms = start_ms - start_ms % _DAY_MS
    return midnight_ms if midnight_ms > first_ms + _DAY_MS else start_ms
