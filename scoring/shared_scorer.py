"""The scorer of the `shared` profile: states from Redis, events to Kafka, the same face.

One answer: the commands for its states and its nodes' progress go out in one exchange; what came is
checked and united with what is pending here (scoring/request_states.py), and answered
(scoring/request_answers.py).
Rule: the set that is served is the one that this request's exchange brought and what is pending;
whatever is missing of it makes the answer degraded. Nothing is served from the cache without a
lease. What leaves behind an answer (its decision, its score for others) never makes it wait.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from freshscore.config.clock import Clock
from freshscore.config.errors import (
    AsOfTooOld,
    BadTransaction,
    DeadlineExceeded,
    FreshscoreError,
    Unavailable,
)
from freshscore.config.secret import jitter, random_seed
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import Program
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.request_store import RequestStore
from freshscore.features.state_layout import StateLayout, state_fingerprints
from freshscore.features.store import StoreLimits
from freshscore.features.transaction import Transaction, time_ms
from freshscore.invalidation.control import Invalidation
from freshscore.invalidation.delivery import Writer
from freshscore.invalidation.feed import Acceptance
from freshscore.invalidation.identifier_keys import IdentifierKeys
from freshscore.invalidation.journalled_topics import JournalledTopics
from freshscore.scoring import cache_layout as c
from freshscore.scoring.async_threads import Threads
from freshscore.scoring.carrying_out import carry_out
from freshscore.scoring.counts import counts_of
from freshscore.scoring.exchanges import Exchanges, Fetched, tokens_of
from freshscore.scoring.key_checking import KeyCheck
from freshscore.scoring.known_answers import KnownAnswers
from freshscore.scoring.leases import CacheRight, Lease
from freshscore.scoring.near_reading import NearReading
from freshscore.scoring.node_health import NodeHealth
from freshscore.scoring.outbox import Outbox, outbox_counts
from freshscore.scoring.pending import PendingEvents
from freshscore.scoring.remote_lookup import RemoteLookup
from freshscore.scoring.request_answers import Request, RequestAnswers
from freshscore.scoring.request_states import PARTLY, RequestStates
from freshscore.scoring.result import SOURCES, UNAVAILABLE, Result
from freshscore.scoring.scorer import Scorer, check_deadline, set_aside, tier_limits
from freshscore.scoring.seats import Seat, Seats, most_seats
from freshscore.scoring.serving import ServableModel, Serving, with_model_score
from freshscore.scoring.shared_feed import SharedFeed
from freshscore.scoring.shared_rows import ROWS_AT_ONCE, TableStates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from freshscore.features.table import PaymentTable
    from freshscore.scoring.batch import Scored

_HEAD: Final = c.HEAD.unpack_from
_MOST_THREADS: Final = 32
_CLOSING_S: Final = 5.0
# One score in so many is timed: a prime, which no period of traffic fits.
_TIMED: Final = 13
# Answers that ask nobody take microseconds: four threads seldom are at it at once.
_SPARE_SEATS: Final = 4
_NEARLY: Final = 0.79


class SharedScorer(Scorer):
    """Scores transactions on states in Redis; made by `Scorer.open` for `store.backend = "redis"`.

    writer: takes events and decisions to the log; None sends neither. journal: takes the events in
    its place, and closes it. lease: None where nobody invalidates, as in a test.
    """

    def __init__(
        self,
        settings: Settings,
        nodes: Nodes,
        model: ServableModel,
        program: Program,
        keys: Keys,
        *,
        writer: Writer | None = None,
        journal: JournalledTopics | None = None,
        lease: Lease | None = None,
        clock: Clock | None = None,
        seed: int | None = None,
        shares_scores: bool = True,
    ) -> None:
        store, redis = settings.store, settings.redis
        self._like = RequestStore(program, keys, StoreLimits.of(store))
        seed = random_seed() if seed is None else seed
        serving = Serving(self._like, model, tier_limits(settings), seed)
        self._begin(settings, serving)
        if clock is not None:
            self._clock = clock
        self._nodes = nodes
        self._right = CacheRight(lease, self._clock)
        names = RedisKeys(redis.namespace, state_fingerprints(program))
        self._health = NodeHealth(settings, self._clock, jitter(seed))
        self._exchanges = Exchanges(
            nodes,
            names,
            self._like.layouts,
            health=self._health,
            others_at=serving.packer.others_at,
            since_ms=keys.since_ms,
        )
        self._remote = (
            RemoteLookup(settings, nodes, names, self._like, serving, self._clock, self._health)
            if shares_scores and model.forest is None
            else None
        )
        widest = self._exchanges if self._remote is None else self._remote.asking
        # Who follows the stream for near states keeps a connection for good.
        most = most_seats(redis.max_connections - redis.near)
        self._seats = Seats(self._like, serving.tier, widest, most)
        # For answers that ask nobody, so that they wait for none that do.
        self._spare = Seats(self._like, serving.tier, widest, _SPARE_SEATS)
        self._pending = PendingEvents(
            redis.max_pending_events, redis.pending_s, self._clock, self._oldest_ticket
        )
        own = IdentifierKeys.of(settings, program, keys)
        key_check = KeyCheck(nodes, names, own, self._clock, redis.heartbeat_s)
        self._states = RequestStates(
            self._exchanges,
            self._remote,
            self._pending,
            key_check,
            self._clock,
            self._health,
            redis.timeout_ms / 1000.0,
        )
        self._known = KnownAnswers(
            settings.fallback, self._states, self._right, self._clock, self._call_model
        )
        self._writer = writer
        self._journal = journal
        self._shared_feed = SharedFeed(
            (journal or writer) if settings.kafka.produce else None,
            settings.kafka,
            serving.packer,
            Acceptance.of(store),
            self._pending,
            self._clock,
        )
        self._decisions: Outbox[bytes] | None = None
        if writer is not None:
            topic = settings.kafka.decisions_topic
            self._decisions = Outbox(
                "decisions",
                lambda record, told: writer.send(
                    topic, None, record, done=lambda at: told(at is not None)
                ),
                settings.kafka.max_unsent_decisions,
                keeps=True,
            )
        self._answers = RequestAnswers(
            self._states,
            self._known,
            self._spare,
            self._right,
            self._remote,
            None if self._decisions is None else self._decisions.add,
            self._clock,
            self._finished,
            self._check_instant,
        )
        self._counting = threading.Lock()
        self._n_unavailable = 0
        self._async = Threads(min(_MOST_THREADS, most))

    def score(
        self,
        tx: Transaction | Mapping[str, Any],
        *,
        as_of: datetime | int | None = None,
        deadline_ms: float | None = None,
    ) -> Result:
        """The score of `tx` at `as_of` (aware datetime or int ms UTC), by default now.

        deadline_ms: of the exchange with Redis (a connection that must be made for it included),
        and of the wait where the same score is being computed by another thread; above 0 and
        finite. Where Redis does not answer in time the answer is degraded, or, if nothing is known
        and the settings have no decision, DeadlineExceeded or Unavailable is raised. Raises
        BadTransaction, AsOfTooOld, WrongSecret (the states that are read are of another), Closed,
        ForkedScorer too.
        """
        serving = self._open_serving()
        if deadline_ms is not None:
            check_deadline(deadline_ms)
        started_s = self._clock.monotonic_s()
        transaction = Transaction.of(tx)
        row = serving.packer.row(transaction)
        at_ms = self._instant(transaction, as_of)
        ends_s = None if deadline_ms is None else started_s + deadline_ms / 1000.0
        request = Request(transaction, row, at_ms, ends_s, is_now=as_of is None)
        try:
            seat = self._seats.take(self._states.wait_s(ends_s))
            try:
                return self._scored(seat, serving, request, started_s)
            finally:
                self._seats.give_back(seat)
        except Unavailable as problem:
            result = self._answers.without_redis(serving, request)
            if result is not None:
                return result
            with self._counting:
                self._n_unavailable += 1
            elapsed_ms = 1000.0 * (self._clock.monotonic_s() - started_s)
            # A fifth of it was not for Redis.
            if deadline_ms is not None and elapsed_ms >= _NEARLY * deadline_ms:
                raise DeadlineExceeded(
                    f"deadline_ms = {deadline_ms} has passed: {problem}"
                ) from problem
            raise

    async def score_async(
        self,
        tx: Transaction | Mapping[str, Any],
        *,
        as_of: datetime | int | None = None,
        deadline_ms: float | None = None,
    ) -> Result:
        """What `score` gives, awaited: the event loop goes on while Redis and the model work.

        Raises Backpressure too, where too many wait for a thread.
        """
        self._open_serving()
        return await self._async.run(lambda: self.score(tx, as_of=as_of, deadline_ms=deadline_ms))

    def observe(
        self, tx: Transaction | Mapping[str, Any], *, arrival: datetime | int | None = None
    ) -> None:
        """Send `tx` to the log, and count it here from now on; consumers bring it to all others.

        While Kafka is away it waits in the journal (docs/shared.md). Raises BadTransaction (also
        for an `arrival`: the log gives it), SettingsError where kafka.produce is false, Closed;
        Backpressure where the journal is full, or what waits in it comes too late; Unavailable
        where the disk fails, or there is neither a journal nor Kafka.
        """
        serving = self._open_serving()
        transaction = Transaction.of(tx)
        row = serving.packer.row(transaction)
        self._shared_feed.observe(transaction, row, arrival is not None)

    def label(
        self,
        transaction_id: str,
        *,
        known_at: datetime | int | None = None,
        entities: Mapping[str, str] | None = None,
        time: datetime | int | None = None,
        **flags: bool,
    ) -> None:
        """Send to the log what became known of a payment: `label("t-123", fraud=True)`.

        known_at: by default the instant at which it arrives there, and never before that. entities
        and time: the payment's own, or neither, if the label index knows it. Raises BadFact,
        SettingsError where kafka.produce is false, Backpressure, Unavailable, Closed.
        """
        self._open_serving()
        self._shared_feed.label(transaction_id, flags, known_at, entities, time)

    def flush(self, timeout_s: float) -> None:
        """Wait until the log has what was observed, labelled and decided.

        timeout_s: above 0 and finite, else ValueError is raised. Raises Unavailable after it; what
        is in the journal by then is sent when Kafka is back.
        """
        self._open_serving()
        if not 0.0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s is {timeout_s}; it must be above 0 and finite")
        ends_s = self._clock.monotonic_s() + timeout_s
        if self._decisions is not None and not self._decisions.flush(timeout_s):
            raise Unavailable(f"decisions were not sent within {timeout_s} s")
        self._shared_feed.flush(max(0.0, ends_s - self._clock.monotonic_s()))

    def stats(self) -> dict[str, Any]:
        """What was counted since the scorer was opened (docs/statistics.md has the names)."""
        serving = self._open_serving()
        states = self._states
        watermark_ms = states.watermark_ms
        store = {
            "backend": "redis",
            "watermark_ms": watermark_ms,
            "lag_ms": self._clock.now_ms() - watermark_ms if watermark_ms else None,
            "exchanges": states.n_exchanges,
            **states.counts,
            "unavailable": self._n_unavailable,
            "pending": len(self._pending),
            "pending_events": self._pending.counts,
        }
        found = counts_of(serving, store, self._shared_feed.counts, self._latencies)
        found["cache"]["may_serve"] = not self._right.is_cache_off()
        if self._decisions is not None:
            found["decisions"] = outbox_counts(self._decisions)
        if self._remote is not None:
            found["remote_scores"] = self._remote.counts
        found["nodes"] = self._health.counts
        found["without_redis"] = self._known.counts
        if states.near is not None:
            found["near"] = states.near.counts
        if self._journal is not None:
            found["journal"] = self._journal.counts
        return found

    def take_lease(self, lease: Lease) -> None:
        """From now on serve from the cache as `lease` allows; it is given back at the end."""
        self._right.lease = lease

    def take_decide(self, decide: Callable[[bytes], None]) -> None:
        """From now on hand the record of each decision to `decide`, in the thread that scores."""
        self._answers.decide = decide

    @property
    def packer(self) -> Packer:
        """What makes the rows that are scored."""
        return self._open_serving().packer

    @property
    def layouts(self) -> Sequence[StateLayout]:
        """Of the states of all entities, in order."""
        return self._like.layouts

    @property
    def asks_for_scores(self) -> bool:
        """Whether exchanges bring scores of other processes, for a model that is called."""
        return self._remote is not None

    def take_near(self, near: NearReading) -> None:
        """From now on look for states in `near` first; before the first score."""
        self._seats.near = self._spare.near = near.states
        self._states.near = near

    def refuse(self, problem: FreshscoreError) -> None:
        """Answer nothing from now on but `problem`; `close` is still to be called."""
        self._refusal = problem
        self._serving = None

    def carry_out(self, told: Sequence[Invalidation]) -> None:
        """Serve nothing more of what was invalidated, up to now."""
        serving = self._serving
        if serving is None:
            return
        carry_out(serving, told)

    def _call_model(self, serving: Serving, row: bytes, out: bytes, context_at: int) -> None:
        remote = self._remote
        if remote is None:
            with_model_score(serving, row, out, context_at)
            return
        # What is invalidated while the model works makes this too old.
        generation = self._right.generation()
        started_s = self._clock.monotonic_s()
        with_model_score(serving, row, out, context_at)
        remote.note_model(self._clock.monotonic_s() - started_s)
        remote.offer(tokens_of(row, 1)[0], out, generation)

    def _open_serving(self) -> Serving:
        serving = self._serving
        if serving is None:
            raise self._refusal
        return serving

    def _instant(self, transaction: Transaction, as_of: datetime | int | None) -> int:
        if as_of is None:
            return max(self._clock.now_ms(), transaction._time)
        return time_ms(as_of, "as_of")

    def _oldest_ticket(self) -> int:
        return min(self._seats.oldest_ticket(), self._spare.oldest_ticket())

    def _scored(self, seat: Seat, serving: Serving, request: Request, started_s: float) -> Result:
        fetched, number = self._states.fetch(seat, request.row, request.ends_s)
        result = self._answers.answer(seat, serving, request, fetched, is_one=True)
        if number % _TIMED == 0 and not fetched.missing:
            elapsed_s = self._clock.monotonic_s() - started_s
            self._latencies.add(SOURCES.index(result.source or ""), round(elapsed_s * 1e9))
        return result

    def _finished(
        self,
        serving: Serving,
        status: int,
        request: Request,
        out: bytes,
        left_ms: float | None,
        context_at: int,
    ) -> bytes:
        """Do what the kernel could not."""
        transaction, row, at_ms = request[:3]
        return self._go_on(serving, status, transaction, row, out, at_ms, left_ms, context_at)

    def _listed(self, serving: Serving, rows: Sequence[Any], at_ms: int) -> list[Result]:
        results: list[Result] = []
        for first in range(0, len(rows), ROWS_AT_ONCE):
            results += self._some(serving, rows[first : first + ROWS_AT_ONCE], at_ms or None)
        return results

    def _some(self, serving: Serving, rows: Sequence[Any], at_ms: int | None) -> list[Result]:
        """Results of some rows, fetched in one exchange."""
        results: list[Result | None] = [None] * len(rows)
        good: list[tuple[int, Request]] = []
        for number, row in enumerate(rows):
            try:
                transaction = Transaction.of(row)
                instant = self._instant(transaction, at_ms)
                packed = serving.packer.row(transaction)
                request = Request(transaction, packed, instant, is_now=at_ms is None)
                good.append((number, request))
            except BadTransaction as wrong:
                results[number] = set_aside(serving, row, wrong)
        fetched: Sequence[Fetched | None] = [None] * len(good)
        problem: Unavailable | None = None
        seat = self._seats.take(self._states.limit_s)
        try:
            try:
                fetched = self._states.fetch_all(seat, [request.row for _, request in good])
            except Unavailable as caught:
                problem = caught
            for (number, request), found in zip(good, fetched, strict=True):
                try:
                    if found is None:
                        results[number] = self._known_one(serving, request, problem)
                    else:
                        results[number] = self._one_of_some(seat, serving, request, found)
                except (BadTransaction, AsOfTooOld, DeadlineExceeded, Unavailable) as trouble:
                    results[number] = set_aside(serving, request.transaction, trouble)
        finally:
            self._seats.give_back(seat)
        answered = [result for result in results if result is not None]
        if problem is not None and all(one.decision is None for one in answered):
            raise problem
        return answered

    def _one_of_some(
        self, seat: Seat, serving: Serving, request: Request, fetched: Fetched
    ) -> Result:
        try:
            return self._answers.answer(seat, serving, request, fetched)
        except Unavailable as problem:
            return self._known_one(serving, request, problem)

    def _known_one(self, serving: Serving, request: Request, problem: Unavailable | None) -> Result:
        """The answer without Redis; raises `problem` where there is none."""
        result = self._answers.without_redis(serving, request)
        if result is None:
            raise problem or Unavailable(PARTLY)
        return result

    def _tabled(self, serving: Serving, table: PaymentTable, at_ms: int) -> Scored:
        from freshscore.scoring.batch import score_table

        wait_s = self._settings.cache.inflight_wait_s
        seat = self._seats.take(self._states.limit_s)
        try:
            now_ms = self._clock.now_ms()
            states = TableStates(
                serving, seat, self._states, self._remote, self._right, self._known, now_ms
            )
            scored = score_table(serving, table, at_ms, self._flights, wait_s, states)
            if states.problem is not None and (scored.statuses == UNAVAILABLE).all():
                raise states.problem
            return scored
        finally:
            self._seats.give_back(seat)

    def _vector(self, row: bytes, as_of_ms: int) -> NDArray[np.float64]:
        seat = self._seats.take(self._states.limit_s)
        try:
            fetched, _ = self._states.fetch(seat, row, None)
            self._states.take(seat, row, fetched, is_one=True)
            at_ms = max(as_of_ms, seat.store.summarised_below_ms)
            return seat.store.features(row, at_ms)
        finally:
            self._seats.give_back(seat)

    def _too_old(self, transaction: Transaction, as_of: datetime | int | None) -> str:
        return (
            f"the payment's time is {transaction.time}, as_of is {as_of}; a state that it needs was"
            " folded or has forgotten what is older (store.horizon_s behind the log; of a grid with"
            " many events all but the last redis.grid_records); history answers older questions:"
            " freshscore features compute"
        )

    def _close_state(self) -> None:
        self._right.close()
        if self._states.near is not None:
            self._states.near.close()
        self._async.close()
        self._seats.close()
        self._spare.close()
        if self._decisions is not None:
            self._decisions.close(_CLOSING_S)
        if self._remote is not None:
            self._remote.close()
        self._shared_feed.close(_CLOSING_S)
        if self._writer is not None:
            # Where nothing is produced, decisions are sent all the same.
            self._writer.close(_CLOSING_S)
        self._nodes.close()

    def _abandon_state(self) -> None:
        # Threads are not there in the child, and connections are the parent's.
        self._right.lease = None
