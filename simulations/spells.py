"""For how long a shared run was in trouble: spells of calls that were degraded, or not answered.

Rule: a spell lasts from its first call to the next one that was well, in real time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features.table import Int64s
from freshscore.scoring.result import degraded_causes

if TYPE_CHECKING:
    from freshscore.simulations.shared_replay import SharedAnswers

NOT_ANSWERED: Final = "not answered: Redis was away"


@dataclass(frozen=True)
class Trouble:
    """One cause: so many calls, in so many spells.

    first_touch, last_touch: of the stream. total_s, longest_s: of the spells, real time.
    """

    cause: str
    calls: int
    spells: int
    total_s: float
    longest_s: float
    first_touch: int
    last_touch: int


def troubles(answers: SharedAnswers) -> list[Trouble]:
    """Each cause that was met, those of answers first."""
    touches = np.concatenate([answers.touch, answers.unanswered])
    order = np.argsort(touches)
    asked_s = np.concatenate([answers.asked_s, answers.unanswered_s])[order]
    bits = np.concatenate([answers.degraded, np.zeros_like(answers.unanswered)])[order]
    is_answered = np.concatenate(
        [np.ones(len(answers.touch), np.bool_), np.zeros(len(answers.unanswered), np.bool_)]
    )[order]
    ends_s = np.append(asked_s, answers.elapsed_s)[1:]
    seen = sorted({name for one in np.unique(bits).tolist() for name in degraded_causes(one)})
    named = [(name, _has(bits, name)) for name in seen] + [(NOT_ANSWERED, ~is_answered)]
    found = [_trouble(name, which, touches[order], asked_s, ends_s) for name, which in named]
    return [one for one in found if one is not None]


def _has(bits: Int64s, cause: str) -> NDArray[np.bool_]:
    values, places = np.unique(bits, return_inverse=True)
    return np.array([cause in degraded_causes(one) for one in values.tolist()])[places]


def _trouble(
    cause: str,
    which: NDArray[np.bool_],
    touches: Int64s,
    asked_s: NDArray[np.float64],
    ends_s: NDArray[np.float64],
) -> Trouble | None:
    if not which.any():
        return None
    begins = np.flatnonzero(which & ~np.append(False, which[:-1]))
    lasts = np.flatnonzero(which & ~np.append(which[1:], False))
    lengths_s = ends_s[lasts] - asked_s[begins]
    met = touches[which]
    return Trouble(
        cause=cause,
        calls=int(which.sum()),
        spells=len(begins),
        total_s=float(lengths_s.sum()),
        longest_s=float(lengths_s.max()),
        first_touch=int(met[0]),
        last_touch=int(met[-1]),
    )
