"""Batches: what a plain server would hold after their commands is what the memory store holds."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from freshscore.features import codec
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import Program
from freshscore.features.redis_keys import RedisKeys, slot_of
from freshscore.features.redis_labels import LabelIndex
from freshscore.features.state_layout import state_layout
from freshscore.features.store import MemoryStore
from freshscore.features.transaction import Transaction
from freshscore.invalidation.batches import Batch, Batcher, Found, Messages
from freshscore.invalidation.message_reading import MessageReader
from freshscore.invalidation.messages import encode_transaction
from freshscore.invalidation.stream_messages import decode, encode
from tests.features.stored_states import LIMITS, held, without_checks
from tests.invalidation.message_forms import (
    DAY_MS,
    NOW_MS,
    SECRET,
    batcher_for,
    everything,
    messages,
    random_label,
    random_payment,
    written,
)
from tests.invalidation.test_messages import KEY_ID, PAYMENT, changed, program_named

NONE = messages([])
_INDEX_DAYS = 120
# A state's tag has 22 characters.
_OF_INDEX = re.compile(rb"test:\{i[0-9]{1,4}\}:")


def parsed(stream: bytes) -> Iterator[list[bytes]]:
    """The commands in a stream, by a plain reader of RESP."""
    at = 0

    def line() -> bytes:
        nonlocal at
        end = stream.index(b"\r\n", at)
        found, at = stream[at:end], end + 2
        return found

    while at < len(stream):
        n = line()
        assert n[:1] == b"*"
        command = []
        for _ in range(int(n[1:])):
            size = line()
            assert size[:1] == b"$"
            length = int(size[1:])
            command.append(stream[at : at + length])
            assert stream[at + length : at + length + 2] == b"\r\n"
            at += length + 2
        yield command


class PlainServer:
    """A server's strings and lives in a dict each, which knows APPEND and EXPIRE."""

    def __init__(self) -> None:
        self.strings: dict[bytes, bytes] = {}
        self.lives: dict[bytes, bytes] = {}
        self.n_expires = 0

    def answer(self, request: memoryview | None) -> list[Any]:
        """Its replies to a request."""
        replies: list[Any] = []
        for verb, key, value in parsed(b"" if request is None else bytes(request)):
            if verb == b"APPEND":
                self.strings[key] = self.strings.get(key, b"") + value
                replies.append(len(self.strings[key]))
            else:
                assert verb == b"EXPIRE"
                self.lives[key] = value
                self.n_expires += 1
                replies.append(1)
        return replies


def nodes_of(n: int, seed: int = 0) -> NDArray[np.uint16]:
    """Slots spread over `n` nodes, all of which have some."""
    nodes = np.random.default_rng(seed).integers(0, n, 16_384).astype(np.uint16)
    nodes[:n] = range(n)
    return nodes


def sent(batch: Batch, servers: list[PlainServer]) -> list[list[Any]]:
    """The replies of each node, as many as the batch says."""
    replies = [one.answer(request) for one, request in zip(servers, batch.requests, strict=True)]
    assert [len(some) for some in replies] == batch.n_replies
    return replies


