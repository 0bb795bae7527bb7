"""From what a message says to its row, and to the words of a label; and the loop over a batch.

Cost, with reading: 0.2-0.4 us a message of two entities, of which the keyed hashes are half.
Rule: the row is that of message_reading.py, bit for bit; what is not sure is left to it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import row as r
from freshscore.features.compiled import kernel
from freshscore.features.layout import SENDER_LIMIT_MS
from freshscore.features.memory import i64, move, put_i64, put_u8, put_u64, u8
from freshscore.features.row import hashed
from freshscore.features.transaction import EARLIEST_MS, LATEST_MS
from freshscore.invalidation import append_plan as p
from freshscore.invalidation import message_tables as t
from freshscore.invalidation.append_kernels import READ, WAITING
from freshscore.invalidation.message_kernels import read_message
from freshscore.invalidation.messages import ENTITY_CHARACTERS, IDENTITY_CHARACTERS

_VERIFICATION: Final = 1
_SIX_BITS: Final = 63

_NEEDED_OF_TRANSACTION: Final = (
    1 << t.TRANSACTION_ID | 1 << t.TIME | 1 << t.AMOUNT | 1 << t.CURRENCY_KEY | 1 << t.ENTITIES_KEY
)
_NEEDED_OF_LABEL: Final = 1 << t.TRANSACTION_ID | 1 << t.TIME | 1 << t.ENTITIES_KEY | 1 << t.FLAGS
_ONLY_OF_LABEL: Final = 1 << t.SENT_AT | 1 << t.KNOWN_AT
_KNOWN_OF_LABEL: Final = _NEEDED_OF_LABEL | _ONLY_OF_LABEL | 1 << t.V | 1 << t.IDS_KEY


@kernel
def _put_bytes(tables: int, text: int, n: int, out: int) -> bool:
    """Write the bytes of `n` characters of base64url; False for what is not its canonical form."""
    values = i64(tables + t.SIX_BITS)
    bits = 0
    n_bits = 0
    for i in range(n):
        six = u8(values + u8(text + i))
        if six > _SIX_BITS:
            return False
        bits = (bits << 6) | six
        n_bits += 6
        if n_bits >= 8:
            n_bits -= 8
            put_u8(out, bits >> n_bits)
            bits &= (1 << n_bits) - 1
            out += 1
    return bits == 0


@kernel
def _put_hashes(tables: int, said: int, row: int) -> bool:
    """Take identity, tokens and members from a message that has them hashed."""
    if i64(said + t.SAID_IDENTITY + 8) != IDENTITY_CHARACTERS:
        return False
    if not _put_bytes(tables, i64(said + t.SAID_IDENTITY), IDENTITY_CHARACTERS, row):
        return False
    n_entities = i64(tables + t.N_ENTITIES)
    scratch = i64(tables + t.JOINED)
    for e in range(n_entities):
        name = i64(i64(tables + t.ENTITIES) + t.ENTITY * e)
        span = i64(tables + t.SPANS) + 16 * name
        if i64(span + 8) == 0:
            for word in range(3):
                put_i64(scratch + 8 * word, 0)
        else:
            n = i64(span + 8)
            if n != ENTITY_CHARACTERS or not _put_bytes(tables, i64(span), n, scratch):
                return False
            if i64(scratch) == 0 and i64(scratch + 8) == 0:
                return False
        move(row + r.TOKENS + 16 * e, scratch, 16)
        move(row + r.TOKENS + 16 * n_entities + 8 * e, scratch + 16, 8)
    return True


@kernel
def _identifier(tables: int, entity: int, out: int) -> bool:
    """Put address and length of an entity's identifier at `out`; False if it is absent."""
    spans = i64(tables + t.SPANS)
    n_parts = i64(entity + 8)
    if n_parts == 1:
        span = spans + 16 * i64(entity + 16)
        put_i64(out, i64(span))
        put_i64(out + 8, i64(span + 8))
        return i64(span + 8) > 0
    joined = i64(tables + t.JOINED)
    at = joined
    for part in range(n_parts):
        span = spans + 16 * i64(entity + 16 + 8 * part)
        n = i64(span + 8)
        if n == 0:
            return False
        put_u8(at, n & 0xFF)
        put_u8(at + 1, n >> 8)
        move(at + 2, i64(span), n)
        at += 2 + n
    put_i64(out, joined)
    put_i64(out + 8, at - joined)
    return True


@kernel
def _hash_identifiers(tables: int, said: int, row: int) -> None:
    """Identity, tokens and members of a message that has its identifiers raw."""
    keys = i64(tables + t.ROW_KEYS)
    if i64(said + t.SAID_TIME) < i64(tables + t.SINCE):
        keys = i64(tables + t.FORMER_ROW_KEYS)
    span = said + t.SAID_IDENTITY
    low, high = hashed(i64(span), i64(span + 8), keys + r.KEY_RECORD)
    put_u64(row, low)
    put_u64(row + 8, high)
    n_entities = i64(tables + t.N_ENTITIES)
    span = said + t.SAID_TEXT
    for e in range(n_entities):
        low = np.uint64(0)
        high = np.uint64(0)
        member = np.uint64(0)
        if _identifier(tables, i64(tables + t.ENTITIES) + t.ENTITY * e, span):
            text = i64(span)
            n = i64(span + 8)
            low, high = hashed(text, n, keys + r.KEY_TOKENS + 16 * e)
            member, _ = hashed(text, n, keys + r.KEY_RECORD)
        put_u64(row + r.TOKENS + 16 * e, low)
        put_u64(row + r.TOKENS + 16 * e + 8, high)
        put_u64(row + r.TOKENS + 16 * n_entities + 8 * e, member)


