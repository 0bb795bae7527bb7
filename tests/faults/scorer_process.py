"""A scorer as a service has it, in a process of its own, on a steady little stream.

Each payment is scored, then observed, and some are labelled. What is about to be sent is first
written to a file of the test's own, with its identifiers, for nobody else could tell what hashed
messages mean, and what became of it to another beside that; what the scorer says of itself goes to
its log, which is searched for identifiers.
What each score took, and whether it said that it was degraded, is counted too.
Rule: trouble with a server is counted and never ends it; anything else does, with its traceback.
"""

from __future__ import annotations

import json
import random
import signal
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from freshscore.config.clock import SystemClock
from freshscore.config.errors import Backpressure, DeadlineExceeded, Unavailable
from freshscore.features.transaction import Transaction
from freshscore.scoring.callable_model import CallableModel
from freshscore.scoring.model_file import CohortThresholds
from freshscore.scoring.scorer import Scorer
from tests.faults.deployment import Ground
from tests.faults.streams import Stream

BEGUN: Final = "scoring"
_DONE: Final = "done: "
_FLUSHED_S: Final = 20.0
# How often it says how it stands.
_SAID_EVERY: Final = 20


def scores_of(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores that tell any two features apart; of one row what it is among others."""
    weights = np.arange(1.0, matrix.shape[1] + 1.0)
    return np.array([_score(row, weights) for row in matrix])


def _score(row: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    known = np.where(np.isnan(row), -1.0, row)
    return float(0.5 + np.arctan(np.sum(known * weights) / 1e6) / np.pi)


def model() -> CallableModel:
    """The model that all scorers of the campaigns have."""
    return CallableModel(scores_of, "faults-1", [CohortThresholds("all", 0.6, 0.8)])


def run(order: Mapping[str, Any]) -> int:
    """Score until SIGTERM; 0.

    order: settings, name and horizon_s of the deployment, mark of the stream, seed, number of this
    scorer, told (the file), every_s between two payments, and deadline_ms of each.
    """
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    ground = Ground(order["name"], order["horizon_s"])
    stream = Stream(ground, random.Random(order["seed"]), mark=order["mark"])
    counted = Counter[str]()
    with (
        Path(order["told"]).open("a", encoding="utf-8") as told,
        answers_of(Path(order["told"])).open("a", encoding="utf-8") as answered,
        Scorer.open("shared", settings=order["settings"], model=model()) as scorer,
    ):
        print(BEGUN, flush=True)
        while not stopping.wait(order["every_s"]):
            # The requests of the checks at the end have the numbers below a million.
            number = 1_000_000 * (1 + order["number"]) + counted["payments"]
            counted["payments"] += 1
            _one(scorer, stream, number, order["deadline_ms"], told, answered, counted)
            if counted["payments"] % _SAID_EVERY == 0:
                print(json.dumps(scorer.stats()), flush=True)
        scorer.flush(_FLUSHED_S)
        print(_DONE + json.dumps({"counted": counted, "stats": scorer.stats()}), flush=True)
    return 0


def _one(
    scorer: Scorer,
    stream: Stream,
    number: int,
    deadline_ms: float,
    told: TextIO,
    answered: TextIO,
    counted: Counter[str],
) -> None:
    clock = SystemClock()
    content = stream.content(number, clock.now_ms())
    told.write(json.dumps(content) + "\n")
    told.flush()
    payment = Transaction.of(content)
    answer: dict[str, Any] = {"transaction_id": payment.transaction_id, "is_observed": False}
    started_s = clock.monotonic_s()
    try:
        result = scorer.score(payment, deadline_ms=deadline_ms)
        counted["scored"] += 1
        counted.update(f"degraded: {cause}" for cause in result.degraded)
        counted["degraded"] += bool(result.degraded)
        if number % _SAID_EVERY == 0:
            print(repr(result), repr(payment), flush=True)
    except (Unavailable, DeadlineExceeded) as problem:
        counted["not scored"] += 1
        answer["problem"] = str(problem)
        print(repr(problem), flush=True)
    scored_s = clock.monotonic_s()
    took_ms = 1_000 * (scored_s - started_s)
    counted["longest_ms"] = max(counted["longest_ms"], round(took_ms))
    counted["late"] += took_ms > deadline_ms
    try:
        scorer.observe(payment)
        answer["is_observed"] = True
        counted["observed"] += 1
        if stream.chance.random() < 0.2 and payment.entities.keys() & {"card", "merchant"}:
            about = {"entities": content["entities"], "time": content["time"]}
            scorer.label(content["transaction_id"], fraud=True, **about)
            counted["labelled"] += 1
    except (Unavailable, Backpressure) as problem:
        counted["not sent"] += 1
        print(repr(problem), flush=True)
    answer["score_ms"] = 1_000 * (scored_s - started_s)
    answer["observe_ms"] = 1_000 * (clock.monotonic_s() - scored_s)
    answered.write(json.dumps(answer) + "\n")
    answered.flush()


def answers_of(told: Path) -> Path:
    """Where a scorer says what became of the payments in `told`."""
    return told.with_name(f"{told.name}-answered")


def said_at_the_end(log: Path) -> dict[str, Any]:
    """What a scorer that was ended in order counted, and its last stats."""
    lines = log.read_text("utf-8").splitlines()
    (last,) = [line for line in lines if line.startswith(_DONE)]
    return dict(json.loads(last.removeprefix(_DONE)))
