"""`freshscore models show`."""

from __future__ import annotations

import argparse

from freshscore.payment_files import add_store_argument, stored_settings_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model of which store."""
    parser.add_argument(
        "version",
        metavar="VERSION",
        nargs="?",
        help="version, or the beginning of it or of its hash (default: the champion)",
    )
    add_store_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what the model is. Raises NoModel, DamagedModel, ModelMismatch."""
    from freshscore.model_tables import model_figures, print_model
    from freshscore.output import write_json
    from freshscore.scoring.registry import Registry

    registry = Registry.of(stored_settings_of(arguments).store.path)
    model = registry.champion() if arguments.version is None else registry.load(arguments.version)
    why = registry.entry(model.version).why
    print_model(model, why)
    write_json(arguments.json, model_figures(model, why))
    return 0
