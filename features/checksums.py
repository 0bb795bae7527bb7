"""Checksums of stored states: a multiply-xor fold of 64 bits, of which a record keeps 32.

Each word is xored in, multiplied by an odd constant, and the upper half folded into the lower.
Every step can be undone, so two inputs that differ in one word alone never have the same fold; any
other damage has one chance in 2^64, and behind the 32 bits of a single record one in 2^32. The
seal of a header goes on through the folds of the records behind it, all 64 bits of each.
Cost: 4-5 ns a record; a table CRC costs ten times that (measured in a prototype), and the CRC of
the processor is not everywhere.
Rule: this finds damage, not malice; equality of sets is decided by keyed digests only.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import layout as rec
from freshscore.features import state_layout as s
from freshscore.features.compiled import kernel
from freshscore.features.memory import i64, put_i32, u64

# Odd, and without a shift of it that leaves its upper half all zeros or ones (a test asks), so
# that one flipped bit in a record's last word is always seen; the digits are those of pi.
MULTIPLIER: Final = np.uint64(0x243F6A8885A308D3)
# Of a stored state: where the seal lies in its header, and the size of that.
SEAL_AT: Final = 80
HEADER_BYTES: Final = 88
_SEAL_SEED: Final = np.uint64(1)
WHOLE: Final = -1
BROKEN_SEAL: Final = -2
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
    return bool(u64(record + rec.CHECK) & ~_CHECK_FREE == fold >> _HALF)


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


@kernel
def put_checks(records: int, n: int, layout: int) -> None:
    """Write the checksum of each of `n` records."""
    width = i64(layout + 8 * s.WIDTH)
    seed = u64(layout + 8 * s.SEED)
    for i in range(n):
        record = records + i * width
        put_check(record, record_fold(record, width, seed))


@kernel
def sealed(front: int, n_bytes: int, records: int, n: int, layout: int) -> np.uint64:
    """The seal of a header, the tiles behind it, and records that may lie elsewhere."""
    width = i64(layout + 8 * s.WIDTH)
    seed = u64(layout + 8 * s.SEED)
    seal = words_fold(front, SEAL_AT, _SEAL_SEED)
    seal = words_fold(front + HEADER_BYTES, n_bytes - HEADER_BYTES, seal)
    for i in range(n):
        seal = folded_in(seal, record_fold(records + i * width, width, seed))
    return seal


@kernel
def first_damage(blob: int, front: int, n_compacted: int, n_records: int, layout: int) -> int:
    """WHOLE, or what is damaged: the number of a record, or BROKEN_SEAL."""
    width = i64(layout + 8 * s.WIDTH)
    seed = u64(layout + 8 * s.SEED)
    seal = np.uint64(0)
    if front > 0:
        seal = words_fold(blob, SEAL_AT, _SEAL_SEED)
        seal = words_fold(blob + HEADER_BYTES, front - HEADER_BYTES, seal)
    for i in range(n_records):
        record = blob + front + i * width
        fold = record_fold(record, width, seed)
        if not checked(record, fold):
            return i
        if i < n_compacted:
            seal = folded_in(seal, fold)
    if front > 0 and seal != u64(blob + SEAL_AT):
        return BROKEN_SEAL
    return WHOLE
