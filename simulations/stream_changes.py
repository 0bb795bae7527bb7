"""When the states of each touch's entities had changed last, by the stream alone.

It is what an answer's watermark is held against: a state that holds everything up to the watermark
holds all changes from before it.
Rule: an entity counts although its field may be hidden at a stage: no instant is too early.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from freshscore.features.table import Int64s
from freshscore.simulations.streams import Stream

# Before every instant of a stream.
NEVER_MS = -(2**62)


def changed_ms(stream: Stream) -> Int64s:
    """Of each touch (t,) when an event or a fact of one of its entities was played last before it.

    NEVER_MS where nothing was since the stream began.
    """
    latest = np.full(len(stream), NEVER_MS, np.int64)
    for entity in stream.table.specification.entities:
        latest = np.maximum(latest, _of_entity(stream, _codes(stream, entity.parts)))
    return latest


def _codes(stream: Stream, parts: tuple[str, ...]) -> Int64s:
    """Of each payment a number that those of one entity share, -1 without it."""
    columns = [
        np.concatenate([table.entities[part].codes for table in (stream.table, stream.added)])
        for part in parts
    ]
    _, codes = np.unique(np.stack(columns), axis=1, return_inverse=True)
    absent = np.any(np.stack(columns) < 0, axis=0)
    return np.where(absent, -1, codes.reshape(-1)).astype(np.int64)


def _of_entity(stream: Stream, codes: Int64s) -> Int64s:
    """The same for one entity of each payment."""
    mine = codes[stream.payment]
    order = np.argsort(mine, kind="stable")
    places = np.arange(len(order))
    begins = np.r_[True, mine[order][1:] != mine[order][:-1]]
    group_begin = np.maximum.accumulate(np.where(begins, places, 0))
    # The last change up to each place; before it: that of the place before, in the same group.
    changes: NDArray[np.int64] = np.where(~stream.scored[order], places, -1)
    last = np.r_[-1, np.maximum.accumulate(changes)[:-1]]
    is_known = (last >= group_begin) & (mine[order] >= 0)
    found = np.full(len(order), NEVER_MS, np.int64)
    found[order] = np.where(is_known, stream.at_ms[order][np.maximum(last, 0)], NEVER_MS)
    return found