class Twin:
    """The same events and facts in a memory store, one at a time, from the raw payments."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.keys = Keys(program, SECRET)
        self.packer = Packer(program, self.keys)
        self.reader = MessageReader(program, self.keys)
        self.store = MemoryStore(program, self.keys, LIMITS)
        self.rows: list[bytes] = []

    def observe(self, payment: dict[str, Any]) -> None:
        """Apply an event."""
        names = {name: value for name, value in payment.items() if name not in ("v", "ids")}
        row = self.packer.row(Transaction(**names))
        self.rows.append(row)
        self.store.observe(row)

    def label(self, label: dict[str, Any], payment: dict[str, Any]) -> None:
        """Apply the facts of a label."""
        full = label | {"entities": payment["entities"], "time": payment["time"]}
        read = self.reader.label(json.dumps(full).encode(), NOW_MS)
        for fact in range(len(self.program.specification.facts)):
            if read.given >> fact & 1:
                value = bool(read.values >> fact & 1)
                self.store.label(read.row, fact, value, read.known_ms, read.sender_ms, False)

    def tokens(self, entity: int) -> set[bytes]:
        """The tokens of all payments."""
        at = 64 + 16 * entity
        return {row[at : at + 16] for row in self.rows} - {bytes(16)}


def assert_same(twin: Twin, servers: list[PlainServer], nodes: NDArray[np.uint16]) -> None:
    """Each state is on its node, decodes to the memory store's records and version, and lives."""
    names = RedisKeys("test")
    expected = set()
    for e in range(len(twin.program.entities)):
        layout = state_layout(twin.program, twin.keys, e)
        for token in twin.tokens(e):
            key = names.state(token, layout.fingerprint)
            node = nodes[slot_of(key[key.index(b"{") + 1 : key.index(b"}")])]
            expected.add((int(node), key))
            state = codec.decode(servers[node].strings[key], layout)
            records, version = held(twin.store, e, token)
            assert np.array_equal(without_checks(state.records.words.view(np.uint64)), records)
            assert state.version == version
            assert servers[node].lives[key] == b"1000000"
    found = {
        (node, key)
        for node, server in enumerate(servers)
        for key in server.strings
        if not _OF_INDEX.match(key)
    }
    assert found == expected


def in_parts(chance: random.Random, items: list[Any]) -> Iterator[list[Any]]:
    """The items in parts of random lengths, some of them empty."""
    while items:
        n = chance.choice((0, 1, 3, 20, 80))
        yield items[:n]
        items = items[n:]


@pytest.mark.parametrize("n_nodes", [1, 3])
@pytest.mark.parametrize("name", ["messages", "payments", "handbook"])
@pytest.mark.parametrize("seed", range(3))
def test_states_are_those_of_the_memory_store(name: str, seed: int, n_nodes: int) -> None:
    """Law 3: whatever the order, repetitions, batches; with conflicts, labels, absent entities."""
    program = program_named(name)
    chance = random.Random(seed)
    nodes, servers = nodes_of(n_nodes, seed), [PlainServer() for _ in range(n_nodes)]
    twin, batcher = Twin(program), batcher_for(program, nodes)
    facts = program.specification.facts
    payments = [random_payment(chance, i) for i in range(300)]
    contents = payments + [
        payment | {"amount_minor": 77, "base_amount_minor": 77}
        for payment in payments[::9]
        if payment.get("kind") != "verification"
    ]
    labels: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for payment in (one for one in contents[::2] if one["entities"]):
        label = random_label(chance, payment)
        label |= {"entities": payment["entities"], "time": payment["time"]}
        label["flags"] = {fact: flag for fact, flag in label["flags"].items() if fact in facts}
        if label["flags"] and {*payment["entities"]} & _parts(program):
            labels.append((label, payment))
    for one in contents:
        one["flags"] = {fact: flag for fact, flag in one.get("flags", {}).items() if fact in facts}
        one["fields"] = {"risk": 1, "channel": chance.choice(("web", "é"))}
    for content in contents:
        twin.observe(content)
    for label, payment in labels:
        twin.label(label, payment)
    events = [*contents, *contents[::4]]
    chance.shuffle(events)
    facts_left = [label for label, _ in labels] + [label for label, _ in labels[::4]]
    n_applied = 0
    for part in in_parts(chance, events):
        some, facts_left = facts_left[: len(part)], facts_left[len(part) :]
        values = messages([written(chance, one) for one in part])
        given = messages([written(chance, one) for one in some])
        batch = batcher.build(values, given, NOW_MS)
        n_applied += batch.counts.get("applied", 0) + batch.counts.get("conflict", 0)
        assert sum(batch.counts.values()) == len(part) + len(some)
        sent(batch, servers)
    assert n_applied == len(events) + len(labels) + len(labels[::4])
    assert_same(twin, servers, nodes)


def _parts(program: Program) -> set[str]:
    return {part for layout in program.entities for part in layout.parts}


