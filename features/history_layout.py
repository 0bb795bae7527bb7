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

# What the kernels are given: words at these bytes.
PLAN: Final = 0
CODE: Final = 8
ENTRIES: Final = 16
WIDTH: Final = 24
STARTS: Final = 32
N_CODES: Final = 40
IRREGULAR: Final = 48
STEPS: Final = 56
CHANGES: Final = 64
N_CHANGES: Final = 72
OUT: Final = 80
OUT_BYTES: Final = 88  # of one row of the output
SLOTS: Final = 96  # scratch: accumulators of the whole program
ROW: Final = 104  # scratch: one packed row
LOCATIONS: Final = 112  # int32 (n, 2), or no address
LOCATED: Final = 120  # uint8 (n,)
TABLES: Final = 128  # address: for each pass 4 addresses of int32 counts by member number, zero
SEEN_AT: Final = 136  # four words: addresses of the last entry + 1 by member number, int32, zero
SCALE_BITS: Final = 168
PIECE_SLOTS: Final = 176  # scratch: twice PIECE slots
TARGETS: Final = 184  # scratch: twice PIECE words
ARRIVALS: Final = 192  # int64 (n,), or no address where no row arrived before its time
JOB_WORDS: Final = 25

# Payments of an entity that all passes do before the next ones: what they write of the output, at
# 256 bytes a row, and their slots stay in the nearest cache.
PIECE: Final = 32


def entry_bytes(n_members: int) -> int:
    """Bytes of one entry."""
    return MEMBERS + 8 * ((n_members + 1) // 2)