@kernel
def _put_row(tables: int, said: int, row: int) -> bool:
    """Write the row of what a message says."""
    put_i64(row + r.TIME, i64(said + t.SAID_TIME))
    put_i64(row + r.AMOUNT, i64(said + t.SAID_AMOUNT))
    kind = i64(said + t.SAID_KIND)
    conditions = i64(said + t.SAID_CONDITIONS) | i64(i64(tables + t.KIND_BITS) + 8 * kind)
    put_i64(row + r.BITS, (conditions << 16) | (kind << 8) | i64(said + t.SAID_VALUES))
    put_i64(row + r.PLACE, i64(said + t.SAID_PLACE))
    put_i64(row + r.CONTENT_LOW, 0)
    put_i64(row + r.CONTENT_HIGH, 0)
    hashed_under = i64(said + t.SAID_HASHED)
    if hashed_under != 0:
        # The former key holds before the instant, and the current one from it on.
        is_older = i64(said + t.SAID_TIME) < i64(tables + t.SINCE)
        if (hashed_under == t.UNDER_FORMER) != is_older:
            return False
        return _put_hashes(tables, said, row)
    _hash_identifiers(tables, said, row)
    return True


@kernel
def read_transaction(tables: int, address: int, n_bytes: int, row: int) -> bool:
    """Write the row of a payment's message; False for what is not sure."""
    said = i64(tables + t.SAID)
    if not read_message(tables, said, address, address + n_bytes):
        return False
    keys = i64(said + t.SAID_KEYS)
    if keys & _NEEDED_OF_TRANSACTION != _NEEDED_OF_TRANSACTION or keys & _ONLY_OF_LABEL != 0:
        return False
    if i64(said + t.SAID_KIND) == _VERIFICATION and i64(said + t.SAID_AMOUNT) != 0:
        return False
    if i64(said + t.SAID_CURRENCY) != i64(tables + t.CURRENCY):
        amount = i64(said + t.SAID_BASE)
        if amount < 0 or (i64(said + t.SAID_KIND) == _VERIFICATION and amount != 0):
            return False
        put_i64(said + t.SAID_AMOUNT, amount)
    return _put_row(tables, said, row)


@kernel
def read_label(tables: int, address: int, n_bytes: int, arrival: int, row: int, label: int) -> bool:
    """Write row and words of a label that brings its payment; False for what is not sure."""
    said = i64(tables + t.SAID)
    if not read_message(tables, said, address, address + n_bytes):
        return False
    keys = i64(said + t.SAID_KEYS)
    if keys & _NEEDED_OF_LABEL != _NEEDED_OF_LABEL or keys & ~_KNOWN_OF_LABEL != 0:
        return False
    given = i64(said + t.SAID_GIVEN)
    values = i64(said + t.SAID_VALUES)
    named = t.IS_PART if i64(said + t.SAID_HASHED) == 0 else t.IS_ENTITY
    if given == 0 or i64(said + t.SAID_NAMED) & named == 0:
        return False
    sent = i64(said + t.SAID_SENT)
    known = max(arrival, max(sent, i64(said + t.SAID_KNOWN)))
    sender = sent
    if sender == 0:
        sender = i64(said + t.SAID_KNOWN)
    if sender == 0:
        sender = known
    if known < EARLIEST_MS or known >= LATEST_MS:
        return False
    if abs(sender - i64(said + t.SAID_TIME)) >= SENDER_LIMIT_MS:
        return False
    # In the row of a label flags are none of the payment's.
    put_i64(said + t.SAID_VALUES, 0)
    put_i64(label + p.GIVEN, given)
    put_i64(label + p.VALUES, values)
    put_i64(label + p.KNOWN, known)
    put_i64(label + p.SENDER, sender)
    return _put_row(tables, said, row)


@kernel(nogil=True)
def read_messages(tables: int, batch: int, n: int) -> int:
    """Read the first `n` messages of a batch; how many are left to message_reading.py."""
    n_left = 0
    for i in range(n):
        message = i64(batch + p.INPUTS) + 24 * i
        row = i64(batch + p.ROWS) + i64(batch + p.ROW_BYTES) * i
        address = i64(message)
        n_bytes = i64(message + 8)
        after = i - i64(batch + p.N_TRANSACTIONS)
        is_read = False
        if address != 0 and after < 0:
            is_read = read_transaction(tables, address, n_bytes, row)
        elif address != 0:
            label = i64(batch + p.LABELS) + p.LABEL * after
            is_read = read_label(tables, address, n_bytes, i64(message + 16), row, label)
        put_u8(i64(batch + p.STATUSES) + i, READ if is_read else WAITING)
        n_left += 0 if is_read else 1
    return n_left
