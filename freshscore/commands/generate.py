"""`freshscore generate`: payments with known frauds, as a file.

Rule: the file is there in full or not at all; it is written beside its name and then renamed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freshscore.arguments import seed, settings_of
from freshscore.config.errors import SettingsError
from freshscore.destinations import table_file

if TYPE_CHECKING:
    import pyarrow as pa

    from freshscore.output import Advance
    from freshscore.simulations.generator import Parameters

# Of the figures below, per set of columns: card, merchant, amount, scenario.
_COLUMNS = {
    "freshscore": ("card", "merchant", "amount", "fraud_scenario"),
    "handbook": ("CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD_SCENARIO"),
}
_SCENARIOS = ("legitimate", "large amount", "terminal", "card", "card testing")

Row = tuple[str, object, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; the defaults are those of the Handbook's published data set."""
    parser.add_argument(
        "--out", metavar="FILE", type=table_file, required=True, help="Parquet or CSV"
    )
    _add_number(parser, "customers", 5_000, "customers, one card each")
    _add_number(parser, "terminals", 10_000, "terminals, each a merchant")
    _add_number(parser, "days", 183, "days")
    parser.add_argument(
        "--start",
        metavar="DATE",
        type=date.fromisoformat,
        default=date(2018, 4, 1),
        help="first day (default: 2018-04-01)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=seed, default=1, help="the same seed gives the same payments"
    )
    parser.add_argument("--devices", action="store_true", help="add device, ip and email")
    _add_number(parser, "attacks", 0, "bursts of card testing")
    parser.add_argument(
        "--large-merchant-share",
        metavar="X",
        type=float,
        default=0.0,
        help="share of all payments that one merchant has (default: 0, no such merchant)",
    )
    parser.add_argument(
        "--columns",
        choices=sorted(_COLUMNS),
        default="freshscore",
        help="whose names and units the columns have (default: freshscore)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Generate, write, and print what was made. Raises SettingsError, BadFile, OSError."""
    import numpy as np

    from freshscore.config.clock import SystemClock
    from freshscore.output import print_table, progress, write_json, writing
    from freshscore.simulations.generator import generate_tables

    parameters = _parameters(arguments)
    line_s = settings_of(arguments).output.progress_line_s
    print(f"seed {arguments.seed}", flush=True)
    rng = np.random.default_rng(arguments.seed)
    figures = _Figures(*_COLUMNS[arguments.columns])
    with progress("days", parameters.days, SystemClock(), line_s) as advance:
        tables = generate_tables(parameters, rng, columns=arguments.columns)
        with writing(arguments.out):
            _write(arguments.out, figures.of(tables, parameters.days, advance))
    rows: list[Row] = [*figures.rows(), ("file", arguments.out.stat().st_size, "bytes")]
    print_table(["what", "value", "unit"], rows)
    named = [("seed", arguments.seed, ""), *rows]
    write_json(
        arguments.json,
        [{"name": name, "value": value, "unit": unit} for name, value, unit in named],
    )
    return 0


class _Figures:
    """What the table shows, gathered while the payments pass."""

    def __init__(self, card: str, merchant: str, amount: str, scenario: str) -> None:
        self._card, self._merchant, self._amount, self._scenario = card, merchant, amount, scenario
        self._cards: set[object] = set()
        self._merchants: set[object] = set()
        self._amounts = 0.0
        self._scenarios = [0] * len(_SCENARIOS)

    def of(self, tables: Iterable[pa.Table], days: int, advance: Advance) -> Iterator[pa.Table]:
        """`tables` as they are; `advance` is told how many of `days` have passed."""
        import pyarrow.compute as pc

        from freshscore.simulations.generator import DAYS_PER_CHUNK

        for number, table in enumerate(tables):
            self._cards.update(table[self._card].unique().to_pylist())
            self._merchants.update(table[self._merchant].unique().to_pylist())
            self._amounts += pc.sum(table[self._amount]).as_py() or 0.0
            for counted in pc.value_counts(table[self._scenario]).to_pylist():
                self._scenarios[counted["values"]] += counted["counts"]
            yield table
            advance(min(DAYS_PER_CHUNK, days - number * DAYS_PER_CHUNK))

    def rows(self) -> list[Row]:
        """(what, value, unit); None where there are no payments to divide by."""
        payments = sum(self._scenarios)
        frauds = sum(self._scenarios[1:])
        return [
            ("payments", payments, "payments"),
            ("cards", len(self._cards), "cards"),
            ("merchants", len(self._merchants), "merchants"),
            ("mean amount", self._amounts / payments if payments else None, "EUR"),
            ("fraud share", 100 * frauds / payments if payments else None, "%"),
            *(
                (f"fraud {number}: {name}", self._scenarios[number], "payments")
                for number, name in enumerate(_SCENARIOS)
                if number
            ),
        ]


def _parameters(arguments: argparse.Namespace) -> Parameters:
    from freshscore.simulations.generator import Parameters

    if arguments.columns == "handbook" and arguments.devices:
        raise SettingsError("--devices: the Handbook's columns have no device, ip or email")
    start = datetime.combine(arguments.start, datetime.min.time(), UTC)
    return Parameters(
        customers=arguments.customers,
        terminals=arguments.terminals,
        days=arguments.days,
        start_ms=int(start.timestamp()) * 1000,
        devices=arguments.devices,
        attacks=arguments.attacks,
        large_merchant_share=arguments.large_merchant_share,
    )


def _write(out: Path, tables: Iterator[pa.Table]) -> None:
    """Write `tables` to `out`; what was there before stays until the new file is complete."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            first = next(tables)
            with _writer(out, file, first.schema) as writer:
                writer.write_table(first)
                for table in tables:
                    writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _writer(out: Path, file: Any, schema: pa.Schema) -> Any:
    import pyarrow.csv
    import pyarrow.parquet

    if out.suffix == ".csv":
        return pyarrow.csv.CSVWriter(file, schema)
    return pyarrow.parquet.ParquetWriter(file, schema)


def _add_number(parser: argparse.ArgumentParser, name: str, default: int, what: str) -> None:
    parser.add_argument(
        f"--{name}", metavar="N", type=int, default=default, help=f"{what} (default: {default})"
    )
