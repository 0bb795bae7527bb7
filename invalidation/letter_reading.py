"""Reading the topic of dead letters: which messages are set aside, by position.

Letters of one position are in one partition, in order, so partitions are read one by one; one with
more letters than fit is read several times, each time for some of the positions. So memory has a
limit, however many letters there are.
Rule: reads the topic up to the ends that it has at the beginning, and changes nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import Unavailable
from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.dead_letters import DeadLetter, decoded_letter, open_letters
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.partitions import Partition

# Letters in memory at a time: about 100 MB.
MOST_LETTERS: Final = 100_000
_WAIT_MS: Final = 500

Position = tuple[str, int, int]


def read_letters(
    settings: KafkaSettings, most: int = MOST_LETTERS, clock: Clock | None = None
) -> Iterator[Mapping[Position, DeadLetter]]:
    """The letters that were not brought back, by position, some at a time; each position once.

    Raises SettingsError where the topic is not there, Unavailable.
    """
    clock = clock or SystemClock()
    topic = settings.dead_letters_topic
    reader = LogReader(settings, [topic], group=None, in_place=False)
    try:
        places = [(topic, number) for number in reader.partitions(topic)]
        first, ends = reader.beginnings(places), reader.ends(places)
        limit_s = settings.request_timeout_s
        for at in places:
            n_parts = -(-(ends[at] - first[at]) // most)
            for part in range(n_parts):
                values = values_between(reader, at, first[at], ends[at], limit_s, clock)
                yield open_letters(one for one in values if _is_of(one, part, n_parts))
    finally:
        reader.close()


def values_between(
    reader: LogReader, at: Partition, first: int, end: int, limit_s: float, clock: Clock
) -> Iterator[bytes]:
    """The values of a partition from `first` to `end` - 1.

    Raises Unavailable if nothing comes for `limit_s`.
    """
    if first >= end:
        return
    reader.assign([at])
    reader.seek(at, first)
    heard_s = clock.monotonic_s()
    while reader.position(at) < end:
        for fetched in reader.poll(_WAIT_MS):
            heard_s = clock.monotonic_s()
            for i, offset in enumerate(fetched.offsets.tolist()):
                if offset < end:
                    yield fetched.value(i)
        if clock.monotonic_s() - heard_s > limit_s:
            raise Unavailable(f"nothing came of topic {at[0]} partition {at[1]} for {limit_s} s")


def _is_of(value: bytes, part: int, n_parts: int) -> bool:
    if n_parts == 1:
        return True
    letter = decoded_letter(value)
    return letter is not None and zlib.crc32(letter.key) % n_parts == part
