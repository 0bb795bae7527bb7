"""`freshscore models list`."""

from __future__ import annotations

import argparse

from freshscore.payment_files import add_store_argument, stored_settings_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which store."""
    add_store_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what was champion since when; the newest first. Raises DamagedModel, SettingsError."""
    from freshscore.model_tables import print_entries
    from freshscore.output import write_json
    from freshscore.scoring.registry import Registry

    settings = stored_settings_of(arguments)
    entries = Registry.of(settings.store.path).entries()
    if entries:
        print_entries(entries)
    else:
        print(f"no models in {settings.store.path}: `freshscore train --data FILE` makes one")
    write_json(
        arguments.json,
        [
            {
                "version": one.version,
                "since_ms": one.at_ms,
                "why": one.why,
                "champion": one is entries[-1],
            }
            for one in entries[::-1]
        ],
    )
    return 0
