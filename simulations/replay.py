"""The replay: a stream of payments through the production scorer, on a virtual clock.

Every answer is recorded, and beside it the features that the store gives at that very moment, so
that each score served from the cache is compared, bit for bit, with what the model says of them.
Rule: the scorer is the one that users hold, and is told nothing but payments, events and facts; the
instant of every request and arrival is the virtual clock's. Only latencies are of the real clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from freshscore.config.clock import Clock
from freshscore.config.errors import AsOfTooOld, BadFile, EventRefused
from freshscore.config.secret import Secret
from freshscore.config.settings import Settings
from freshscore.features.packing import COHORT_SHIFT, Keys, Packer
from freshscore.features.program import compiled
from freshscore.features.store import MemoryStore, StoreLimits
from freshscore.features.table import Bools, Floats, Int64s
from freshscore.features.transaction import Transaction
from freshscore.invalidation.embedded import EmbeddedState
from freshscore.invalidation.feed import Acceptance, Feed
from freshscore.scoring.model import Model
from freshscore.scoring.scorer import Scorer, tier_limits
from freshscore.scoring.serving import ServableModel, Serving
from freshscore.simulations.clock import VirtualClock
from freshscore.simulations.fresh_scores import fresh_scores
from freshscore.simulations.records import Recorder, Records
from freshscore.simulations.shapes import TouchKind
from freshscore.simulations.streams import Stream

Advance = Callable[[int], None]
# Touches between two bulk evaluations: their features and answers are 2 MB, which a cache holds.
_TOUCHES_AT_ONCE: Final = 8_192
_SECRET_BYTES: Final = 32
_EVENT: Final = int(TouchKind.OBSERVE)


@dataclass(frozen=True, eq=False)
class Replay:
    """A replay that has run.

    records: of every answer. sampled: indices of the touches whose features were kept, and
    `features` (sampled, F) those. cohort: of each payment, a row of the model's thresholds.
    refused: requests that the scorer would not answer (too old). feed: what became of events and
    facts; history: the same of what was loaded before. elapsed_s: of the stream, real time.
    """

    stream: Stream
    model: ServableModel
    keys: Keys
    acceptance: Acceptance
    records: Records
    sampled: Int64s
    features: Floats
    cohort: Int64s
    refused: int
    feed: dict[str, int]
    history: dict[str, int]
    elapsed_s: float


def replay(
    stream: Stream,
    model: ServableModel,
    settings: Settings,
    rng: np.random.Generator,
    clock: Clock,
    *,
    oracle_share: float | None = None,
    secret: Secret | None = None,
    advance: Advance = lambda touches: None,
) -> Replay:
    """Load the stream's history, then play its touches.

    settings: limits and cache; its specification, path and secret are not read. clock: for
    latencies. oracle_share: of scored touches whose features are kept for oracles; None: as set.
    secret: of the keys; None: one of `rng`.
    advance: told how many touches were played. Raises ModelMismatch, StoreFull, BadFile.
    """
    if isinstance(model, Model):
        model.check_fits(stream.table.specification)
    share = settings.replay.oracle_share if oracle_share is None else oracle_share
    sampled = _sample(stream.scored, share, rng)
    n_entities = len(stream.table.specification.entities)
    recorder = Recorder(model, fresh_scores(model), sampled, n_entities)
    # Identities order events of one instant: a secret of the seed repeats a run bit for bit.
    own = Secret(rng.bytes(_SECRET_BYTES), "replay")
    player = _Player(stream, model, settings, rng, clock, recorder, secret or own)
    history = player.load_history()
    started_s = clock.monotonic_s()
    for first in range(0, len(stream), _TOUCHES_AT_ONCE):
        last = min(first + _TOUCHES_AT_ONCE, len(stream))
        player.play(first, last)
        advance(last - first)
    elapsed_s = clock.monotonic_s() - started_s
    if player.refused == np.count_nonzero(stream.scored):
        raise BadFile(f"none of the {player.refused} requests was answered: all are too old")
    records = recorder.records()
    return Replay(
        stream=stream,
        model=model,
        keys=player.keys,
        acceptance=player.acceptance,
        records=records,
        sampled=records.touch[sampled[records.touch]],
        features=recorder.kept_features(),
        cohort=_cohorts(stream, player.packer),
        refused=player.refused,
        feed=dict(player.feed.counts),
        history=history,
        elapsed_s=elapsed_s,
    )


class _Player:
    """The scorer, what it stands on, and the payments that it will be asked about again."""

    def __init__(
        self,
        stream: Stream,
        model: ServableModel,
        settings: Settings,
        rng: np.random.Generator,
        clock: Clock,
        recorder: Recorder,
        secret: Secret,
    ) -> None:
        program = compiled(stream.table.specification)
        self.keys = Keys(program, secret)
        self.store = MemoryStore(program, self.keys, StoreLimits.of(settings.store))
        self.acceptance = Acceptance.of(settings.store)
        seed = int(rng.integers(2**62))
        serving = Serving(self.store, model, tier_limits(settings), seed)
        self.packer = serving.packer
        self.feed = Feed(self.store, self.packer, self.acceptance)
        state = EmbeddedState(self.store, self.acceptance)
        self._scorer = Scorer(settings, state, self.feed, serving)
        self._stream = stream
        self._clock = VirtualClock(stream.start_ms)
        self._real = clock
        self._recorder = recorder
        self._contents, self._content = np.unique(stream.content, return_inverse=True)
        self._last_use = np.zeros(len(self._contents), np.int64)
        np.maximum.at(self._last_use, self._content, np.arange(len(stream)))
        self._held: list[Transaction | None] = [None] * len(self._contents)
        self.refused = 0

    def load_history(self) -> dict[str, int]:
        """Apply what was played before the stream; outcome -> how many."""
        # By a feed of its own, so that what is played is counted alone.
        history = Feed(self.store, self.packer, self.acceptance)
        return history.load(self._stream.history_table())

    def play(self, first: int, last: int) -> None:
        """Play touches [first, last), and record the answers."""
        stream, held = self._stream, self._held
        self._hold(first, last)
        touches: list[int] = []
        raws: list[bytes] = []
        latencies_s: list[float] = []
        features = np.empty((last - first, self.store.program.n_columns))
        score, row_of, read = self._scorer.score, self.packer.row, self.store.features
        real_s, now_ms = self._real.monotonic_s, self._clock.now_ms
        move_to = self._clock.move_to
        columns = (stream.at_ms, stream.scored, self._content)
        lists = [column[first:last].tolist() for column in columns]
        for touch, (at_ms, scored, content) in enumerate(zip(*lists, strict=True), start=first):
            transaction = held[content]
            assert transaction is not None  # held until its last touch
            move_to(at_ms)
            if not scored:
                self._apply(touch, transaction)
                continue
            started_s = real_s()
            try:
                result = score(transaction, as_of=now_ms())
            except AsOfTooOld:
                self.refused += 1
                continue
            latencies_s.append(real_s() - started_s)
            features[len(touches)] = read(row_of(transaction), at_ms)
            touches.append(touch)
            raws.append(result.raw)
        self._recorder.take(touches, raws, latencies_s, features[: len(touches)])
        self._let_go(first, last)

    def _apply(self, touch: int, transaction: Transaction) -> None:
        """Tell the scorer of an event or a fact."""
        stream, now_ms = self._stream, self._clock.now_ms()
        if stream.kind[touch] == _EVENT:
            # What the horizon refuses is counted by the feed.
            with suppress(EventRefused):
                self._scorer.observe(transaction, arrival=now_ms)
            return
        fact = stream.table.specification.facts[stream.fact[touch]]
        self._scorer.label(
            transaction.transaction_id,
            known_at=now_ms,
            entities=transaction.entities,
            time=transaction.time,
            **{fact: bool(stream.value[touch])},
        )

    def _hold(self, first: int, last: int) -> None:
        """Make the payments that these touches are about, once each."""
        wanted = np.unique(self._content[first:last])
        new = np.array([i for i in wanted.tolist() if self._held[i] is None], np.int64)
        made = self._stream.transactions(self._contents[new])
        for i, transaction in zip(new.tolist(), made, strict=True):
            self._held[i] = transaction

    def _let_go(self, first: int, last: int) -> None:
        ends = np.unique(self._content[first:last])
        for i in ends[self._last_use[ends] < last].tolist():
            self._held[i] = None


def _sample(scored: Bools, share: float, rng: np.random.Generator) -> Bools:
    """This share of the scored touches, rounded up, so that a small file is sampled too."""
    touches = np.flatnonzero(scored)
    chosen = np.zeros(len(scored), np.bool_)
    chosen[rng.choice(touches, math.ceil(share * len(touches)), replace=False)] = True
    return chosen


def _cohorts(stream: Stream, packer: Packer) -> Int64s:
    bits = [packer.cohorts_of(table) for table in (stream.table, stream.added)]
    return (np.concatenate(bits) >> np.uint64(COHORT_SHIFT)).astype(np.int64)
