"""Computing given scores again: a sample of the decisions that were written to the log.

A decision names its model, its instant and the versions of its states. Where the states in Redis
still have those versions, they are the very sets that were served, so the model must give the same
bits on them; so must what is kept of that score for other processes.
Rule: what cannot be compared is counted by reason, and is no difference.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from freshscore.config.errors import DamagedState, FreshscoreError, NoModel
from freshscore.features import row as r
from freshscore.features.decoded_state import DecodedState
from freshscore.features.packing import Packer
from freshscore.features.reading_decoded import DecodedReader
from freshscore.features.record_making import time_of
from freshscore.features.redis_reading import StoredStates
from freshscore.features.uniting_states import united_decoded
from freshscore.invalidation.deployment import Deployment
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.letter_reading import values_between
from freshscore.scoring.decisions import Decision, unpacked
from freshscore.scoring.kept_scores import kept_scores
from freshscore.scoring.model import Model
from freshscore.scoring.registry import Registry

EQUAL: Final = "equal"
KEPT_EQUAL: Final = "kept for others: equal"
DIFFERENT: Final = "differ"
KEPT_DIFFERENT: Final = "kept for others: differ"
UNREADABLE: Final = "not compared: no decision"
DEGRADED: Final = "not compared: given as degraded"
NO_MODEL: Final = "not compared: the model is not here"
LOST: Final = "not compared: a state cannot be read"
MOVED: Final = "not compared: a state has moved on"

_ROWS_AT_ONCE: Final = 64
_States = tuple[DecodedState | None, ...]
_BITS: Final = struct.Struct("<d")


class ScoreDifference(msgspec.Struct, frozen=True):
    """A score that its model does not give: the transaction's keyed hash, and both scores."""

    transaction: str
    model_version: str
    what: str
    stored: float
    computed: float


class ScoresVerified(msgspec.Struct, frozen=True):
    """What came of a sample, and what differs."""

    outcomes: dict[str, int]
    differences: tuple[ScoreDifference, ...]


def verify_scores(deployment: Deployment, registry: Registry, n: int) -> ScoresVerified:
    """Compute the last `n` decisions again, about. Raises SettingsError, Unavailable."""
    check = _Check(deployment, registry)
    waiting: list[Decision] = []
    for value in _last_values(deployment, n):
        try:
            decision = unpacked(value)
        except DamagedState:
            check.outcomes[UNREADABLE] += 1
            continue
        if decision.degraded:
            check.outcomes[DEGRADED] += 1
            continue
        waiting.append(decision)
        if len(waiting) == _ROWS_AT_ONCE:
            check.look(waiting)
            waiting = []
    check.look(waiting)
    return ScoresVerified(dict(check.outcomes), tuple(check.differences))


def _last_values(deployment: Deployment, n: int) -> Iterator[bytes]:
    """The last messages of each partition of the decisions."""
    kafka = deployment.settings.kafka
    reader = LogReader(kafka, [kafka.decisions_topic], group=None, in_place=False)
    try:
        places = [(kafka.decisions_topic, one) for one in reader.partitions(kafka.decisions_topic)]
        first, ends = reader.beginnings(places), reader.ends(places)
        each = -(-n // max(1, len(places)))
        for at in places:
            begin = max(first[at], ends[at] - each)
            yield from values_between(
                reader, at, begin, ends[at], kafka.request_timeout_s, deployment.clock
            )
    finally:
        reader.close()


class _Check:
    """Compares decisions, and counts what came of them."""

    def __init__(self, deployment: Deployment, registry: Registry) -> None:
        self._deployment = deployment
        self._registry = registry
        self._models: dict[str, Model | None] = {}
        self._reader = DecodedReader(deployment.program)
        self._packer = Packer(deployment.program, deployment.keys)
        self.outcomes: Counter[str] = Counter()
        self.differences: list[ScoreDifference] = []

    def look(self, decisions: Sequence[Decision]) -> None:
        """Compare these."""
        packer = self._packer
        # Decisions of a rotation's time have longer rows.
        lengths = {packer.content_bytes, packer.row_bytes}
        known = [one for one in decisions if len(one.row) in lengths]
        self.outcomes[UNREADABLE] += len(decisions) - len(known)
        for decision, states in zip(known, self._states(known), strict=True):
            self.outcomes[self._outcome(decision, states)] += 1
        self.outcomes = +self.outcomes

    def _states(self, decisions: Sequence[Decision]) -> list[_States | None]:
        """One state of each entity of each decision; None where one cannot be read."""
        packer, store = self._packer, self._deployment.store
        rows = [one.row for one in decisions]
        read = store.read_states(rows)
        if not packer.others_at:
            return [None if any(one.problems) else one.states for one in read]
        others = store.read_states([packer.with_others(row) for row in rows])
        return [*map(self._united, rows, read, others)]

    def _united(self, row: bytes, own: StoredStates, others: StoredStates) -> _States | None:
        """What a row's entities have under both keys of a rotation."""
        if any(own.problems) or any(others.problems):
            return None
        since_ms = self._packer.keys.since_ms
        sides = (own, others) if time_of(row) < since_ms else (others, own)
        try:
            pairs = zip(sides[0].states, sides[1].states, strict=True)
            return tuple(united_decoded(one, other, since_ms) for one, other in pairs)
        except DamagedState:
            return None

    def _outcome(self, decision: Decision, states: _States | None) -> str:
        if states is None:
            return LOST
        versions = [0 if one is None else one.version for one in states]
        if versions != [int.from_bytes(one, "little") for one in decision.state_versions]:
            return MOVED
        model = self._model(decision.model_version)
        if model is None:
            return NO_MODEL
        try:
            features, _ = self._reader.features(states, decision.row, decision.as_of_ms)
        except FreshscoreError:
            # Its own time lies below what a merchant has folded.
            return MOVED
        computed = float(model.predict(features.reshape(1, -1))[0])
        self._compare_kept(decision, computed)
        # Only degraded decisions have none, and these are not compared.
        assert decision.score is not None
        if _BITS.pack(computed) == _BITS.pack(decision.score):
            return EQUAL
        self._differ(decision, "decision", decision.score, computed)
        return DIFFERENT

    def _compare_kept(self, decision: Decision, computed: float) -> None:
        """Compare what is kept of this score beside the state of its first entity."""
        deployment, token = self._deployment, decision.row[r.TOKENS : r.TOKENS + 16]
        kept = kept_scores(
            deployment.nodes, deployment.redis_keys, token, decision.model_version, 0
        )
        for one in kept.scores:
            if one.score is None or one.feature_hash != decision.feature_hash.hex():
                continue
            is_equal = _BITS.pack(one.score) == _BITS.pack(computed)
            self.outcomes[KEPT_EQUAL if is_equal else KEPT_DIFFERENT] += 1
            if not is_equal:
                self._differ(decision, "kept for others", one.score, computed)

    def _differ(self, decision: Decision, what: str, stored: float, computed: float) -> None:
        transaction = decision.transaction.hex()
        self.differences.append(
            ScoreDifference(transaction, decision.model_version, what, stored, computed)
        )

    def _model(self, version: str) -> Model | None:
        if version not in self._models:
            try:
                self._models[version] = self._registry.load(version)
            except NoModel:
                self._models[version] = None
        return self._models[version]
