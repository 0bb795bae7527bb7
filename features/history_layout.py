"""The entry: one payment as the passes of history read it, grouped by entity.

    word  0     event time, ms
          1     amount, minor units
          2     row in the table | condition bits << 32 | fact bits << 48 | marks << 56
          3..   numbers of its members' identifiers, int32 each, -1 if absent

Entries of one entity lie together, sorted by time, or by (time, identity) where that matters.
Fact bits are those that hold at the instant that a pass has reached.
"""

from __future__ import annotations

from typing import Final

TIME: Final = 0
AMOUNT: Final = 8
STATE: Final = 16
MEMBERS: Final = 24

ROW_BITS: Final = 0xFFFFFFFF
CONDITION_BIT: Final = 32
FACT_BIT: Final = 48
ALL_FACTS: Final = 0xFF << FACT_BIT
# Marks, of entities whose events do not simply come one after the other: whether the event is in
# the set that the pass has reached, and whether it is there from the beginning.
SEEN: Final = 1 << 56
SEEN_FIRST: Final = 1 << 57

# One step of such an entity, int32 each: the entry asked about, the entry of the same payment that
# is set aside meanwhile, the entry that comes, the entry that goes for good; -1 for none.
STEP_BYTES: Final = 16

# One change of a fact, int64 each: the entry (number among all), the instant, the fact's bit.
CHANGE_BYTES: Final = 24


def entry_bytes(n_members: int) -> int:
    """Bytes of one entry."""
    return MEMBERS + 8 * ((n_members + 1) // 2)
