"""What an operator asks of Kafka, and has it do: topics, groups, and the brokers' limits.

Rule: nothing of kafka-python leaves this module; topics that are there are never changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import kafka
import kafka.errors
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic

from freshscore.config.errors import SettingsError
from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.kafka_connecting import connection, translated
from freshscore.invalidation.partitions import Partition

# What is wrong with a topic that was to be made, apart from its numbers.
_REFUSALS: Final = (
    kafka.errors.InvalidTopicError,
    kafka.errors.InvalidConfigurationError,
    kafka.errors.PolicyViolationError,
)
_SESSION_LIMITS: Final = ("group.min.session.timeout.ms", "group.max.session.timeout.ms")


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is. topic_id: names it for ever, unlike its name."""

    name: str
    topic_id: str
    n_partitions: int
    replication: int
    options: Mapping[str, str]


class LogAdmin:
    """What topics there are, and how far groups have read."""

    def __init__(self, settings: KafkaSettings) -> None:
        with translated(settings):
            self._admin = kafka.KafkaAdminClient(**connection(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def topics(self, names: Sequence[str]) -> dict[str, Topic]:
        """Those of the topics that there are."""
        with translated():
            present = [name for name in names if name in set(self._admin.list_topics())]
            if not present:
                return {}
            described = self._admin.describe_topics(present)
            resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in present]
            options = self._admin.describe_configs(resources, config_filter="all")
        of_topics = options[ConfigResourceType.TOPIC.name.lower()]
        return {one["name"]: _topic(one, of_topics[one["name"]]) for one in described}

    def make(self, topics: Mapping[str, Mapping[str, str]], partitions: int, copies: int) -> None:
        """Make topics: name -> options. Raises SettingsError for what is refused, Unavailable."""
        new = [
            NewTopic(name, num_partitions=partitions, replication_factor=copies, topic_configs=own)
            for name, own in topics.items()
        ]
        with translated():
            # What kafka-python raises by itself shows request and response, kilobytes of them.
            answered = self._admin.create_topics(new, raise_errors=False)
            for one in answered["topics"]:
                _check_made(one, partitions, copies)
            self._admin.wait_for_topics([*topics])

    def delete(self, names: Sequence[str]) -> None:
        """Delete topics."""
        with translated():
            self._admin.delete_topics([*names])

    def committed(self, group: str) -> dict[Partition, int]:
        """The offsets that a group has committed."""
        with translated():
            found = self._admin.list_group_offsets(group)
        return {
            (at.topic, at.partition): int(one.offset)
            for at, one in found.get(group, {}).items()
            if one.offset >= 0
        }

    def session_limits_ms(self) -> tuple[int, int]:
        """The shortest and longest session that a broker allows a member of a group.

        Raises SettingsError where this user may not ask, Unavailable.
        """
        with translated():
            broker = str(self._admin.describe_cluster()["brokers"][0]["broker_id"])
            asked = ConfigResource(ConfigResourceType.BROKER, broker, [*_SESSION_LIMITS])
            found = self._admin.describe_configs([asked], config_filter="all")
        options = found[ConfigResourceType.BROKER.name.lower()][broker]
        shortest, longest = (int(options[name]["value"]) for name in _SESSION_LIMITS)
        return shortest, longest

    def close(self) -> None:
        """Let go of the connection."""
        self._admin.close()


def _check_made(answered: Any, partitions: int, copies: int) -> None:
    """Raise what Kafka answered about a topic that was to be made, if it was not."""
    code, name = answered["error_code"], answered["name"]
    if code == kafka.errors.NoError.errno:
        return
    error = kafka.errors.for_code(code)
    said = answered.get("error_message") or error.description
    settings = {
        kafka.errors.InvalidReplicationFactorError: f"kafka.replication = {copies}: ",
        kafka.errors.InvalidPartitionsError: f"kafka.partitions = {partitions}: ",
    }
    if error in settings or error in _REFUSALS:
        raise SettingsError(f"{settings.get(error, '')}Kafka does not make topic {name}: {said}")
    raise error(f"topic {name}: {said}")


def _topic(described: Any, options: Any) -> Topic:
    partitions = described["partitions"]
    return Topic(
        described["name"],
        str(described["topic_id"]),
        len(partitions),
        min((len(one["replica_nodes"]) for one in partitions), default=0),
        {key: str(one["value"]) for key, one in options.items()},
    )
