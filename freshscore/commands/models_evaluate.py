"""`freshscore models evaluate`: the Handbook's protocol, on a file or on generated payments."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from freshscore.arguments import seed
from freshscore.config.errors import SettingsError
from freshscore.payment_files import (
    add_data_argument,
    add_specification_argument,
    add_store_argument,
    instant,
    read_file,
    stored_settings_of,
)

if TYPE_CHECKING:
    from freshscore.config.settings import Settings
    from freshscore.scoring.model import Model
    from freshscore.simulations.evaluation import Evaluation
    from freshscore.simulations.protocol import Split

_SEEDS = (1, 2, 3, 4, 5)
_SPECIFICATION = "handbook"
# Of handbook.md: LightGBM on the published data, and how far five seeds may lie from it.
_REFERENCE = {
    "auc_roc": (0.884, 0.03),
    "average_precision": (0.647, 0.06),
    "card_precision": (0.290, 0.03),
}
_NAMES = {
    "auc_roc": "AUC ROC",
    "average_precision": "average precision",
    "card_precision": "card precision@100",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to evaluate, and on which payments."""
    parser.add_argument(
        "--protocol",
        choices=("handbook",),
        default="handbook",
        help="seven days of training, seven of delay, seven of test (default: handbook)",
    )
    add_data_argument(parser, required=False)
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=seed,
        nargs="+",
        help="without --data: seeds of generated payments (default: 1 2 3 4 5)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="VERSION", help="evaluate this model of the store")
    which.add_argument(
        "--train",
        action="store_true",
        help="train on the training days (the default), with the protocol's parameters: 100 trees"
        " of 31 leaves, learning rate 0.05, 50 rows a leaf, L2 1",
    )
    parser.add_argument(
        "--start",
        metavar="DATE",
        type=instant,
        help="first day of training (default: 2018-07-25)",
    )
    parser.add_argument(
        "--label", metavar="FACT", default="fraud", help="what is predicted (default: fraud)"
    )
    for name, default in (("customers", 5_000), ("terminals", 10_000)):
        parser.add_argument(
            f"--{name}",
            metavar="N",
            type=int,
            default=default,
            help=f"of generated payments (default: {default}); fewer compare with nothing"
            " published",
        )
    add_specification_argument(parser)
    add_store_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print; 1 if full-size generated seeds miss the published figures.

    Raises FreshscoreError, OSError.
    """
    from freshscore.simulations.protocol import Split

    if arguments.data is not None and arguments.seeds is not None:
        raise SettingsError("--seeds generates payments; it does not go with --data")
    if arguments.data is None and arguments.spec is None:
        arguments.spec = _SPECIFICATION
    split = Split() if arguments.start is None else Split(train_start_ms=arguments.start)
    settings = stored_settings_of(arguments)
    model = _model(arguments, settings)
    print(_said(split, model), flush=True)
    if arguments.data is not None:
        return _report_file(arguments, _of_file(arguments, settings, split, model))
    return _report_seeds(arguments, list(_of_seeds(arguments, settings, split, model)))


def _model(arguments: argparse.Namespace, settings: Settings) -> Model | None:
    if arguments.model is None:
        return None
    from freshscore.scoring.registry import Registry

    return Registry.of(settings.store.path).load(arguments.model)


def _said(split: Split, model: Model | None) -> str:
    from freshscore.simulations.evaluation import day_of

    what = "a model trained there" if model is None else f"model {model.version}"
    return (
        f"Handbook protocol: training {split.train_days} days from"
        f" {day_of(split.train_start_ms)}, test {split.test_days} days from"
        f" {day_of(split.test_start_ms)}; {what}"
    )


def _of_file(
    arguments: argparse.Namespace, settings: Settings, split: Split, model: Model | None
) -> Evaluation:
    from freshscore.features.specification import FeatureSpecification
    from freshscore.scoring.training_sets import acceptance_of
    from freshscore.simulations.evaluation import evaluated

    specification = FeatureSpecification.named(settings.store.specification)
    table = read_file(arguments.data, specification, arguments.columns, settings)
    acceptance = acceptance_of(settings)
    return evaluated(table, split, acceptance, label=arguments.label, model=model)


def _of_seeds(
    arguments: argparse.Namespace, settings: Settings, split: Split, model: Model | None
) -> Iterator[tuple[int, Evaluation]]:
    from freshscore.config.clock import SystemClock
    from freshscore.features.reading import read_payments
    from freshscore.features.specification import FeatureSpecification
    from freshscore.output import progress
    from freshscore.scoring.training_sets import acceptance_of
    from freshscore.simulations.evaluation import days_of, evaluated, generated_payments
    from freshscore.simulations.generator import Parameters

    specification = FeatureSpecification.named(settings.store.specification)
    sizes = {"customers": arguments.customers, "terminals": arguments.terminals}
    parameters = Parameters(**sizes, days=days_of(split, Parameters().start_ms))
    seeds = arguments.seeds or list(_SEEDS)
    print(f"seeds {' '.join(map(str, seeds))}", flush=True)
    line_s = settings.output.progress_line_s
    with progress("seeds", len(seeds), SystemClock(), line_s) as advance:
        for seed in seeds:
            table = read_payments(generated_payments(parameters, seed), specification)
            acceptance = acceptance_of(settings)
            yield seed, evaluated(table, split, acceptance, label=arguments.label, model=model)
            advance(1)


def _report_file(arguments: argparse.Namespace, evaluation: Evaluation) -> int:
    from freshscore.output import print_table, write_json

    figures = _figures(evaluation)
    print_table(["what", "value"], list(figures.items()))
    write_json(arguments.json, figures)
    return 0


def _report_seeds(arguments: argparse.Namespace, runs: list[tuple[int, Evaluation]]) -> int:
    from freshscore.output import print_table, write_json

    figures = [{"seed": seed, **_figures(one)} for seed, one in runs]
    print_table(list(figures[0]), [list(one.values()) for one in figures])
    print()
    # What is generated otherwise, or scored by a model of another making, has no published figure.
    published = (arguments.customers, arguments.terminals) == (5_000, 10_000) and not (
        arguments.model or arguments.start or arguments.spec != _SPECIFICATION
    )
    summary = [_summary(name, runs, published) for name in _NAMES]
    print_table(list(summary[0]), [list(one.values()) for one in summary])
    write_json(arguments.json, {"seeds": figures, "summary": summary})
    return 1 if any(one.get("met") == "no" for one in summary) else 0


def _summary(name: str, runs: list[tuple[int, Evaluation]], published: bool) -> dict[str, Any]:
    """Mean and range of one metric over the seeds, beside what is published."""
    values = [getattr(one.performance, name) for _, one in runs]
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else None
    found = {
        "metric": _NAMES[name],
        "mean": mean,
        "lowest": min(known, default=None),
        "highest": max(known, default=None),
    }
    if published:
        reference, within = _REFERENCE[name]
        met = mean is not None and abs(mean - reference) <= within
        found |= {"handbook.md": reference, "within": within, "met": "yes" if met else "no"}
    return found


def _figures(evaluation: Evaluation) -> dict[str, int | float | None]:
    found = evaluation.performance
    return {
        "trained on": evaluation.trained,
        "frauds": evaluation.trained_frauds,
        "tested on": found.payments,
        "frauds in test": found.frauds,
        **{title: getattr(found, name) for name, title in _NAMES.items()},
        "perfect card precision": evaluation.best.card_precision,
    }
