"""Rows of a whole table at once: the same bytes that `Packer.row` makes of each payment.

Each distinct identifier is hashed once; the rest is one pass over the columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from freshscore.features import row as r
from freshscore.features.compiled import kernel
from freshscore.features.layout import NO_PLACE
from freshscore.features.memory import address_of, i32, put_u64
from freshscore.features.row import digest_content, hashed
from freshscore.features.table import ABSENT, Coded, PaymentTable

if TYPE_CHECKING:
    from freshscore.features.packing import Packer

Words = NDArray[np.uint64]


def rows_of(table: PaymentTable, packer: Packer) -> Words:
    """The rows of `table`: uint64 (n, words of a row), row i for payment i."""
    n = len(table)
    program = packer.program
    rows = np.zeros((n, packer.row_bytes // 8), np.uint64)
    keys = packer.keys.row_keys
    is_old = _older(table, packer)
    rows[:, r.IDENTITY_LOW // 8 : r.TIME // 8] = hashes_of(table.transaction_id, keys, r.KEY_RECORD)
    rows[:, r.TIME // 8] = table.time_ms.view(np.uint64)
    rows[:, r.AMOUNT // 8] = table.amount_minor.view(np.uint64)
    bits = table.conditions.astype(np.uint64) << np.uint64(16)
    bits |= table.kind.astype(np.uint64) << np.uint64(8)
    bits |= table.flags.astype(np.uint64) | packer.cohorts_of(table)
    rows[:, r.BITS // 8] = bits
    rows[:, r.PLACE // 8] = _places(table)
    n_entities = len(program.entities)
    for e, layout in enumerate(program.entities):
        coded = joined(table, layout.parts)
        tokens, others = _tokens(coded, packer, e, is_old)
        inside = hashes_of(coded.values, keys, r.KEY_RECORD)[:, :1]
        at = r.TOKENS // 8 + 2 * e
        rows[:, at : at + 2] = tokens
        if others is not None:
            at = packer.others_at // 8 + 2 * e
            rows[:, at : at + 2] = others
        at = r.TOKENS // 8 + 2 * n_entities + e
        rows[:, at : at + 1] = _spread(inside, coded.codes)
    at = r.TOKENS // 8 + 3 * n_entities
    for column in packer.values_of(table):
        rows[:, at] = column.view(np.uint64)
        at += 1
    key = address_of(keys) + r.KEY_CONTENT
    _digest_contents(address_of(rows), n, packer.row_bytes, packer.content_bytes, key)
    return rows


def _older(table: PaymentTable, packer: Packer) -> NDArray[np.bool_] | None:
    """Which payments have tokens of the former key, as a column; None where there is none."""
    if packer.keys.former is None:
        return None
    older: NDArray[np.bool_] = table.time_ms < packer.keys.since_ms
    return older[:, None]


def _tokens(
    coded: Coded, packer: Packer, entity: int, is_old: NDArray[np.bool_] | None
) -> tuple[Words, Words | None]:
    """The token of each payment, and during a rotation the one under the other key."""
    keys, key_at = packer.keys, r.KEY_TOKENS + 16 * entity
    tokens = _spread(hashes_of(coded.values, keys.row_keys, key_at), coded.codes)
    if keys.former is None or is_old is None:
        return tokens, None
    former = _spread(hashes_of(coded.values, keys.former.row_keys, key_at), coded.codes)
    return np.where(is_old, former, tokens), np.where(is_old, tokens, former)


def joined(table: PaymentTable, parts: tuple[str, ...]) -> Coded:
    """The identifiers of an entity, several parts as one behind their lengths, absent if one is."""
    if len(parts) == 1:
        return table.entities[parts[0]]
    columns = [table.entities[part] for part in parts]
    codes = np.stack([column.codes for column in columns])
    present = (codes != ABSENT).all(axis=0)
    distinct, places = np.unique(codes[:, present], axis=1, return_inverse=True)
    texts = [column.values.to_pylist() for column in columns]
    values = [_framed([texts[k][code] for k, code in enumerate(one)]) for one in distinct.T]
    result = np.full(len(table), ABSENT, np.int32)
    result[present] = places.reshape(-1)
    return Coded(result, pa.array(values, pa.binary()))


def _framed(identifiers: list[str]) -> bytes:
    encoded = [identifier.encode() for identifier in identifiers]
    return b"".join(len(text).to_bytes(2, "little") + text for text in encoded)


def _spread(values: Words, codes: NDArray[np.int32]) -> Words:
    # The place after the last is for the absent: code -1 counts from the end.
    padded = np.concatenate([values, np.zeros((1, values.shape[1]), np.uint64)])
    return padded[codes]


def _places(table: PaymentTable) -> Words:
    absent = np.uint64(NO_PLACE + 2**64)
    if table.location is None or table.located is None:
        return np.full(len(table), absent)
    halves = table.location.astype(np.uint32).astype(np.uint64)
    return np.where(table.located, halves[:, 0] << np.uint64(32) | halves[:, 1], absent)


def hashes_of(texts: pa.Array, keys: Words, key_at: int) -> Words:
    """128-bit keyed hashes of the strings (or bytes) of an array without nulls: uint64 (n, 2)."""
    out = np.zeros((len(texts), 2), np.uint64)
    if len(texts) == 0:
        return out
    _, offsets, data = texts.buffers()
    _hash_all(
        offsets.address + 4 * texts.offset,
        data.address if data is not None else 0,
        len(texts),
        address_of(keys) + key_at,
        address_of(out),
    )
    return out


@kernel
def _hash_all(offsets: int, data: int, n: int, key: int, out: int) -> None:
    for i in range(n):
        start = i32(offsets + 4 * i)
        end = i32(offsets + 4 * i + 4)
        low, high = hashed(data + start, end - start, key)
        put_u64(out + 16 * i, low)
        put_u64(out + 16 * i + 8, high)


@kernel
def _digest_contents(rows: int, n: int, row_bytes: int, content_bytes: int, key: int) -> None:
    for row in range(rows, rows + n * row_bytes, row_bytes):
        digest_content(row, row + content_bytes, key)
