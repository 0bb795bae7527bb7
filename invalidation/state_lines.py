"""Below which instant a state takes no event any more: what it has folded, and what it forgot.

A late event below that line is taken for a repetition by every reader, so whoever brings in the
past looks first, and once more at the end.
Rule: reads the header alone (features/codec.py), 88 bytes of a state of any size.
"""

from __future__ import annotations

import struct
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import Unavailable
from freshscore.features.checksums import HEADER_BYTES
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_keys import tag_of
from freshscore.features.redis_lines import command
from freshscore.features.redis_reading import Wanted
from freshscore.features.redis_store import RedisStore

_MAGIC: Final = b"fsstate"
_LINES_AT: Final = 32
_LINES: Final = struct.Struct("<2q")
_LAST: Final = b"%d" % (HEADER_BYTES - 1)
# States of one exchange.
_AT_ONCE: Final = 2_048
_MANY_AT_ONCE: Final = 16_384


def lines_of(store: RedisStore, wanted: Sequence[Wanted]) -> NDArray[np.int64]:
    """The line of each state, ms; 0 where it takes everything. Raises Unavailable."""
    found = np.zeros(len(wanted), np.int64)
    for first in range(0, len(wanted), _AT_ONCE):
        some = wanted[first : first + _AT_ONCE]
        asked = [
            (
                tag_of(token),
                command(b"GETRANGE", store.reading.state_key(entity, token), b"0", _LAST),
            )
            for entity, token in some
        ]
        replies = replies_to(store.nodes, asked)
        found[first : first + len(some)] = [_line(header) for header in replies]
    return found


def lines_of_tokens(
    store: RedisStore, entity: int, tokens: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """The same of many states of one entity, by their tokens, (n, 2): 2 us each instead of 8.

    All commands are equal but for their tags, so they are written as one array. Raises Unavailable.
    """
    found = np.zeros(len(tokens), np.int64)
    for first in range(0, len(tokens), _MANY_AT_ONCE):
        some = np.ascontiguousarray(tokens[first : first + _MANY_AT_ONCE])
        headers = _headers(store, entity, some)
        if headers is None:
            wanted = [(entity, token.tobytes()) for token in some]
            found[first : first + len(some)] = lines_of(store, wanted)
        else:
            found[first : first + len(some)] = [_line(header) for header in headers]
    return found


def _headers(store: RedisStore, entity: int, tokens: NDArray[np.uint64]) -> list[bytes] | None:
    """The beginnings of these states; None where one was not answered as it should be."""
    nodes, any_token = store.nodes, bytes(16)
    asked = command(b"GETRANGE", store.reading.state_key(entity, any_token), b"0", _LAST)
    head, tail = asked.split(tag_of(any_token))
    tags = _tags(tokens)
    requests = np.empty((len(tags), len(asked)), np.uint8)
    requests[:, : len(head)] = np.frombuffer(head, np.uint8)
    requests[:, len(head) : len(head) + tags.shape[1]] = tags
    requests[:, len(head) + tags.shape[1] :] = np.frombuffer(tail, np.uint8)
    owners = np.zeros(len(tags), np.int64)
    if nodes.n > 1:
        owners[:] = [nodes.node_of(tag.tobytes()) for tag in tags]
    headers: list[bytes] = [b""] * len(tags)
    places = [np.flatnonzero(owners == node) for node in range(nodes.n)]
    with nodes.lines() as lines:
        if lines.n != len(places):
            return None
        sent = [requests[some].tobytes() if len(some) else None for some in places]
        replies = lines.attempt(sent, [len(some) for some in places])
    for some, of_node in zip(places, replies, strict=True):
        if isinstance(of_node, Unavailable) or {*map(type, of_node)} - {bytes}:
            return None
        for place, header in zip(some.tolist(), of_node, strict=True):
            headers[place] = header
    return headers


def _tags(tokens: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The hash tag of each token, uint8 (n, 22): what `tag_of` makes of one."""
    # Two more bytes make whole groups of base64, and change none of the characters that are kept.
    padded = np.zeros((len(tokens), 18), np.uint8)
    padded[:, :16] = tokens.view(np.uint8).reshape(len(tokens), 16)
    text = urlsafe_b64encode(padded.tobytes())
    return np.frombuffer(text, np.uint8).reshape(len(tokens), 24)[:, :22]


def _line(header: bytes) -> int:
    if not header.startswith(_MAGIC) or len(header) < HEADER_BYTES:
        return 0
    folded_ms, forgotten_ms = _LINES.unpack_from(header, _LINES_AT)
    return max(int(folded_ms), int(forgotten_ms))
