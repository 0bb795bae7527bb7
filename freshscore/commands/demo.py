"""`freshscore demo`: the whole thing once, on generated payments; it needs nothing, and ends.

Everything that it makes lies in one folder: the payments, the model (champion of a store there),
and the report of a week in which payments are scored again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from freshscore.arguments import seed, settings_of

if TYPE_CHECKING:
    import numpy as np

_FOLDER = Path("freshscore-demo")
_SPECIFICATION = "payments"
_SHAPE = "reuse"
# Six weeks of history, which the longest windows reach back over, and a week that is replayed.
_DAYS, _REPLAYED_DAYS = 49, 7
_CUSTOMERS, _TERMINALS = 3_000, 6_000
# About one a week, so that the model has met card testing before it is replayed.
_ATTACKS = 7
_DAY_MS = 86_400_000
_CHECK_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to put what it makes, and the seed."""
    parser.add_argument(
        "--out",
        dest="folder",
        metavar="DIR",
        type=Path,
        default=_FOLDER,
        help=f"folder for payments, model and report (default: {_FOLDER})",
    )
    parser.add_argument("--seed", metavar="N", type=seed, default=1, help="of everything simulated")


def run(arguments: argparse.Namespace) -> int:
    """Generate, train, replay, report; 1 if a served score was not the fresh one."""
    print(f"seed {arguments.seed}", flush=True)
    import numpy as np

    from freshscore import replaying
    from freshscore.config.clock import SystemClock
    from freshscore.features.reading import read_payments
    from freshscore.output import write_json, writing
    from freshscore.scoring.registry import Registry
    from freshscore.simulations.outcome_tables import figures_of
    from freshscore.simulations.shapes import preset
    from freshscore.simulations.streaming import stream_of

    clock = SystemClock()
    started_s = clock.monotonic_s()
    given = [("store.specification", _SPECIFICATION), ("store.path", str(arguments.folder))]
    arguments.settings = [*given, *arguments.settings]
    settings = settings_of(arguments)
    payments_rng, stream_rng, replay_rng = np.random.default_rng(arguments.seed).spawn(3)
    path = arguments.folder / "payments.parquet"
    _write_payments(path, payments_rng)
    table = read_payments(path, replaying.specification_of(settings))
    print(f"{len(table):,} payments over {_DAYS} days: {path}", flush=True)
    start_ms = (int(table.time_ms[-1]) // _DAY_MS + 1 - _REPLAYED_DAYS) * _DAY_MS
    stream = stream_of(table, preset(_SHAPE), start_ms, stream_rng)
    replaying.say_composition(stream, arguments.seed)
    chosen = replaying.trained_before(stream, settings, clock, "the demo's own")
    Registry.of(settings.store.path).add(chosen.model, "trained by the demo", clock.now_ms())
    print(chosen.said, flush=True)
    outcome, _ = replaying.run_replay(stream, chosen.model, settings, replay_rng, clock)
    replaying.print_outcome(outcome)
    write_json(arguments.json, {"seed": arguments.seed, **figures_of(outcome)})
    report_of = replaying.report_writer()
    if report_of is not None:
        report = arguments.folder / "report.html"
        page = report_of(outcome, arguments.seed, "A week of generated payments", chosen.said)
        with writing(report):
            replaying.write_report(report, page)
        print(f"report: {report}")
    else:
        print("no report: its pictures need matplotlib (pip install 'freshscore[report]')")
    print(f"done in {clock.monotonic_s() - started_s:.0f} s; to go on:")
    print(f"  freshscore replay --data {path} --store {arguments.folder} --rescore stages")
    print(f"  freshscore models show --store {arguments.folder}")
    return 0 if outcome.equality.holds else _CHECK_FAILED


def _write_payments(path: Path, rng: np.random.Generator) -> None:
    import pyarrow as pa

    from freshscore.features.writing import write_table
    from freshscore.simulations.generator import Parameters, generate_tables

    parameters = Parameters(
        customers=_CUSTOMERS, terminals=_TERMINALS, days=_DAYS, devices=True, attacks=_ATTACKS
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, pa.concat_tables(generate_tables(parameters, rng)))
