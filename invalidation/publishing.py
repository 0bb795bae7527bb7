"""Publishing on the invalidation stream: one entry for each batch, and one for each heartbeat.

Followers learn from it which states moved and up to which offsets they know the log. The stream is
bounded in bytes: entries are trimmed to as many as fit if all were as large as those of late.
Rule: an entry says which offsets it covers, so that a follower can tell a gap from silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from freshscore.config.settings import RedisSettings
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.redis_lines import command
from freshscore.features.redis_progress import topic_digest
from freshscore.features.state_layout import StateLayout
from freshscore.invalidation.partitions import Partition
from freshscore.invalidation.stream_messages import Covered, encode

STREAM: Final = "stream"
# How fast the size that is trimmed by falls back once entries are small again: by half in 70.
_FADING: Final = 0.99


class Range(NamedTuple):
    """What a batch covers of one partition: `[begin, end)`, and the lowest arrival to come, ms."""

    partition: Partition
    begin: int
    end: int
    arrival_ms: int


class Publisher:
    """Makes the entries of one sender.

    topic_ids: name -> id. sender: 8 random bytes. layouts: of the states, in order.
    """

    def __init__(
        self,
        settings: RedisSettings,
        layouts: Sequence[StateLayout],
        topic_ids: Mapping[str, str],
        sender: bytes,
    ) -> None:
        self._max_bytes = settings.stream_max_bytes
        self._key = RedisKeys(settings.namespace).control(STREAM)
        self._layouts = tuple(layouts)
        self.follow(topic_ids)
        self._sender = sender
        self._sequence = 0
        self._entry_bytes = 0.0

    def follow(self, topic_ids: Mapping[str, str]) -> None:
        """From now on these are the topics: name -> id."""
        self._topics = {name: topic_digest(topic_id) for name, topic_id in topic_ids.items()}

    def command(
        self,
        ranges: Sequence[Range],
        sent_at_ms: int,
        n_groups: int = 0,
        body: bytes | memoryview = b"",
    ) -> bytes:
        """The command that adds one entry, with one reply; groups and body are a Batch's."""
        covered = [
            Covered(self._topics[one.partition[0]], one.partition[1], *one[1:]) for one in ranges
        ]
        entry = encode(
            self._layouts, self._sender, self._sequence, sent_at_ms, covered, n_groups, body
        )
        self._sequence += 1
        self._entry_bytes = max(len(entry), _FADING * self._entry_bytes)
        most = max(1, int(self._max_bytes / self._entry_bytes))
        return command(b"XADD", self._key, b"MAXLEN", b"%d" % most, b"*", b"m", entry)
