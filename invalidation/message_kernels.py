"""The fast way of reading a message: from its bytes, where they lie, to what it says, in one pass.

It reads freshscore's own format where that is plain: ASCII without escapes, names that are known
(in `entities` and `fields` also others), each once, values of the right types within their limits,
numbers without exponents.
Rule: what it reads, message_reading.py reads too, and to the same. It refuses nothing: what it is
not sure of it leaves alone.
"""

from __future__ import annotations

import numpy as np

from freshscore.features.checksums import folded_in
from freshscore.features.compiled import kernel
from freshscore.features.layout import NO_PLACE, PLACE_UNITS
from freshscore.features.memory import f64, i64, put_i64, put_u64, u8, u64
from freshscore.features.money import MAX_AMOUNT_MINOR
from freshscore.features.transaction import EARLIEST_MS, LATEST_MS
from freshscore.invalidation import message_tables as t
from freshscore.invalidation.message_texts import (
    CLOSE,
    CLOSE_ARRAY,
    COMMA,
    OPEN,
    OPEN_ARRAY,
    QUOTE,
    STUCK,
    byte_at,
    closing_quote,
    is_same,
    past_blanks,
    past_colon,
    past_degrees,
    past_null,
    past_number,
    past_text,
    past_truth,
    past_whole,
)


@kernel
def _is_entry(entry: int, at: int, end: int) -> bool:
    """Whether the text at `at` is that of an entry, its closing quote included."""
    length = i64(entry + t.ENTRY_LENGTH)
    if at + length > end:
        return False
    if at + 8 > end:
        return is_same(at, i64(entry), length)
    if u64(at) & u64(entry + t.ENTRY_MASK) != u64(entry + t.ENTRY_FIRST):
        return False
    if length <= 8:
        return True
    if u64(at + length - 8) != u64(entry + t.ENTRY_LAST):
        return False
    return length <= 16 or is_same(at + 8, i64(entry) + 8, length - 16)


@kernel
def _found(table: int, at: int, end: int, place: int) -> int:
    """Number of the name that begins at `at`, or -1; `place` of the member in its object."""
    entries = i64(table)
    order = i64(table + t.TABLE_ORDER) + 8 * (place & (t.ORDER - 1))
    guess = i64(order)
    if guess >= 0 and _is_entry(entries + t.ENTRY * guess, at, end):
        return guess
    for number in range(i64(table + t.TABLE_N)):
        if _is_entry(entries + t.ENTRY * number, at, end):
            put_i64(order, number)
            return number
    return -1


@kernel
def _length(table: int, number: int) -> int:
    return i64(i64(table) + t.ENTRY * number + t.ENTRY_LENGTH)


@kernel
def _is_again(table: int, number: int) -> bool:
    """Whether a name was there in the object at hand, in which it is from now on."""
    entry = i64(table) + t.ENTRY * number
    if i64(entry + t.ENTRY_OBJECT) == i64(table + t.TABLE_OBJECT):
        return True
    put_i64(entry + t.ENTRY_OBJECT, i64(table + t.TABLE_OBJECT))
    return False


@kernel
def _is_again_unnamed(tables: int, at: int, end: int, n: int) -> bool:
    """Whether the name from `at` to `end`, which is in no table, may be one of the `n` before."""
    digest = folded_in(np.uint64(1), np.uint64(end - at))
    while at < end:
        word = np.uint64(0)
        if at + 8 <= end:
            word = u64(at)
        else:
            for i in range(end - at):
                word |= np.uint64(u8(at + i)) << np.uint64(8 * i)
        digest = folded_in(digest, word)
        at += 8
    seen = i64(tables + t.UNNAMED)
    for i in range(n):
        if u64(seen + 8 * i) == digest:
            return True
    put_u64(seen + 8 * n, digest)
    return False


@kernel
def _location(said: int, at: int, end: int) -> int:
    """Past a location, as a place of features/layout.py."""
    if byte_at(at, end) != OPEN_ARRAY:
        return past_null(at, end)
    scratch = said + t.SAID_TEXT
    at = past_degrees(past_blanks(at + 1, end), end, 90.0, scratch)
    if at == STUCK:
        return STUCK
    at = past_blanks(at, end)
    if byte_at(at, end) != COMMA:
        return STUCK
    at = past_degrees(past_blanks(at + 1, end), end, 180.0, scratch + 8)
    if at == STUCK:
        return STUCK
    at = past_blanks(at, end)
    if byte_at(at, end) != CLOSE_ARRAY:
        return STUCK
    north = np.int64(np.rint(f64(scratch) * PLACE_UNITS))
    east = np.int64(np.rint(f64(scratch + 8) * PLACE_UNITS))
    put_i64(said + t.SAID_PLACE, (north << 32) | (east & 0xFFFFFFFF))
    return at + 1


