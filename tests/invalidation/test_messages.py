"""Messages: the kernel and the careful reader agree, and whatever comes is read or refused."""

from __future__ import annotations

import base64
import ctypes
import json
import mmap
import random
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshscore.config.secret import Secret
from freshscore.features import row as r
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import Program, compiled
from freshscore.features.specification import FeatureSpecification
from freshscore.features.transaction import Transaction
from freshscore.invalidation import messages as m
from freshscore.invalidation.batches import Batcher, Messages
from freshscore.invalidation.message_reading import MessageReader
from freshscore.invalidation.messages import (
    MessageRefused,
    encode_label,
    encode_transaction,
)
from tests.features import payment_forms
from tests.features.payment_strategies import payments
from tests.invalidation.message_forms import (
    DAY_MS,
    NOW_MS,
    SECRET,
    batcher_for,
    damaged,
    everything,
    messages,
    random_label,
    random_payment,
    written,
)

KEY_ID = SECRET.key_id
PAYMENT = {
    "transaction_id": "t-1",
    "time": NOW_MS,
    "amount_minor": 4_999,
    "currency": "EUR",
    "entities": {"card": "c-42", "m": "m-7"},
}


def program_named(name: str) -> Program:
    """A shipped one, or the one with everything."""
    return everything() if name == "messages" else compiled(FeatureSpecification.shipped(name))


def reader_for(program: Program, **readers: Any) -> MessageReader:
    """A careful reader."""
    return MessageReader(program, Keys(program, SECRET), **readers)


def careful(reader: MessageReader, value: bytes, *, is_label: bool) -> Any:
    """What the careful reader makes of a message: a row, a label, or the reason of a refusal."""
    try:
        return reader.label(value, NOW_MS) if is_label else reader.transaction(value)
    except MessageRefused as refused:
        return refused.reason


def kernel_rows(batcher: Batcher, values: list[bytes], *, is_label: bool) -> list[bytes | None]:
    """The rows that the kernel reads; None for what it leaves to the careful reader."""
    read: list[bytes | None] = []
    slow = batcher._read
    none = messages([])

    def noted(transactions: Any, labels: Any, said: Any) -> Any:
        for i in range(len(values)):
            is_read = batcher._statuses[i] == 1
            words = said[i].tobytes() if is_label else b""
            read.append(batcher._rows[i].tobytes() + words if is_read else None)
        return slow(transactions, labels, said)

    batcher._read = noted  # type: ignore[method-assign]  # to look between its two steps
    every = messages(values)
    batcher.build(none if is_label else every, every if is_label else none, NOW_MS)
    batcher._read = slow  # type: ignore[method-assign]
    return read


def random_messages(seed: int, n: int, *, is_label: bool, harmed: float) -> list[bytes]:
    """Messages as producers write them, and a share of them after something happened."""
    chance = random.Random(seed)
    values = []
    for i in range(n):
        payment = random_payment(chance, i)
        value = written(chance, random_label(chance, payment) if is_label else payment)
        for _ in range(chance.randrange(1, 3) if chance.random() < harmed else 0):
            value = damaged(chance, value) or b" "
        values.append(value)
    return values


@pytest.mark.parametrize("is_label", [False, True])
@pytest.mark.parametrize("name", ["messages", "payments", "handbook"])
@pytest.mark.parametrize("seed", range(4))
def test_what_the_kernel_reads_the_careful_reader_reads_alike(
    name: str, seed: int, is_label: bool
) -> None:
    """Bit for bit, of whole messages and of damaged ones; and it refuses nothing by itself."""
    program = program_named(name)
    reader, batcher = reader_for(program), batcher_for(program)
    values = random_messages(seed, 2_000, is_label=is_label, harmed=0.6)
    n_read = 0
    for value, row in zip(values, kernel_rows(batcher, values, is_label=is_label), strict=True):
        if row is None:
            continue
        n_read += 1
        other = careful(reader, value, is_label=is_label)
        if is_label and not isinstance(other, str):
            words = [other.given, other.values, other.known_ms, other.sender_ms]
            other = other.row + np.array(words, np.int64).tobytes()
        assert row == other, (seed, value)
    assert n_read > 300


