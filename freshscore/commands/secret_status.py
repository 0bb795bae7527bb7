"""`freshscore secret status`: how far a rotation of the identifier secret is."""

from __future__ import annotations

import argparse

from freshscore.arguments import settings_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beyond what every command takes."""


def run(arguments: argparse.Namespace) -> int:
    """Print which keys count; 1 while a former secret is needed. Raises FreshscoreError."""
    from freshscore.invalidation.deployment import check_note, opened
    from freshscore.model_tables import instant_text
    from freshscore.output import print_table, write_json

    with opened(settings_of(arguments)) as deployment:
        own, now_ms = deployment.identifier_keys, deployment.clock.now_ms()
        note = check_note(deployment.nodes, deployment.redis_keys, own, now_ms)
    former_id = own.former_id if note is None else note.former_id or own.former_id
    since_ms = own.since_ms if note is None or not note.since_ms else note.since_ms
    ends_ms = None if former_id is None or since_ms is None else since_ms + own.kept_ms
    is_needed = ends_ms is not None and now_ms < ends_ms
    print_table(
        ["identifier secret", "value"],
        [
            ("key here", own.key_id),
            ("former key here", own.former_id),
            ("keys that Redis notes", None if note is None else note.text.decode()),
            ("begins", instant_text(since_ms)),
            ("former secret is needed until", instant_text(ends_ms)),
            ("former secret may be dropped", "no" if is_needed else "yes, or there is none"),
        ],
    )
    figures = {
        "key_id": own.key_id,
        "former_id": own.former_id,
        "noted": None if note is None else note.text.decode(),
        "since_ms": since_ms,
        "needed_until_ms": ends_ms,
        "is_former_needed": is_needed,
        "now_ms": now_ms,
    }
    write_json(arguments.json, figures)
    return int(is_needed)
