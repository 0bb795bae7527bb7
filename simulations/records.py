"""What a replay keeps of every scored touch, as columns.

Rule: answers are kept as the kernels wrote them and read here in bulk, so that recording one costs
the stream next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features.table import Bools, Bytes, Floats, Int64s
from freshscore.scoring import cache_layout as c
from freshscore.scoring.serving import ServableModel
from freshscore.simulations.fresh_scores import Words, cell_keys, mixed, raw_keys

# Where each column lies in an answer, and what it is there.
_WORDS: Final = {
    "score": (c.OUT_SCORE, np.float64, np.float64),
    "source": (c.OUT_SOURCE, np.int64, np.uint8),
    "decision": (c.OUT_DECISION, np.int64, np.uint8),
    "as_of_ms": (c.OUT_AS_OF, np.int64, np.int64),
    "computed_ms": (c.OUT_COMPUTED, np.int64, np.int64),
    "degraded": (c.OUT_DEGRADED, np.int64, np.bool_),
    "hash_low": (c.OUT_HASH_LOW, np.uint64, np.uint64),
    "hash_high": (c.OUT_HASH_HIGH, np.uint64, np.uint64),
    "cause": (c.OUT_CAUSE, np.int64, np.uint8),
}


@dataclass(frozen=True, eq=False)
class Records:
    """Scored touches in order, (s,) each.

    touch: index into the stream. score, source, decision, cause: as served, the last three as
    indices into the names of `scoring.result`. as_of_ms; computed_ms: when the score was computed.
    degraded: whether the answer said so. hash_low, hash_high: the feature hash, 128 bits.
    latency_us: of the whole call. fresh: the model's score of the features that the store gave at
    that moment. raw, cell: hashes of those features and of their cell. states: a hash of the
    versions of the states, all of them.
    """

    touch: Int64s
    score: Floats
    source: Bytes
    decision: Bytes
    as_of_ms: Int64s
    computed_ms: Int64s
    degraded: Bools
    hash_low: Words
    hash_high: Words
    cause: Bytes
    latency_us: NDArray[np.float32]
    fresh: Floats
    raw: Words
    cell: Words
    states: Words

    def __len__(self) -> int:
        return len(self.touch)

    @property
    def age_ms(self) -> Int64s:
        """Time from the computation of a score to its use."""
        age_ms: Int64s = np.maximum(self.as_of_ms - self.computed_ms, 0)
        return age_ms


def states_keys(answers: Bytes, n_entities: int) -> Words:
    """A hash of the versions of all states in each raw answer, uint8 (n, bytes): uint64 (n,)."""
    versions = answers[:, c.OUT_VERSIONS : c.OUT_VERSIONS + 16 * n_entities]
    return mixed(np.ascontiguousarray(versions).view(np.uint64))


class Recorder:
    """Takes answers in pieces.

    scores: what fresh scores are, from a feature matrix. kept: indices of the scored touches, by
    touch, whose features are kept. n_entities: of the specification.
    """

    def __init__(
        self,
        model: ServableModel,
        scores: Callable[[Floats], Floats],
        kept: Bools,
        n_entities: int,
    ) -> None:
        self._model = model
        self._n_entities = n_entities
        self._scores = scores
        self._kept = kept
        self._pieces: list[dict[str, NDArray[Any]]] = []
        self._features: list[Floats] = []

    def take(
        self, touch: list[int], raws: list[bytes], latency_s: list[float], features: Floats
    ) -> None:
        """Answers to `touch`: raw answers, their latencies, and (n, F) fresh features."""
        if not touch:
            return
        words = np.frombuffer(b"".join(raws), np.uint8).reshape(len(raws), -1)
        piece: dict[str, NDArray[Any]] = {
            name: np.ascontiguousarray(words[:, at : at + 8]).view(kind)[:, 0].astype(kept)
            for name, (at, kind, kept) in _WORDS.items()
        }
        piece["touch"] = np.array(touch, np.int64)
        piece["latency_us"] = (np.array(latency_s) * 1e6).astype(np.float32)
        piece["fresh"] = self._scores(features)
        piece["raw"] = raw_keys(features)
        piece["cell"] = cell_keys(self._model, features)
        piece["states"] = states_keys(words, self._n_entities)
        self._pieces.append(piece)
        self._features.append(features[self._kept[piece["touch"]]].copy())

    def records(self) -> Records:
        """All that was taken; raises ValueError if that is nothing."""
        names = [field.name for field in fields(Records)]
        return Records(
            **{name: np.concatenate([piece[name] for piece in self._pieces]) for name in names}
        )

    def kept_features(self) -> Floats:
        """The features that are kept, (kept, F), in the order of their touches."""
        return np.concatenate(self._features)
