"""The memory tier of one model version: where its entries lie and what they hold.

Entries stand in buckets of eight ways, found by the payment's identity, so that nothing is chained
and nothing is left behind by an eviction. Beside each bucket one cache line of marks: for each way
a tag, and how often and when it was used. Cells are found through a table of hints, cell hash ->
entry; an entry knows its own hash, so a hint that has grown old does no harm.

Eviction: of the ways never used again the oldest; where there are fewer than two such, all lose one
use. So what was used again outlives any number of payments that are scored once (a scan), and what
is no longer used grows old. Buckets of eight lose about 2 % of the entries that a whole LRU holds.

An entry, in bytes, then its box (lowest and highest cell of each feature, uint16), then a mark of
32 bits for each entity's state. STATES is the sum of the states' versions without the payment's own
records, SEEN the sum with them as it last was: where that has not moved, neither has the other.

Invalidations are numbered: an entry carries the newest number that was known when its score was
computed, and is served only if that is not below the newest invalidation of the model, of the
payment's cohort, and of each of its entities.
"""

from __future__ import annotations

import struct
from typing import Final

from freshscore.features import tables as t

WAYS: Final = 8
MARKS_BYTES: Final = 64

# What one scoring call is told by one address, in bytes: other addresses.
STORE: Final = 0
CODE: Final = 8
IMAGE: Final = 16
TIER: Final = 24
SCRATCH: Final = 32
CACHE_OFF: Final = 40  # whether nothing may be served that is not computed now
CONTEXT_WORDS: Final = 6

# An entry.
ID_LOW: Final = 0
ID_HIGH: Final = 8
CONTENT_LOW: Final = 16
CONTENT_HIGH: Final = 24
STATES_LOW: Final = 32
STATES_HIGH: Final = 40
EVALUATED: Final = 48
VALID_UNTIL: Final = 56
SCORE: Final = 64
HASH_LOW: Final = 72
HASH_HIGH: Final = 80
COMPUTED: Final = 88
SEEN_LOW: Final = 96
SEEN_HIGH: Final = 104
GENERATION: Final = 112
BOX: Final = 120

# The head of a tier, in bytes.
ENTRIES: Final = 0
ENTRY_BYTES: Final = 8
BUCKET_MASK: Final = 16
MARKS: Final = 24
HINTS: Final = 32
HINT_MASK: Final = 40
N_FEATURES: Final = 48
STATE_MARKS: Final = 56  # where the marks of states begin in an entry
LIVE: Final = 64
EVICTED: Final = 72
TICK: Final = 80
RANDOM: Final = 88
PROBE_BELOW: Final = 96  # a hit is probed if 53 random bits are below it
HASH_KEY: Final = 104  # 16 bytes: the specification's fingerprint
CAP_MS: Final = 120
MAX_STEPS: Final = 128
THRESHOLDS: Final = 144  # address: review and decline for each cohort, float64
CELLS: Final = 152  # address of room for one vector of cells, uint16
FEATURES: Final = 160  # address of room for one vector of features, float64
HAS_BOX: Final = 168
STATISTICS: Final = 176  # address
RAW: Final = 184  # the key is the features' own bits, not cells
FOREST_SCRATCH: Final = 192  # address of what a walk needs, on a cache line
NOW: Final = 200  # the newest invalidation that is known
NEWEST_INVALIDATION: Final = 208  # 0 for as long as there was none
MODEL_FROM: Final = 216  # that of the whole model
COHORTS: Final = 224  # address: that of each cohort, int64
INVALIDATED: Final = 232  # address: tokens of entities, each with that of it
INVALIDATED_MASK: Final = 240
HEAD_WORDS: Final = 31
# A slot of that table: a token, then its number; 0 where the slot is empty.
TOKEN_SLOT: Final = 24
N_COHORTS: Final = 256

# Sources of a score.
MEMO: Final = 0
BOX_HIT: Final = 1
CELL: Final = 2
COMPUTED_NOW: Final = 3
FALLBACK: Final = 4  # no score at all, so no kernel writes or counts it
N_SOURCES: Final = 4

