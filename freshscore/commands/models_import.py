"""`freshscore models import`: a model made elsewhere, champion from then on.

LightGBM's own text, or a model of another freshscore store, which brings all that it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freshscore.config.errors import BadFile, BadModel
from freshscore.payment_files import (
    add_specification_argument,
    add_store_argument,
    stored_settings_of,
)

if TYPE_CHECKING:
    from freshscore.config.settings import Settings
    from freshscore.features.specification import FeatureSpecification
    from freshscore.scoring.calibration import CalibrationTable
    from freshscore.scoring.model import Model

# The thresholds of a callable model, too: a middle, and what is nearly certain.
_REVIEW, _DECLINE = 0.5, 0.9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model's file, and what it does not say of itself."""
    parser.add_argument(
        "model",
        metavar="FILE",
        type=Path,
        help="LightGBM's text, as save_model() writes it; or a .model file of another store, to"
        " which the options that describe a model do not apply",
    )
    add_specification_argument(parser)
    parser.add_argument(
        "--features",
        metavar="NAME,...",
        type=_names,
        help="the specification's name of each of the model's features, in the model's order"
        " (default: the model's own names)",
    )
    parser.add_argument(
        "--link",
        choices=("identity", "logistic"),
        help="what turns a raw score into a score, for a model with an objective of its own",
    )
    parser.add_argument(
        "--codes",
        metavar="FILE",
        type=Path,
        help="JSON: category field -> value -> code (default: those that pandas left in the model)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        type=Path,
        help='JSON: {"scores": [...], "values": [...]}, both rising: from scores to probabilities',
    )
    for name, default in (("review", _REVIEW), ("decline", _DECLINE)):
        parser.add_argument(
            f"--{name}",
            metavar="X",
            type=float,
            default=default,
            help=f"score from which the decision is {name} (default: {default})",
        )
    add_store_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check, register and print the model. Raises FreshscoreError, OSError."""
    from freshscore.config.clock import SystemClock
    from freshscore.features.specification import FeatureSpecification
    from freshscore.model_tables import model_figures, print_model
    from freshscore.output import write_json
    from freshscore.scoring.model import Model
    from freshscore.scoring.model_file import MAGIC
    from freshscore.scoring.registry import Registry

    settings = stored_settings_of(arguments)
    specification = FeatureSpecification.named(settings.store.specification)
    now_ms = SystemClock().now_ms()
    content = arguments.model.read_bytes()
    if content.startswith(MAGIC):
        model = Model.load(content)
        model.check_fits(specification)
    else:
        model = _of_booster(content, arguments, specification, settings, now_ms)
    why = f"imported from {arguments.model.name}"
    version = Registry.of(settings.store.path).add(model, why, now_ms)
    print_model(model, why)
    print(f"champion of {settings.store.path}: {version}")
    write_json(arguments.json, model_figures(model, why))
    return 0


def _of_booster(
    content: bytes,
    arguments: argparse.Namespace,
    specification: FeatureSpecification,
    settings: Settings,
    now_ms: int,
) -> Model:
    from freshscore.scoring.model_file import CohortThresholds
    from freshscore.scoring.model_making import import_booster

    text = _text(content, arguments.model.name)
    return import_booster(
        text,
        specification,
        cohorts=[CohortThresholds("all", arguments.review, arguments.decline)],
        made_at_ms=now_ms,
        names=None if arguments.features is None else _renamed(text, arguments.features),
        codes=None if arguments.codes is None else _codes(arguments.codes),
        custom_link=arguments.link,
        calibration=None if arguments.calibration is None else _table(arguments.calibration),
        golden_rows=settings.model.golden_rows,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise BadModel(
            f"{name} is no text: a LightGBM model is imported as save_model() writes it, never"
            " as a pickle"
        ) from None


def _renamed(text: str, names: list[str]) -> dict[str, str]:
    from freshscore.scoring.booster_text import read_booster

    own = read_booster(text).feature_names
    if len(own) != len(names):
        raise BadModel(f"--features has {len(names)} names; the model has {len(own)} features")
    return dict(zip(own, names, strict=True))


def _codes(path: Path) -> dict[str, dict[str, int]]:
    found = _json(path)
    fields = found.values() if isinstance(found, dict) else [None]
    if not all(
        isinstance(values, dict) and all(type(code) is int for code in values.values())
        for values in fields
    ):
        raise BadFile(f"{path.name}: codes are an object: field -> value -> whole number")
    codes: dict[str, dict[str, int]] = found
    return codes


def _table(path: Path) -> CalibrationTable:
    import numpy as np

    from freshscore.scoring.calibration import CalibrationTable

    found = _json(path)
    try:
        return CalibrationTable(np.array(found["scores"], float), np.array(found["values"], float))
    except (KeyError, TypeError, ValueError) as problem:
        raise BadFile(f"{path.name} is no calibration table: {problem}") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise BadFile(f"{path.name} is no JSON: {problem}") from None
