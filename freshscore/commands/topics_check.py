"""`freshscore topics check`: whether the log can be what states are rebuilt from."""

from __future__ import annotations

import argparse

from freshscore.arguments import settings_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether absent topics are made."""
    parser.add_argument(
        "--create", action="store_true", help="make the topics that are absent; none is changed"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print one line for each topic and problem; 1 if there is a problem.

    Raises SettingsError, Unavailable.
    """
    from freshscore.features.specification import FeatureSpecification
    from freshscore.invalidation.kafka_admin import LogAdmin
    from freshscore.invalidation.topics import check_topics, longer_kept, make_topics
    from freshscore.output import print_table, write_json

    settings = settings_of(arguments)
    specification = FeatureSpecification.named(settings.store.specification)
    with LogAdmin(settings.kafka) as admin:
        made = make_topics(admin, settings, specification) if arguments.create else []
        findings = check_topics(admin, settings, specification)
    print_table(
        ["topic", "partitions", "state"],
        [(one.topic, one.n_partitions, one.problem or _good(one.topic, made)) for one in findings],
    )
    notes = longer_kept(made, settings, specification)
    for note in notes:
        print(note)
    write_json(
        arguments.json,
        {
            "made": made,
            "notes": notes,
            "topics": [
                {"topic": one.topic, "partitions": one.n_partitions, "problem": one.problem}
                for one in findings
            ],
        },
    )
    return int(any(one.problem for one in findings))


def _good(topic: str, made: list[str]) -> str:
    return "made" if topic in made else "good"
