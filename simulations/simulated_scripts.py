"""The scripts that our code runs inside Redis, in Python, for the simulated one.

Each is known by its whole text, so a script that was changed is unknown here until its twin is too;
a contract test runs both on the same random calls, one on a real Redis.
Rule: a twin does its reading and writing through the node, as the script does through its calls.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from freshscore.features.redis_scripts import BEGIN, DROP, KEEP, PROGRESS, SWAP
from freshscore.invalidation.following import _HAS_ENTRY
from freshscore.invalidation.node_markers import _GIVE_UP, _NOTE

_MARKER: Final = re.compile(rb"m:([^:]+):(\d+)\Z")
_NOTED: Final = re.compile(rb"([br]):([^:]+):\d+\Z")
_EMPTY: Final = b"empty"
_CUT: Final = b"cut"
_THREE: Final = struct.Struct("<3q")


class Call(Protocol):
    """Runs one command on the node on which the script runs; its reply."""

    def __call__(self, *parts: bytes) -> Any: ...


Script = Callable[[Call, Sequence[bytes], Sequence[bytes]], Any]


def known_scripts() -> dict[bytes, Script]:
    """The twins by the SHA-1 of the script's text, as Redis names it."""
    texts = {
        PROGRESS.text: _progress,
        BEGIN.text: _begin,
        KEEP.text: _keep,
        DROP.text: _drop,
        SWAP.text: _swap,
        _NOTE: _note,
        _GIVE_UP: _give_up,
    }
    found = {digest_of(text.encode()): twin for text, twin in texts.items()}
    return {**found, digest_of(_HAS_ENTRY): _has_entry}


def digest_of(text: bytes) -> bytes:
    """How Redis names a script: 40 hexadecimal digits."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()


def _progress(call: Call, keys: Sequence[bytes], given: Sequence[bytes]) -> Any:
    if not call(b"HEXISTS", keys[0], b"epoch"):
        return 0
    for field, offset, arrival in zip(given[2::3], given[3::3], given[4::3], strict=True):
        held = call(b"HGET", keys[0], field)
        if held is not None:
            old_offset, old_arrival = held.split()
            offset = max(old_offset, offset, key=int)
            arrival = max(old_arrival, arrival, key=int)
        call(b"HSET", keys[0], field, offset + b" " + arrival)
    _summarise(call, keys, given[0], given[1])
    return 1


def _begin(call: Call, keys: Sequence[bytes], given: Sequence[bytes]) -> Any:
    if not call(b"HSETNX", keys[0], b"epoch", given[0]):
        return 0
    call(b"HSET", keys[0], b"key_id", given[1], b"complete_since", given[2])
    _summarise(call, keys, given[3], given[4])
    return 1


def _summarise(call: Call, keys: Sequence[bytes], partitions: bytes, topics: bytes) -> None:
    known = {topic for topic in topics.split(b",") if topic}
    values = _hash_of(call, keys[0])
    fields = []
    for field in values:
        found = _MARKER.match(field)
        if found and found[1] in known:
            fields.append((field, found))
        elif found:
            call(b"HDEL", keys[0], field)
    parts, arrivals = [], []
    for field, found in sorted(fields, key=lambda one: one[0]):
        offset, arrival = map(int, values[field].split())
        arrivals.append(arrival)
        digest = hashlib.sha1(found[1], usedforsecurity=False).digest()[:8]
        parts.append(digest + _THREE.pack(int(found[2]), offset, arrival))
    lowest = min(arrivals) if arrivals and len(fields) >= int(partitions) else 0
    since = int(values.get(b"complete_since", b"0"))
    epoch = bytes.fromhex(values[b"epoch"].decode())
    head = epoch + _THREE.pack(lowest, since, len(fields))
    call(b"SET", keys[1], head + b"".join(parts))


def _keep(call: Call, keys: Sequence[bytes], given: Sequence[bytes]) -> Any:
    beginning, life_s, most, *several = given
    if not (call(b"GET", keys[0]) or b"").startswith(beginning):
        return -1
    for key, records in zip(keys[1:], several, strict=True):
        if call(b"STRLEN", key) + len(records) > int(most):
            return 0
    lengths = []
    for key, records in zip(keys[1:], several, strict=True):
        lengths.append(call(b"APPEND", key, records))
        call(b"EXPIRE", key, life_s)
    return lengths


def _drop(call: Call, keys: Sequence[bytes], given: Sequence[bytes]) -> Any:
    if not (call(b"GET", keys[0]) or b"").startswith(given[0]):
        return 0
    for key in keys[1:]:
        call(b"UNLINK", key)
    return 1


def _swap(call: Call, keys: Sequence[bytes], given: Sequence[bytes]) -> Any:
    held, length = call(b"GET", keys[0]), int(given[0])
    if held is None or len(held) < length or digest_of(held[:length]) != given[1]:
        return 0
    if len(keys) > 1 and call(b"STRLEN", keys[1]) < int(given[4]):
        return 0
    call(b"SET", keys[0], given[2] + held[length:], b"EX", given[3])
    return 1


def _note(call: Call, keys: Sequence[bytes], given: Sequence[bytes]) -> Any:
    (markers,) = keys
    name, key_id, partitions, topics, now, skew = given[:6]
    if call(b"HEXISTS", markers, b"epoch"):
        return 1
    if call(b"HGET", markers, b"rebuilding") != name:
        return -1
    for field, value in zip(given[6::2], given[7::2], strict=True):
        call(b"HSET", markers, field, value)
    known = {topic for topic in topics.split(b",") if topic}
    gone, reached, n_noted = [], [], 0
    first: int | None = None
    since = 0
    for field, value in _hash_of(call, markers).items():
        found = _NOTED.match(field)
        if found is None:
            continue
        gone.append(field)
        if found[2] not in known:
            continue
        if found[1] == b"b":
            reached += [b"m" + field[1:], value + b" 0"]
            continue
        n_noted += 1
        kind, arrival = value.split()
        if kind != _EMPTY and (first is None or int(arrival) < first):
            first = int(arrival)
        if kind == _CUT:
            since = max(since, int(arrival) + int(skew))
    if n_noted < int(partitions):
        return 0
    since = max(since, int(now) if first is None else first)
    call(b"HDEL", markers, b"rebuilding", *gone)
    told = [b"epoch", name, b"key_id", key_id, b"complete_since", b"%d" % since]
    call(b"HSET", markers, *told, *reached)
    return 1


def _give_up(call: Call, keys: Sequence[bytes], given: Sequence[bytes]) -> Any:
    name = call(b"HGET", keys[0], b"epoch") or call(b"HGET", keys[0], b"rebuilding")
    if name != given[0]:
        return 0
    key_id = call(b"HGET", keys[0], b"key_id")
    call(b"DEL", *keys)
    call(b"HSET", keys[0], b"rebuilding", given[1])
    if key_id is not None:
        call(b"HSET", keys[0], b"key_id", key_id)
    return 1


def _has_entry(call: Call, keys: Sequence[bytes], given: Sequence[bytes]) -> Any:
    return len(call(b"XRANGE", keys[0], given[0], given[0]))


def _hash_of(call: Call, key: bytes) -> dict[bytes, bytes]:
    held = call(b"HGETALL", key)
    return dict(zip(held[::2], held[1::2], strict=True))
