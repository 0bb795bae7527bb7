"""`freshscore entities forget`: erase one entity's own history, up to now and everywhere."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime

from freshscore.arguments import settings_of
from freshscore.named_entity import add_entity_arguments, named_entity, with_former


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which entity."""
    add_entity_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Order it and wait; 1 where it was not seen to be done. Raises FreshscoreError."""
    import msgspec

    from freshscore.invalidation.deployment import opened
    from freshscore.invalidation.erasing import erased_everywhere
    from freshscore.output import print_table, write_json

    with opened(settings_of(arguments)) as deployment:
        number, tokens = named_entity(arguments, deployment)
        # While a secret is rotated an entity has two states, and both go.
        orders = [(token, erased_everywhere(deployment, (number, token))) for token in tokens]
        name = deployment.program.entities[number].name
    for token, erased in orders:
        below = datetime.fromtimestamp(erased.below_ms / 1_000, UTC)
        print_table(
            ["erasure", "value"],
            [
                ("entity", name),
                ("hash", token.hex()),
                ("of what was before", below.isoformat(" ", "milliseconds")),
                ("state", "erased" if erased.is_carried_out else "not yet"),
                ("models whose scores were deleted in Redis", erased.n_scores),
                ("scorers that may serve older scores", erased.scores.n_behind),
            ],
        )
    is_carried_out = all(erased.is_carried_out for _, erased in orders)
    if not is_carried_out:
        print(
            "freshscore: the order is in the log, and no consumer has carried it out yet; see"
            " `freshscore lag`, and run this again",
            file=sys.stderr,
        )
    figures = [
        {"entity": name, "token": token.hex()} | msgspec.to_builtins(erased)
        for token, erased in orders
    ]
    write_json(arguments.json, with_former(figures))
    return int(not is_carried_out or any(erased.scores.n_behind for _, erased in orders))
