"""The packed row: one transaction as the kernels read it, in words of 8 bytes.

    identity low, high   keyed hash of the transaction_id, 128 bits
    time                 its own event time, ms
    amount               minor units of the specification's currency
    bits                 condition bits << 16 | kind << 8 | flags
    place                two int32 of 1e-7 degrees, or NO_PLACE
    content low, high    digest of all that follows identity, so that contents compare in 16 bytes
    tokens               per entity 2 words: its 128-bit token, 0 and 0 if absent
    members              per entity 1 word: its identity inside other entities' records
    numbers, categories  float64 each

`raw` is what Python packs: the same without hashes, and with the identifiers' bytes behind it.
Rule: a row is made once and never changes; no identifier is in it, only keyed hashes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from freshscore.features.compiled import kernel
from freshscore.features.memory import i64, put_i64, put_u64, u8, u64
from freshscore.features.siphash import sip_absorbed, sip_finished, sip_started

if TYPE_CHECKING:
    Hash = tuple[np.uint64, np.uint64]

IDENTITY_LOW: Final = 0
IDENTITY_HIGH: Final = 8
TIME: Final = 16
AMOUNT: Final = 24
BITS: Final = 32
PLACE: Final = 40
CONTENT_LOW: Final = 48
CONTENT_HIGH: Final = 56
TOKENS: Final = 64

# Keys, in words: of identities and members (they never rotate), of contents, of each token.
KEY_RECORD: Final = 0
KEY_CONTENT: Final = 16
KEY_TOKENS: Final = 32


def row_words(n_entities: int, n_numbers: int, n_categories: int) -> int:
    """Words of a row."""
    return 8 + 3 * n_entities + n_numbers + n_categories


@kernel
def hashed(address: int, n_bytes: int, key: int) -> Hash:
    """SipHash-2-4-128 of the bytes at `address` under the 16-byte key at `key`."""
    lanes = sip_started(u64(key), u64(key + 8))
    whole = n_bytes & ~7
    for at in range(address, address + whole, 8):
        lanes = sip_absorbed(lanes, u64(at))
    rest = np.uint64(0)
    for i in range(n_bytes - whole):
        rest |= np.uint64(u8(address + whole + i)) << np.uint64(8 * i)
    return sip_finished(lanes, rest, n_bytes)


@kernel
def make_row(raw: int, row: int, keys: int, n_entities: int, n_values: int) -> int:
    """Fill the row at `row` from the raw form at `raw`; `n_values` numbers and categories."""
    lengths = raw + 8 * (4 + n_values)
    text = lengths + 8 * (1 + n_entities)
    n_bytes = i64(lengths)
    low, high = hashed(text, n_bytes, keys + KEY_RECORD)
    text += n_bytes
    put_u64(row + IDENTITY_LOW, low)
    put_u64(row + IDENTITY_HIGH, high)
    for i in range(4):
        put_i64(row + TIME + 8 * i, i64(raw + 8 * i))
    token = row + TOKENS
    member = token + 16 * n_entities
    for e in range(n_entities):
        n_bytes = i64(lengths + 8 * (1 + e))
        if n_bytes < 0:
            low, high, inside = np.uint64(0), np.uint64(0), np.uint64(0)
        else:
            low, high = hashed(text, n_bytes, keys + KEY_TOKENS + 16 * e)
            inside, _ = hashed(text, n_bytes, keys + KEY_RECORD)
            text += n_bytes
        put_u64(token, low)
        put_u64(token + 8, high)
        put_u64(member, inside)
        token += 16
        member += 8
    for i in range(n_values):
        put_i64(member + 8 * i, i64(raw + 32 + 8 * i))
    digest_content(row, member + 8 * n_values, keys + KEY_CONTENT)
    return 0


@kernel
def digest_content(row: int, end: int, key: int) -> None:
    """Fill in the digest of a row that ends at `end`, of all but its identity."""
    lanes = sip_started(u64(key), u64(key + 8))
    for at in range(row + TIME, row + CONTENT_LOW, 8):
        lanes = sip_absorbed(lanes, u64(at))
    for at in range(row + TOKENS, end, 8):
        lanes = sip_absorbed(lanes, u64(at))
    low, high = sip_finished(lanes, np.uint64(0), 0)
    put_u64(row + CONTENT_LOW, low)
    put_u64(row + CONTENT_HIGH, high)
