"""`freshscore score`: a file of payments, or one transaction, with the model and the store at hand.

Rule: nothing is observed unless that is asked for; then each payment is scored first and observed
next, in the order of arrival, with what became known in between, as it would be live.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from freshscore.config.errors import EventRefused, SettingsError
from freshscore.destinations import table_file
from freshscore.given_transaction import add_transaction_argument, given_transaction
from freshscore.payment_files import (
    add_data_argument,
    add_specification_argument,
    add_store_argument,
    read_file,
    stored_settings_of,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from freshscore.config.settings import Settings
    from freshscore.features.table import PaymentTable
    from freshscore.features.transaction import Transaction
    from freshscore.output import Advance
    from freshscore.scoring.result import Result
    from freshscore.scoring.scorer import Scorer

# Payments made into objects, scored and reported at a time: a hundredth of a second of work.
_ROWS_AT_ONCE = 1_024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to score, with what, and where the scores go."""
    add_transaction_argument(parser, required=False)
    add_data_argument(parser, required=False)
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=table_file,
        help="scores of --data: Parquet or CSV, a row each",
    )
    parser.add_argument(
        "--observe",
        action="store_true",
        help="count each payment in the store's aggregates once it is scored, and save the store",
    )
    parser.add_argument(
        "--model",
        metavar="VERSION",
        help="version, or the beginning of it or of its hash (default: the champion)",
    )
    add_specification_argument(parser)
    add_store_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score and print, or write. Raises FreshscoreError, OSError."""
    from freshscore.scoring.registry import Registry
    from freshscore.scoring.scorer import Scorer

    if (arguments.transaction is None) == (arguments.data is None):
        raise SettingsError("give either one transaction as JSON, or --data FILE with --out FILE")
    if (arguments.data is None) != (arguments.out is None):
        raise SettingsError("--data and --out go together")
    settings = stored_settings_of(arguments)
    registry = Registry.of(settings.store.path)
    model = registry.champion() if arguments.model is None else registry.load(arguments.model)
    scorer = Scorer.open(arguments.profile, settings=settings, model=model)
    if arguments.data is None:
        _score_one(scorer, arguments)
    else:
        _score_file(scorer, arguments, settings)
    # Saves what was observed; after an error the store stays as it was.
    scorer.close()
    return 0


def _score_one(scorer: Scorer, arguments: argparse.Namespace) -> None:
    from freshscore.output import print_table, write_json

    transaction = given_transaction(arguments.transaction)
    result = scorer.score(transaction, as_of=arguments.as_of_ms)
    if arguments.observe:
        scorer.observe(transaction)
    cells = _cells(result)
    print_table(
        ["transaction", result.transaction_id],
        [(name, None if value is None else str(value)) for name, value in cells.items()],
    )
    write_json(
        arguments.json,
        {"transaction_id": result.transaction_id, **cells, "degraded": list(result.degraded)},
    )


def _score_file(scorer: Scorer, arguments: argparse.Namespace, settings: Settings) -> None:
    from freshscore.config.clock import SystemClock
    from freshscore.features.specification import FeatureSpecification
    from freshscore.features.writing import write_table
    from freshscore.output import print_table, progress, write_json

    specification = FeatureSpecification.named(settings.store.specification)
    table = read_file(arguments.data, specification, arguments.columns, settings)
    clock = SystemClock()
    with progress("payments", len(table), clock, settings.output.progress_line_s) as advance:
        began_s = clock.monotonic_s()
        refused = 0
        if arguments.observe:
            results, refused = _scored_and_observed(scorer, table, arguments.as_of_ms, advance)
        else:
            results = _scored(scorer, table, arguments.as_of_ms, advance)
        took_s = clock.monotonic_s() - began_s
    write_table(arguments.out, _columns(table, results))
    figures = {
        "payments": len(results),
        "set aside": len(table.rejected),
        "too late or too early to be observed": refused,
        "without a score": sum(one.score is None for one in results),
        **{f"decision {name}": n for name, n in _counted(one.decision for one in results)},
        **{f"source {name}": n for name, n in _counted(one.source for one in results)},
        "seconds": round(took_s, 3),
    }
    print_table(["what", "value"], list(figures.items()))
    write_json(
        arguments.json,
        {**figures, "model_version": results[0].model_version, "rejected": table.rejected.counts()},
    )


def _scored(
    scorer: Scorer, table: PaymentTable, as_of_ms: int | None, advance: Advance
) -> list[Result]:
    results: list[Result] = []
    for first in range(0, len(table), _ROWS_AT_ONCE):
        rows = range(first, min(first + _ROWS_AT_ONCE, len(table)))
        results += _answers(scorer, list(table.transactions(rows)), as_of_ms)
        advance(len(rows))
    return results


def _scored_and_observed(
    scorer: Scorer, table: PaymentTable, as_of_ms: int | None, advance: Advance
) -> tuple[list[Result], int]:
    """As `_scored`, each payment observed after its score, each fact told once it was known.

    And how many payments were refused, too late or too early for their arrival.
    """
    import numpy as np

    facts = table.facts
    order = np.argsort(facts.known_at_ms, kind="stable")
    known_ms = facts.known_at_ms[order]
    results: list[Result] = []
    told = refused = 0
    for i, transaction in enumerate(table.transactions()):
        arrival_ms = int(table.arrival_ms[i])
        known = int(np.searchsorted(known_ms[told:], arrival_ms, side="right")) + told
        _tell(scorer, table, order[told:known].tolist())
        told = known
        results += _answers(scorer, [transaction], as_of_ms)
        refused += not _observed(scorer, transaction, arrival_ms)
        if (i + 1) % _ROWS_AT_ONCE == 0 or i + 1 == len(table):
            advance(i % _ROWS_AT_ONCE + 1)
    _tell(scorer, table, order[told:].tolist())
    return results, refused


def _answers(scorer: Scorer, transactions: list[Transaction], as_of_ms: int | None) -> list[Result]:
    answers = scorer.score_many(transactions, as_of=as_of_ms)
    assert isinstance(answers, list)  # a list gives a list
    return answers


def _tell(scorer: Scorer, table: PaymentTable, facts: list[int]) -> None:
    for fact in facts:
        transaction = table.transaction(int(table.facts.row[fact]))
        name = table.specification.facts[table.facts.name[fact]]
        scorer.label(
            transaction.transaction_id,
            known_at=int(table.facts.known_at_ms[fact]),
            entities=transaction.entities,
            time=transaction.time,
            **{name: bool(table.facts.value[fact])},
        )


def _observed(scorer: Scorer, transaction: Transaction, arrival_ms: int) -> bool:
    """Observe; whether it was accepted."""
    try:
        scorer.observe(transaction, arrival=arrival_ms)
    except EventRefused:
        return False
    return True


def _columns(table: PaymentTable, results: list[Result]) -> pa.Table:
    """One row for each row of the file, in its order; of rows set aside the error alone."""
    import numpy as np
    import pyarrow as pa

    kinds = {
        "score": pa.float64(),
        "decision": pa.string(),
        "source": pa.string(),
        "as_of": pa.int64(),
        "valid_until": pa.int64(),
        "model_version": pa.string(),
        "degraded": pa.string(),
        "complete_since": pa.int64(),
        "error": pa.string(),
    }
    answers = [_cells(one) for one in results]
    rejected = table.rejected.listed(len(table.rejected))
    answers += [{"error": f"{one.reason}: {one.sentence}"} for _, one in rejected]
    absent = pa.nulls(len(rejected), table.original_ids.type)
    columns = {
        "row": pa.array(np.concatenate([table.row, table.rejected.row])),
        "transaction_id": pa.concat_arrays([table.original_ids, absent]),
        **{
            name: pa.array([one.get(name) for one in answers], kind) for name, kind in kinds.items()
        },
    }
    order = np.argsort(columns["row"].to_numpy(), kind="stable")
    return pa.table(columns).take(pa.array(order))


def _cells(result: Result) -> dict[str, Any]:
    if result.score is None:
        return {"error": result.error}
    return {
        "score": result.score,
        "decision": result.decision,
        "source": result.source,
        "as_of": result.as_of,
        "valid_until": result.valid_until,
        "model_version": result.model_version,
        "degraded": ", ".join(result.degraded) or None,
        "complete_since": result.complete_since,
    }


def _counted(values: Iterable[str | None]) -> list[tuple[str, int]]:
    return sorted(Counter(value for value in values if value is not None).items())
