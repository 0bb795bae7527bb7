"""The equality check: every score that a replay served from the cache, and what oracles say.

Rule: law 1 by the bits. A served score is compared with what the model itself gives on the
features that the store had at that moment, whatever its source; then the features of some touches,
or of all, with an oracle's. One difference breaks the check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from freshscore.features.table import Floats, Int64s
from freshscore.scoring import cache_layout as c
from freshscore.simulations.fresh_scores import fresh_scores, same_bits
from freshscore.simulations.replay import Replay
from freshscore.simulations.replay_columns import vectorised_features
from freshscore.simulations.replay_oracles import plain_features

OracleName = Literal["plain", "vectorised"]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class OracleCheck:
    """How many touches an oracle followed; where its features, or their score, were others.

    passed_over: answers that said they were degraded, whose states had lost events at a limit.
    """

    name: OracleName
    followed: int
    features_differ: int
    scores_differ: int
    passed_over: int


@dataclass(frozen=True)
class Equality:
    """Served scores by source and those of them that differ from fresh, and the oracles' checks."""

    cached: int
    cached_differ: int
    computed: int
    computed_differ: int
    oracles: tuple[OracleCheck, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing differed anywhere."""
        differ = self.cached_differ + self.computed_differ
        return not differ + sum(o.features_differ + o.scores_differ for o in self.oracles)

    @property
    def statement(self) -> str:
        """What was compared and what came out, in a sentence or two."""
        said = [
            f"{self.cached:,} scores were served from the cache and computed again on fresh"
            f" features: {_differ(self.cached_differ)}",
            f"{self.computed:,} computed ones beside Booster.predict or the model's own call:"
            f" {_differ(self.computed_differ)}",
        ]
        said += [
            f"{o.followed:,} answers followed by the {o.name} oracle:"
            f" {_differ(max(o.features_differ, o.scores_differ))}"
            + (f" ({o.passed_over:,} degraded ones passed over)" if o.passed_over else "")
            for o in self.oracles
        ]
        return "; ".join(said) + "."


def checked(
    replay: Replay,
    oracles: tuple[OracleName, ...] = ("plain",),
    *,
    advance: Advance = lambda touches: None,
) -> Equality:
    """Compare the scores of `replay`, and those with kept features by `oracles`."""
    records = replay.records
    differs = ~same_bits(records.score, records.fresh)
    cached = records.source != c.COMPUTED_NOW
    return Equality(
        cached=int(np.count_nonzero(cached)),
        cached_differ=int(np.count_nonzero(differs & cached)),
        computed=int(np.count_nonzero(~cached)),
        computed_differ=int(np.count_nonzero(differs & ~cached)),
        oracles=tuple(_followed(replay, name, advance) for name in oracles),
    )


def _followed(replay: Replay, name: OracleName, advance: Advance) -> OracleCheck:
    records = replay.records
    at = np.searchsorted(records.touch, replay.sampled)
    sound = ~records.degraded[at]
    touches, served = replay.sampled[sound], records.score[at[sound]]
    features = _features(replay, name, touches, advance)
    differ = ~same_bits(features, replay.features[sound]).all(axis=1)
    scores = fresh_scores(replay.model)(features) if len(touches) else served
    return OracleCheck(
        name=name,
        followed=len(touches),
        features_differ=int(np.count_nonzero(differ)),
        scores_differ=int(np.count_nonzero(~same_bits(scores, served))),
        passed_over=int(np.count_nonzero(~sound)),
    )


def _features(replay: Replay, name: OracleName, touches: Int64s, advance: Advance) -> Floats:
    evaluate = plain_features if name == "plain" else vectorised_features
    return evaluate(
        replay.stream,
        touches,
        replay.acceptance,
        replay.keys.record,
        replay.model.codes,
        advance,
    )


def _differ(count: int) -> str:
    return "none differs" if not count else f"{count:,} DIFFER"
