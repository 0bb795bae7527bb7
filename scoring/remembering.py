"""The last answer of a payment, where no state can be looked at to confirm it.

A memo is served once the versions of its states are seen to be the same. Without states it is still
the right answer for the instant and the set on which it was evaluated, so that instant is reported.
Rule: only for the very content, only what no invalidation has ended, and nothing that was itself
given on an incomplete set: of such an entry `valid_until` is the instant of its evaluation.
"""

from __future__ import annotations

from freshscore.features import row as r
from freshscore.features import tables as t
from freshscore.features.compiled import kernel
from freshscore.features.memory import i64, put_i64, u64
from freshscore.scoring import cache_layout as c
from freshscore.scoring.cache_kernels import NONE, find, is_valid
from freshscore.scoring.score_kernels import write_out


@kernel
def remember(context: int, row: int, as_of: int, out: int) -> bool:
    """Write the last answer of the payment in `row` to `out`, if it is one of before `as_of`."""
    store = i64(context + c.STORE)
    tier = i64(context + c.TIER)
    entry = find(tier, u64(row), u64(row + r.IDENTITY_HIGH))
    if entry == NONE or not is_valid(tier, i64(store + t.N_ENTITIES), row, entry):
        return False
    if u64(entry + c.CONTENT_LOW) != u64(row + r.CONTENT_LOW):
        return False
    if u64(entry + c.CONTENT_HIGH) != u64(row + r.CONTENT_HIGH):
        return False
    evaluated = i64(entry + c.EVALUATED)
    if evaluated > as_of or i64(entry + c.VALID_UNTIL) <= evaluated:
        return False
    write_out(store, tier, row, evaluated, entry, c.MEMO, c.NEW, out)
    # The store's is of another request.
    put_i64(out + c.OUT_WATERMARK, 0)
    return True