@pytest.mark.parametrize("hashed", [False, True])
def test_labels_find_their_payment_in_the_index(hashed: bool) -> None:
    """What batches append to it is what the index reads, and the facts come to the same states."""
    program = everything()
    twin, batcher, server = (
        Twin(program),
        batcher_for(program, index_days=_INDEX_DAYS),
        PlainServer(),
    )
    chance = random.Random(3)
    payments = [random_payment(chance, i) for i in range(60)]
    payments = [one for one in payments if {*one["entities"]} & {"card", "m", "shop"}]
    values = [json.dumps(one).encode() for one in payments]
    for payment in payments:
        twin.observe(payment)
    if hashed:
        values = [_hashed(twin, payment) for payment in payments]
    sent(batcher.build(messages(values), NONE, NOW_MS), [server])
    labels = [
        {"transaction_id": payment["transaction_id"], "flags": {"fraud": True}, "sent_at": NOW_MS}
        for payment in payments
    ]
    for label, payment in zip(labels, payments, strict=True):
        twin.label(label, payment)
    batch = batcher.build(NONE, messages([json.dumps(one).encode() for one in labels]), NOW_MS)
    assert batch.counts == {"looked up": len(labels)}
    assert batch.requests == [None]
    index = LabelIndex(RedisKeys("test"), program, _INDEX_DAYS)
    found = []
    for lookup in batch.lookups:
        keys = index.keys_of(lookup.label.row, NOW_MS)
        known = index.found(lookup.identity, [server.strings.get(key) for key in keys])
        assert known is not None
        tokens = b"".join(token or bytes(16) for token in known.tokens)
        found.append(Found(lookup, known.time_ms, tokens))
    sent(batcher.build(NONE, NONE, NOW_MS, found), [server])
    assert_same(twin, [server], np.zeros(16_384, np.uint16))
    lives = {server.lives[key] for key in server.strings if _OF_INDEX.match(key)}
    assert lives == {b"%d" % index.ttl_s}


def _hashed(twin: Twin, payment: dict[str, Any]) -> bytes:
    names = {name: value for name, value in payment.items() if name not in ("v", "ids")}
    transaction = Transaction(**names)
    return encode_transaction(twin.program, KEY_ID, transaction, twin.packer.row(transaction))


def test_a_label_too_far_from_its_payment_is_told() -> None:
    """It was looked up, and there is no place for the distance in a record."""
    batcher = batcher_for(everything())
    label = json.dumps({"transaction_id": "t-1", "flags": {"fraud": True}, "sent_at": NOW_MS})
    (lookup,) = batcher.build(NONE, messages([label.encode()]), NOW_MS).lookups
    found = [Found(lookup, NOW_MS - 2**39, bytes(64)), Found(lookup, NOW_MS, b"\x01" * 64)]
    batch = batcher.build(NONE, NONE, NOW_MS, found)
    assert batch.far == found[:1]
    assert batch.n_records == 4


def build_one(batcher: Batcher, now_ms: int = NOW_MS, **changes: Any) -> Batch:
    """A batch of one payment."""
    return batcher.build(messages([changed(**changes)]), NONE, now_ms)


