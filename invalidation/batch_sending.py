"""Sending batches that no consumer reads: what a backfill or a resend applies.

As a consumer does: appends to all nodes, their answers, then the entry on the invalidation stream,
which covers no offsets. While the nodes work on one batch the next is made.
Rule: an append that may have been done is done again, for states are sets; no batch is left behind
while the next is sent.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from typing import Final

from freshscore.config.clock import Clock
from freshscore.config.errors import FreshscoreError, Unavailable
from freshscore.features.redis_commands import error_of, replies_to
from freshscore.features.redis_door import Lines, Nodes, Reply, ReplyError
from freshscore.features.redis_keys import CONTROL
from freshscore.features.redis_reading import Wanted
from freshscore.invalidation.batch import Batch
from freshscore.invalidation.batches import Batcher
from freshscore.invalidation.publishing import Publisher

# A failover takes 3 s; waits double from the first to the last.
_TRIES: Final = 10
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 2.0
_MOST_CANDIDATES: Final = 262_144


class BatchSender:
    """Sends the batches of one batcher; a context manager, of one thread."""

    def __init__(self, nodes: Nodes, batcher: Batcher, publisher: Publisher, clock: Clock) -> None:
        self._nodes = nodes
        self._batcher = batcher
        self._publisher = publisher
        self._clock = clock
        self._borrowed: Lines | None = None
        self._sent: Batch | None = None
        # States that may have doubled: entity number and token.
        self.candidates: dict[Wanted, None] = {}

    def __enter__(self) -> BatchSender:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def send(self, batch: Batch) -> None:
        """Send a batch, after the one before was answered. Raises Unavailable, StoreFull."""
        self.settle()
        self._sent = batch
        # Where it does not go out, its replies will not come, and settling tries again.
        with contextlib.suppress(Unavailable):
            self._lines().send(batch.requests)

    def settle(self) -> None:
        """Wait until what was sent is answered and published. Raises Unavailable, StoreFull."""
        batch, self._sent = self._sent, None
        if batch is None:
            return
        try:
            self._check(batch, self._lines().read(batch.n_replies))
        except Unavailable as problem:
            self._send_again(batch, problem)
        entry = self._publisher.command((), self._clock.now_ms(), batch.n_groups, batch.body)
        replies_to(self._nodes, [(CONTROL.encode(), entry)])

    def _send_again(self, batch: Batch, problem: FreshscoreError) -> None:
        """Send a batch until it is answered."""
        self._batcher.forget_expiries()
        for attempt in range(_TRIES):
            self._give_back()
            logging.getLogger("freshscore").info("%s; trying again", problem)
            wait_s = min(_FIRST_WAIT_S * 2.0**attempt, _LONGEST_WAIT_S)
            threading.Event().wait(wait_s)
            try:
                self._nodes.refresh()
                self._batcher.node_of_slot = self._nodes.node_of_slot
                batch.route(self._nodes.node_of_slot)
                self._check(batch, self._lines().exchange(batch.requests, batch.n_replies))
            except Unavailable as again:
                problem = again
                continue
            return
        raise problem

    def _check(self, batch: Batch, replies: Sequence[Sequence[Reply]]) -> None:
        """Raise for an error among replies, else note what has grown."""
        for some in replies:
            if ReplyError in set(map(type, some)):
                raise error_of(next(one for one in some if type(one) is ReplyError))
        for node, some in enumerate(replies):
            for candidate in batch.compaction_candidates(node, some):
                if len(self.candidates) < _MOST_CANDIDATES:
                    self.candidates[candidate] = None

    def _lines(self) -> Lines:
        if self._borrowed is None:
            self._borrowed = self._nodes.borrow()
        return self._borrowed

    def _give_back(self) -> None:
        if self._borrowed is not None:
            self._nodes.give_back(self._borrowed)
            self._borrowed = None