@kernel
def _entity(tables: int, said: int, number: int, at: int, end: int) -> int:
    """Past an identifier, which is kept if `number` names it."""
    out = said + t.SAID_TEXT
    if number >= 0:
        out = i64(tables + t.SPANS) + 16 * number
        uses = i64(i64(tables + t.NAME_USES) + 8 * number)
        put_i64(said + t.SAID_NAMED, i64(said + t.SAID_NAMED) | uses)
    if byte_at(at, end) == QUOTE:
        return past_text(at, end, 1, out)
    return past_null(at, end)


@kernel
def _field(tables: int, said: int, number: int, at: int, end: int) -> int:
    """Past a field's value, which is compared with what conditions want of field `number`."""
    uses = 0 if number < 0 else i64(i64(tables + t.FIELD_USES) + 8 * number)
    c = byte_at(at, end)
    if c != QUOTE:
        after = past_null(at, end)
        if after != STUCK:
            return after
        if uses & t.IS_CATEGORY != 0:
            return STUCK
        if c == 116 or c == 102:
            return past_truth(at, end, said + t.SAID_TEXT)
        return past_number(at, end)
    after = past_text(at, end, 0, said + t.SAID_TEXT)
    if after == STUCK or uses & t.IS_NUMBER != 0:
        return STUCK
    text = i64(said + t.SAID_TEXT)
    n = i64(said + t.SAID_TEXT + 8)
    for i in range(i64(tables + t.N_CONDITIONS)):
        condition = i64(tables + t.CONDITIONS) + t.CONDITION * i
        if i64(condition) != number or i64(condition + 16) != n:
            continue
        if is_same(text, i64(condition + 8), n):
            bits = i64(said + t.SAID_CONDITIONS) | i64(condition + 24)
            put_i64(said + t.SAID_CONDITIONS, bits)
    return after


@kernel
def _flag(said: int, number: int, at: int, end: int) -> int:
    """Past a flag; what is no fact is not known here."""
    if number < 0:
        return STUCK
    after = past_truth(at, end, said + t.SAID_TEXT)
    if after != STUCK:
        put_i64(said + t.SAID_GIVEN, i64(said + t.SAID_GIVEN) | (1 << number))
        value = i64(said + t.SAID_TEXT) << number
        put_i64(said + t.SAID_VALUES, i64(said + t.SAID_VALUES) | value)
    return after


@kernel
def _members(tables: int, said: int, table: int, at: int, end: int) -> int:
    """Past an object of entities, fields or flags, whichever `table` is of."""
    if byte_at(at, end) != OPEN:
        return STUCK
    put_i64(tables + table + t.TABLE_OBJECT, i64(tables + table + t.TABLE_OBJECT) + 1)
    at = past_blanks(at + 1, end)
    if byte_at(at, end) == CLOSE:
        return at + 1
    place = 0
    n_unnamed = 0
    while True:
        if byte_at(at, end) != QUOTE:
            return STUCK
        number = _found(tables + table, at + 1, end, place)
        if number >= 0:
            if _is_again(tables + table, number):
                return STUCK
            at += 1 + _length(tables + table, number)
        else:
            close = closing_quote(at + 1, end)
            if close == STUCK or n_unnamed == t.MOST_UNNAMED:
                return STUCK
            if _is_again_unnamed(tables, at + 1, close, n_unnamed):
                return STUCK
            n_unnamed += 1
            at = close + 1
        at = past_colon(at, end)
        if at == STUCK:
            return STUCK
        if table == t.NAME:
            at = _entity(tables, said, number, at, end)
        elif table == t.FIELD:
            at = _field(tables, said, number, at, end)
        else:
            at = _flag(said, number, at, end)
        if at == STUCK:
            return STUCK
        at = past_blanks(at, end)
        c = byte_at(at, end)
        if c == CLOSE:
            return at + 1
        if c != COMMA:
            return STUCK
        at = past_blanks(at + 1, end)
        place += 1


