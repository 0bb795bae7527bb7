"""The simulated Redis answers and holds what a real one does, scripts included."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from freshscore.config.settings import RedisSettings
from freshscore.features.redis_door import Nodes, command
from freshscore.features.redis_keys import slot_of
from freshscore.features.redis_lines import Lines, ReplyError
from freshscore.features.redis_scripts import BEGIN, DROP, KEEP, PROGRESS, SWAP
from freshscore.invalidation import node_markers
from freshscore.invalidation.following import _HAS_ENTRY
from freshscore.simulations.clock import VirtualClock
from freshscore.simulations.simulated_redis import SimulatedNode, encoded, parsed
from freshscore.simulations.simulated_scripts import digest_of
from freshscore.simulations.simulated_servers import Servers
from tests.servers.redis_servers import RedisServer

_TOPICS = (b"one", b"two", b"gone")
_EPOCHS = tuple(b"%016x" % n for n in range(3))


class _Calls:
    """Random calls on a few keys, so that they meet."""

    def __init__(self, chance: random.Random, prefix: bytes) -> None:
        self.chance = chance
        self.prefix = prefix
        self.states: dict[bytes, bytes] = {}
        self.kinds: list[Callable[[], tuple[bytes, ...]]] = [
            *[self.progress] * 6,
            *[self.swap] * 6,
            *[self.append] * 4,
            *[self.keep] * 2,
            self.let_go,
            self.begin,
            *[self.note] * 4,
            self.give_up,
            self.field,
            self.drop,
            self.string,
            self.hashes,
            self.sets,
            self.lists,
        ]

    def next(self) -> tuple[bytes, ...]:
        return self.chance.choice(self.kinds)()

    def key(self, kind: bytes) -> bytes:
        return b"%b:{t}:%b:%d" % (self.prefix, kind, self.chance.randrange(2))

    def pair(self) -> tuple[bytes, bytes]:
        markers = self.key(b"markers")
        return markers, markers.replace(b"markers", b"progress")

    def number(self) -> bytes:
        return b"%d" % self.chance.choice((0, 7, 40, 1_700_000_000_123, 2**52))

    def progress(self) -> tuple[bytes, ...]:
        chance = self.chance
        triples = []
        for _ in range(chance.randrange(4)):
            field = b"m:%b:%d" % (chance.choice(_TOPICS), chance.randrange(12))
            triples += [field, self.number(), self.number()]
        head = (b"%d" % chance.randrange(4), b",".join(_TOPICS[:2]))
        return (b"EVALSHA", PROGRESS.digest, b"2", *self.pair(), *head, *triples)

    def begin(self) -> tuple[bytes, ...]:
        given = (self.chance.choice(_EPOCHS), b"key", self.number(), b"2", b",".join(_TOPICS[:2]))
        return (b"EVALSHA", BEGIN.digest, b"2", *self.pair(), *given)

    def append(self) -> tuple[bytes, ...]:
        return b"APPEND", self.key(b"state"), self.chance.randbytes(self.chance.randrange(1, 40))

    def swap(self) -> tuple[bytes, ...]:
        chance, state = self.chance, self.key(b"state")
        prefix = self.states.get(state, b"")[: chance.randrange(60)]
        digest = hashlib.sha1(prefix).hexdigest().encode()
        if chance.random() < 0.2:
            digest = hashlib.sha1(b"another").hexdigest().encode()
        given = (b"%d" % len(prefix), digest, chance.randbytes(8), b"1000")
        if chance.random() < 0.5:
            return (b"EVALSHA", SWAP.digest, b"1", state, *given)
        last = (b"%d" % chance.choice((9, 18)),)
        return (b"EVALSHA", SWAP.digest, b"2", state, state + b":p0", *given, *last)

    def keep(self) -> tuple[bytes, ...]:
        keys, beginning = self.buckets()
        given = (beginning, b"1000", b"60", *(self.chance.randbytes(9) for _ in keys[1:]))
        return (b"EVALSHA", KEEP.digest, b"%d" % len(keys), *keys, *given)

    def let_go(self) -> tuple[bytes, ...]:
        keys, beginning = self.buckets()
        return (b"EVALSHA", DROP.digest, b"%d" % len(keys), *keys, beginning)

    def buckets(self) -> tuple[list[bytes], bytes]:
        """The keys of a state and of some of its buckets; how it begins, or does not."""
        chance, state = self.chance, self.key(b"state")
        beginning = self.states.get(state, b"")[: chance.randrange(1, 60)] or b"none"
        if chance.random() < 0.2:
            beginning = b"another"
        return [state, *(state + b":p%d" % n for n in range(chance.randint(1, 3)))], beginning

    def note(self) -> tuple[bytes, ...]:
        chance, pairs = self.chance, []
        for _ in range(chance.randrange(4)):
            name = b"%b:%d" % (chance.choice(_TOPICS), chance.randrange(3))
            if chance.random() < 0.5:
                pairs += [b"b:" + name, self.number()]
            else:
                kind = chance.choice((b"whole", b"cut", b"empty"))
                pairs += [b"r:" + name, kind + b" " + self.number()]
        counted = (b"%d" % chance.randrange(1, 3), b",".join(_TOPICS[:2]))
        head = (chance.choice(_EPOCHS), b"key", *counted, self.number(), b"2000")
        script = node_markers._NOTE.encode()
        return (b"EVAL", script, b"1", self.pair()[0], *head, *pairs)

    def give_up(self) -> tuple[bytes, ...]:
        script = node_markers._GIVE_UP.encode()
        names = (self.chance.choice((*_EPOCHS, b"")), self.chance.choice(_EPOCHS))
        return (b"EVAL", script, b"2", *self.pair(), *names)

    def field(self) -> tuple[bytes, ...]:
        return b"HSETNX", self.pair()[0], b"rebuilding", self.chance.choice(_EPOCHS)

    def drop(self) -> tuple[bytes, ...]:
        return self.chance.choice((b"DEL", b"UNLINK")), *self.pair()[: self.chance.randint(1, 2)]

    def string(self) -> tuple[bytes, ...]:
        key = self.key(b"string")
        return self.chance.choice(
            [
                (b"SET", key, self.chance.randbytes(3)),
                (b"SET", key, b"x", b"NX"),
                (b"SET", key, b"y", b"EX", b"1000"),
                (b"GET", key),
                (b"MGET", key, self.key(b"string"), b"never"),
                (b"STRLEN", key),
                (b"APPEND", key, b"z"),
                (b"EXPIRE", key, b"1000"),
                (b"DEL", key),
            ]
        )

    def hashes(self) -> tuple[bytes, ...]:
        key = self.pair()[0]
        return self.chance.choice(
            [
                (b"HGET", key, b"epoch"),
                (b"HMGET", key, b"epoch", b"rebuilding", b"m:one:1"),
                (b"HGETALL", key),
                (b"HEXISTS", key, b"epoch"),
                (b"HDEL", key, b"m:one:1", b"m:two:2"),
            ]
        )

    def sets(self) -> tuple[bytes, ...]:
        key, some = self.key(b"set"), [b"a", b"b", b"c"][: self.chance.randint(1, 3)]
        word = self.chance.choice((b"SADD", b"SREM"))
        return (word, key, *some) if self.chance.random() < 0.7 else (b"SMEMBERS", key)

    def lists(self) -> tuple[bytes, ...]:
        key = self.key(b"list")
        return self.chance.choice(
            [
                (b"LPUSH", key, b"%d" % self.chance.randrange(9)),
                (b"LTRIM", key, b"0", b"2"),
                (b"LRANGE", key, b"0", b"-1"),
                (b"LRANGE", key, b"1", b"5"),
            ]
        )


def _comparable(reply: Any, parts: tuple[bytes, ...]) -> Any:
    """Errors by their kind; what has no order sorted."""
    if isinstance(reply, ReplyError):
        return reply.word
    if parts[0] == b"HGETALL":
        return sorted(zip(reply[::2], reply[1::2], strict=True))
    return sorted(reply) if parts[0] == b"SMEMBERS" else reply


def _simulated(node: SimulatedNode, parts: tuple[bytes, ...]) -> Any:
    reply = node.reply(parts)
    if isinstance(reply, str):
        return reply.encode()
    return ReplyError(str(reply)) if isinstance(reply, Exception) else reply


def _ask(lines: Lines, parts: tuple[bytes, ...]) -> Any:
    return lines.ask(0, *parts)


def test_commands_and_scripts_do_what_the_real_ones_do(
    redis_server: RedisServer, seed: int
) -> None:
    """Every reply, and every key after each call, over thousands of random calls."""
    chance = random.Random(seed)
    prefix = uuid.uuid4().hex[:8].encode()
    calls = _Calls(chance, prefix)
    node = SimulatedNode(VirtualClock(1), 100)
    node.load_scripts()
    answered: set[tuple[str, str]] = set()
    nodes = Nodes.open(RedisSettings(url=redis_server.url, timeout_ms=10_000))
    try:
        with nodes.lines() as lines:
            for number in range(4_000):
                parts = calls.next()
                real, simulated = _ask(lines, parts), _simulated(node, parts)
                said = f"call {number}: {parts[0]!r} {parts[1][:60]!r}"
                assert _comparable(real, parts) == _comparable(simulated, parts), said
                answered.add((parts[1][:12].decode("latin-1"), str(simulated)[:2]))
                for key in (one for one in parts[1:] if one.startswith(prefix)):
                    held = node.content().get(key)
                    if b":state:" in key or b":progress:" in key or b":string:" in key:
                        assert _ask(lines, (b"GET", key)) == held, said
                        calls.states[key] = held or b""
                    if b":markers:" in key:
                        asked = (b"HGETALL", key)
                        pairs = _comparable(_ask(lines, asked), asked)
                        assert pairs == sorted((held or {}).items()), said
    finally:
        nodes.close()
    # Every script has done its work and has refused it.
    for script in (PROGRESS, KEEP, DROP, SWAP, BEGIN):
        name = script.digest[:12].decode()
        assert len({reply for word, reply in answered if word == name}) >= 2, name


def test_streams_do_what_real_ones_do(redis_server: RedisServer, seed: int) -> None:
    """Entries are trimmed, read from any other one on, and looked for: by their order alike."""
    chance = random.Random(seed)
    key = b"%b:{t}:stream" % uuid.uuid4().hex[:8].encode()
    node = SimulatedNode(VirtualClock(1), 100)
    names: list[tuple[bytes, bytes]] = [(b"0-0", b"0-0")]
    nodes = Nodes.open(RedisSettings(url=redis_server.url, timeout_ms=10_000))

    def both(*parts: bytes | int) -> tuple[Any, Any]:
        """What both answer; a number stands for the name of that entry."""
        asked = [[names[p][n] if isinstance(p, int) else p for p in parts] for n in (0, 1)]
        return _ask(lines, tuple(asked[0])), _simulated(node, tuple(asked[1]))

    def listed(entries: Any, which: int) -> list[Any]:
        number_of = {pair[which]: number for number, pair in enumerate(names)}
        return [(number_of[name], fields) for name, fields in entries]

    try:
        with nodes.lines() as lines:
            for number in range(300):
                most = b"%d" % chance.choice((1, 5, 1_000))
                names.append(both(b"XADD", key, b"MAXLEN", most, b"*", b"m", b"%d" % number))
                at = chance.randrange(len(names))
                real, simulated = both(b"XREAD", b"COUNT", b"3", b"STREAMS", key, at)
                assert (real is None) == (simulated is None)
                if real is not None:
                    assert listed(real[0][1], 0) == listed(simulated[0][1], 1)
                # Most are trimmed by then.
                there, simulated = both(b"EVAL", _HAS_ENTRY, b"1", key, at)
                assert there == simulated
            lines.ask(0, b"DEL", key)
    finally:
        nodes.close()


def test_scripts_that_were_forgotten_are_not_known() -> None:
    """By their digest; a text brings itself, and a new connection all."""
    node = SimulatedNode(VirtualClock(1), 10)
    asked = [b"EVALSHA", digest_of(_HAS_ENTRY), b"1", b"a", b"0-0"]
    assert node.run([asked]).startswith(b"-NOSCRIPT")
    for load in (
        lambda: node.run([[b"EVAL", _HAS_ENTRY, *asked[2:]]]),
        node.load_scripts,
    ):
        load()
        assert node.run([asked]) == b":0\r\n"
        node.forget_scripts()
        assert node.run([asked]).startswith(b"-NOSCRIPT")


def test_lost_writes_leave_what_was_before(seed: int) -> None:
    """Whatever was done, undoing the last n calls leaves the node as it was n calls before."""
    chance = random.Random(seed)
    calls = _Calls(chance, b"w")
    for _ in range(30):
        node = SimulatedNode(VirtualClock(1), 10_000)
        node.load_scripts()
        before = []
        for _ in range(chance.randrange(1, 60)):
            n_undoable = len(node._undo)
            before.append((n_undoable, node.content(), _appended(node)))
            parts = calls.next()
            node.reply(parts)
            calls.states |= {k: v for k, v in node.content().items() if b":state:" in k}
        n_kept, content, appended = chance.choice(before)
        node.lose(len(node._undo) - n_kept)
        assert node.content() == content
        assert _appended(node) == appended


def _appended(node: SimulatedNode) -> dict[bytes, bytes]:
    return {key: bytes(ever) for key, ever in node.appended.items() if ever}


def test_a_stream_that_is_cut_is_done_up_to_its_last_whole_command() -> None:
    whole = command(b"APPEND", b"a", b"12\r\n") + command(b"GET", b"a") + command(b"SET", b"b", b"")
    ends = [len(command(b"APPEND", b"a", b"12\r\n"))]
    ends += [ends[0] + len(command(b"GET", b"a")), len(whole)]
    for end in range(len(whole) + 1):
        assert len(parsed(whole[:end])) == sum(end >= one for one in ends)


def test_a_request_for_states_alone_is_taken_apart_like_others(seed: int) -> None:
    """Whole, cut anywhere, and with a key that has the end of a line in it."""
    chance = random.Random(seed)
    keys = (b"a", b"{t}:state:1", b"x" * 300, b"$3\n", b"")
    for _ in range(40):
        given = [
            [b"GET", chance.choice(keys)]
            if chance.random() < 0.5
            else [b"MGET", chance.choice(keys[:4]), chance.choice(keys)]
            for _ in range(chance.randrange(1, 6))
        ]
        if chance.random() < 0.3:
            given.append([b"GET", b"line\r\n"])
        request = b"".join(command(*parts) for parts in given)
        assert parsed(request) == given
        end = chance.randrange(len(request))
        n_whole = sum(
            len(b"".join(command(*one) for one in given[: n + 1])) <= end for n in range(len(given))
        )
        assert parsed(request[:end]) == given[:n_whole]


def test_slots_move_with_all_that_is_in_them(seed: int) -> None:
    """Each key is at one node, as it was; the other one refuses it, and answers for the rest."""
    chance = random.Random(seed)
    nodes = [SimulatedNode(VirtualClock(1), 10) for _ in range(3)]
    servers = Servers(nodes, chance, lambda wait_s: None, 0.1)
    keys = [b"{%d}:k" % number for number in range(60)]
    for key in keys:
        nodes[servers.node_of_slot[slot_of(key[1:-3])]].run([[b"APPEND", key, key]])
    tags = set(servers.found().tags)
    for _ in range(6):
        servers.move_slots(chance.randrange(3))
        before, tags = tags, set(servers.found().tags)
        assert len(before & tags) == 1
        for key in keys:
            at = int(servers.node_of_slot[slot_of(key[1:-3])])
            for number, node in enumerate(nodes):
                found = node.run([[b"GET", key], [b"STRLEN", key], [b"MGET", key, key]])
                assert found.startswith(b"-MOVED") is (number != at)
                assert (node.held(key), node.appended.get(key)) == (
                    (key, key) if number == at else (None, None)
                )
    assert nodes[servers.node_of_slot[slot_of(b"control")]].owns(b"{control}:stream")


def test_an_unknown_command_or_script_is_refused() -> None:
    node = SimulatedNode(VirtualClock(1), 10)
    assert node.run([[b"FLUSHALL"]]).startswith(b"-ERR")
    assert node.run([[b"EVALSHA", b"0" * 40, b"0"]]).startswith(b"-NOSCRIPT")


@pytest.mark.parametrize(
    ("reply", "wire"),
    [
        (b"a\r\n", b"$3\r\na\r\n\r\n"),
        (None, b"$-1\r\n"),
        (-3, b":-3\r\n"),
        ("OK", b"+OK\r\n"),
        ([1, None, [b""]], b"*3\r\n:1\r\n$-1\r\n*1\r\n$0\r\n\r\n"),
    ],
)
def test_replies_are_those_of_the_protocol(reply: Any, wire: bytes) -> None:
    assert encoded(reply) == wire


def test_keys_end_with_their_life() -> None:
    clock = VirtualClock(1_000)
    node = SimulatedNode(clock, 10)
    node.run([[b"APPEND", b"a", b"x"], [b"EXPIRE", b"a", b"2"]])
    clock.move_to(2_999)
    assert node.held(b"a") == b"x"
    clock.move_to(3_000)
    assert node.held(b"a") is None
    assert node.appended == {}
