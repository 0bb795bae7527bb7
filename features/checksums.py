"""Checksums of stored records: a multiply-xor fold of 64 bits, of which a record keeps 32.

Each word is xored in, multiplied by an odd constant, and the upper half folded into the lower. Every
step can be undone, so two inputs that differ in one word alone never have the same fold; any other
damage has one chance in 2^64, and behind the 32 bits of a single record one in 2^32.
Cost: 3-5 ns a record; a table CRC costs ten times that (measured in a prototype), and the CRC of
the processor is not everywhere.
Rule: this finds damage, not malice; equality of sets is decided by keyed digests only.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import layout as rec
from freshscore.features.compiled import kernel
from freshscore.features.memory import put_i32, u64

# Odd, and without a shift of it that leaves its upper half all zeros or ones (a test asks), so
# that one flipped bit in a record's last word is always seen; the digits are those of pi.
MULTIPLIER: Final = np.uint64(0x243F6A8885A308D3)
_HALF: Final = np.uint64(32)
_CHECK_FREE: Final = np.uint64(0xFFFFFFFF00000000)


@kernel(inline="always")
def folded_in(fold: np.uint64, word: np.uint64) -> np.uint64:
    """The fold after one more word."""
    fold = (fold ^ word) * MULTIPLIER
    return fold ^ (fold >> _HALF)


@kernel
def record_fold(record: int, width: int, seed: np.uint64) -> np.uint64:
    """The fold of a record, its checksum's place aside; its upper half is the checksum."""
    fold = seed
    for at in range(record, record + rec.CHECK, 8):
        fold = folded_in(fold, u64(at))
    fold = folded_in(fold, u64(record + rec.CHECK) & _CHECK_FREE)
    for at in range(record + rec.MEMBERS, record + width, 8):
        fold = folded_in(fold, u64(at))
    return fold


@kernel
def checked(record: int, fold: np.uint64) -> bool:
    """Whether the checksum in `record` is that of its fold."""
    return u64(record + rec.CHECK) & ~_CHECK_FREE == fold >> _HALF


@kernel
def put_check(record: int, fold: np.uint64) -> None:
    """Write the checksum of `fold` into a record."""
    put_i32(record + rec.CHECK, np.int64(fold >> _HALF))


@kernel
def words_fold(address: int, n_bytes: int, seed: np.uint64) -> np.uint64:
    """The fold of whole words."""
    fold = seed
    for at in range(address, address + n_bytes, 8):
        fold = folded_in(fold, u64(at))
    return fold
