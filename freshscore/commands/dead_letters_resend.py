"""`freshscore dead-letters resend`: what was refused is tried again, from its place in the log."""

from __future__ import annotations

import argparse

from freshscore.arguments import settings_of
from freshscore.named_reason import add_reason_argument, checked_reason


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which letters."""
    add_reason_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Send them again and count; 1 if some are still set aside. Raises FreshscoreError."""
    from freshscore.invalidation.deployment import opened
    from freshscore.invalidation.letter_reading import read_letters
    from freshscore.invalidation.past_writing import opened_resending
    from freshscore.invalidation.resending import SETTLED
    from freshscore.output import print_table, write_json

    reason = checked_reason(arguments)
    settings = settings_of(arguments)
    with opened(settings) as deployment, opened_resending(deployment) as resending:
        labels_topic = settings.kafka.labels_topic
        # Payments of all parts first: a label's payment may have its letter in any of them.
        for labels in (False, True):
            for part in read_letters(settings.kafka):
                asked = [one for one in part.values() if reason in (None, one.reason)]
                resending.resend([one for one in asked if (one.topic == labels_topic) is labels])
        outcomes = resending.outcomes
    print_table(["what came of it", "letters"], sorted(outcomes.items()))
    write_json(arguments.json, {"outcomes": outcomes})
    return int(any(outcome not in SETTLED for outcome in outcomes))
