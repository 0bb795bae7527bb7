"""What commands that read payments have in common: the options, the file, the rows set aside.

Rule: rows set aside are counted by reason and the first of them listed, on standard error, without
their content; the good rows go on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freshscore.arguments import settings_of
from freshscore.config.errors import BadFile

if TYPE_CHECKING:
    from freshscore.config.settings import Settings
    from freshscore.features.specification import FeatureSpecification
    from freshscore.features.table import PaymentTable


def add_data_argument(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add --data and --columns."""
    parser.add_argument(
        "--data", metavar="FILE", type=Path, required=required, help="payments: Parquet or CSV"
    )
    add_columns_argument(parser)


def add_columns_argument(parser: argparse.ArgumentParser) -> None:
    """Add --columns."""
    parser.add_argument(
        "--columns",
        metavar="MAP",
        help="column map: a shipped one or a TOML file (default: recognised by the columns)",
    )


def add_specification_argument(parser: argparse.ArgumentParser) -> None:
    """Add --spec."""
    parser.add_argument(
        "--spec",
        metavar="NAME",
        help="feature specification: handbook, payments, sparkov or a TOML file"
        " (default: the setting store.specification)",
    )


def add_store_argument(parser: argparse.ArgumentParser) -> None:
    """Add --store."""
    parser.add_argument(
        "--store",
        metavar="DIR",
        type=Path,
        help="folder of the store and its models (default: the setting store.path, else"
        " freshscore-data)",
    )


def stored_settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings with --store, and --spec where the command has it; with a folder in any case."""
    from freshscore.scoring.registry import DEFAULT_STORE

    given: list[tuple[str, Any]] = list(arguments.settings)
    specification = vars(arguments).get("spec")
    if specification is not None:
        given.append(("store.specification", specification))
    if arguments.store is not None:
        given.append(("store.path", str(arguments.store)))
    settings = settings_of(argparse.Namespace(**{**vars(arguments), "settings": given}))
    if settings.store.path is not None:
        return settings
    given.append(("store.path", DEFAULT_STORE))
    return settings_of(argparse.Namespace(**{**vars(arguments), "settings": given}))


def read_file(
    path: Path,
    specification: FeatureSpecification,
    columns: str | None,
    settings: Settings,
    keep: Sequence[str] = (),
) -> PaymentTable:
    """The payments of a file; what is set aside, and what the file has no column for, is said.

    keep: further columns to hand through.
    Raises BadFile, also where no row is good.
    """
    from freshscore.features.reading import read_payments

    table = read_payments(path, specification, columns=columns, keep=keep)
    say_rejected(path, table, settings.input.max_listed_rows)
    if table.absent:
        absent = ", ".join(table.absent)
        _say(f"{path.name} has no column for: {absent}; their features are missing")
    if not len(table):
        raise BadFile(f"{path.name}: none of its {len(table.rejected)} rows is a payment")
    return table


def say_rejected(path: Path, table: PaymentTable, max_listed: int) -> None:
    """Say how many rows of a file were set aside for which reason, and list the first."""
    rejected = table.rejected
    if not len(rejected):
        return
    counts = ", ".join(f"{reason} {count:,}" for reason, count in rejected.counts().items())
    _say(f"{path.name}: {len(rejected):,} rows set aside ({counts})")
    for row, problem in rejected.listed(max_listed):
        _say(f"  row {row}: {problem.reason}: {problem.sentence}")
    if len(rejected) > max_listed:
        _say(f"  and {len(rejected) - max_listed:,} more")


def rejected_figures(table: PaymentTable) -> dict[str, int]:
    """Rows set aside by reason, as figures."""
    return table.rejected.counts()


def instant(text: str) -> int:
    """An option that names an instant: a date, or a date and time (UTC unless it says); ms UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date such as 2018-07-25") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
