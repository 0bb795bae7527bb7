"""`freshscore features compute`: point-in-time features of a whole file, for training elsewhere.

Rule: each payment has the features that serving would have seen at its own time; rows come in the
order of the file, with their transaction_id as it came; the file is there in full or not at all.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from freshscore.arguments import settings_of
from freshscore.config.errors import BadSpecification
from freshscore.destinations import table_file
from freshscore.payment_files import (
    add_data_argument,
    add_specification_argument,
    read_file,
    rejected_figures,
)

if TYPE_CHECKING:
    import numpy as np

    from freshscore.features.table import PaymentTable

# What stands beside the features: the id as it came, and when the payment was made.
_ID, _TIME = "transaction_id", "time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to read, by which specification, and where the features go."""
    add_specification_argument(parser)
    add_data_argument(parser)
    parser.add_argument(
        "--out", metavar="FILE", type=table_file, required=True, help="features: Parquet or CSV"
    )
    parser.add_argument(
        "--mode",
        choices=("known", "true"),
        default="known",
        help="known: what had arrived before each payment, as serving saw it (default);"
        " true: all events up to its time, whenever they arrived",
    )


def run(arguments: argparse.Namespace) -> int:
    """Read, compute, write, print what was done. Raises FreshscoreError, OSError."""
    from freshscore.config.clock import SystemClock
    from freshscore.features.history import history_features
    from freshscore.features.program import compiled
    from freshscore.features.specification import FeatureSpecification
    from freshscore.features.writing import write_table
    from freshscore.output import print_table, progress, write_json
    from freshscore.scoring.training_sets import acceptance_of, training_keys

    settings = settings_of(arguments)
    spec = FeatureSpecification.named(arguments.spec or settings.store.specification)
    _check_names(spec.feature_names)
    clock = SystemClock()
    with progress("steps", 3, clock, settings.output.progress_line_s) as advance:
        began_s = clock.monotonic_s()
        table = read_file(arguments.data, spec, arguments.columns, settings)
        read_s = clock.monotonic_s()
        advance(1)
        program = compiled(spec)
        # Identities decide only the order among equal times, so keys that everybody has will do.
        keys = training_keys(program)
        features = history_features(
            table, program, keys, mode=arguments.mode, acceptance=acceptance_of(settings)
        )
        computed_s = clock.monotonic_s()
        advance(1)
        write_table(arguments.out, _columns(table, features))
        written_s = clock.monotonic_s()
        advance(1)
    figures = {
        "payments": len(table),
        "features": len(spec.feature_names),
        "set aside": len(table.rejected),
        "seconds to read": round(read_s - began_s, 3),
        "seconds to compute": round(computed_s - read_s, 3),
        "seconds to write": round(written_s - computed_s, 3),
        "payments a second, computed": round(len(table) / max(computed_s - read_s, 1e-9)),
    }
    print_table(["what", "value"], list(figures.items()))
    write_json(
        arguments.json,
        {
            **figures,
            "specification": spec.name,
            "mode": arguments.mode,
            "rejected": rejected_figures(table),
        },
    )
    return 0


def _check_names(names: tuple[str, ...]) -> None:
    taken = sorted({_ID, _TIME} & set(names))
    if taken:
        raise BadSpecification(
            f"a feature is called {', '.join(taken)}, which is a column of its own in the file"
        )


def _columns(table: PaymentTable, features: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The columns of the file, in the order of its source; a missing value is null.

    A category is its text: codes are a model's, and there is none here.
    """
    import numpy as np
    import pyarrow as pa

    order = np.argsort(table.row, kind="stable")
    at = pa.array(order)
    columns = {
        _ID: table.original_ids.take(at),
        _TIME: pa.array(table.time_ms[order], pa.timestamp("ms", "UTC")),
    }
    for number, column in enumerate(table.specification.columns):
        feature = column.feature
        if feature is not None and feature.function == "category":
            columns[column.name] = table.categories[feature.of or ""].texts().take(at)
        else:
            columns[column.name] = pa.array(features[order, number], from_pandas=True)
    return columns
