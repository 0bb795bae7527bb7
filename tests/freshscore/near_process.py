"""A scorer with near states in a process of its own, which can be stopped and woken.

    python -m tests.freshscore.near_process SETTINGS PROTECTED

Each line of standard input is an order, each answered by a line: {"score": payment, "as_of": ms},
or {"slow": true}: from now on the follower waits before it applies anything, so that whoever is
served from near states before is served what was near. PROTECTED: "no" takes the protection out.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshscore import Scorer
from freshscore.invalidation.following import Follower

_SLOW_S = 0.5


def model(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores that tell the features apart."""
    weights = np.arange(1, matrix.shape[1] + 1)
    return 1.0 / (1.0 + np.exp(-(np.nan_to_num(matrix) @ weights) / 1e5))


class _Slow(threading.Event):
    """Whether the follower waits."""

    def wrap(self) -> None:
        """Let every follower look here before it applies a message."""
        take = Follower._take

        def taken(follower: Follower, data: bytes, received_s: float) -> None:
            if self.is_set():
                threading.Event().wait(_SLOW_S)
            take(follower, data, received_s)

        setattr(Follower, "_take", taken)  # noqa: B010  # in this process alone


def run(settings: dict[str, Any], *, is_protected: bool) -> None:
    """Answer until standard input ends."""
    slow = _Slow()
    slow.wrap()
    if not is_protected:
        # The canary: it serves however long nothing was heard, and keeps what it has.
        setattr(Follower, "may_serve", lambda _: True)  # noqa: B010
        setattr(Follower, "_give_up_after_silence", lambda _: None)  # noqa: B010
    with Scorer.open("shared", settings=settings, model=model) as scorer:
        for line in sys.stdin:
            order = json.loads(line)
            if "slow" in order:
                slow.set()
                answer = {}
            else:
                result = scorer.score(order["score"], as_of=order["as_of"])
                answer = {"near": result.near, "versions": result.state_versions}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    run(json.loads(sys.argv[1]), is_protected=sys.argv[2] == "yes")
