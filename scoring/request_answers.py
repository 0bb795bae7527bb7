"""From what an exchange brought to the answer of one request, and to the record of it.

What came whole is scored by the kernel that scores embedded states; what came in part, or not at
all, is answered from what is known (scoring/known_answers.py).
Rule: what leaves behind an answer (its decision, its score for others) never makes it wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from freshscore.config.clock import Clock
from freshscore.config.errors import Unavailable
from freshscore.features.memory import BYTES_AT
from freshscore.scoring import cache_layout as c
from freshscore.scoring.decisions import packed
from freshscore.scoring.known_answers import KnownAnswer, KnownAnswers
from freshscore.scoring.request_states import PARTLY, RequestStates
from freshscore.scoring.result import DECISIONS, SOURCES, Result, result_of

if TYPE_CHECKING:
    from freshscore.features.transaction import Transaction
    from freshscore.scoring.exchanges import Fetched
    from freshscore.scoring.leases import CacheRight
    from freshscore.scoring.remote_lookup import RemoteLookup
    from freshscore.scoring.seats import Seat, Seats
    from freshscore.scoring.serving import Serving

_HEAD: Final = c.HEAD.unpack_from
# Answers that ask nobody take microseconds, and so do their waits for a seat.
_SPARE_WAIT_S: Final = 0.01


class Request(NamedTuple):
    """ends_s: when it is over, on the monotonic clock; None where it has no deadline.

    is_now: nobody has asked for the instant `at_ms`.
    """

    transaction: Transaction
    row: bytes
    at_ms: int
    ends_s: float | None = None
    is_now: bool = False


# What the kernel could not do: status, request, what it wrote, ms that are left, its context.
GoOn = Callable[["Serving", int, Request, bytes, float | None, int], bytes]


class RequestAnswers:
    """Answers of one scorer; safe in many threads, each with a seat of its own.

    spare: seats for who asks nobody, so that they wait for none that do. decide: takes the record
    of each answer, None where nobody wants them; it may be replaced before the first.
    check_instant: raises for a status below 0.
    """

    def __init__(
        self,
        states: RequestStates,
        known: KnownAnswers,
        spare: Seats,
        right: CacheRight,
        remote: RemoteLookup | None,
        decide: Callable[[bytes], None] | None,
        clock: Clock,
        go_on: GoOn,
        check_instant: Callable[[int, Transaction, int], None],
    ) -> None:
        self._states = states
        self._known = known
        self._spare = spare
        self._right = right
        self._remote = remote
        self.decide = decide
        self._clock = clock
        self._go_on = go_on
        self._check_instant = check_instant

    def answer(
        self,
        seat: Seat,
        serving: Serving,
        request: Request,
        fetched: Fetched,
        *,
        is_one: bool = False,
    ) -> Result:
        """The answer on what was fetched, all of it or some. Raises Unavailable.

        is_one: of a single payment, whose entities are worth keeping near.
        """
        if fetched.missing:
            return self._in_part(seat, serving, request, fetched)
        transaction, row, at_ms, ends_s, is_now = request
        pending = self._states.take(seat, row, fetched, ends_s, is_one=is_one)
        if is_now and at_ms < seat.store.summarised_below_ms:
            # What others call now may be ahead of this clock.
            at_ms = seat.store.summarised_below_ms
            request = request._replace(at_ms=at_ms)
        is_cache_off = self._right.is_cache_off()
        seat.set_out(is_cache_off)
        out = bytes(serving.out_bytes)
        status = serving.score_in(seat.context_at, id(row) + BYTES_AT, at_ms, id(out) + BYTES_AT)
        if status:
            left_ms = None
            if ends_s is not None:
                left_ms = max(0.0, 1000.0 * (ends_s - self._clock.monotonic_s()))
            if self._remote is not None and status == c.NEEDS_MODEL and not is_cache_off:
                out = self._remote.answered(
                    seat.context_at, serving, row, out, fetched, self._right.generation()
                )
            if out[c.OUT_MODE] != c.FOUND:
                out = self._go_on(serving, status, request, out, left_ms, seat.context_at)
        self._note_decision(serving, row, out, fetched.progress, pending, is_near=seat.is_near)
        score, source, decision, at, until = _HEAD(out)
        return Result(
            transaction._transaction_id,
            score,
            DECISIONS[decision],
            SOURCES[source],
            at,
            until,
            serving.version,
            serving.entity_names,
            out,
            None,
            len(pending),
            seat.is_near,
        )

    def without_redis(self, serving: Serving, request: Request) -> Result | None:
        """The answer where nothing came of Redis; None where there is none."""
        seat = self._spare.take(_SPARE_WAIT_S)
        try:
            self._states.draw(seat)
            answer = self._known.answer(
                serving, request.row, request.at_ms, seat, None, is_now=request.is_now
            )
        finally:
            self._spare.give_back(seat)
        if answer is None:
            self._known.note_unanswered()
            return None
        return self._told(serving, request, answer)

    def _in_part(self, seat: Seat, serving: Serving, request: Request, fetched: Fetched) -> Result:
        """The answer where some nodes answered and others did not."""
        self._states.check_key(seat, fetched, request.ends_s)
        answer = self._known.answer(
            serving, request.row, request.at_ms, seat, fetched, is_now=request.is_now
        )
        if answer is None:
            raise Unavailable(PARTLY)
        return self._told(serving, request, answer)

    def _told(self, serving: Serving, request: Request, answer: KnownAnswer) -> Result:
        self._check_instant(answer.status, request.transaction, request.at_ms)
        out = answer.out
        self._note_decision(serving, request.row, out, answer.progress, answer.pending)
        return result_of(
            request.transaction._transaction_id,
            out,
            serving.version,
            serving.entity_names,
            len(answer.pending),
        )

    def _note_decision(
        self,
        serving: Serving,
        row: bytes,
        out: bytes,
        progress: Sequence[bytes],
        pending: Sequence[bytes],
        *,
        is_near: bool = False,
    ) -> None:
        if self.decide is not None:
            n = len(serving.entity_names)
            self.decide(
                packed(row, out, serving.version_bytes, n, progress, pending, is_near=is_near)
            )
