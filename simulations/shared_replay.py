"""The same stream through the shared deployment: real Kafka, real Redis, and a scorer beside them.

The scorer is asked at the instants of the stream, and hands events and facts to the log as they
come; a consumer elsewhere brings them to Redis while the stream goes on. Nothing waits for it: what
Redis does not hold yet is pending at the scorer, so every answer stands on the set on which the
embedded replay answered, and the versions of its states say whether that is so.
Rule: two answers on the same versions must have the same bits; how many had others is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.config.clock import Clock
from freshscore.config.errors import AsOfTooOld, Unavailable
from freshscore.features.table import Int64s
from freshscore.features.transaction import Transaction
from freshscore.scoring import cache_layout as c
from freshscore.scoring.shared_scorer import SharedScorer
from freshscore.simulations.records import Records, states_keys
from freshscore.simulations.shapes import TouchKind
from freshscore.simulations.stream_changes import changed_ms
from freshscore.simulations.streams import Stream

Advance = Callable[[int], None]
# Touches whose payments are made at once, and between two looks at how far the consumer is.
_TOUCHES_AT_ONCE: Final = 2_048
_EVENT: Final = int(TouchKind.OBSERVE)


class StreamClock:
    """The stream's instants on the wall, and real time for every wait."""

    def __init__(self, real: Clock, now_ms: int) -> None:
        self._real = real
        self.at_ms = now_ms

    def now_ms(self) -> int:
        """The instant of the stream, ms."""
        return self.at_ms

    def monotonic_s(self) -> float:
        """Real seconds."""
        return self._real.monotonic_s()


@dataclass(frozen=True, eq=False)
class SharedAnswers:
    """What the shared scorer answered, (s,) each.

    touch: index into the stream. score: float64, by its bits. states: hash of the states' versions.
    source: index into SOURCES. pending: events that Redis did not hold yet. degraded: the bits of
    the causes that the answer named. watermark_ms: up to when the states were complete, as it said.
    asked_s: since the stream began, real time. latency_us: of the whole call, the exchange
    included. unanswered: (u,) touches that ended with Unavailable, unanswered_s when they were
    asked. behind: (m,) messages that the log held and Redis did not, at moments of the run,
    behind_at_ms of the stream's time. elapsed_s: of the stream, real time.
    """

    touch: Int64s
    score: NDArray[np.float64]
    states: NDArray[np.uint64]
    source: Int64s
    pending: Int64s
    degraded: Int64s
    watermark_ms: Int64s
    asked_s: NDArray[np.float64]
    latency_us: NDArray[np.float64]
    unanswered: Int64s
    unanswered_s: NDArray[np.float64]
    behind: Int64s
    behind_at_ms: Int64s
    refused: int
    elapsed_s: float


@dataclass(frozen=True)
class SharedEquality:
    """Answers of the shared scorer beside the embedded ones.

    compared: touches that both answered. same_states: of them on the same versions. equal: of
    those with the same bits. equal_elsewhere: with the same bits, on other versions. unsaid: on
    other versions, and not degraded, although they claim a watermark beyond the last change.
    """

    compared: int
    same_states: int
    equal: int
    equal_elsewhere: int
    unsaid: int

    @property
    def holds(self) -> bool:
        """Whether every answer on the same states was the same, and all others said so."""
        return self.equal == self.same_states and self.compared > 0 and self.unsaid == 0


