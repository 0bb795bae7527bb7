"""`freshscore train`: a model of a file of payments, champion from then on."""

from __future__ import annotations

import argparse

from freshscore.payment_files import (
    add_data_argument,
    add_specification_argument,
    add_store_argument,
    instant,
    read_file,
    rejected_figures,
    stored_settings_of,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """File, specification, label, which payments, and where the model goes."""
    add_data_argument(parser)
    add_specification_argument(parser)
    parser.add_argument(
        "--label", metavar="FACT", default="fraud", help="what to predict (default: fraud)"
    )
    parser.add_argument(
        "--from",
        dest="first_ms",
        metavar="DATE",
        type=instant,
        help="train on payments from this instant on; earlier ones still make features",
    )
    parser.add_argument(
        "--to",
        dest="before_ms",
        metavar="DATE",
        type=instant,
        help="train on payments before this instant; later ones are not looked at",
    )
    parser.add_argument(
        "--known-by",
        dest="known_by_ms",
        metavar="DATE",
        type=instant,
        help="matured labels only: as known at this instant, and only of payments whose label had"
        " had the delay that the specification declares (default: what ever became known)",
    )
    parser.add_argument(
        "--cohort",
        dest="cohorts",
        metavar="NAME=FIELD:VALUE",
        action="append",
        default=[],
        type=_cohort,
        help="thresholds of their own for payments whose FIELD is VALUE; the first that holds"
        " counts; may be repeated",
    )
    add_store_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read, train, register, and print what the model is. Raises FreshscoreError, OSError."""
    from freshscore.config.clock import SystemClock
    from freshscore.features.packing import Cohort
    from freshscore.features.specification import FeatureSpecification
    from freshscore.model_tables import model_figures, print_model
    from freshscore.output import progress, write_json
    from freshscore.scoring.registry import Registry
    from freshscore.scoring.training_sets import TrainingScope, trained

    settings = stored_settings_of(arguments)
    specification = FeatureSpecification.named(settings.store.specification)
    clock = SystemClock()
    print(f"seed {settings.model.seed}", flush=True)
    scope = TrainingScope(
        arguments.label, arguments.first_ms, arguments.before_ms, arguments.known_by_ms
    )
    table = read_file(arguments.data, specification, arguments.columns, settings)
    line_s = settings.output.progress_line_s
    with progress("trees", settings.model.num_trees, clock, line_s) as advance:
        model = trained(
            table,
            scope,
            settings,
            made_at_ms=clock.now_ms(),
            cohorts=[Cohort(*parts) for parts in arguments.cohorts],
            after_trees=advance,
        )
    registry = Registry.of(settings.store.path)
    why = f"trained on {arguments.data.name}, label {arguments.label}"
    version = registry.add(model, why, clock.now_ms())
    print_model(model, why)
    print(f"champion of {settings.store.path}: {version}")
    figures = model_figures(model, why)
    write_json(arguments.json, {**figures, "rejected": rejected_figures(table)})
    return 0


def _cohort(text: str) -> tuple[str, str, str]:
    name, equals, condition = text.partition("=")
    field, colon, value = condition.partition(":")
    if not (name and equals and field and colon):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FIELD:VALUE")
    return name, field, value
