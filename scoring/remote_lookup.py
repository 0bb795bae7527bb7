"""Looking for a called model's scores in Redis, and keeping them there, where that pays.

Rule: a score waits for neither: candidates come with its states, and what is kept goes out behind
the answer, by another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from freshscore.config.clock import Clock
from freshscore.config.settings import Settings
from freshscore.features.memory import BYTES_AT
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.request_store import RequestStore
from freshscore.scoring import cache_layout as c
from freshscore.scoring.exchanges import Desk, Exchanges, Fetched
from freshscore.scoring.node_health import NodeHealth
from freshscore.scoring.outbox import Outbox, outbox_counts
from freshscore.scoring.remote_scores import ScoreKeeper, Worth, encoded, matching
from freshscore.scoring.serving import HASH, Serving, keep

_HEAD: Final = c.HEAD.unpack_from
# Scores that wait to be kept for others: they are dear, so they do not come fast.
_MOST_UNKEPT: Final = 1_024
_CLOSING_S: Final = 5.0


class RemoteLookup:
    """Scores of other processes, for a model that is called."""

    def __init__(
        self,
        settings: Settings,
        nodes: Nodes,
        names: RedisKeys,
        like: RequestStore,
        serving: Serving,
        clock: Clock,
        health: NodeHealth,
    ) -> None:
        redis = settings.redis
        self._clock = clock
        self._worth = Worth()
        self.asking = Exchanges(
            nodes,
            names,
            like.layouts,
            scores=(serving.version, redis.score_copies),
            health=health,
            others_at=serving.packer.others_at,
            since_ms=serving.packer.keys.since_ms,
        )
        keeper = ScoreKeeper(nodes, names, serving.version, redis.score_copies, redis.score_ttl_s)
        self._keeper = keeper
        self._outbox: Outbox[tuple[bytes, bytes]] = Outbox(
            "scores", self._keep, min(_MOST_UNKEPT, redis.max_pending_events)
        )
        self.n_found = 0
        self.n_asked = 0

    @property
    def counts(self) -> dict[str, Any]:
        """What was found and kept, and whether it pays."""
        measured = self._worth.is_measured
        return {
            "used": self._worth.is_used,
            "asked": self.n_asked,
            "found": self.n_found,
            "model_us": 1e6 * self._worth.model_s if measured else None,
            "cost_us": 1e6 * self._worth.cost_s if measured else None,
            **outbox_counts(self._outbox),
        }

    def fetch(self, plain: Exchanges, desk: Desk, row: bytes, limit_s: float) -> Fetched:
        """An exchange, with candidates where they pay or must be measured."""
        started_s = self._clock.monotonic_s()
        asks = self._worth.asks()
        fetched = (self.asking if asks else plain).fetch(desk, row, limit_s)
        self._worth.note_exchange(self._clock.monotonic_s() - started_s, asks)
        self.n_asked += asks
        return fetched

    def fetch_all(
        self, plain: Exchanges, desk: Desk, rows: Sequence[bytes], limit_s: float
    ) -> list[Fetched]:
        """The same for several rows, in one exchange: nothing is measured, for they share its cost.

        Until it is known whether candidates pay they are asked for: whoever calls a model over a
        network, or is charged by the call, scores many rows first of all.
        """
        asks = self._worth.is_likely
        fetched = (self.asking if asks else plain).fetch_all(desk, rows, limit_s)
        self.n_asked += len(rows) * asks
        return fetched

    def answered(
        self,
        context_at: int,
        serving: Serving,
        row: bytes,
        out: bytes,
        fetched: Fetched,
        generation: int,
    ) -> bytes:
        """What the kernel wrote, served from a candidate where one matches.

        generation: the newest invalidation that is known here.
        """
        if not fetched.scores:
            return out
        at_ms = int.from_bytes(out[c.OUT_AS_OF : c.OUT_AS_OF + 8], "little")
        found = matching(fetched.scores, out[HASH], generation, at_ms)
        if found is None:
            return out
        told = bytearray(out)
        told[c.OUT_MODE : c.OUT_MODE + 8] = c.FOUND.to_bytes(8, "little")
        told[c.OUT_FOUND : c.OUT_FOUND + 8] = found.computed_ms.to_bytes(8, "little")
        out = bytes(told)
        keep(serving, id(row) + BYTES_AT, id(out) + BYTES_AT, found.score, context_at)
        self.n_found += 1
        return out

    def note_model(self, elapsed_s: float) -> None:
        """The model was called, and took so long."""
        self._worth.note_model(elapsed_s)

    def offer(self, token: bytes, out: bytes, generation: int) -> None:
        """Keep the score in `out` for others, where that pays."""
        if self._worth.keeps():
            self._offer(token, out, generation)

    def offer_of_many(self, token: bytes, out: bytes, generation: int) -> None:
        """The same for a score of many that were computed at once."""
        if self._worth.is_likely:
            self._offer(token, out, generation)

    def _offer(self, token: bytes, out: bytes, generation: int) -> None:
        if any(token):
            score, _, _, at_ms, _ = _HEAD(out)
            self._outbox.add((token, encoded(out[HASH], score, at_ms, generation)))

    def close(self) -> None:
        """Keep what is still to be kept."""
        self._outbox.close(_CLOSING_S)

    def _keep(self, one: tuple[bytes, bytes], told: Callable[[bool], None]) -> None:
        started_s = self._clock.monotonic_s()
        self._keeper.keep(*one)
        told(True)
        self._worth.note_keeping(self._clock.monotonic_s() - started_s)
