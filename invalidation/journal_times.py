"""How old what waits in the journal is, at a cost that does not grow with it.

Rule: never younger than it is; older by one step at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class WaitingTimes:
    """The oldest event time of messages that leave in the order in which they came.

    Of those that another behind them is older than, nothing is kept; times are rounded down to
    `step_ms`, so there are no more of them than steps in what is taken.
    """

    def __init__(self, step_ms: int) -> None:
        self._step_ms = step_ms
        # Times that grow, each with the last place at which something is that old.
        self._times: deque[tuple[int, tuple[int, int]]] = deque()

    def add(self, place: tuple[int, int], event_ms: int) -> None:
        """A message came; places grow."""
        floor_ms = event_ms - event_ms % self._step_ms
        times = self._times
        while times and times[-1][0] >= floor_ms:
            times.pop()
        times.append((floor_ms, place))

    def oldest_ms(self, waiting_from: Callable[[], tuple[int, int]]) -> int | None:
        """Of what is at the place that is given, or behind it; None for nothing."""
        times = self._times
        if not times:
            return None
        place = waiting_from()
        while times and times[0][1] < place:
            times.popleft()
        return times[0][0] if times else None
