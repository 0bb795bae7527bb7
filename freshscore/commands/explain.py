"""`freshscore explain`: why one transaction has its score."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from freshscore.given_transaction import add_transaction_argument, given_transaction
from freshscore.payment_files import (
    add_specification_argument,
    add_store_argument,
    stored_settings_of,
)

if TYPE_CHECKING:
    from freshscore.scoring.explanation import Contribution, Explanation

_TOP = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The transaction, the model, the store."""
    add_transaction_argument(parser, required=True)
    parser.add_argument(
        "--model",
        metavar="VERSION",
        help="version, or the beginning of it or of its hash (default: the champion)",
    )
    parser.add_argument(
        "--top",
        metavar="N",
        type=int,
        default=_TOP,
        help=f"features to print (default: {_TOP}); --json has all",
    )
    add_specification_argument(parser)
    add_store_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score, explain and print. Raises FreshscoreError."""
    import msgspec

    from freshscore.output import write_json
    from freshscore.scoring.registry import Registry
    from freshscore.scoring.scorer import Scorer

    settings = stored_settings_of(arguments)
    registry = Registry.of(settings.store.path)
    model = registry.champion() if arguments.model is None else registry.load(arguments.model)
    transaction = given_transaction(arguments.transaction)
    with Scorer.open(arguments.profile, settings=settings, model=model) as scorer:
        explanation = scorer.explain(transaction, as_of=arguments.as_of_ms)
    _print(explanation, arguments.top)
    write_json(
        arguments.json,
        {
            **msgspec.to_builtins(explanation),
            "reasons": [one.reason for one in explanation.reasons],
        },
    )
    return 0


def _print(explanation: Explanation, top: int) -> None:
    from freshscore.model_tables import instant_text
    from freshscore.output import print_table

    rows = [
        ("score", f"{explanation.score:.6g}"),
        ("decision", explanation.decision),
        ("as of (UTC)", instant_text(explanation.as_of)),
        ("time alone changes it not before (UTC)", instant_text(explanation.valid_until)),
        ("served from", explanation.source),
        ("why", explanation.served),
        ("degraded", ", ".join(explanation.degraded) or None),
        ("history is complete since (UTC)", _complete_since(explanation)),
        ("model", explanation.model_version),
    ]
    print_table(["transaction", explanation.transaction_id], rows)
    print()
    if explanation.contributions is None:
        print(explanation.unexplained)
        return
    shown = explanation.contributions[: max(0, top)]
    print_table(["feature", "value", "adds", "reason", "sentence"], [_row(one) for one in shown])
    rest = explanation.contributions[len(shown) :]
    print()
    print_table(
        ["raw score", "adds"],
        [
            ("expected, before any feature", f"{explanation.expected:+.4f}"),
            (f"{len(shown)} features above", f"{sum(one.contribution for one in shown):+.4f}"),
            (f"{len(rest)} other features", f"{sum(one.contribution for one in rest):+.4f}"),
        ],
    )
    reasons = ", ".join(str(one.reason) for one in explanation.reasons)
    print(f"\nreasons that raise the score: {reasons or 'none'}")


def _complete_since(explanation: Explanation) -> str | None:
    from freshscore.model_tables import instant_text

    if explanation.complete_since is None:
        return None
    since = instant_text(explanation.complete_since)
    found = ", ".join(explanation.incomplete) or "what is looked for before its time"
    return f"{since}; reaching further back: {found}"


def _row(one: Contribution) -> tuple[object, ...]:
    value = one.value if isinstance(one.value, str | None) else f"{one.value:,.6g}"
    return one.feature, value, f"{one.contribution:+.4f}", one.reason, one.sentence
