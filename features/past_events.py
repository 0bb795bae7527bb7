"""What was folded of a grid: its events one by one, in buckets by identity.

Beside the state lie up to BUCKETS strings, each a log of records by the codec of states. Where the
entity's windows read facts, a folded event stays there until it has left every window; else from
when it was folded early until F has passed it. So three questions are answered by one small string
each: whether an appended event below S is a repetition, what a late fact is about, and what the
request's own payment has added to the sums.
A bucket is written before the state that has the event in a tile is swapped in. So an event of a
bucket is in its state: in a tile, or, where the swap was lost, still as a record.
Rule: an event that is in a tile and can still be asked for is in its bucket; one that no reader
counts yet is in none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features.state_layout import StateLayout

# At 10^6 events 61 records each, 2 to 4 KB; at 8 million 16 to 32 KB.
BUCKETS: Final = 1 << 14

# Bucket -> its bytes, empty where there is none; of the others nothing is known.
Past = Mapping[int, bytes]


def bucket_of_identity(identity: int) -> int:
    """The bucket that keeps a payment's event, by the low 64 bits of its identity."""
    return identity & (BUCKETS - 1)


def buckets_of(identities: NDArray[Any]) -> NDArray[np.int64]:
    """The same of many, uint64 or int64[n]."""
    return identities.astype(np.int64) & (BUCKETS - 1)


def by_bucket(records: bytes, layout: StateLayout) -> dict[int, bytes]:
    """Stored records by the bucket that keeps them, in order of the buckets."""
    rows = np.frombuffer(records, np.uint8).reshape(-1, layout.width)
    if not len(rows):
        return {}
    numbers = buckets_of(np.frombuffer(records, np.int64)[:: layout.width // 8])
    order = np.argsort(numbers, kind="stable")
    numbers, rows = numbers[order], rows[order]
    firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
    ends = [*firsts[1:].tolist(), len(rows)]
    return {
        int(numbers[first]): rows[first:end].tobytes()
        for first, end in zip(firsts.tolist(), ends, strict=True)
    }
