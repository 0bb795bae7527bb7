"""The search for raw identifiers in everything that we write: 0 may be found.

All identifiers of a stream hold its mark, which is in nothing else; so the mark is searched for, as
it is, in hexadecimal digits, and in base64 at each of its three alignments.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import redis

from tests.faults.deployment import Deployment

_STREAM_ENTRIES: Final = 1_000_000


class IdentifierFound(AssertionError):
    """A raw identifier stands where none may."""


def check_no_identifiers(deployment: Deployment, marks: Sequence[str]) -> int:
    """Search Redis, the topics that we write, and what all processes said; how many places.

    Raises IdentifierFound, which says where.
    """
    wanted = [form for mark in marks for form in forms_of(mark)]
    n = 0
    for where, held in places_of(deployment):
        n += 1
        for form in wanted:
            if form in held:
                raise IdentifierFound(f"an identifier stands in {where}")
    return n


def forms_of(mark: str) -> list[bytes]:
    """How a mark may be written."""
    raw = mark.encode()
    forms = [raw, raw.lower(), raw.hex().encode(), raw.hex().upper().encode()]
    for skipped in range(3):
        # The characters that depend on nothing but the mark.
        encoded = base64.b64encode(b"\0" * skipped + raw)
        first = -(-8 * skipped // 6)
        last = 8 * (skipped + len(raw)) // 6
        forms.append(encoded[first:last])
    return forms


def places_of(deployment: Deployment) -> Iterator[tuple[str, bytes]]:
    """Everything that we write: where, and the bytes."""
    with deployment.redis.client() as client:
        for key in client.scan_iter(count=1_000):
            yield "a key of Redis", key
            for held in _held(client, key):
                yield f"a value of Redis under a key of {len(key)} characters", held
    for topic in (deployment.letters, deployment.decisions):
        for one in deployment.read(topic):
            yield f"topic {topic}", one.value or b""
    logs = [server.log for server in deployment.servers]
    for log in (*deployment.folder.iterdir(), *logs):
        yield f"the file {log.name}", log.read_bytes()


def _held(client: redis.Redis | redis.RedisCluster, key: bytes) -> Iterable[bytes]:
    """All strings of one key."""
    kind: Any = client.type(key)
    if kind == b"string":
        return [client.get(key) or b""]  # type: ignore[list-item]  # redis-py types answers loosely
    if kind == b"hash":
        pairs: Any = client.hgetall(key)
        return [part for pair in pairs.items() for part in pair]
    if kind == b"list":
        items: Any = client.lrange(key, 0, -1)
        return list(items)
    if kind == b"stream":
        entries: Any = client.xrange(key, count=_STREAM_ENTRIES)
        return [part for _, held in entries for pair in held.items() for part in pair]
    if kind == b"set":
        members: Any = client.smembers(key)
        return list(members)
    assert kind in (b"zset", b"none"), kind
    scores: Any = client.zrange(key, 0, -1)
    return list(scores)