@settings(max_examples=150, derandomize=True, deadline=None)
@given(payment=payments(), is_ascii=st.booleans())
def test_any_payment_has_the_row_that_the_packer_makes(
    payment: dict[str, Any], is_ascii: bool
) -> None:
    """Whatever its texts and numbers; by the kernel too, where it reads it."""
    hypothesis.assume("Infinity" not in json.dumps(payment))
    program = compiled(payment_forms.SPECIFICATION)
    value = json.dumps(payment, ensure_ascii=is_ascii).encode()
    row = Packer(program, Keys(program, SECRET)).row(Transaction(**payment))
    reader = reader_for(program)
    expected = row[: r.CONTENT_LOW] + bytes(16) + row[r.TOKENS : reader.row_bytes]
    assert reader.transaction(value) == expected
    (read,) = kernel_rows(batcher_for(program, max_message_bytes=8_000), [value], is_label=False)
    assert read in (None, expected)


def test_the_comparison_can_fail() -> None:
    """The canary: under another secret no row is the same."""
    program = everything()
    values = random_messages(1, 200, is_label=False, harmed=0.0)
    reader = MessageReader(program, Keys(program, Secret(b"\x08" * 32, "this test")))
    rows = kernel_rows(batcher_for(program), values, is_label=False)
    assert sum(row is not None for row in rows) > 100
    assert not [v for v, row in zip(values, rows, strict=True) if row == reader.transaction(v)]


def test_plain_messages_are_all_read_by_the_kernel() -> None:
    """In any order of names, with blanks, nulls, unread fields, places and foreign currencies."""
    program = everything()
    chance = random.Random(1)
    every = []
    for i in range(500):
        payment = random_payment(chance, i)
        if any(one in repr(payment) for one in ("é", "\\", "'w\"b'", "1e-07", "01234567890")):
            continue
        every.append(written(chance, payment))
    assert len(every) > 250
    batch = batcher_for(program).build(messages(every), messages([]), NOW_MS)
    assert batch.n_slow == 0
    assert batch.counts == {"applied": len(every)}


@pytest.mark.parametrize("seed", range(6))
def test_every_message_has_one_outcome(seed: int) -> None:
    """Of whole, damaged and missing messages; what is refused has a reason and no content."""
    program = everything()
    some = random_messages(seed, 1_500, is_label=False, harmed=0.7)
    labels = random_messages(seed + 100, 500, is_label=True, harmed=0.7)
    none: list[bytes | None] = [None]
    batch = batcher_for(program).build(messages([*some, *none]), messages([*labels, *none]), NOW_MS)
    assert sum(batch.counts.values()) == 2_002
    refused = [one for one in batch.refused if one.reason != m.CONFLICT]
    applied = sum(batch.counts.get(name, 0) for name in ("applied", "conflict", "looked up"))
    assert len(refused) + applied == 2_002
    assert {one.index for one in refused if one.is_label} >= {500}


def refusal(value: bytes, *, is_label: bool = False, **limits: Any) -> tuple[str, str]:
    """Reason and detail."""
    none, single = messages([]), messages([value])
    batcher = batcher_for(everything(), **limits)
    batch = batcher.build(none if is_label else single, single if is_label else none, NOW_MS)
    (one,) = batch.refused
    assert (one.index, one.is_label) == (0, is_label)
    return one.reason, one.detail


def changed(**changes: Any) -> bytes:
    """The payment above with other members; ... takes one away."""
    members = PAYMENT | changes
    return json.dumps({name: value for name, value in members.items() if value is not ...}).encode()


