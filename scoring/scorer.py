"""The scorer: what users hold. It reads, remembers and answers; it never changes an aggregate
except through `observe` and `label`.

Threads: a scorer may be used from any number of them. Each kernel call is one step under the
interpreter lock; nothing in Python is kept between the steps of one answer.
Processes: a scorer belongs to the one that opened it; used after a fork it raises.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, overload

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import (
    AsOfTooOld,
    BadModel,
    BadTransaction,
    Closed,
    DeadlineExceeded,
    ForkedScorer,
    FreshscoreError,
)
from freshscore.config.extras import clients_of_servers
from freshscore.config.loading import load_settings
from freshscore.config.secret import random_seed
from freshscore.config.settings import Settings
from freshscore.features.memory import BYTES_AT
from freshscore.features.transaction import Transaction, time_ms
from freshscore.invalidation.embedded import EmbeddedState
from freshscore.invalidation.feed import Feed
from freshscore.scoring import cache_layout as c
from freshscore.scoring.counts import counts_of, store_counts
from freshscore.scoring.flights import Flights
from freshscore.scoring.latencies import Latencies
from freshscore.scoring.result import DECISIONS, SOURCES, Result, refused, result_of
from freshscore.scoring.serving import (
    HASH,
    ServableModel,
    Serving,
    check_probe,
    with_model_score,
)
from freshscore.scoring.shares import share_of_row
from freshscore.scoring.tier import TierLimits

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from freshscore.features.specification import FeatureSpecification
    from freshscore.features.table import PaymentTable
    from freshscore.scoring.batch import Scored
    from freshscore.scoring.explanation import Explanation

# One call in 16 is timed, at distances of 1 to 31 that no period of traffic fits (a multiplicative
# sequence modulo the prime 65537: Lehmer 1951).
_MULTIPLIER: Final = 75
_MODULUS: Final = 65_537
_LONGEST: Final = 31
# What a wait of the system takes is 2^63 ns; beyond, a caller means something else.
_LONGEST_DEADLINE_MS: Final = 1e12


class Scorer:
    """Scores transactions on the aggregates of one store with one model.

    Made by `Scorer.open`; a context that closes itself.
    """

    def __init__(
        self, settings: Settings, state: EmbeddedState, feed: Feed, serving: Serving
    ) -> None:
        self._state = state
        self._store = state.store
        self._feed = feed
        self._begin(settings, serving)

    def _begin(self, settings: Settings, serving: Serving) -> None:
        """What every scorer has, wherever its states are."""
        self._settings = settings
        self._serving: Serving | None = serving
        self._refusal: FreshscoreError = Closed("the scorer is closed")
        self._clock: Clock = SystemClock()
        self._flights = Flights(self._clock)
        self._latencies = Latencies(len(SOURCES))
        self._calls = 0
        self._next_timed = 1
        self._distances = 1
        scorer = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forked(scorer()))

    @classmethod
    def open(
        cls,
        profile: str = "default",
        *,
        settings: Settings | Mapping[str, Any] | None = None,
        model: ServableModel | Callable[..., Any] | None = None,
    ) -> Scorer:
        """A scorer in this process, with what the settings name.

        settings: over the environment, the settings file and the profile; dotted or nested keys.
        model: a Model, a CallableModel, or any callable over the feature matrix, float64 (n, F),
        that gives n finite scores (reviewed from 0.5, declined from 0.9); None: the champion, the
        version last trained or imported into the store's folder.
        With store.backend = "redis" its states are in Redis, and what it observes goes to Kafka
        (scoring/shared_scorer.py). Raises SettingsError, NoModel, ModelMismatch, DamagedState,
        WrongSecret, Unavailable.
        """
        loaded = load_settings(profile, settings=settings)
        if loaded.store.backend == "redis":
            # The clients of Redis and Kafka are imported by those who have servers.
            with clients_of_servers():
                from freshscore.scoring.shared_opening import open_shared

            return open_shared(loaded, model)
        state = EmbeddedState.open(loaded)
        chosen = chosen_model(loaded, state.store.program.specification, model)
        serving = Serving(state.store, chosen, tier_limits(loaded), random_seed())
        feed = Feed(state.store, serving.packer, state.acceptance, state.begin_writing)
        return cls(loaded, state, feed, serving)

    def score(
        self,
        tx: Transaction | Mapping[str, Any],
        *,
        as_of: datetime | int | None = None,
        deadline_ms: float | None = None,
    ) -> Result:
        """The score of `tx` at `as_of` (aware datetime or int ms UTC).

        By default the latest of the payment's own time and the newest event applied.
        deadline_ms: how long to wait where the same score is being computed by another thread;
        above 0 and finite. Raises BadTransaction, AsOfTooOld, DeadlineExceeded, Closed,
        ForkedScorer.
        """
        serving = self._serving
        if serving is None:
            raise self._refusal
        if deadline_ms is not None:
            check_deadline(deadline_ms)
        self._calls = calls = self._calls + 1
        if calls >= self._next_timed:
            self._distances = self._distances * _MULTIPLIER % _MODULUS
            self._next_timed = calls + 1 + self._distances % _LONGEST
            return self._timed(serving, tx, as_of, deadline_ms)
        if tx.__class__ is not Transaction:
            tx = Transaction.of(tx)
        packer = serving.packer
        owner, row = tx.packed
        if owner is not packer:
            row = packer.row(tx)
        out = bytes(serving.out_bytes)
        status = serving.score_in(
            serving.context_at,
            id(row) + BYTES_AT,
            0 if as_of is None else time_ms(as_of, "as_of"),
            id(out) + BYTES_AT,
        )
        if status:
            at = serving.context_at
            out = self._go_on(serving, status, tx, row, out, as_of, deadline_ms, at)
        score, source, decision, at, until = _HEAD(out)
        return Result(
            tx._transaction_id,
            score,
            DECISIONS[decision],
            SOURCES[source],
            at,
            until,
            serving.version,
            serving.entity_names,
            out,
        )

    def observe(
        self, tx: Transaction | Mapping[str, Any], *, arrival: datetime | int | None = None
    ) -> None:
        """Count `tx` in the aggregates of its entities; repeating it changes nothing.

        arrival: when it reached the system; by default its own time.
        Raises BadTransaction, EventRefused (too late or early for its arrival), StoreFull, Closed,
        and at the first StoreInUse, if another writes to the folder that the settings name.
        """
        serving = self._serving
        if serving is None:
            raise self._refusal
        transaction = Transaction.of(tx)
        row = serving.packer.row(transaction)
        arrival_ms = None if arrival is None else time_ms(arrival, "arrival")
        self._feed.observe(row, transaction._time, arrival_ms)

    def label(
        self,
        transaction_id: str,
        *,
        known_at: datetime | int | None = None,
        entities: Mapping[str, str] | None = None,
        time: datetime | int | None = None,
        **flags: bool,
    ) -> None:
        """Say what became known of a payment: `label("t-123", fraud=True)`.

        known_at: by default the newest event time applied. entities and time: the payment's own,
        or neither, if it was observed here. Raises BadFact, UnknownTransaction, StoreFull, Closed.
        """
        if self._serving is None:
            raise self._refusal
        self._feed.label(transaction_id, flags, known_at, entities, time)

    @overload
    def score_many(
        self,
        rows: Sequence[Transaction | Mapping[str, Any]],
        *,
        as_of: datetime | int | None = None,
    ) -> list[Result]: ...

    @overload
    def score_many(
        self, rows: pd.DataFrame, *, as_of: datetime | int | None = None
    ) -> pd.DataFrame: ...

    def score_many(
        self, rows: Any, *, as_of: datetime | int | None = None
    ) -> pd.DataFrame | list[Result]:
        """Scores of many transactions, none of which sees another.

        rows: a pandas DataFrame (columns as in `freshscore.features.columns`), which gives a frame
        on its index with score, decision, source, as_of, valid_until, model_version, degraded,
        known_age_ms, complete_since and error; or a list of Transactions or mappings, which gives a
        list of Results. A bad row has `error` and no score; so has one whose wait for another
        thread's computation took too long.
        Raises BadTransaction for an `as_of` that is no instant, BadModel, Closed, and TypeError for
        rows of another kind.
        """
        serving = self._serving
        if serving is None:
            raise self._refusal
        at_ms = 0 if as_of is None else time_ms(as_of, "as_of")
        if isinstance(rows, list | tuple):
            return self._listed(serving, rows, at_ms)
        # pandas is imported by those who have a frame.
        from freshscore.features.reading import read_payments
        from freshscore.scoring.batch import as_frame

        if not hasattr(rows, "index") or not hasattr(rows, "columns"):
            raise TypeError(
                f"rows are a pandas DataFrame or a list, not {type(rows).__name__};"
                " freshscore score --data scores a file"
            )
        table = read_payments(rows, serving.packer.program.specification)
        return as_frame(serving, table, self._tabled(serving, table, at_ms), rows.index)

    def explain(
        self, tx: Transaction | Mapping[str, Any], *, as_of: datetime | int | None = None
    ) -> Explanation:
        """The score of `tx`, what each feature added to it, and why the cache did or did not serve.

        Contributions are of the actual feature vector, also where the score came from the cache.
        """
        from freshscore.scoring.explanation import explained

        serving = self._serving
        if serving is None:
            raise self._refusal
        transaction = Transaction.of(tx)
        result = self.score(transaction, as_of=as_of)
        vector = self._vector(serving.packer.row(transaction), result.as_of)
        return explained(serving.model, serving.packer.program.specification, vector, result)

    def share_of(self, tx: Transaction | Mapping[str, Any]) -> float:
        """Where the payment's card lies from 0 to below 1: by keyed hash, everywhere and for good.

        `share_of(tx) < 0.05` holds for a twentieth of the cards. Of the first entity of the
        specification that the payment has; 1.0, in no share, where it has none. Raises
        BadTransaction, Closed.
        """
        serving = self._serving
        if serving is None:
            raise self._refusal
        row = serving.packer.row(Transaction.of(tx))
        return share_of_row(row, len(serving.entity_names))

    def _vector(self, row: bytes, as_of_ms: int) -> NDArray[np.float64]:
        return self._store.features(row, as_of_ms)

    def flush(self, timeout_s: float) -> None:
        """Wait until what was observed is in the aggregates: embedded it always is."""
        if self._serving is None:
            raise self._refusal

    def stats(self) -> dict[str, Any]:
        """What was counted since the scorer was opened (docs/statistics.md has the names)."""
        if self._serving is None:
            raise self._refusal
        counts = self._feed.counts
        return counts_of(self._serving, store_counts(self._store), counts, self._latencies)

    def close(self) -> None:
        """Save what was observed if the settings name a folder; closing twice is the same as once.

        Raises StoreInUse if another has saved there meanwhile: nothing of theirs is overwritten;
        and BadFile where the file cannot be written: then closing again tries again.
        """
        if self._serving is not None:
            self._refusal = Closed("the scorer is closed")
            self._serving = None
        if not isinstance(self._refusal, ForkedScorer):
            self._close_state()

    def _close_state(self) -> None:
        self._state.close()

    def _abandon_state(self) -> None:
        """In the child of a fork: what is open is the parent's."""
        self._state.abandon()

    def __enter__(self) -> Self:
        """The scorer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _listed(self, serving: Serving, rows: Sequence[Any], at_ms: int) -> list[Result]:
        """Results of a list; at_ms = 0: each at its own default."""
        return [self._one_of_many(serving, row, at_ms or None) for row in rows]

    def _tabled(self, serving: Serving, table: PaymentTable, at_ms: int) -> Scored:
        """Answers to a table; at_ms as above."""
        from freshscore.scoring.batch import score_table

        wait_s = self._settings.cache.inflight_wait_s
        return score_table(serving, table, at_ms, self._flights, wait_s)

    def _one_of_many(self, serving: Serving, row: Any, as_of_ms: int | None) -> Result:
        try:
            return self.score(row, as_of=as_of_ms)
        except (BadTransaction, AsOfTooOld, DeadlineExceeded) as problem:
            return set_aside(serving, row, problem)

    def _timed(
        self,
        serving: Serving,
        tx: Transaction | Mapping[str, Any],
        as_of: datetime | int | None,
        deadline_ms: float | None,
    ) -> Result:
        started_s = self._clock.monotonic_s()
        transaction = Transaction.of(tx)
        row = serving.packer.row(transaction)
        out = bytes(serving.out_bytes)
        at_ms = 0 if as_of is None else time_ms(as_of, "as_of")
        status = serving.score_in(serving.context_at, id(row) + BYTES_AT, at_ms, id(out) + BYTES_AT)
        if status:
            at = serving.context_at
            out = self._go_on(serving, status, transaction, row, out, as_of, deadline_ms, at)
        result = result_of(transaction._transaction_id, out, serving.version, serving.entity_names)
        elapsed_ns = round((self._clock.monotonic_s() - started_s) * 1e9)
        self._latencies.add(SOURCES.index(result.source), elapsed_ns)
        return result

    def _go_on(
        self,
        serving: Serving,
        status: int,
        transaction: Transaction,
        row: bytes,
        out: bytes,
        as_of: datetime | int | None,
        deadline_ms: float | None,
        context_at: int,
    ) -> bytes:
        """Do what the kernel could not: refuse the instant, call the model, check a probe."""
        wait_s = self._settings.cache.inflight_wait_s
        if deadline_ms is not None:
            wait_s = min(wait_s, deadline_ms / 1000.0)
        # Whoever led may have failed, and another lead again: one limit for all waits together.
        ends_s = self._flights.ends_s(wait_s)
        while status:
            if status == c.TO_BE_PROBED:
                check_probe(serving, out)
                return out
            self._check_instant(status, transaction, as_of)
            key = out[HASH]
            flight = self._flights.board(key)
            if flight is not None:
                try:
                    self._call_model(serving, row, out, context_at)
                finally:
                    self._flights.land(key, flight)
                return out
            self._flights.wait(key, ends_s)
            at_ms = int.from_bytes(out[c.OUT_AS_OF : c.OUT_AS_OF + 8], "little")
            out = bytes(serving.out_bytes)
            status = serving.score_in(context_at, id(row) + BYTES_AT, at_ms, id(out) + BYTES_AT)
        return out

    def _call_model(self, serving: Serving, row: bytes, out: bytes, context_at: int) -> None:
        with_model_score(serving, row, out, context_at)

    def _check_instant(
        self, status: int, transaction: Transaction, as_of: datetime | int | None
    ) -> None:
        """Raise for an instant that is refused, also where it became too old during a wait."""
        if status == c.AS_OF_BEFORE_PAYMENT:
            raise BadTransaction(
                f"as_of is before the payment's own time, {transaction.time} ms: it is {as_of}"
            )
        if status == c.AS_OF_TOO_OLD:
            raise AsOfTooOld(self._too_old(transaction, as_of))

    def _too_old(self, transaction: Transaction, as_of: datetime | int | None) -> str:
        horizon_ms = self._store.limits.horizon_ms
        return (
            f"the state holds what is needed back to {self._store.newest_ms - horizon_ms} ms"
            f" (newest event - store.horizon_s); the payment's time is {transaction.time},"
            f" as_of is {as_of}; history answers older questions: freshscore features compute"
        )


_HEAD: Final = c.HEAD.unpack_from


def check_deadline(deadline_ms: object) -> None:
    """Raise BadTransaction unless a deadline is a number of milliseconds, above 0 and finite."""
    # bool is an int to Python, and never a time.
    if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, int | float):
        raise BadTransaction(
            f"deadline_ms must be a number of milliseconds, not {type(deadline_ms).__name__}"
        )
    if not 0 < deadline_ms <= _LONGEST_DEADLINE_MS:
        raise BadTransaction(
            f"deadline_ms is {deadline_ms:.6g}; it must be above 0 and at most"
            f" {_LONGEST_DEADLINE_MS:.6g}"
        )


def tier_limits(settings: Settings) -> TierLimits:
    """What bounds the memory tier."""
    cache = settings.cache
    return TierLimits(
        max_bytes=cache.max_bytes,
        probe_share=cache.probe_share,
        cap_ms=1000 * cache.valid_until_cap_s,
        max_steps=cache.valid_until_max_steps,
        max_invalidated=cache.max_invalidated,
    )


def chosen_model(
    settings: Settings,
    specification: FeatureSpecification,
    model: ServableModel | Callable[..., Any] | None,
) -> ServableModel:
    """The model to serve, checked against the specification."""
    from freshscore.scoring.callable_model import CallableModel
    from freshscore.scoring.model import ALL, Model
    from freshscore.scoring.model_file import CohortThresholds
    from freshscore.scoring.registry import Registry

    if model is None:
        model = Registry.of(settings.store.path).champion()
    if isinstance(model, Model):
        model.check_fits(specification)
        return model
    if isinstance(model, CallableModel):
        return model
    if not callable(model):
        raise BadModel(
            "model is a Model, a CallableModel or a callable over the feature matrix, not"
            f" {type(model).__name__}; freshscore models import makes one of a booster"
        )
    # A bare callable: its cache lives as long as the scorer, so any name of a version will do.
    return CallableModel(model, "callable", [CohortThresholds(ALL, 0.5, 0.9)])


def set_aside(serving: Serving, row: Any, problem: Exception) -> Result:
    """The Result of a row that has no score."""
    name = row.get("transaction_id") if isinstance(row, Mapping) else None
    if isinstance(row, Transaction):
        name = row.transaction_id
    named = name if isinstance(name, str) else ""
    return refused(named, serving.version, len(serving.entity_names), str(problem))


def _forked(scorer: Scorer | None) -> None:
    if scorer is not None:
        scorer._serving = None
        scorer._abandon_state()
        scorer._refusal = ForkedScorer(
            "this scorer was opened before a fork, in another process; open one in each worker"
        )
