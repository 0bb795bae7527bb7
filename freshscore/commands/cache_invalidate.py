"""`freshscore cache invalidate`: cached scores end in all processes, within one lease."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from freshscore.arguments import settings_of
from freshscore.config.errors import SettingsError
from freshscore.named_entity import add_entity_arguments, named_entity

if TYPE_CHECKING:
    from freshscore.invalidation.control import Invalidation


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
    with ExitStack() as stack:
        if arguments.entity is None:
            nodes = Nodes.open(settings.redis, clock)
            stack.callback(nodes.close)
            told, token = _told(arguments), None
        else:
            deployment = stack.enter_context(opened(settings, clock))
            nodes = deployment.nodes
            _, token = named_entity(arguments, deployment)
            told = Invalidation(ENTITY, token.hex())
        control = Control(nodes, settings.redis.namespace)
        effect = invalidated(control, told, settings.redis.lease_s, clock)
        if token is not None:
            n_dropped = drop_scores(nodes, RedisKeys(settings.redis.namespace), token)
    print_table(
        ["invalidation", "value"],
        [
            ("of", f"{told.kind} {told.what}".strip()),
            ("number", effect.number),
            ("scorers with a lease", effect.n_scorers),
            ("not carried out by", effect.n_behind),
            ("took s", effect.took_s),
            ("models whose scores were deleted in Redis", n_dropped),
        ],
    )
    if effect.n_behind:
        print("freshscore: it has not taken effect everywhere within the lease", file=sys.stderr)
    figures = {"kind": told.kind, "what": told.what, "n_dropped": n_dropped}
    write_json(arguments.json, figures | asdict(effect))
    return int(effect.n_behind > 0)


def _told(arguments: argparse.Namespace) -> Invalidation:
    from freshscore.invalidation.control import COHORT, EVERYTHING, MODEL, Invalidation

    if arguments.model is not None:
        return Invalidation(MODEL, arguments.model)
    if arguments.cohort is not None:
        return Invalidation(COHORT, arguments.cohort)
    return Invalidation(EVERYTHING, "")


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
