"""The tables of a replay, for the terminal and for the report alike, and its figures by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from freshscore.features.money import minor_digits
from freshscore.simulations.incumbents import IncumbentComparison
from freshscore.simulations.outcome import Outcome
from freshscore.simulations.streams import Composition

Cell = str | int | float | None

_SAVED: Final = {
    "memo": "evaluating features, and the model",
    "box": "the model",
    "cell": "the model",
    "computed": "nothing",
}


@dataclass(frozen=True)
class FigureTable:
    """Rows under their columns; note: what to know when reading them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def composition_line(composition: Composition, shape: str, seed: int) -> str:
    """Which touches were in the file and which were simulated, and by which seed."""
    one = composition
    again = one.simulated_scores - one.simulated_payments
    simulated = [
        f"{count:,} {what}"
        for count, what in (
            (one.simulated_payments, "added payments (a first score each)"),
            (again, "scores again"),
            # Not told apart: an added payment whose event came after the last score has none.
            (one.simulated_events, "events (theirs, and repeated ones)"),
            (one.simulated_facts, "facts"),
        )
        if count
    ]
    return (
        f"seed {seed}; in the file: {one.file_scores:,} first scores, {one.file_events:,} events,"
        f" {one.file_facts:,} facts; simulated (shape {shape}):"
        f" {', '.join([*simulated, 'how long events take to arrive'])}"
    )


def tables_of(outcome: Outcome) -> list[FigureTable]:
    """All tables that `outcome` has something for."""
    return [
        _sources(outcome),
        _policies(outcome),
        _causes(outcome),
        *([_quality(outcome)] if outcome.quality else []),
        *([_incumbent(outcome.incumbent, outcome.currency)] if outcome.incumbent else []),
    ]


def figures_of(outcome: Outcome) -> dict[str, Any]:
    """The figures by name, ready for JSON; without those of each span and each answer."""
    figures = asdict(outcome)
    del figures["timeline"], figures["ages_s"]
    figures["equality"]["holds"] = outcome.equality.holds
    return {**figures, "answers": outcome.answers, "inference_saved": outcome.saved}


def period(outcome: Outcome) -> str:
    """The replayed span of virtual time."""
    first, last = (
        datetime.fromtimestamp(ms / 1000, UTC) for ms in (outcome.first_ms, outcome.last_ms)
    )
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"


def _sources(outcome: Outcome) -> FigureTable:
    rows = []
    for one in outcome.sources:
        latency = one.latency_us or (None, None, None)
        age = one.age_s or (None, None, None)
        rows.append(
            (
                one.source,
                one.answers,
                _percent(one.answers, outcome.answers),
                one.again,
                *(None if value is None else round(value, 1) for value in latency),
                *(None if value is None else round(value, 1) for value in (age[0], age[2])),
                _SAVED[one.source],
            )
        )
    saved = _percent(outcome.saved, outcome.answers)
    return FigureTable(
        "Answers by source",
        (
            "source",
            "answers",
            "%",
            "re-scores",
            "us p50",
            "p90",
            "p99",
            "age s p50",
            "p99",
            "saved",
        ),
        tuple(rows),
        f"The model did not run for {outcome.saved:,} of {outcome.answers:,} answers ({saved} %)."
        " Every state is in the process, so near states had no remote read to save.",
    )


def _policies(outcome: Outcome) -> FigureTable:
    bound = outcome.policies[0]
    rows = tuple(
        (
            one.name,
            one.hits,
            _percent(one.hits, one.touches),
            _percent(one.hits_again, one.again),
            _percent(one.in_bound_again, bound.hits_again),
            one.stale,
            one.flipped,
        )
        for one in outcome.policies
    )
    return FigureTable(
        "Policies on the same touches",
        (
            "policy",
            "served",
            "% of answers",
            "% of re-scores",
            "% of foresight's",
            "stale",
            "other decision",
        ),
        rows,
        "Perfect foresight re-uses exactly where the fresh score has the bits of one known for that"
        " card within replay.foresight_window_s; of its hits on re-scores a policy has the last"
        " share. A cache may serve more: scores of other cards, and older ones. Stale: served, and"
        " not the fresh score.",
    )


def _causes(outcome: Outcome) -> FigureTable:
    return FigureTable(
        "What invalidated entries",
        ("cause", "looked at again", "confirmed", "computed"),
        tuple(
            (one.cause, one.confirmed + one.computed, one.confirmed, one.computed)
            for one in outcome.causes
        ),
        "Confirmed: aggregates moved, the box or the cell did not, and the score holds."
        " New: no score was known for the payment.",
    )


def _quality(outcome: Outcome) -> FigureTable:
    return FigureTable(
        "How well scores tell frauds",
        ("scores", "answers", "frauds", "average precision", "AUC ROC"),
        tuple(
            (
                one.scores,
                one.answers,
                one.frauds,
                _rounded(one.average_precision),
                _rounded(one.auc_roc),
            )
            for one in outcome.quality
        ),
    )


def _incumbent(incumbent: IncumbentComparison, currency: str) -> FigureTable:
    digits = minor_digits(currency)

    def money(amount_minor: int | None) -> float | None:
        return None if amount_minor is None else round(amount_minor / 10**digits, digits)

    differing = sum(one.payments for one in incumbent.differences)
    amount = money(sum(one.amount_minor for one in incumbent.differences))
    return FigureTable(
        f"Decisions that differ from {incumbent.column}",
        ("incumbent", "freshscore", "payments", currency, "frauds", f"fraud {currency}"),
        tuple(
            (
                one.incumbent,
                one.freshscore,
                one.payments,
                money(one.amount_minor),
                one.frauds,
                money(one.fraud_minor),
            )
            for one in incumbent.differences
        ),
        f"{differing:,} of {incumbent.compared:,} first decisions differ, {amount:,} of"
        f" {money(incumbent.amount_minor):,} {currency};"
        f" {incumbent.unknown:,} payments have no decision of the incumbent's.",
    )


def _percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 1) if whole else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
