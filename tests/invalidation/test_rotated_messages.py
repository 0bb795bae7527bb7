"""During a rotation both readers of messages take both keys, and hash by the payment's own time."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from freshscore.features.memory import BYTES_AT
from freshscore.features.packing import Keys, Packer
from freshscore.features.row import CONTENT_LOW, TOKENS
from freshscore.features.transaction import Transaction
from freshscore.invalidation.message_reading import MessageReader
from freshscore.invalidation.message_rows import read_transaction
from freshscore.invalidation.message_tables import MessageTables
from freshscore.invalidation.messages import (
    WRONG_KEY,
    MessageRefused,
    encode_label,
    encode_transaction,
)
from tests.invalidation.message_forms import HORIZON_MS, NOW_MS, SECRET, everything, random_payment

PROGRAM = everything()
SUCCESSOR = SECRET.successor(NOW_MS - HORIZON_MS // 2)
KEYS = Keys(PROGRAM, SUCCESSOR)
READER = MessageReader(PROGRAM, KEYS)
N_BYTES = READER.row_bytes


def by_kernel(tables: MessageTables, value: bytes) -> bytes | None:
    """The row that the fast reader makes; None where it leaves the message."""
    row = bytes(bytearray(N_BYTES))
    held = id(value) + BYTES_AT
    return row if read_transaction(tables.address, held, len(value), id(row) + BYTES_AT) else None


def without_content(row: bytes) -> bytes:
    return row[:CONTENT_LOW] + bytes(16) + row[TOKENS:N_BYTES]


def test_raw_and_hashed_messages_give_the_row_of_the_payment(seed: int) -> None:
    """Whichever way they are read, and whichever key they were hashed under."""
    chance = random.Random(seed)
    tables = MessageTables(PROGRAM, KEYS, 4_000)
    packer = Packer(PROGRAM, KEYS)
    n_fast, n_old = 0, 0
    for number in range(300):
        payment = random_payment(chance, number)
        names = {name: held for name, held in payment.items() if name not in ("v", "ids")}
        transaction = Transaction(**names)
        row = packer.row(transaction)
        key_id = KEYS.key_id_at(transaction.time)
        n_old += key_id == SECRET.key_id
        single = Keys(PROGRAM, replace(SUCCESSOR, former=None))
        if key_id == SECRET.key_id:
            single = Keys(PROGRAM, SECRET)
        # The tokens are those of one secret, as if there were no other.
        alone = Packer(PROGRAM, single).row(Transaction(**names))
        assert row[:N_BYTES] == alone[:N_BYTES]
        raw = json.dumps(payment).encode()
        hashed = encode_transaction(PROGRAM, key_id, transaction, row)
        for value in (raw, hashed):
            assert without_content(READER.transaction(value)) == without_content(row)
            fast = by_kernel(tables, value)
            n_fast += fast is not None
            assert fast is None or without_content(fast) == without_content(row)
    assert n_fast > 300
    assert 50 < n_old < 250


def test_a_key_that_does_not_hold_at_a_payments_time_is_refused(seed: int) -> None:
    """In the wrong state of two, among sums, it could count twice."""
    chance = random.Random(seed)
    tables = MessageTables(PROGRAM, KEYS, 4_000)
    both = (KEYS.key_id, SECRET.key_id)
    packer = Packer(PROGRAM, KEYS)
    for number in range(60):
        payment = random_payment(chance, number)
        names = {name: held for name, held in payment.items() if name not in ("v", "ids")}
        transaction = Transaction(**names)
        wrong = both[KEYS.key_id_at(transaction.time) == KEYS.key_id]
        row = packer.row(transaction)
        value = encode_transaction(PROGRAM, wrong, transaction, row)
        assert by_kernel(tables, value) is None
        label = encode_label(PROGRAM, wrong, row, {"fraud": True}, transaction.time)
        with pytest.raises(MessageRefused, match="at its time") as caught:
            READER.transaction(value)
        assert caught.value.reason == WRONG_KEY
        with pytest.raises(MessageRefused, match="at its time"):
            READER.label(label, NOW_MS)
        # A label that is looked up names no entity.
        looked_up = encode_label(PROGRAM, wrong, row, {"fraud": True}, NOW_MS, looked_up=True)
        assert READER.label(looked_up, NOW_MS).needs_lookup


def test_hashes_of_one_key_are_not_scored_while_two_count() -> None:
    """A shadow would miss what its entities have under the other one."""
    transaction = Transaction("t", NOW_MS, 1, "EUR", {"card": "c"})
    packer = Packer(PROGRAM, KEYS)
    hashed = encode_transaction(PROGRAM, KEYS.key_id, transaction, packer.row(transaction))
    with pytest.raises(MessageRefused, match="is being rotated") as caught:
        READER.payment(hashed, packer)
    assert caught.value.reason == WRONG_KEY
    raw = json.dumps(
        {
            "transaction_id": "t",
            "time": NOW_MS,
            "amount_minor": 1,
            "currency": "EUR",
            "entities": {"card": "c"},
        }
    ).encode()
    assert READER.payment(raw, packer).packed == (packer, packer.row(transaction))
    alone = Packer(PROGRAM, Keys(PROGRAM, SECRET))
    of_one = MessageReader(PROGRAM, alone.keys)
    sent = encode_transaction(PROGRAM, SECRET.key_id, transaction, alone.row(transaction))
    found = of_one.payment(sent, alone).packed
    assert found is not None
    assert found[1] == alone.row(Transaction("t", NOW_MS, 1, "EUR", {"card": "c"}))


def test_a_third_key_is_refused() -> None:
    """A canary of the table of keys too: what is hashed under none of both is never taken."""
    transaction = Transaction("t", NOW_MS, 1, "EUR", {"card": "c"})
    row = Packer(PROGRAM, KEYS).row(transaction)
    value = encode_transaction(PROGRAM, "00000000", transaction, row)
    assert by_kernel(MessageTables(PROGRAM, KEYS, 4_000), value) is None
    with pytest.raises(MessageRefused, match=f"{KEYS.key_id} and {SECRET.key_id}") as caught:
        READER.transaction(value)
    assert caught.value.reason == WRONG_KEY