@kernel
def _currency(said: int, at: int, end: int) -> int:
    """Past a currency: three capital letters."""
    if at + 5 > end or u8(at) != QUOTE or u8(at + 4) != QUOTE:
        return STUCK
    code = 0
    for i in range(3):
        c = u8(at + 1 + i)
        if c < 65 or c > 90:
            return STUCK
        code |= c << (8 * i)
    put_i64(said + t.SAID_CURRENCY, code)
    return at + 5


@kernel
def _word_of(tables: int, table: int, out: int, at: int, end: int) -> int:
    """Past a text that is one of a table's; its number goes to `out`."""
    if byte_at(at, end) != QUOTE:
        return STUCK
    number = _found(tables + table, at + 1, end, 0)
    if number < 0:
        return STUCK
    put_i64(out, number)
    return at + 1 + _length(tables + table, number)


@kernel
def _instant(at: int, end: int, out: int) -> int:
    return past_whole(at, end, EARLIEST_MS, LATEST_MS - 1, out)


@kernel
def _member(tables: int, said: int, key: int, at: int, end: int) -> int:
    """Past the value of the member `key` of a message."""
    if key == t.TRANSACTION_ID:
        return past_text(at, end, 1, said + t.SAID_IDENTITY)
    if key == t.TIME:
        return _instant(at, end, said + t.SAID_TIME)
    if key == t.AMOUNT:
        return past_whole(at, end, 0, MAX_AMOUNT_MINOR, said + t.SAID_AMOUNT)
    if key == t.CURRENCY_KEY:
        return _currency(said, at, end)
    if key == t.ENTITIES_KEY:
        return _members(tables, said, t.NAME, at, end)
    if key == t.V:
        return past_whole(at, end, 1, 1, said + t.SAID_TEXT)
    if key == t.IDS_KEY:
        return _word_of(tables, t.IDS, said + t.SAID_HASHED, at, end)
    if key == t.KIND_KEY:
        return _word_of(tables, t.KIND, said + t.SAID_KIND, at, end)
    if key == t.FIELDS_KEY:
        return _members(tables, said, t.FIELD, at, end)
    if key == t.FLAGS:
        return _members(tables, said, t.FACT, at, end)
    if key == t.LOCATION:
        return _location(said, at, end)
    if key == t.SENT_AT:
        return _instant(at, end, said + t.SAID_SENT)
    if key == t.KNOWN_AT:
        return _instant(at, end, said + t.SAID_KNOWN)
    # What is left may be null: base_amount_minor and original_id.
    if byte_at(at, end) == 110:
        return past_null(at, end)
    if key == t.BASE_AMOUNT:
        return past_whole(at, end, 0, MAX_AMOUNT_MINOR, said + t.SAID_BASE)
    return past_text(at, end, 1, said + t.SAID_TEXT)


@kernel
def read_message(tables: int, said: int, at: int, end: int) -> bool:
    """Read a message into what it says; False for what is not sure."""
    if end - at > i64(tables + t.MAX_BYTES):
        return False
    for word in range(0, t.SAID_BYTES, 8):
        put_i64(said + word, 0)
    put_i64(said + t.SAID_BASE, -1)
    put_i64(said + t.SAID_PLACE, NO_PLACE)
    spans = i64(tables + t.SPANS)
    for number in range(i64(tables + t.NAME + t.TABLE_N)):
        put_i64(spans + 16 * number + 8, 0)
    at = past_blanks(at, end)
    if byte_at(at, end) != OPEN:
        return False
    at = past_blanks(at + 1, end)
    keys = 0
    place = 0
    while True:
        if byte_at(at, end) != QUOTE:
            return False
        key = _found(tables + t.TOP, at + 1, end, place)
        if key < 0 or (keys >> key) & 1 == 1:
            return False
        keys |= 1 << key
        at = past_colon(at + 1 + _length(tables + t.TOP, key), end)
        if at == STUCK:
            return False
        at = _member(tables, said, key, at, end)
        if at == STUCK:
            return False
        at = past_blanks(at, end)
        c = byte_at(at, end)
        if c == CLOSE:
            break
        if c != COMMA:
            return False
        at = past_blanks(at + 1, end)
        place += 1
    put_i64(said + t.SAID_KEYS, keys)
    return past_blanks(at + 1, end) == end
