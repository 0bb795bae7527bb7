"""Kernels over the text of a JSON message: past blanks, plain texts, truth values and numbers.

Each takes where to begin and where the message ends, and says where reading goes on: STUCK where
the text is not plain, or is not what was looked for. Texts are passed eight bytes at a time.
Rule: no byte outside of a message is read, and nothing that JSON does not allow is passed.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features.compiled import kernel
from freshscore.features.layout import PLACE_UNITS
from freshscore.features.memory import put_f64, put_i64, u8, u64
from freshscore.features.transaction import MAX_STRING_BYTES

# Where reading goes on is an address; this says that it does not.
STUCK: Final = 0

QUOTE: Final = 34
COMMA: Final = 44
COLON: Final = 58
BACKSLASH: Final = 92
OPEN: Final = 123
CLOSE: Final = 125
OPEN_ARRAY: Final = 91
CLOSE_ARRAY: Final = 93
_MINUS: Final = 45
_DOT: Final = 46
_ZERO: Final = 48
_NINE: Final = 57
# `true` and `false`, little-endian.
_TRUE: Final = np.uint64(0x65757274)
_FALSE: Final = np.uint64(0x65736C6166)
_LOW_32: Final = np.uint64(0xFFFFFFFF)
_LOW_40: Final = np.uint64(0xFFFFFFFFFF)

_ONES: Final = np.uint64(0x0101010101010101)
_TOPS: Final = np.uint64(0x8080808080808080)
_QUOTES: Final = np.uint64(0x2222222222222222)
_BACKSLASHES: Final = np.uint64(0x5C5C5C5C5C5C5C5C)
_SPACES: Final = np.uint64(0x2020202020202020)

# Digits of a whole number that a float64 and an int64 hold exactly, and of any other number.
_MOST_DIGITS: Final = 15
_MOST_NUMBER: Final = 40
# Digits of degrees, and what is too near to a border to trust those beyond 15: the error is 1e-6.
_MOST_DEGREES: Final = 18
_BESIDE: Final = 1e-3


@kernel(inline="always")
def byte_at(at: int, end: int) -> int:
    """The byte at `at`, 0 behind the message."""
    return u8(at) if at < end else 0


@kernel
def past_blanks(at: int, end: int) -> int:
    """Past blanks."""
    while at < end:
        c = u8(at)
        if c > 32 or not (c == 32 or c == 10 or c == 13 or c == 9):
            break
        at += 1
    return at


@kernel
def closing_quote(at: int, end: int) -> int:
    """The quote that closes the plain text which begins at `at`, or STUCK."""
    while at + 8 <= end:
        word = u64(at)
        quotes = word ^ _QUOTES
        slashes = word ^ _BACKSLASHES
        special = (quotes - _ONES) & ~quotes
        special |= (slashes - _ONES) & ~slashes
        special |= (word - _SPACES) & ~word
        special |= word
        if special & _TOPS != np.uint64(0):
            break
        at += 8
    while at < end:
        c = u8(at)
        if c == QUOTE:
            return at
        if c < 32 or c > 127 or c == BACKSLASH:
            return STUCK
        at += 1
    return STUCK


@kernel
def past_colon(at: int, end: int) -> int:
    """To the value behind a name."""
    at = past_blanks(at, end)
    if byte_at(at, end) != COLON:
        return STUCK
    return past_blanks(at + 1, end)


@kernel
def is_same(left: int, right: int, n_bytes: int) -> bool:
    same = True
    for i in range(n_bytes):
        same = same and u8(left + i) == u8(right + i)
    return same


@kernel
def past_text(at: int, end: int, least: int, out: int) -> int:
    """Past a text of `least` to 256 bytes, whose address and length go to `out`."""
    if byte_at(at, end) != QUOTE:
        return STUCK
    close = closing_quote(at + 1, end)
    n = close - at - 1
    if close == STUCK or n < least or n > MAX_STRING_BYTES:
        return STUCK
    put_i64(out, at + 1)
    put_i64(out + 8, n)
    return close + 1


@kernel
def past_null(at: int, end: int) -> int:
    """Past `null`."""
    if at + 4 <= end and u8(at) == 110 and u8(at + 1) == 117 and u8(at + 2) == 108:
        return at + 4 if u8(at + 3) == 108 else STUCK
    return STUCK


@kernel
def past_truth(at: int, end: int, out: int) -> int:
    """Past `true` or `false`; 1 or 0 goes to `out`."""
    if at + 8 <= end:
        word = u64(at)
        if word & _LOW_32 == _TRUE:
            put_i64(out, 1)
            return at + 4
        if word & _LOW_40 == _FALSE:
            put_i64(out, 0)
            return at + 5
        return STUCK
    word = np.uint64(0)
    for i in range(end - at):
        word |= np.uint64(u8(at + i)) << np.uint64(8 * i)
    if word & _LOW_32 == _TRUE:
        put_i64(out, 1)
        return at + 4
    if word & _LOW_40 == _FALSE:
        put_i64(out, 0)
        return at + 5
    return STUCK


@kernel
def past_whole(at: int, end: int, least: int, most: int, out: int) -> int:
    """Past a whole number from `least` to `most`, which goes to `out`."""
    begin = at
    value = 0
    while at < end:
        digit = u8(at) - _ZERO
        if digit < 0 or digit > 9:
            break
        value = value * 10 + digit
        at += 1
        if at - begin > _MOST_DIGITS:
            return STUCK
    if at == begin or (u8(begin) == _ZERO and at - begin > 1):
        return STUCK
    c = byte_at(at, end)
    # A point or an exponent goes on with the number.
    if c == _DOT or c == 69 or c == 101 or value < least or value > most:
        return STUCK
    put_i64(out, value)
    return at


@kernel
def past_number(at: int, end: int) -> int:
    """Past a number without exponent."""
    begin = at
    if byte_at(at, end) == _MINUS:
        at += 1
    first = at
    while _ZERO <= byte_at(at, end) <= _NINE:
        at += 1
    if at == first or (u8(first) == _ZERO and at - first > 1):
        return STUCK
    if byte_at(at, end) == _DOT:
        at += 1
        first = at
        while _ZERO <= byte_at(at, end) <= _NINE:
            at += 1
        if at == first:
            return STUCK
    c = byte_at(at, end)
    if c == 69 or c == 101 or at - begin > _MOST_NUMBER:
        return STUCK
    return at


@kernel
def past_degrees(at: int, end: int, limit: float, out: int) -> int:
    """Past a number of degrees; a float64 goes to `out`."""
    after = past_number(at, end)
    if after == STUCK:
        return STUCK
    sign = 1.0
    digits = 0
    value = 0
    scale = 1.0
    is_fraction = False
    for i in range(at, after):
        c = u8(i)
        if c == _MINUS:
            sign = -1.0
        elif c == _DOT:
            is_fraction = True
        else:
            value = value * 10 + (c - _ZERO)
            digits += 1
            if is_fraction:
                scale *= 10.0
            if digits > _MOST_DEGREES:
                return STUCK
    # Up to 15 digits both are exact, so that one division rounds as reading the decimal number
    # does. Of more the last bits may differ, which counts only beside a border between places.
    degrees = sign * (np.float64(value) / scale)
    units = degrees * PLACE_UNITS
    beside = abs(units - np.floor(units) - 0.5) < _BESIDE or abs(degrees) > limit - _BESIDE
    if abs(degrees) > limit or (digits > _MOST_DIGITS and beside):
        return STUCK
    put_f64(out, degrees)
    return after


@kernel
def count_keys(address: int, n_bytes: int) -> int:
    """Members of all objects of well-formed JSON: colons outside of strings.

    A parser that keeps the last of two equal names holds fewer.
    """
    n = 0
    at = address
    end = address + n_bytes
    inside = False
    while at < end:
        c = u8(at)
        if c == QUOTE:
            inside = not inside
        elif c == BACKSLASH:
            at += 1
        elif c == COLON and not inside:
            n += 1
        at += 1
    return n
