"""Messages of several partitions one behind the other, as a batch is made of them.

Rule: nothing is copied but where the messages lie; the order within a partition stays.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from freshscore.invalidation.batches import Messages
from freshscore.invalidation.kafka_batches import Fetched


def runs_of(fetched: Sequence[Fetched], most: int) -> Iterator[list[Fetched]]:
    """The messages in runs of at most `most`."""
    run: list[Fetched] = []
    room = most
    for one in fetched:
        first = 0
        while first < len(one):
            part = one.part(first, min(len(one), first + room))
            run.append(part)
            first += len(part)
            room -= len(part)
            if room == 0:
                yield run
                run, room = [], most
    if run:
        yield run


def messages_of(parts: Sequence[Fetched]) -> Messages:
    """What a batcher is given of them."""
    if not parts:
        return Messages(np.zeros((0, 3), np.int64), None)
    return Messages(np.concatenate([one.spans for one in parts]), [one.held for one in parts])


def place_of(parts: Sequence[Fetched], index: int) -> tuple[Fetched, int]:
    """Of the parts that were put behind each other, that with message `index`, and where in it."""
    begins = [0]
    for one in parts:
        begins.append(begins[-1] + len(one))
    number = bisect_right(begins, index) - 1
    return parts[number], index - begins[number]
