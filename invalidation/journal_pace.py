"""How fast the journal is sent once Kafka is back.

Rule: what comes at this moment never waits for the pace; what has waited is sent beside it, so that
many scorers that come back together do not trample Kafka and its consumers.
"""

from __future__ import annotations


class Pace:
    """How many messages may be sent: `per_s`, and as many as came; at most `most` at once."""

    def __init__(self, per_s: int, most: int, now_s: float) -> None:
        self._per_s = per_s
        self._most = most
        self._at_s = now_s
        self._n_came = 0
        self.n_free = float(min(per_s, most))

    def move_to(self, now_s: float, n_came: int) -> None:
        """It is `now_s`, and `n_came` have come since the beginning."""
        earned = (now_s - self._at_s) * self._per_s + n_came - self._n_came
        self.n_free = min(self.n_free + earned, float(self._most))
        self._at_s, self._n_came = now_s, n_came
