"""`freshscore settings show`."""

from __future__ import annotations

import argparse

from freshscore.arguments import loaded_settings_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Print every setting with its value and its origin."""
    from freshscore.config.loading import flat
    from freshscore.output import print_table, write_json

    loaded = loaded_settings_of(arguments)
    rows = [(key, value, loaded.origins[key]) for key, value in flat(loaded.settings)]
    # As text, for what is shown must be what can be typed: no thousands separators.
    shown = [(key, None if value is None else str(value), origin) for key, value, origin in rows]
    print_table(["setting", "value", "from"], shown)
    write_json(
        arguments.json,
        [{"name": key, "value": value, "from": origin} for key, value, origin in rows],
    )
    return 0
