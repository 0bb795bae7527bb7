"""`freshscore entities show`: the shared state of one entity, and its aggregates now.

While a secret is rotated an entity has two states, shown one after the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from freshscore.arguments import settings_of
from freshscore.named_entity import add_entity_arguments, named_entity, with_former

if TYPE_CHECKING:
    from freshscore.invalidation.entity_reading import EntityView, RecordView


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which entity, and how many of its records."""
    add_entity_arguments(parser)
    parser.add_argument(
        "--records",
        metavar="N",
        type=int,
        default=5,
        help="show so many of its newest records, payments as keyed hashes (default: 5)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the state; 1 where it is lost, damaged or absent. Raises FreshscoreError."""
    import msgspec

    from freshscore.invalidation.deployment import opened
    from freshscore.invalidation.entity_reading import (
        Aggregates,
        newest_records,
        read_entity,
    )
    from freshscore.output import write_json

    with opened(settings_of(arguments)) as deployment:
        number, tokens = named_entity(arguments, deployment)
        read = [(token, *read_entity(deployment, number, token)) for token in tokens]
        now_ms = deployment.clock.now_ms()
        aggregates = Aggregates(deployment.program)
        figures = []
        for token, view, state in read:
            values: dict[str, float] = {}
            if view.problem is None and state is not None:
                # Below its lines a grid answers nothing.
                at_ms = max(now_ms, state.closed_below_ms)
                values = aggregates.at(number, token, state, at_ms)
            records = [] if state is None else newest_records(state, max(0, arguments.records))
            _show(view, values, records)
            shown: dict[str, Any] = msgspec.to_builtins(view)
            shown |= {"aggregates": values, "records": msgspec.to_builtins(records)}
            figures.append(shown | {"now_ms": now_ms})
    write_json(arguments.json, with_former(figures))
    views = [view for _, view, _ in read]
    is_known = any(view.is_known for view in views)
    return int(not is_known or any(view.problem is not None for view in views))


def _show(view: EntityView, aggregates: dict[str, float], records: Sequence[RecordView]) -> None:
    from freshscore.output import print_table

    print_table(["state", "value"], [*_rows(view)])
    if aggregates:
        print_table(["aggregate", "now"], [*aggregates.items()])
    if records:
        print_table(
            ["payment (hash)", "time", "record", "amount minor"],
            [
                (one.identity, _instant(one.time_ms), _kind(one.is_event), one.amount_minor)
                for one in records
            ],
        )


def _rows(view: EntityView) -> Iterator[tuple[str, object]]:
    yield "entity", view.entity
    yield "hash", view.token
    yield "state", view.problem or ("whole" if view.is_known else "none: no event that counts")
    yield "bytes", view.n_bytes
    yield "bytes of what was folded", view.n_past_bytes
    yield "ends in s, unless events come", view.life_s
    yield "events", view.n_events
    yield "facts", view.n_facts
    yield "tiles", view.n_tiles
    yield "appended since compaction", view.n_appended
    yield "version", view.version
    yield "generation", view.generation
    yield "oldest", _instant(view.oldest_ms)
    yield "newest", _instant(view.newest_ms)
    yield "complete since", _instant(view.complete_since_ms or None)
    yield "log applied up to", _instant(view.watermark_ms or None)
    yield "folded below", _instant(view.fold_ms or None)
    yield "folded early below", _instant(view.early_ms or None)
    yield (
        "erased below" if view.is_erased else "forgotten below",
        _instant(view.forgotten_below_ms or None),
    )


def _instant(time_ms: int | None) -> str | None:
    if time_ms is None:
        return None
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(" ", "milliseconds")


def _kind(is_event: bool) -> str:
    return "event" if is_event else "fact"
