"""The topics that freshscore reads and writes: what they must be, and making those that are absent.

States are rebuilt from the log, and whether an event is accepted is decided by its stamp; so the
log must keep everything for as long as a window and the horizon reach, and stamp messages itself.
Rule: topics that are there are checked, never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from freshscore.config.settings import Settings
from freshscore.features.specification import FeatureSpecification
from freshscore.invalidation.kafka_admin import LogAdmin, Topic

_DAY_MS: Final = 86_400_000
_FOR_EVER: Final = -1
# Room for the header of a batch and of a message beside the largest value.
_OVERHEAD_BYTES: Final = 1_024


@dataclass(frozen=True, slots=True)
class TopicFinding:
    """What is wrong with one topic; nothing where `problem` is None."""

    topic: str
    n_partitions: int | None
    problem: str | None


def topic_names(settings: Settings) -> tuple[str, str, str, str]:
    """Of transactions, labels, decisions and dead letters."""
    kafka = settings.kafka
    return (
        kafka.transactions_topic,
        kafka.labels_topic,
        kafka.decisions_topic,
        kafka.dead_letters_topic,
    )


def needed_ms(settings: Settings, specification: FeatureSpecification) -> int:
    """How long the log must keep a message: the longest window, and how late it may have come."""
    return specification.held_ms + 1000 * settings.store.horizon_s


def check_topics(
    admin: LogAdmin, settings: Settings, specification: FeatureSpecification
) -> list[TopicFinding]:
    """One finding or more for each topic, in the order of `topic_names`. Raises Unavailable."""
    names = topic_names(settings)
    present = admin.topics(names)
    found = []
    for name in names:
        topic = present.get(name)
        if topic is None:
            found.append(TopicFinding(name, None, "is not there"))
            continue
        problems = [*_problems(topic, settings, specification)]
        found += [TopicFinding(name, topic.n_partitions, one) for one in problems or (None,)]
    return found


def make_topics(
    admin: LogAdmin, settings: Settings, specification: FeatureSpecification
) -> list[str]:
    """Make those that are absent, with the partitions and retention of the settings; their names.

    Retention may be longer than the setting, as `longer_kept` says. Raises SettingsError for what
    Kafka does not make, Unavailable.
    """
    present = admin.topics(topic_names(settings))
    absent = [name for name in topic_names(settings) if name not in present]
    kafka = settings.kafka
    options = {name: _options(name, settings, specification) for name in absent}
    if options:
        admin.make(options, kafka.partitions, kafka.replication)
    return absent


def longer_kept(
    names: Sequence[str], settings: Settings, specification: FeatureSpecification
) -> list[str]:
    """Sentences: which topics were made to keep more than kafka.retention_days, and why."""
    kafka = settings.kafka
    history = [name for name in names if kafka.historical and _is_source(name, settings)]
    others = [name for name in names if name not in history]
    needed = needed_ms(settings, specification)
    asked = f"kafka.retention_days is {kafka.retention_days}, but what was made for"
    said = []
    if history:
        said.append(
            f"{asked} {', '.join(history)} keeps messages for ever: kafka.historical says that they"
            " are history, which is older than any retention"
        )
    if others and needed > kafka.retention_days * _DAY_MS:
        said.append(
            f"{asked} {', '.join(others)} keeps messages for {_days(needed)}: the longest window of"
            f" {specification.name} and the horizon (store.horizon_s) need them"
        )
    return said


def _is_source(name: str, settings: Settings) -> bool:
    return name in (settings.kafka.transactions_topic, settings.kafka.labels_topic)


def _options(
    name: str, settings: Settings, specification: FeatureSpecification
) -> Mapping[str, str]:
    kafka = settings.kafka
    historical = kafka.historical and _is_source(name, settings)
    kept_ms = max(kafka.retention_days * _DAY_MS, needed_ms(settings, specification))
    return {
        "cleanup.policy": "delete",
        "message.timestamp.type": "CreateTime" if historical else "LogAppendTime",
        # History is older than any retention, which goes by the stamps.
        "retention.ms": str(_FOR_EVER if historical else kept_ms),
        "retention.bytes": str(_FOR_EVER),
        "max.message.bytes": str(max(1_048_588, kafka.max_message_bytes + _OVERHEAD_BYTES)),
    }


def _problems(
    topic: Topic, settings: Settings, specification: FeatureSpecification
) -> Iterator[str]:
    options = topic.options
    if "compact" in options.get("cleanup.policy", ""):
        yield "is compacted (cleanup.policy), so that messages with the same key are lost"
    if not _is_source(topic.name, settings):
        return
    stamp = options.get("message.timestamp.type")
    wanted = "CreateTime" if settings.kafka.historical else "LogAppendTime"
    if stamp != wanted:
        yield (
            f"is stamped by {stamp} (message.timestamp.type), not {wanted}: whether an event is"
            " accepted must follow from the log"
            + ("" if settings.kafka.historical else "; kafka.historical says that it is history")
        )
    needed = needed_ms(settings, specification)
    kept = int(options.get("retention.ms", _FOR_EVER))
    if kept != _FOR_EVER and kept < needed:
        yield (
            f"keeps messages for {_days(kept)} (retention.ms); the longest window of"
            f" {specification.name} and the horizon need {_days(needed)}"
        )
    if int(options.get("retention.bytes", _FOR_EVER)) != _FOR_EVER:
        yield (
            f"is cut at {options['retention.bytes']} bytes a partition (retention.bytes), however"
            f" old they are; {_days(needed)} are needed"
        )


def _days(span_ms: int) -> str:
    return f"{span_ms / _DAY_MS:.6g} days"