# Why a score known for the payment was not served as it stood.
NEW: Final = 0
TIME: Final = 1
CONTENT: Final = 2
OTHER_EVENTS: Final = 3
FACTS: Final = 4
OWN_EVENT: Final = 5
EARLIER: Final = 6
NOT_TO_BE_SERVED: Final = 7  # invalidated, or nothing may be served
N_CAUSES: Final = 8

# Statistics, in words: answers by source; by cause how many scores were looked at again, and how
# many of them the box or cell confirmed (absorbed); by cause and entity; probes and mismatches;
# answers with a window that reaches further back than the history does; age
# at use by source, a bucket for each power of two of milliseconds.
BY_SOURCE: Final = 0
BY_CAUSE: Final = 8
ABSORBED: Final = 16
BY_ENTITY: Final = 24
PROBES: Final = 32
MISMATCHES: Final = 33
INCOMPLETE: Final = 34
AGES: Final = 40
AGE_BUCKETS: Final = 48
STATISTICS_WORDS: Final = AGES + N_SOURCES * AGE_BUCKETS

# What one scoring writes for its caller, in bytes, then two words of version for each entity.
OUT_SCORE: Final = 0
OUT_SOURCE: Final = 8
OUT_DECISION: Final = 16
OUT_AS_OF: Final = 24
OUT_VALID_UNTIL: Final = 32
OUT_COMPUTED: Final = 40
OUT_WATERMARK: Final = 48
OUT_DEGRADED: Final = 56
OUT_HASH_LOW: Final = 64
OUT_HASH_HIGH: Final = 72
OUT_CAUSE: Final = 80
OUT_MODE: Final = 88
OUT_COMPLETE_SINCE: Final = 96  # 0 where all windows are complete
OUT_KNOWN_AGE: Final = 104  # ms, of what was used without Redis (scoring/known_answers.py)
OUT_MISSING: Final = 112  # bits of the entities whose states were left out
OUT_VERSIONS: Final = 120
# OUT_MODE after NEEDS_MODEL: the next call with it keeps the score that it is given.
KEEP: Final = 1
# The same, for a score that was found elsewhere, computed at OUT_FOUND.
FOUND: Final = 2
# Until it is served: which filling of the accumulators its features are of.
OUT_FILLED: Final = OUT_VALID_UNTIL
# And which invalidation was the newest when it was asked.
OUT_NOW: Final = OUT_COMPUTED
# What is told with FOUND: when the score was computed.
OUT_FOUND: Final = OUT_DECISION

# The first five of them: score, source, decision, as_of, valid_until.
HEAD: Final = struct.Struct("<dqqqq")

APPROVE: Final = 0
REVIEW: Final = 1
DECLINE: Final = 2

# Bits of OUT_DEGRADED.
TOO_MANY_EVENTS: Final = 1
STATE_LOST: Final = t.STATE_LOST
STATE_DAMAGED: Final = t.STATE_DAMAGED
# What was answered without Redis, and from what.
STATE_UNREACHABLE: Final = 8
NOT_CURRENT: Final = 16
REMEMBERED: Final = 32
NOTHING_KNOWN: Final = 64

# What a scoring call comes to.
SERVED: Final = 0
NEEDS_MODEL: Final = 1
TO_BE_PROBED: Final = 2  # served; the caller checks it with the features behind the versions
AS_OF_TOO_OLD: Final = -1
AS_OF_BEFORE_PAYMENT: Final = -2


def entry_bytes(n_features: int, n_entities: int, has_box: bool) -> int:
    """Bytes of one entry, a multiple of 8."""
    box = 4 * n_features if has_box else 0
    return (BOX + box + 4 * n_entities + 7) // 8 * 8


def out_bytes(n_entities: int, n_features: int) -> int:
    """Bytes that one scoring writes; with the features, which NEEDS_MODEL leaves there."""
    return OUT_VERSIONS + 16 * n_entities + 8 * n_features
