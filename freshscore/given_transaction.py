"""One transaction on the command line: as JSON in an argument, or on standard input."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from freshscore.config.errors import BadTransaction
from freshscore.payment_files import instant

if TYPE_CHECKING:
    from freshscore.features.transaction import Transaction

STANDARD_INPUT = "-"


def add_transaction_argument(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the transaction, and --as-of."""
    parser.add_argument(
        "transaction",
        metavar="JSON",
        nargs=None if required else "?",
        help="one transaction as a JSON object with the names of Transaction; - reads it from"
        " standard input",
    )
    parser.add_argument(
        "--as-of",
        dest="as_of_ms",
        metavar="DATE",
        type=instant,
        help="the instant of the aggregates (default: the latest of the payment's own time and the"
        " newest event in the store)",
    )


def given_transaction(text: str) -> Transaction:
    """The transaction in `text`, or on standard input where that is "-". Raises BadTransaction.

    A `time` in text is ISO 8601, with its offset.
    """
    import msgspec

    from freshscore.features.transaction import Transaction

    try:
        given = msgspec.json.decode(sys.stdin.read() if text == STANDARD_INPUT else text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as problem:
        raise BadTransaction(f"the transaction is no JSON: {_reason(problem)}") from None
    if not isinstance(given, dict):
        raise BadTransaction(f"the transaction is a JSON object, not {type(given).__name__}")
    return Transaction.of({**given, **_instants(given)})


def _reason(problem: Exception) -> str:
    # What msgspec says has no content in it; a UnicodeError's text may.
    return "it is no valid Unicode" if isinstance(problem, UnicodeError) else str(problem)


def _instants(given: dict[str, Any]) -> dict[str, datetime]:
    time = given.get("time")
    if not isinstance(time, str):
        return {}
    try:
        return {"time": datetime.fromisoformat(time)}
    except ValueError:
        raise BadTransaction("time is neither ISO 8601 nor integer milliseconds") from None
