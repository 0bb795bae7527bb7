"""Which states a table of past payments goes into, and from when on each of them takes events.

Rule: what a state has folded or forgotten cannot be brought in any more; it is refused for that
entity, and counted, and the payment's other entities take it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from freshscore.features import row as r
from freshscore.features.redis_store import RedisStore
from freshscore.invalidation.state_lines import lines_of_tokens


class TouchedStates(NamedTuple):
    """States of one entity: their tokens, uint64 (n, 2), and the oldest event that each got, ms."""

    entity: int
    tokens: NDArray[np.uint64]
    oldest_ms: NDArray[np.int64]

    def lines(self, store: RedisStore) -> NDArray[np.int64]:
        """Below which instant each takes no event, ms. Raises Unavailable."""
        return lines_of_tokens(store, self.entity, self.tokens)


def refuse_folded(
    store: RedisStore, rows: NDArray[np.uint64]
) -> tuple[list[TouchedStates], dict[str, int]]:
    """Take the entities out of `rows` whose states are folded or forgotten above their events.

    The states that are left, and for each entity's name how many refused. Raises Unavailable.
    """
    touched = []
    refused: dict[str, int] = {}
    for entity, layout in enumerate(store.program.entities):
        groups = _grouped(rows, entity)
        if groups is None:
            continue
        states, of_row, places = groups
        lines = states.lines(store)
        folded = lines > states.oldest_ms
        if folded.any():
            refused[layout.name] = int(folded.sum())
            times_ms = np.ascontiguousarray(rows[places, r.TIME // 8]).view(np.int64)
            gone = places[times_ms < lines[of_row]]
            at = r.TOKENS // 8 + 2 * entity
            rows[gone, at : at + 2] = 0
            groups = _grouped(rows, entity)
        if groups is not None:
            touched.append(groups[0])
    return touched, refused


def _grouped(
    rows: NDArray[np.uint64], entity: int
) -> tuple[TouchedStates, NDArray[np.int64], NDArray[np.int64]] | None:
    """The states of one entity, which of them each row is of, and those rows; None without any."""
    at = r.TOKENS // 8 + 2 * entity
    low, high = rows[:, at], rows[:, at + 1]
    places = np.flatnonzero((low != 0) | (high != 0))
    if not len(places):
        return None
    places = places[np.lexsort((low[places], high[places]))]
    low, high = low[places], high[places]
    is_new = np.ones(len(places), np.bool_)
    is_new[1:] = (np.diff(low) != 0) | (np.diff(high) != 0)
    begins = np.flatnonzero(is_new)
    times_ms = np.ascontiguousarray(rows[places, r.TIME // 8]).view(np.int64)
    oldest_ms = np.minimum.reduceat(times_ms, begins)
    tokens = np.stack([low[begins], high[begins]], axis=1)
    return TouchedStates(entity, tokens, oldest_ms), np.cumsum(is_new) - 1, places
