"""One model version in service: its packer, its tier, and the compiled call that scores with both.

Rule: everything that changes with the model is in one object, so that a scorer switches by
replacing one reference.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from freshscore.features.compiled import entry_point
from freshscore.features.memory import BYTES_AT
from freshscore.features.packing import Cohort, Keys, Packer
from freshscore.scoring import cache_layout as c
from freshscore.scoring.forest import Forest
from freshscore.scoring.score_kernels import score_in
from freshscore.scoring.tier import ReadableStore, Tier, TierLimits

# Where the feature-aggregate hash is in what the kernel writes: the key of one computation.
HASH: Final = slice(c.OUT_HASH_LOW, c.OUT_HASH_HIGH + 8)
_SCORE: Final = struct.Struct("<d")
_BITS: Final = struct.Struct("<q")


class ServedStore(ReadableStore, Protocol):
    """A store to score on, with the keys that its rows are made with."""

    @property
    def keys(self) -> Keys:
        """The keys."""
        ...


class ServableModel(Protocol):
    """What a scorer needs of a model."""

    @property
    def version(self) -> str:
        """Names the model in every key and result."""
        ...

    @property
    def forest(self) -> Forest | None:
        """Its trees for the scoring kernel, or None where they are not walked there."""
        ...

    @property
    def codes(self) -> dict[str, dict[str, int]]:
        """Category field -> value -> code."""
        ...

    @property
    def cohorts(self) -> tuple[Cohort, ...]:
        """Named conditions, the first that holds counting."""
        ...

    @property
    def cohort_thresholds(self) -> NDArray[np.float64]:
        """float64 (len(cohorts) + 1, 2): review and decline for each cohort, then for all."""
        ...

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Finite scores, float64 (n,), of a feature matrix (n, F)."""
        ...

    def predict_one(self, features: NDArray[np.float64]) -> float:
        """The score of one row of it, (F,), to the bit."""
        ...


class Serving:
    """A model version bound to a store."""

    __slots__ = (
        "context_at",
        "entity_names",
        "model",
        "out_bytes",
        "packer",
        "score_in",
        "tier",
        "version",
        "version_bytes",
    )

    def __init__(
        self, store: ServedStore, model: ServableModel, limits: TierLimits, seed: int
    ) -> None:
        program = store.program
        self.model = model
        self.version = model.version
        self.version_bytes = model.version.encode()
        self.packer = Packer(program, store.keys, model.codes, model.cohorts)
        self.tier = Tier(
            store,
            model.forest,
            walked=model.forest is not None,
            thresholds=model.cohort_thresholds,
            hash_key=program.specification.fingerprint,
            limits=limits,
            seed=seed,
        )
        self.context_at = self.tier.context_at
        self.out_bytes = self.tier.out_bytes
        self.entity_names = tuple(layout.name for layout in program.entities)
        self.score_in: Callable[..., int] = entry_point(score_in, 4)


def with_model_score(serving: Serving, row: bytes, out: bytes, context_at: int) -> None:
    """Call the model for `row`, after NEEDS_MODEL in `out`, and keep its score; fills `out`."""
    features = np.frombuffer(out, np.float64, offset=features_at(serving))
    score = serving.model.predict_one(features)
    keep(serving, id(row) + BYTES_AT, id(out) + BYTES_AT, score, context_at)


def check_probe(serving: Serving, out: bytes) -> None:
    """After TO_BE_PROBED: call the model, and count whether the served score is another one."""
    features = np.frombuffer(out, np.float64, offset=features_at(serving))
    counts = serving.tier.statistics
    counts[c.PROBES] += 1
    if _SCORE.pack(serving.model.predict_one(features)) != out[c.OUT_SCORE : c.OUT_SCORE + 8]:
        counts[c.MISMATCHES] += 1


def features_at(serving: Serving) -> int:
    """Where in what the kernel writes NEEDS_MODEL leaves the features, to the end."""
    return c.OUT_VERSIONS + 16 * len(serving.entity_names)


def keep(serving: Serving, row_at: int, out_at: int, score: float, context_at: int) -> None:
    """Keep `score`, which the model gave after NEEDS_MODEL in what is at `out_at`; fills that."""
    score_bits: int = _BITS.unpack(_SCORE.pack(score))[0]
    serving.score_in(context_at, row_at, score_bits, out_at)
