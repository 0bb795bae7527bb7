"""Whole numbers among the replies of Redis, read where they lie: `:123` and a line end each.

An APPEND answers the new length, an EXPIRE whether there was the key. A writer sends tens of
thousands of them at once, and a Python object for each reply would take as long as all that was
made of their messages.
Source: integers of the Redis serialization protocol (RESP 2).
Rule: what is no whole number is left where it stands, for whoever reads any reply.
"""

from __future__ import annotations

from typing import Final

from freshscore.features.compiled import kernel
from freshscore.features.memory import put_i64, u8

# The scan, in words: how many numbers were found, and how many bytes they took.
FOUND: Final = 0
USED: Final = 1
SCAN: Final = 2

_COLON: Final = 58
_MINUS: Final = 45
_ZERO: Final = 48
_NINE: Final = 57
_RETURN: Final = 13
_FEED: Final = 10


@kernel(nogil=True)
def scan_numbers(begin: int, n_bytes: int, out: int, n: int, scan: int) -> int:
    """Find `n` numbers at most from `begin` on, and put them at `out`, 8 bytes each.

    It ends before what is no number, or is not there in full.
    """
    end = begin + n_bytes
    at = begin
    put_i64(scan + 8 * FOUND, 0)
    put_i64(scan + 8 * USED, 0)
    found = 0
    while found < n and at + 3 < end and u8(at) == _COLON:
        at += 1
        is_negative = u8(at) == _MINUS
        if is_negative:
            at += 1
        first = at
        value = 0
        while at < end and _ZERO <= u8(at) <= _NINE:
            value = 10 * value + u8(at) - _ZERO
            at += 1
        # What has no digit, or no line end yet, is for whoever reads any reply.
        if at == first or at + 2 > end or u8(at) != _RETURN or u8(at + 1) != _FEED:
            break
        at += 2
        put_i64(out + 8 * found, -value if is_negative else value)
        found += 1
        put_i64(scan + 8 * USED, at - begin)
    put_i64(scan + 8 * FOUND, found)
    return found