_RAW = json.dumps(PAYMENT).encode()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b"\xef\xbb\xbf" + _RAW,
        _RAW + b"}",
        _RAW[:-1],
        _RAW.replace(b"t-1", b"t-\xff"),
        _RAW.replace(b"t-1", b"t-\xed\xa0\x80"),
        _RAW.replace(b"t-1", b"t-\\ud800"),
        _RAW.replace(b"4999", b"NaN"),
        _RAW.replace(b"4999", b"4999.0"),
        _RAW.replace(b"4999", b"9" * 400),
        _RAW.replace(b"4999", b"9" * 1_500),
        _RAW.replace(b"4999", b'"4999"'),
        _RAW.replace(b"4999", b"true"),
        _RAW.replace(b'"t-1"', b"1"),
        _RAW[:-1] + b', "time": %d}' % NOW_MS,
        _RAW[:-1] + b', "\\u0074ime": %d}' % NOW_MS,
        _RAW.replace(b'{"card"', b'{"card": "c-42", "card"'),
        _RAW[:-1] + b', "fields": {"any": 1, "any": 1}}',
        _RAW[:-1] + b', "fields": {"any": %b}}' % (b"[" * 1_000),
        _RAW[:-1] + b', "fields": {"risk": 1e400}}',
        _RAW[:-1] + b', "unknown": 1}',
        _RAW[:-1] + b', "sent_at": 1}',
        changed(time=17),
        changed(time=-1),
        changed(time="2024-01-01"),
        changed(amount_minor=-1),
        changed(amount_minor=2**40 + 1),
        changed(currency="eur"),
        changed(currency="USD"),
        changed(kind="sale"),
        changed(kind="verification"),
        changed(kind=None),
        changed(entities={"card": ""}),
        changed(entities={"card": "c" * 257}),
        changed(entities={"card": 5}),
        changed(entities=None),
        changed(entities=...),
        changed(transaction_id=""),
        changed(location=[91, 0]),
        changed(location=[1]),
        changed(fields={"risk": "high"}),
        changed(fields={"mcc": 5411}),
        changed(fields=None),
        changed(flags={"unknown": True}),
        changed(flags={"fraud": 1}),
        changed(v=2),
        changed(v=True),
        changed(original_id=""),
    ],
)
def test_malformed(value: bytes) -> None:
    """Refused as malformed; the same where the kernel had no chance to see it."""
    assert refusal(value)[0] == m.MALFORMED
    assert refusal(b" " + value if value else b" ")[0] == m.MALFORMED


@pytest.mark.parametrize(
    "label",
    [
        {"transaction_id": "t-1", "flags": {}},
        {"transaction_id": "t-1", "flags": {"stolen": True}},
        {"transaction_id": "t-1", "flags": {"fraud": 1}},
        {"transaction_id": "t-1", "flags": {"fraud": True}, "time": NOW_MS},
        {"transaction_id": "t-1", "flags": {"fraud": True}, "entities": {"card": "c"}},
        {"transaction_id": "t-1", "flags": {"fraud": True}, "entities": {"x": "c"}, "time": NOW_MS},
        {"transaction_id": "t-1", "flags": {"fraud": True}, "sent_at": 5},
        {"transaction_id": "t-1", "flags": {"fraud": True}, "amount_minor": 5},
        {
            "transaction_id": "t-1",
            "flags": {"fraud": True},
            "entities": {"card": "c"},
            "time": NOW_MS,
            "sent_at": NOW_MS + 2**39,
        },
    ],
)
def test_malformed_labels(label: dict[str, Any]) -> None:
    """Refused as malformed."""
    assert refusal(json.dumps(label).encode(), is_label=True)[0] == m.MALFORMED


def test_no_detail_shows_content() -> None:
    """Whatever is wrong with it, no value of a message and no name that it brought."""
    secret = "4111111111111111"
    number = int(secret)
    changes: list[dict[str, Any]] = [
        {"currency": secret},
        {"kind": secret},
        {"v": number},
        {"ids": secret},
        {"time": number},
        {"amount_minor": number},
        {"amount_minor": secret},
        {"entities": {secret: 5}},
        {"entities": {secret: ""}},
        {"fields": {secret: []}},
        {"fields": {"risk": secret}},
        {"flags": {secret: 1}},
        {"flags": {secret: True}},
        {"location": [number, 0]},
        {secret: 1},
    ]
    details = {refusal(changed(**change))[1] for change in changes}
    assert len(details) > 8
    reader = reader_for(everything())
    for value in random_messages(3, 1_000, is_label=False, harmed=1.0):
        try:
            reader.transaction(value.replace(b"card-", secret.encode()))
        except MessageRefused as refused:
            details.add(refused.detail)
    assert not [detail for detail in details if secret in detail]


def test_oversized_messages_are_not_parsed() -> None:
    """Refused by their length alone."""
    value = changed(entities={"card": "c" * 200})
    reason, detail = refusal(value, max_message_bytes=256)
    assert reason == m.OVERSIZED
    assert detail == f"{len(value)} bytes; kafka.max_message_bytes is 256"


