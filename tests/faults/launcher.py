"""Starts consumers and scorers as processes, in a tenth of the time that an interpreter takes.

A process that has imported everything and read the compiled kernels forks one child for each order;
the child runs the command line, or a scorer, and is killed like any other process. Orders come as
lines of JSON on standard input, answers go to standard output:

    {"start": [words], "log": path}   ->   {"pid": number}
    {"score": order, "log": path}   ->   {"pid": number}   (tests/faults/scorer_process.py)
    {"wait": pid, "limit_s": seconds}   ->   {"status": exit code, -signal, or null: it runs}

Rule: one thread, and nothing opened before the fork: what a child holds is its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from freshscore.cli import main
from freshscore.config.clock import SystemClock
from freshscore.config.secret import load_secret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys
from freshscore.features.program import compiled
from freshscore.features.specification import FeatureSpecification
from freshscore.invalidation import assembling
from freshscore.invalidation.batches import Batcher, Messages
from freshscore.scoring import shared_scorer
from tests.faults import scorer_process

_PR_SET_PDEATHSIG: Final = 1
_STEP_S: Final = 0.005


def serve(specification: str) -> None:
    """Answer orders until standard input ends."""
    _warm(specification)
    clock = SystemClock()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            answer: dict[str, Any] = {"pid": _started(partial(main, order["start"]), order["log"])}
        elif "score" in order:
            scoring = partial(scorer_process.run, order["score"])
            answer = {"pid": _started(scoring, order["log"])}
        else:
            answer = {"status": _status(clock, order["wait"], order["limit_s"])}
        print(json.dumps(answer), flush=True)


def _warm(specification: str) -> None:
    """Load what a consumer's first batch would: modules, and kernels from their cache."""
    assert callable(assembling.open_consumer)
    assert callable(shared_scorer.SharedScorer)
    program = compiled(FeatureSpecification.named(specification))
    keys = Keys(program, load_secret(None))
    batcher = Batcher.of(Settings(), program, keys, np.zeros(16_384, np.uint16))
    now_ms = SystemClock().now_ms()
    payment = {"transaction_id": "t", "time": now_ms, "amount_minor": 1, "currency": "EUR"}
    payment["entities"] = {"card": "c", "merchant": "m"}
    label = {"transaction_id": "t", "flags": {"fraud": True}, "sent_at": now_ms, "time": now_ms}
    label["entities"] = payment["entities"]
    one, other = (Messages.of([json.dumps(said).encode()], [now_ms]) for said in (payment, label))
    batch = batcher.build(one, other, now_ms)
    batch.compaction_candidates(0, [1] * batch.n_replies[0])


def _started(run: Callable[[], int], log: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    # As setpriv does for servers: a test run that is killed leaves nothing behind.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, output, output)):
        os.dup2(file, number)
    code = 70
    try:
        code = run()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001  # an interpreter would say it and end, as here
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _status(clock: SystemClock, pid: int, limit_s: float) -> int | None:
    """How a child ended; None where it has not after `limit_s`."""
    end_s = clock.monotonic_s() + limit_s
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if clock.monotonic_s() > end_s:
            return None
        signal.sigtimedwait([signal.SIGCHLD], _STEP_S)


if __name__ == "__main__":
    serve(sys.argv[1])
