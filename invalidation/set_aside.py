"""Which offsets of the log are set aside: open dead letters, as many as fit.

Eight bytes are kept of a letter, and only of those whose message is to be read. Beyond the limit
letters are counted and left out: their messages then look as if they had been accepted.
Rule: reads the letters; what is left out is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.letter_reading import read_letters
from freshscore.invalidation.log_records import Stretch
from freshscore.invalidation.messages import CONFLICT, UNKNOWN_TRANSACTION
from freshscore.invalidation.partitions import Partition

# Offsets in memory: 80 MB, and as much again while they are put together.
MOST_SET_ASIDE: Final = 10_000_000


class SetAside(NamedTuple):
    """Messages that were refused and not brought back, and how many did not fit.

    offsets: of all of them. too_early: of these, labels whose payment was not known; a state that
    was rebuilt since then may have found it.
    """

    offsets: Mapping[Partition, NDArray[np.int64]]
    too_early: Mapping[Partition, NDArray[np.int64]]
    n_left_out: int


def set_aside(
    settings: KafkaSettings,
    topic_ids: Mapping[str, str],
    stretches: Sequence[Stretch],
    most: int = MOST_SET_ASIDE,
) -> SetAside:
    """What is set aside of these stretches of the log. topic_ids: name -> id of its topics.

    Raises SettingsError where the topic of dead letters is not there, Unavailable.
    """
    spans = {one.at: one for one in stretches}
    found: dict[Partition, list[NDArray[np.int64]]] = {}
    too_early: dict[Partition, list[NDArray[np.int64]]] = {}
    n_left_out = 0
    for part in read_letters(settings):
        offsets: dict[Partition, list[int]] = {}
        early: dict[Partition, list[int]] = {}
        for letter in part.values():
            span = spans.get((letter.topic, letter.partition))
            # A conflict was applied; a topic of another id has other messages at its offsets.
            if (
                span is None
                or letter.reason == CONFLICT
                or topic_ids.get(letter.topic) != letter.topic_id
                or not span.first <= letter.offset < span.end
            ):
                continue
            if most > 0:
                most -= 1
                offsets.setdefault(span.at, []).append(letter.offset)
                if letter.reason == UNKNOWN_TRANSACTION:
                    early.setdefault(span.at, []).append(letter.offset)
            else:
                n_left_out += 1
        for said, into in ((offsets, found), (early, too_early)):
            for at, some in said.items():
                into.setdefault(at, []).append(np.array(some, np.int64))
    return SetAside(_joined(found), _joined(too_early), n_left_out)


def _joined(
    parts: Mapping[Partition, list[NDArray[np.int64]]],
) -> dict[Partition, NDArray[np.int64]]:
    return {at: np.concatenate(some) for at, some in parts.items()}