def test_late_and_early_are_told_by_arrival() -> None:
    """The border itself is accepted on both sides."""
    horizon, skew = 2 * DAY_MS, 60_000
    times = [NOW_MS - horizon - 1, NOW_MS - horizon, NOW_MS + skew, NOW_MS + skew + 1]
    values = [changed(time=time, transaction_id=f"t-{time}") for time in times]
    batch = batcher_for(everything()).build(messages(values), messages([]), NOW_MS)
    assert [(one.index, one.reason) for one in batch.refused] == [(0, m.LATE), (3, m.EARLY)]
    assert batch.counts == {"applied": 2, m.LATE: 1, m.EARLY: 1}


def conflicts(*values: bytes) -> list[int]:
    """Which of these are in conflict, each in a batch of its own and all in one."""
    one = batcher_for(everything()).build(messages([*values]), messages([]), NOW_MS)
    batcher = batcher_for(everything())
    found = []
    for i, value in enumerate(values):
        batch = batcher.build(messages([value]), messages([]), NOW_MS)
        found += [i] if batch.refused else []
        assert batch.n_records > 0
    assert found == [refused.index for refused in one.refused]
    return found


def test_conflicts_are_applied_and_reported() -> None:
    """Another entity, time or amount under one identity is; kind, flags and fields are not."""
    assert conflicts(_RAW, _RAW) == []
    assert conflicts(_RAW, changed(amount_minor=5), _RAW) == [1]
    assert conflicts(_RAW, changed(time=NOW_MS - 1)) == [1]
    assert conflicts(_RAW, changed(entities={"card": "c-43", "m": "m-7"})) == [1]
    assert conflicts(_RAW, changed(entities={"card": "c-42"})) == [1]
    assert conflicts(_RAW, changed(flags={"declined": True}, kind="refund")) == []


@pytest.mark.parametrize("name", ["messages", "payments"])
def test_hashed_messages_give_the_rows_of_raw_ones(name: str) -> None:
    """By the kernel and by the careful reader; and they hold no identifier."""
    program = program_named(name)
    keys = Keys(program, SECRET)
    packer, reader = Packer(program, keys), reader_for(program)
    chance = random.Random(9)
    hashed, rows = [], []
    for i in range(300):
        payment = random_payment(chance, i)
        for name_of in ("v", "ids", *(["location"] if name == "payments" else [])):
            payment.pop(name_of, None)
        transaction = Transaction(**payment)
        value = encode_transaction(program, KEY_ID, transaction, packer.row(transaction))
        assert not any(text.encode() in value for text in payment["entities"].values())
        assert f'"{payment["transaction_id"]}"'.encode() not in value
        raw = reader.transaction(json.dumps(payment).encode())
        assert reader.transaction(value) == raw
        hashed.append(value)
        rows.append(raw)
    read = kernel_rows(batcher_for(program), hashed, is_label=False)
    assert [one for one in read if one] == [row for row, one in zip(rows, read, strict=True) if one]
    assert sum(one is not None for one in read) > 150


