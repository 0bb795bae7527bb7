"""Threads for scores that are awaited: the event loop goes on while they wait for servers.

Rule: no more calls wait for a thread than the limit; what is beyond it is refused at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from freshscore.config.errors import Backpressure
from freshscore.scoring.result import Result

# Scores that wait for a thread, for each thread.
_WAITING_EACH: Final = 16


class Threads:
    """Threads for `score_async`, and a limit on how many calls wait for one."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._most = n * (1 + _WAITING_EACH)
        self._lock = threading.Lock()
        self._running = 0
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, call: Callable[[], Result]) -> Result:
        """What `call` gives, from one of the threads. Raises Backpressure at the limit."""
        with self._lock:
            if self._running >= self._most:
                raise Backpressure(
                    f"{self._running} scores wait for {self._n} threads, which is the limit"
                    " (threads are redis.max_connections less a reserve, 32 at most)"
                )
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._n, "freshscore-score")
            self._running += 1
            pool = self._pool
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(pool, call)
        future.add_done_callback(self._ended)
        return await future

    def close(self) -> None:
        """End the threads once their calls have ended."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _ended(self, _: object) -> None:
        with self._lock:
            self._running -= 1