def replay_shared(
    stream: Stream,
    scorer: SharedScorer,
    stream_clock: StreamClock,
    clock: Clock,
    behind: Callable[[], int],
    *,
    advance: Advance = lambda touches: None,
) -> SharedAnswers:
    """Play the stream's touches; its history is in the log already.

    stream_clock: the scorer's own. behind: messages that the log holds and Redis does not.
    """
    touches: list[int] = []
    raws: list[bytes] = []
    pending: list[int] = []
    latencies_s: list[float] = []
    asked: list[float] = []
    unanswered: list[int] = []
    unanswered_s: list[float] = []
    lags: list[int] = []
    lags_at_ms: list[int] = []
    refused = 0
    started_s = clock.monotonic_s()
    n_entities = len(stream.table.specification.entities)
    for first in range(0, len(stream), _TOUCHES_AT_ONCE):
        last = min(first + _TOUCHES_AT_ONCE, len(stream))
        for touch, transaction in enumerate(_payments(stream, first, last), start=first):
            stream_clock.at_ms = int(stream.at_ms[touch])
            if not stream.scored[touch]:
                _apply(stream, scorer, touch, transaction)
                continue
            asked_s = clock.monotonic_s()
            try:
                result = scorer.score(transaction)
            except AsOfTooOld:
                refused += 1
                continue
            except Unavailable:
                unanswered.append(touch)
                unanswered_s.append(asked_s - started_s)
                continue
            latencies_s.append(clock.monotonic_s() - asked_s)
            asked.append(asked_s - started_s)
            touches.append(touch)
            raws.append(result.raw)
            pending.append(result.pending)
        lags.append(behind())
        lags_at_ms.append(stream_clock.at_ms)
        advance(last - first)
    elapsed_s = clock.monotonic_s() - started_s
    words = np.frombuffer(b"".join(raws), np.uint8).reshape(len(raws), -1)

    def column(at: int, kind: type[np.generic]) -> NDArray[np.generic]:
        return np.ascontiguousarray(words[:, at : at + 8]).view(kind)[:, 0]

    return SharedAnswers(
        touch=np.array(touches, np.int64),
        score=column(c.OUT_SCORE, np.float64).astype(np.float64),
        states=states_keys(words, n_entities),
        source=column(c.OUT_SOURCE, np.int64).astype(np.int64),
        pending=np.array(pending, np.int64),
        degraded=column(c.OUT_DEGRADED, np.int64).astype(np.int64),
        watermark_ms=column(c.OUT_WATERMARK, np.int64).astype(np.int64),
        asked_s=np.array(asked, np.float64),
        unanswered=np.array(unanswered, np.int64),
        unanswered_s=np.array(unanswered_s, np.float64),
        latency_us=np.array(latencies_s) * 1e6,
        behind=np.array(lags, np.int64),
        behind_at_ms=np.array(lags_at_ms, np.int64),
        refused=refused,
        elapsed_s=elapsed_s,
    )


def compared_answers(stream: Stream, embedded: Records, shared: SharedAnswers) -> SharedEquality:
    """The answers to the touches that both have answered, side by side.

    One on other versions is held against its own watermark: if its states had not changed since
    before that, it claims to hold all that the embedded one holds.
    """
    _, here, there = np.intersect1d(embedded.touch, shared.touch, return_indices=True)
    same = embedded.states[here] == shared.states[there]
    equal = embedded.score[here].view(np.int64) == shared.score[there].view(np.int64)
    claims_all = changed_ms(stream)[shared.touch[there]] < shared.watermark_ms[there]
    claims_all &= shared.degraded[there] == 0
    return SharedEquality(
        compared=len(here),
        same_states=int(np.count_nonzero(same)),
        equal=int(np.count_nonzero(same & equal)),
        equal_elsewhere=int(np.count_nonzero(~same & equal)),
        unsaid=int(np.count_nonzero(~same & claims_all)),
    )


def _payments(stream: Stream, first: int, last: int) -> list[Transaction]:
    """The payment of each touch, at its stage; one object for all touches of a content."""
    contents, which = np.unique(stream.content[first:last], return_inverse=True)
    made = list(stream.transactions(contents))
    return [made[i] for i in which.tolist()]


def _apply(stream: Stream, scorer: SharedScorer, touch: int, transaction: Transaction) -> None:
    """Hand an event or a fact to the log."""
    if stream.kind[touch] == _EVENT:
        scorer.observe(transaction)
        return
    fact = stream.table.specification.facts[stream.fact[touch]]
    scorer.label(
        transaction.transaction_id,
        entities=transaction.entities,
        time=transaction.time,
        **{fact: bool(stream.value[touch])},
    )
