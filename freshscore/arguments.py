"""The options that every command takes, and the settings that they give."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freshscore.config.loading import LoadedSettings
    from freshscore.config.settings import Settings


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --json, --profile, --config and --settings."""
    group = parser.add_argument_group("options of every command")
    group.add_argument("--json", metavar="FILE", type=Path, help="write the figures to FILE too")
    group.add_argument("--profile", metavar="NAME", default="default", help="profile of settings")
    group.add_argument("--config", metavar="FILE", type=Path, help="settings file (TOML)")
    group.add_argument(
        "--settings",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        type=setting,
        help="one setting, for example store.skew_s=5; may be repeated",
    )


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that a command line asks for. Raises `SettingsError`."""
    return loaded_settings_of(arguments).settings


def loaded_settings_of(arguments: argparse.Namespace) -> LoadedSettings:
    """As `settings_of`, with the origin of each. Raises `SettingsError`."""
    from freshscore.config.loading import load_with_origins

    return load_with_origins(
        arguments.profile, settings=dict(arguments.settings), toml=arguments.config
    )


def seed(text: str) -> int:
    """A seed: 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is no seed; it must be 0 or more")
    return value


def setting(text: str) -> tuple[str, Any]:
    """`KEY=VALUE` as (key, value); VALUE is read as TOML, and as plain text where it is none."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return key, value