def test_lives_are_extended_once_in_half_a_day() -> None:
    """Of each key; and again after a write was lost."""
    batcher, server = batcher_for(everything()), PlainServer()
    midnight_ms = NOW_MS // DAY_MS * DAY_MS
    for now_ms, n_more in (
        (midnight_ms, 2),
        (midnight_ms + 1, 0),
        (midnight_ms + DAY_MS // 2 - 1, 0),
        (midnight_ms + DAY_MS // 2, 2),
        (midnight_ms + DAY_MS, 2),
    ):
        before = server.n_expires
        sent(build_one(batcher, now_ms), [server])
        assert server.n_expires == before + n_more
    batcher.forget_expiries()
    before = server.n_expires
    sent(build_one(batcher, midnight_ms + DAY_MS), [server])
    assert server.n_expires == before + 2


def test_candidates_are_the_states_that_doubled() -> None:
    """By the replies alone: those whose length crossed a power of two times the least size.

    A grid's: any multiple of it.
    """
    batcher = batcher_for(everything(), compact_records=4)
    server = PlainServer()
    twin = Twin(everything())
    chance = random.Random(8)
    names = RedisKeys("test")
    n_found = 0
    for i in range(80):
        payments = [
            PAYMENT | {"transaction_id": f"t-{i}-{j}", "entities": {"card": f"c{j % 3}", "m": "m"}}
            for j in range(chance.randrange(1, 6))
        ]
        for payment in payments:
            twin.observe(payment)
        batch = batcher.build(
            messages([json.dumps(one).encode() for one in payments]), NONE, NOW_MS
        )
        before = {key: len(value) for key, value in server.strings.items()}
        (replies,) = sent(batch, [server])
        doubled = set()
        for e, layout in enumerate(state_layout(twin.program, twin.keys, e) for e in range(4)):
            for token in twin.tokens(e):
                key = names.state(token, layout.fingerprint)
                limit = 4 * layout.width
                while limit <= len(server.strings[key]):
                    if before.get(key, 0) < limit:
                        doubled.add((e, token))
                    limit += 4 * layout.width if layout.is_grid else limit
        candidates = batch.compaction_candidates(0, replies)
        assert len(candidates) == len(set(candidates))
        assert set(candidates) == doubled
        n_found += len(doubled)
        assert batch.compaction_candidates(0, [ValueError("MOVED")] * len(replies)) == []
    assert n_found > 10


def test_a_batch_can_be_routed_again() -> None:
    """The same commands, on the nodes where their keys are by then."""
    program = everything()
    batcher = batcher_for(program, nodes_of(3), index_days=_INDEX_DAYS)
    chance = random.Random(2)
    values = [json.dumps(random_payment(chance, i)).encode() for i in range(200)]
    batch = batcher.build(messages(values), NONE, NOW_MS)

    def commands() -> list[list[bytes]]:
        return [
            command
            for request in batch.requests
            for command in parsed(b"" if request is None else bytes(request))
        ]

    first, n_replies = sorted(commands()), sum(batch.n_replies)
    for n_nodes in (1, 5):
        nodes = nodes_of(n_nodes, 9)
        batch.route(nodes)
        assert sorted(commands()) == first
        assert sum(batch.n_replies) == n_replies
        for node, request in enumerate(batch.requests):
            for _, key, _ in parsed(b"" if request is None else bytes(request)):
                assert nodes[slot_of(key[key.index(b"{") + 1 : key.index(b"}")])] == node


def test_commands_are_added_behind_a_batch() -> None:
    """With one reply each, also where a node has no other."""
    batcher = batcher_for(everything(), nodes_of(2))
    batch = build_one(batcher)
    before = [b"" if request is None else bytes(request) for request in batch.requests]
    more = b"*3\r\n$6\r\nAPPEND\r\n$1\r\nk\r\n$%d\r\n%b\r\n" % (5_000, b"v" * 5_000)
    replies = [*batch.n_replies]
    for node in range(2):
        batch.add_command(node, more)
        batch.add_command(node, more)
    after = [bytes(request or b"") for request in batch.requests]
    assert after == [one + 2 * more for one in before]
    assert batch.n_replies == [n + 2 for n in replies]


def test_a_batch_is_whole_while_the_next_is_made() -> None:
    """Its replies are read after that: requests, body and candidates do not change."""
    batcher = batcher_for(everything())
    chance = random.Random(6)
    kept: tuple[Batch, list[bytes], bytes] | None = None
    for n in (3, 200, 2, 400, 1, 0, 50):
        values = [json.dumps(random_payment(chance, i)).encode() for i in range(n)]
        batch = batcher.build(messages(values), NONE, NOW_MS)
        if kept is not None:
            older, requests, body = kept
            assert [bytes(request or b"") for request in older.requests] == requests
            assert bytes(older.body) == body
        kept = batch, [bytes(request or b"") for request in batch.requests], bytes(batch.body)
        assert batch.counts.get("applied", 0) + batch.counts.get("conflict", 0) == n


def test_no_identifier_is_in_what_goes_out() -> None:
    """Raw ones of payments and labels, taken and refused, in any buffer, message or detail."""
    program = everything()
    batcher = batcher_for(program, nodes_of(2), index_days=_INDEX_DAYS)
    secrets = [f"4111-2222-3333-{i:04d}" for i in range(100)]
    chance = random.Random(7)
    values, labels = [], []
    for i, secret in enumerate(secrets):
        payment = random_payment(chance, i) | {"transaction_id": f"tx-{secret}"}
        payment["entities"] = {"card": secret, "m": f"é{secret}", "shop": secret}
        if i % 5 == 0:
            payment["time"] = 1
        if i % 2:
            payment["entities"]["m"] = secret
        values.append(json.dumps(payment).encode())
        label = {"transaction_id": f"tx-{secret}", "flags": {"fraud": True}, "sent_at": NOW_MS}
        if i % 3:
            label |= {"entities": payment["entities"], "time": payment["time"]}
        labels.append(json.dumps(label).encode())
    batch = batcher.build(messages(values), messages(labels), NOW_MS)
    assert batch.n_slow < 200
    layouts = [state_layout(program, Keys(program, SECRET), e) for e in range(4)]
    message = encode(layouts, bytes(8), 0, NOW_MS, [], batch.n_groups, batch.body)
    shown = [bytes(request or b"") for request in batch.requests]
    shown += [message, repr(batch.refused).encode(), repr(batch.counts).encode()]
    assert batch.refused
    for secret in secrets:
        assert not [one for one in shown if secret.encode() in one]


def test_the_stream_carries_what_redis_is_sent() -> None:
    """The groups of a batch's message hold the bytes that were appended to those states."""
    program = everything()
    batcher, server = batcher_for(program, index_days=_INDEX_DAYS), PlainServer()
    chance = random.Random(1)
    values = [json.dumps(random_payment(chance, i)).encode() for i in range(100)]
    batch = batcher.build(messages(values), NONE, NOW_MS)
    sent(batch, [server])
    layouts = [state_layout(program, Keys(program, SECRET), e) for e in range(4)]
    message = decode(encode(layouts, bytes(8), 0, NOW_MS, [], batch.n_groups, batch.body), layouts)
    names = RedisKeys("test")
    found = {}
    for i, (entity, _, _, n, at) in enumerate(message.groups.tolist()):
        key = names.state(message.token(i), layouts[entity].fingerprint)
        found[key] = message.data[at : at + n * layouts[entity].width]
    assert found == {k: v for k, v in server.strings.items() if not _OF_INDEX.match(k)}
    assert sum(message.groups[:, 3]) == batch.n_records


def test_messages_are_read_where_they_lie() -> None:
    """In one stretch of bytes, beside others, as a record batch holds them."""
    program = everything()
    chance = random.Random(5)
    values = [json.dumps(random_payment(chance, i)).encode() for i in range(50)]
    joined = np.frombuffer(b"".join(values), np.uint8)
    inputs = np.zeros((50, 3), np.int64)
    inputs[:, 1] = [len(value) for value in values]
    inputs[:, 0] = joined.ctypes.data + np.cumsum(inputs[:, 1]) - inputs[:, 1]
    inputs[:, 2] = NOW_MS
    in_place = batcher_for(program).build(Messages(inputs, joined), NONE, NOW_MS)
    apart = batcher_for(program).build(messages(values), NONE, NOW_MS)
    assert bytes(in_place.body) == bytes(apart.body)
    assert in_place.counts == apart.counts


def test_a_batch_has_a_limit() -> None:
    """More messages than it are a mistake of the caller's, and said so."""
    batcher = batcher_for(everything())
    n = batcher.limits.max_messages + 1
    inputs = np.zeros((n, 3), np.int64)
    with pytest.raises(ValueError, match=r"a batch of 100001 messages; the limit is 100000"):
        batcher.build(Messages(inputs, None), NONE, NOW_MS)
