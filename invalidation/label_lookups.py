"""Looking up the payments of labels that bring only a transaction id.

Rule: a label finds its payment by identity or waits; nothing is guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from freshscore.config.errors import DamagedState
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import bucket_of
from freshscore.features.redis_labels import LabelIndex
from freshscore.features.redis_lines import command
from freshscore.invalidation.batches import Found, Lookup

_ABSENT = bytes(16)


class LabelLookups:
    """Asks the label index in Redis.

    clock_error_ms: by how much the stamp of a payment may be later than that of its label.
    """

    def __init__(self, nodes: Nodes, index: LabelIndex, clock_error_ms: int) -> None:
        self._nodes = nodes
        self._index = index
        self._clock_error_ms = clock_error_ms

    def find(
        self, lookups: Sequence[Lookup], arrivals_ms: Sequence[int]
    ) -> Iterator[tuple[Lookup, Found | None]]:
        """Each label, which arrived then, with what the index has of its payment.

        What is damaged is as if it were not there. Raises Unavailable.
        """
        if not self._index.is_kept:
            yield from ((one, None) for one in lookups)
            return
        asked = []
        n_keys = []
        for one, arrival_ms in zip(lookups, arrivals_ms, strict=True):
            latest_ms = arrival_ms + self._clock_error_ms
            keys = self._index.keys_of(one.label.row, latest_ms)
            tag = b"i%d" % bucket_of(one.identity)
            asked += [(tag, command(b"GET", key)) for key in keys]
            n_keys.append(len(keys))
        replies = replies_to(self._nodes, asked)
        at = 0
        for one, n in zip(lookups, n_keys, strict=True):
            try:
                indexed = self._index.found(one.identity, replies[at : at + n])
            except DamagedState as problem:
                logging.getLogger("freshscore").warning("%s", problem)
                indexed = None
            at += n
            tokens = () if indexed is None else (token or _ABSENT for token in indexed.tokens)
            yield one, None if indexed is None else Found(one, indexed.time_ms, b"".join(tokens))
