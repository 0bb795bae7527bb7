"""Up to where states may be folded and forgotten: what no message still to come can touch.

F is the lowest arrival that every partition has passed on every node, minus the horizon and what
stamps may go back by. History that is loaded (kafka.historical, a backfill) moves neither line.
Rule: both lines only ever lie before what a late message or a request yet to come can ask for.
"""

from __future__ import annotations

from dataclasses import dataclass

from freshscore.config.settings import Settings
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import CONTROL, RedisKeys
from freshscore.features.redis_lines import command
from freshscore.features.redis_progress import progress_of

# The instant below which nothing is folded while a backfill runs, ms.
HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Lines:
    """fold_below_ms: F. forget_below_ms: nothing that a window can reach is older. 0: none.

    now_ms: by the clock of Redis, up to where events may be folded early; 0: none.
    """

    fold_below_ms: int
    forget_below_ms: int
    now_ms: int


class FoldingLines:
    """Asks Redis for the lines. held_ms: how far before a request a window can begin."""

    def __init__(self, settings: Settings, nodes: Nodes, keys: RedisKeys, held_ms: int) -> None:
        self._nodes = nodes
        self._keys = keys
        self._is_historical = settings.kafka.historical
        self._late_ms = 1_000 * settings.store.horizon_s + settings.kafka.clock_error_ms
        self._held_ms = held_ms

    def now_ms(self) -> int:
        """What the clock of Redis shows. Raises Unavailable."""
        seconds, micros = replies_to(self._nodes, [(CONTROL.encode(), command(b"TIME"))])[0]
        return int(seconds) * 1_000 + int(micros) // 1_000

    def lines(self) -> Lines:
        """Where the lines are now. Raises Unavailable, DamagedState."""
        if self._is_historical:
            return Lines(0, 0, 0)
        hold_key = self._keys.control(HOLD)
        asked = [(CONTROL.encode(), command(b"GET", hold_key))]
        for tag in self._nodes.tags:
            asked.append((tag.encode(), command(b"GET", self._keys.progress(tag))))
        hold, *summaries = replies_to(self._nodes, asked)
        if any(summary is None for summary in summaries):
            return Lines(0, 0, 0)
        passed_ms = min(progress_of(summary).watermark_ms for summary in summaries)
        # A consumer's clock may have been wrong: what is folded stays folded.
        now_ms = self.now_ms()
        watermark_ms = min(passed_ms, now_ms)
        fold_ms = max(0, watermark_ms - self._late_ms)
        if hold is not None:
            fold_ms = min(fold_ms, int(hold))
        return Lines(fold_ms, max(0, fold_ms - self._held_ms), now_ms)