def test_no_byte_behind_a_message_is_read() -> None:
    """Each message ends where a page of memory does, and the next page cannot be read."""
    page = mmap.PAGESIZE
    area = mmap.mmap(-1, 2 * page)
    begin = np.frombuffer(area, np.uint8).ctypes.data
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(begin + page), page, 0) == 0
    batcher = batcher_for(everything())
    n_read = 0
    for is_label in (False, True):
        for value in random_messages(11, 400, is_label=is_label, harmed=0.5):
            for n_bytes in {len(value), len(value) // 2, max(1, len(value) - 3)} - {page + 1}:
                cut = value[:n_bytes][-page:]
                address = begin + page - len(cut)
                ctypes.memmove(address, cut, len(cut))
                inputs = np.array([[address, len(cut), NOW_MS]], np.int64)
                none, one = messages([]), Messages(inputs, area)
                batch = batcher.build(none if is_label else one, one if is_label else none, NOW_MS)
                n_read += 1 - batch.n_slow
    assert libc.mprotect(ctypes.c_void_p(begin + page), page, 3) == 0
    assert n_read > 200


def test_degrees_of_any_length_are_rounded_as_python_rounds_them() -> None:
    """To units of 1e-7 degrees, in the kernel where it is sure."""
    chance = random.Random(4)
    values = []
    for i in range(3_000):
        place = [chance.uniform(-90, 90), chance.uniform(-180, 180)]
        digits = chance.choice((1, 6, 8, 10, 14, 15, 16))
        places = [repr(round(one, digits)) for one in place]
        if chance.random() < 0.2:
            # Ties, or just beside them.
            places[0] = f"{chance.randrange(-89, 89)}.{chance.randrange(10**7):07d}5"
            places[0] += chance.choice(("", "0000001", "000000000"))
        text = ",".join(places).encode()
        values.append(changed(transaction_id=f"t-{i}")[:-1] + b',"location":[' + text + b"]}")
    reader = reader_for(everything())
    rows = kernel_rows(batcher_for(everything()), values, is_label=False)
    read = [(row, value) for row, value in zip(rows, values, strict=True) if row is not None]
    assert len(read) > 2_500
    for row, value in read:
        assert row == reader.transaction(value), value


def test_hashed_labels_give_the_words_of_raw_ones() -> None:
    """With their payment, and without it."""
    program = everything()
    packer, reader = Packer(program, Keys(program, SECRET)), reader_for(program)
    row = packer.row(Transaction(**PAYMENT))  # type: ignore[arg-type]  # the names fit
    for looked_up in (False, True):
        raw = {"transaction_id": "t-1", "flags": {"fraud": True}, "sent_at": NOW_MS + 5}
        if not looked_up:
            raw |= {"entities": PAYMENT["entities"], "time": NOW_MS}
        value = encode_label(program, KEY_ID, row, {"fraud": True}, NOW_MS + 5, looked_up=looked_up)
        expected = reader.label(json.dumps(raw).encode(), NOW_MS)
        assert reader.label(value, NOW_MS) == expected
        assert expected.needs_lookup == looked_up
        assert b"c-42" not in value
        assert b'"t-1"' not in value


def test_another_key_is_refused() -> None:
    """Under its own reason; so are hashes that are none, as malformed."""
    program = everything()
    transaction = Transaction(**PAYMENT)  # type: ignore[arg-type]  # the names fit
    row = Packer(program, Keys(program, SECRET)).row(transaction)
    value = encode_transaction(program, KEY_ID, transaction, row)
    assert refusal(value.replace(KEY_ID.encode(), b"00000000"))[0] == m.WRONG_KEY
    assert refusal(_RAW[:-1] + b', "ids": "%b"}' % KEY_ID.encode())[0] == m.MALFORMED
    identity = base64.urlsafe_b64encode(row[:16]).rstrip(b"=")
    # The last character has four bits beyond the 16 bytes; only one spelling is canonical.
    other = identity[:-1] + bytes([identity[-1] + 1])
    assert refusal(value.replace(identity, other))[0] == m.MALFORMED
    assert refusal(value.replace(identity, identity[:-1]))[0] == m.MALFORMED
    zeros = json.loads(value)
    zeros["entities"]["card"] = "A" * 32
    assert refusal(json.dumps(zeros).encode())[0] == m.MALFORMED


def test_known_at_is_the_latest_instant_and_the_sender_stays() -> None:
    """A copy that arrives later is the same fact, known later."""
    reader = reader_for(everything())
    label = {"transaction_id": "t-1", "flags": {"fraud": True}}
    cases = [
        ({}, (NOW_MS, NOW_MS)),
        ({"sent_at": NOW_MS - 9}, (NOW_MS, NOW_MS - 9)),
        ({"sent_at": NOW_MS + 9}, (NOW_MS + 9, NOW_MS + 9)),
        ({"sent_at": NOW_MS - 9, "known_at": NOW_MS + 3}, (NOW_MS + 3, NOW_MS - 9)),
        ({"known_at": NOW_MS - 3}, (NOW_MS, NOW_MS - 3)),
    ]
    for more, expected in cases:
        read = reader.label(json.dumps(label | more).encode(), NOW_MS)
        assert (read.known_ms, read.sender_ms) == expected


def test_rows_of_slow_messages_have_no_digest_of_content() -> None:
    """As those of the kernel, so that both are compared bit for bit."""
    row = reader_for(everything()).transaction(_RAW)
    assert row[r.CONTENT_LOW : r.TOKENS] == bytes(16)
    assert len(row) == 8 * r.row_words(4, 0, 0)
