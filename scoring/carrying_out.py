"""What an operator's invalidation ends in the cache of one scorer.

Rule: what names nothing here ends nothing here; what has no kind that is known ends everything.
"""

from __future__ import annotations

from collections.abc import Sequence

from freshscore.invalidation.control import COHORT, ENTITY, MODEL, Invalidation
from freshscore.scoring.model import ALL
from freshscore.scoring.serving import Serving


def carry_out(serving: Serving, told: Sequence[Invalidation]) -> None:
    """Serve nothing more of what was invalidated, up to now."""
    for one in told:
        if one.kind == ENTITY:
            serving.tier.invalidate(token=bytes.fromhex(one.what))
        elif one.kind == COHORT:
            number = _cohort(serving, one.what)
            if number is not None:
                serving.tier.invalidate(cohort=number)
        elif one.kind != MODEL or one.what == serving.version:
            serving.tier.invalidate(model=True)


def _cohort(serving: Serving, name: str) -> int | None:
    names = [one.name for one in serving.model.cohorts]
    if name in names:
        return names.index(name)
    # The last one has no condition: all who meet none.
    return len(names) if name == ALL else None
