"""`freshscore cache show`: the scores that are kept in Redis for one entity."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from freshscore.arguments import settings_of
from freshscore.named_entity import add_entity_arguments, named_entity, with_former
from freshscore.named_model import named_version

if TYPE_CHECKING:
    from freshscore.scoring.kept_scores import KeptScores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose scores, under which model."""
    add_entity_arguments(parser)
    parser.add_argument(
        "--model",
        metavar="VERSION",
        required=True,
        help="the model version (`freshscore models list` has them)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the scores, newest first. Raises FreshscoreError."""
    import msgspec

    from freshscore.invalidation.deployment import opened
    from freshscore.output import write_json
    from freshscore.scoring.kept_scores import kept_scores
    from freshscore.scoring.registry import Registry

    settings = settings_of(arguments)
    registry = Registry.of(settings.store.path)
    model = named_version(registry, arguments.model, "shown is what is kept under just this")
    with opened(settings) as deployment:
        number, tokens = named_entity(arguments, deployment)
        entity = deployment.program.entities[number].name
        now_ms = deployment.clock.now_ms()
        found = [
            kept_scores(deployment.nodes, deployment.redis_keys, token, model, now_ms)
            for token in tokens
        ]
    for token, scores in zip(tokens, found, strict=True):
        _show(f"{entity} {token.hex()}", scores, model, now_ms)
    if number:
        first = deployment.program.entities[0].name
        print(f"scores are kept beside the state of a payment's {first}")
    figures = [
        {"entity": entity, "token": token.hex(), "model": model, "now_ms": now_ms}
        | msgspec.to_builtins(scores)
        for token, scores in zip(tokens, found, strict=True)
    ]
    write_json(arguments.json, with_former(figures))
    return 0


def _show(name: str, found: KeptScores, model: str, now_ms: int) -> None:
    from freshscore.output import print_table

    ends = "" if found.life_s is None else f"; they end in {found.life_s} s"
    print(f"{name}: {len(found.scores)} scores of {model}{ends}")
    if found.scores:
        print_table(
            ["feature hash", "score", "age s", "state"],
            [
                (
                    one.feature_hash,
                    one.score,
                    None if one.computed_ms is None else (now_ms - one.computed_ms) / 1_000,
                    _state(one.score, one.is_served),
                )
                for one in found.scores
            ],
        )


def _state(score: float | None, is_served: bool) -> str:
    if score is None:
        return "damaged"
    return "served" if is_served else "invalidated"
