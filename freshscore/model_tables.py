"""Models on the screen and as figures."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from freshscore.output import print_table
from freshscore.scoring import model_file
from freshscore.scoring.model import Model
from freshscore.scoring.registry import Entry

_HASH_CHARACTERS: Final = 32


def print_model(model: Model, why: str) -> None:
    """Print what a model is, was made from, and where its thresholds lie."""
    rows = [(name, _text(value)) for name, value in _shown(model, why)]
    print_table(["model", model.version], rows)
    print()
    print_table(
        ["cohort", "if", "review from", "decline from"],
        [
            (
                one.name,
                "any other payment" if one.field is None else f"{one.field} is {one.value}",
                _threshold(one.review),
                _threshold(one.decline),
            )
            for one in model.content.cohorts
        ],
    )


def model_figures(model: Model, why: str) -> dict[str, Any]:
    """The same as one JSON object."""
    return {
        "version": model.version,
        **dict(_shown(model, why)),
        "features": list(model.content.feature_names),
        "cohorts": [
            {
                "name": one.name,
                "field": one.field,
                "value": one.value,
                "review": one.review,
                "decline": one.decline,
            }
            for one in model.content.cohorts
        ],
    }


def print_entries(entries: tuple[Entry, ...]) -> None:
    """Print the history of a registry, the newest first; the first is champion."""
    newest_first = entries[::-1]
    print_table(
        ["version", "since (UTC)", "role", "why"],
        [
            (one.version, instant_text(one.at_ms), "champion" if number == 0 else "", one.why)
            for number, one in enumerate(newest_first)
        ],
    )


def instant_text(time_ms: int | None) -> str | None:
    """An instant for people, in UTC; None for none."""
    if time_ms is None:
        return None
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def _shown(model: Model, why: str) -> list[tuple[str, Any]]:
    content, facts = model.content, model.facts
    walked = "in the scoring kernel" if model.forest is not None else "by LightGBM"
    return [
        ("why", why),
        ("made at (UTC)", instant_text(content.made_at_ms)),
        ("content, whenever made", _content_hash(model)),
        ("specification", content.specification),
        ("fingerprint", content.fingerprint.hex()),
        ("trees", content.booster.count("\nTree=")),
        ("scored", walked if model.not_walked is None else f"{walked}: {model.not_walked}"),
        ("payments trained on", facts.rows),
        ("of them the label is true", facts.frauds),
        ("later payments held back", facts.validation_rows),
        ("first of all these (UTC)", instant_text(facts.first_ms)),
        ("last of all these (UTC)", instant_text(facts.last_ms)),
        *(("warning", sentence) for sentence in facts.warnings),
        *((f"on those: {name}", value) for name, value in facts.metrics.items()),
    ]


def _threshold(score: float) -> float | str:
    # Where more payments than may be declined share the highest score, no score is high enough.
    return "never" if score == math.inf else score


def _content_hash(model: Model) -> str:
    """The hash of all but the instant: training twice on the same payments gives it twice."""
    timeless = msgspec.structs.replace(model.content, made_at_ms=0)
    return model_file.content_hash(model_file.encoded(timeless))[:_HASH_CHARACTERS]


def _text(value: object) -> object:
    # As text, for a column with one number in it is aligned to the right.
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else value
