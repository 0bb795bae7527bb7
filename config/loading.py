"""Settings from their layers: arguments over variables over a TOML file over a profile.

Rule: whatever is unknown or impossible is a `SettingsError` that names the key, the limit, the
value and the layer it came from.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource
from pydantic_settings import SettingsError as UnreadableVariable

from freshscore.config import environment
from freshscore.config.errors import SettingsError
from freshscore.config.settings import Settings

_PREFIX, _DELIMITER = "FRESHSCORE_", "__"
_FILE_VARIABLE = "FRESHSCORE_CONFIG"
_FILE_IN_FOLDER = Path("freshscore.toml")
DEFAULT_ORIGIN = "default"
# Values that hold a password, or may.
_SECRET = ("kafka.password", "redis.password", "redis.sentinel_password", "redis.url")
_MOST_SHOWN = 200  # characters of a value in a message: more is a file put in the wrong place


@dataclass(frozen=True, slots=True)
class _Layer:
    origin: str
    tree: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and for each dotted key the layer that gave its value."""

    settings: Settings
    origins: dict[str, str]


def load_settings(
    profile: str = "default",
    *,
    settings: Mapping[str, Any] | Settings | None = None,
    toml: Path | str | None = None,
    env: Mapping[str, str] | None = None,
) -> Settings:
    """Settings of `profile`, with what the layers above it say.

    `settings`: nested (`{"store": {"skew_s": 5}}`) or dotted keys (`{"store.skew_s": 5}`); a
    finished `Settings` is returned as it is. `toml`: the file to read instead of the one that
    FRESHSCORE_CONFIG names, or else ./freshscore.toml if there is one. `env`: instead of the
    process environment.
    Raises `SettingsError`.
    """
    if isinstance(settings, Settings):
        return settings
    return load_with_origins(profile, settings=settings, toml=toml, env=env).settings


def load_with_origins(
    profile: str = "default",
    *,
    settings: Mapping[str, Any] | None = None,
    toml: Path | str | None = None,
    env: Mapping[str, str] | None = None,
) -> LoadedSettings:
    """As `load_settings`, with the layer that each value came from.

    Raises `SettingsError`.
    """
    variables = environment.variables() if env is None else env
    layers = [
        _profile_layer(profile),
        *_file_layers(toml, variables),
        _variables_layer(variables),
        _Layer("argument", _nested(settings or {})),
    ]
    origins = {key: layer.origin for layer in layers for key, _ in _leaves(layer.tree)}
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, layer.tree)
    _refuse_unknown(merged, origins)
    try:
        loaded = Settings(**merged)
    except ValidationError as problem:
        raise SettingsError(_sentences(problem, origins)) from problem
    return LoadedSettings(
        loaded, {key: origins.get(key, DEFAULT_ORIGIN) for key, _ in flat(loaded)}
    )


def flat(settings: Settings) -> list[tuple[str, Any]]:
    """Every setting as (dotted key, value), in the order of the reference file."""
    return list(_leaves(settings.model_dump()))


def reference_text() -> str:
    """The reference file: every setting with its default, unit and reason."""
    return (resources.files("freshscore.config") / "reference.toml").read_text("utf-8")


def profile_names() -> list[str]:
    """The profiles that ship, sorted."""
    folder = resources.files("freshscore.config") / "profiles"
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def _profile_layer(profile: str) -> _Layer:
    if profile not in profile_names():
        known = ", ".join(profile_names())
        raise SettingsError(f"profile {profile!r} does not exist; the profiles are {known}")
    file = resources.files("freshscore.config") / "profiles" / f"{profile}.toml"
    return _Layer(f"profile {profile}", tomllib.loads(file.read_text("utf-8")))


def _file_layers(toml: Path | str | None, variables: Mapping[str, str]) -> list[_Layer]:
    named = toml if toml is not None else variables.get(_FILE_VARIABLE)
    if named:
        path = Path(named)
    elif _FILE_IN_FOLDER.is_file():
        path = _FILE_IN_FOLDER
    else:
        return []
    try:
        return [_Layer(f"file {path}", tomllib.loads(path.read_text("utf-8")))]
    except (OSError, ValueError) as problem:  # not UTF-8, not TOML, or no possible path
        raise SettingsError(f"settings file {path} cannot be read: {problem}") from problem


def _variables_layer(variables: Mapping[str, str]) -> _Layer:
    ours = {
        name.lower(): value
        for name, value in variables.items()
        if value and name.upper().startswith(_PREFIX) and _is_setting(name.upper())
    }
    source = EnvSettingsSource(Settings, env_prefix=_PREFIX, env_nested_delimiter=_DELIMITER)
    source.env_vars = ours
    try:
        return _Layer("environment", source())
    except UnreadableVariable as problem:
        raise SettingsError(f"environment: {problem}") from problem


def _is_setting(name: str) -> bool:
    """Whether a variable is a setting; raises where it is a setting misspelt.

    Other variables with the prefix are left alone: orchestrators set such ones by themselves, for
    every service whose name begins so.
    """
    group, delimiter, _ = name.removeprefix(_PREFIX).partition(_DELIMITER)
    if not delimiter:
        for key in _known_keys():
            # A setting with an underscore too few, or a whole group.
            if group.lower() in (key.replace(".", "_"), key.partition(".")[0]):
                right = _PREFIX + key.upper().replace(".", _DELIMITER)
                raise SettingsError(f"environment: {name} is no setting; {right} is one")
        return False
    if group.lower() not in Settings.model_fields:
        groups = ", ".join(Settings.model_fields)
        raise SettingsError(f"environment: {name} names no group of settings ({groups})")
    return True


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        branch = _nested(value) if isinstance(value, Mapping) else value
        for part in reversed(str(key).split(".")):
            branch = {part: branch}
        _merge(tree, branch)
    return tree


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping):
            inner = below.get(key)
            below[key] = dict(inner) if isinstance(inner, Mapping) else {}
            _merge(below[key], value)
        else:
            below[key] = value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all values; an empty table is one, so that its key is not lost."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _known_keys() -> list[str]:
    return [key for key, _ in flat(Settings())]


def _refuse_unknown(merged: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    known = _known_keys()
    groups = set(Settings.model_fields)
    for key, value in _leaves(merged):
        if key in known or (key in groups and value == {}):
            continue
        said = f"{key} ({origins[key]}) is no setting"
        if key in groups:
            raise SettingsError(f"{said} but a group of settings")
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        raise SettingsError(said + (f"; the nearest is {near[0]}" if near else ""))


def _sentences(problem: ValidationError, origins: Mapping[str, str]) -> str:
    said = []
    for error in problem.errors(include_url=False):
        limit = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
        if not error["loc"]:
            said.append(limit)
            continue
        key = ".".join(str(part) for part in error["loc"])
        origin = origins.get(key, DEFAULT_ORIGIN)
        value = "..." if key in _SECRET else _shown(error["input"])
        said.append(f"{key} = {value} ({origin}): {limit}")
    return "; ".join(said)


def _shown(value: object) -> str:
    """A value in a message, cut where it is long."""
    if isinstance(value, int) and value.bit_length() > 8 * _MOST_SHOWN:
        # Python itself refuses to write out the longest of them.
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
