"""`freshscore cache invalidate`: cached scores end in all processes, within one lease.

Names of models and cohorts are looked up in the registry here, for a name that nobody knows ends
nothing, and would seem to have taken effect. But scorers may serve what no registry has (a model
that is called, or of another folder), so only what contradicts a registered model is refused.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from freshscore.arguments import settings_of
from freshscore.config.errors import SettingsError
from freshscore.named_entity import add_entity_arguments, named_entity
from freshscore.named_model import named_version, warn

if TYPE_CHECKING:
    from freshscore.config.settings import Settings
    from freshscore.invalidation.control import Invalidation
    from freshscore.scoring.registry import Registry

# What follows for a version that is not registered.
_OTHERWISE: Final = "cached scores end only where just this version is served"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose scores end: exactly one of them."""
    add_entity_arguments(parser, required=False)
    parser.add_argument("--model", metavar="VERSION", help="all scores of this model version")
    parser.add_argument("--cohort", metavar="NAME", help="all scores of this cohort")
    parser.add_argument("--everything", action="store_true", help="all scores")


def run(arguments: argparse.Namespace) -> int:
    """Tell all scorers and wait; 1 if it did not take effect in time. Raises FreshscoreError."""
    from dataclasses import asdict

    from freshscore.config.clock import SystemClock
    from freshscore.features.redis_door import Nodes
    from freshscore.features.redis_keys import RedisKeys
    from freshscore.invalidation.control import ENTITY, Control, Invalidation
    from freshscore.invalidation.deployment import opened
    from freshscore.invalidation.taking_effect import drop_scores, invalidated
    from freshscore.output import print_table, write_json

    _check_one(arguments)
    settings = settings_of(arguments)
    clock = SystemClock()
    n_dropped = 0
    tokens: list[bytes] = []
    # Before any server is asked.
    named = _told(arguments, settings)
    with ExitStack() as stack:
        if arguments.entity is None:
            nodes = Nodes.open(settings.redis, clock)
            stack.callback(nodes.close)
            told = [named]
        else:
            deployment = stack.enter_context(opened(settings, clock))
            nodes = deployment.nodes
            _, tokens = named_entity(arguments, deployment)
            told = [Invalidation(ENTITY, token.hex()) for token in tokens]
        control = Control(nodes, settings.redis.namespace)
        lease_s = settings.redis.lease_s
        # The first names the entity; during a rotation its former token goes with it.
        effects = [invalidated(control, one, lease_s, clock) for one in told]
        for token in tokens:
            n_dropped += drop_scores(nodes, RedisKeys(settings.redis.namespace), token)
    effect = max(effects, key=lambda one: (one.n_behind, one.number))
    print_table(
        ["invalidation", "value"],
        [
            ("of", ", ".join(f"{one.kind} {one.what}".strip() for one in told)),
            ("number", effect.number),
            ("scorers with a lease", effect.n_scorers),
            ("not carried out by", effect.n_behind),
            ("took s", effect.took_s),
            ("models whose scores were deleted in Redis", n_dropped),
        ],
    )
    if effect.n_behind:
        print("freshscore: it has not taken effect everywhere within the lease", file=sys.stderr)
    figures = {"kind": told[0].kind, "what": told[0].what, "n_dropped": n_dropped}
    if told[1:]:
        figures["former"] = told[1].what
    write_json(arguments.json, figures | asdict(effect))
    return int(effect.n_behind > 0)


def _told(arguments: argparse.Namespace, settings: Settings) -> Invalidation:
    """What is invalidated, unless it is an entity. Raises SettingsError, NoModel, DamagedModel."""
    from freshscore.invalidation.control import COHORT, EVERYTHING, MODEL, Invalidation

    if arguments.model is not None:
        return Invalidation(MODEL, named_version(_registry(settings), arguments.model, _OTHERWISE))
    if arguments.cohort is not None:
        _check_cohort(_registry(settings), arguments.cohort)
        return Invalidation(COHORT, arguments.cohort)
    return Invalidation(EVERYTHING, "")


def _registry(settings: Settings) -> Registry:
    # Only a name needs what models need.
    from freshscore.scoring.registry import Registry

    return Registry.of(settings.store.path)


def _check_cohort(registry: Registry, name: str) -> None:
    """Raise SettingsError for a cohort of no registered model; say where there is no model."""
    from freshscore.scoring.model import ALL

    versions = dict.fromkeys(entry.version for entry in reversed(registry.entries()))
    if not versions:
        warn(f"no model is registered here, so nobody can say whether one has cohort {name!r}")
        return
    known = {ALL: None}
    for version in versions:
        if name in known:
            return
        known |= dict.fromkeys(one.name for one in registry.load(version).cohorts)
    if name not in known:
        raise SettingsError(
            f"no registered model has a cohort {name!r}; there are {', '.join(known)}"
        )


def _check_one(arguments: argparse.Namespace) -> None:
    given = [
        option
        for option, value in (
            ("--entity", arguments.entity),
            ("--model", arguments.model),
            ("--cohort", arguments.cohort),
            ("--everything", arguments.everything or None),
        )
        if value is not None
    ]
    if len(given) != 1:
        raise SettingsError(
            "one of --entity, --model, --cohort, --everything is needed;"
            f" given: {' and '.join(given) or 'none'}"
        )
    if arguments.hash is not None and arguments.entity is None:
        raise SettingsError("--hash names an entity; give --entity with it")
