"""How messages lie in a segment of the journal, and finding them again, damage or not.

    header   magic and version, 8 bytes; the id of the identifier key, 8; CRC-32 of both, 4; 4 free;
             the mark (how far all is acknowledged), 8; its complement, 8
    record   marker, 4 bytes; bytes of the body, 4; CRC-32 of the body, begun with the record's
             place in the file, 4; the body: event time, 8; bytes of topic and key, 2 each; topic,
             key and value

The marker is no UTF-8, so no text of a message contains it; the place in the checksum keeps what
was left over or copied from being taken for a record. A mark that is not its complement's is none:
then the segment is sent again from its beginning, which changes no state.
Rule: a message is handed out only if its checksum is right, and what follows damage is found. This
guards against damage, not against malice.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final, NamedTuple

MAGIC: Final = b"fsjrnl\x00\x01"
HEADER_BYTES: Final = 40
MARK_AT: Final = 24
# Above the largest message that the settings allow, and no more than is read at once.
MOST_BODY_BYTES: Final = 16 * 1024**2
_HEADER: Final = struct.Struct("<8s8sI4x")
_MARK: Final = struct.Struct("<2Q")
_ONES: Final = 2**64 - 1
_MARKER: Final = b"\xff\xf5fs"
_HEAD: Final = struct.Struct("<4s2I")
_BODY: Final = struct.Struct("<q2H")
_NO_TIME: Final = -(2**63)
_NO_KEY: Final = 2**16 - 1


class Message(NamedTuple):
    """What goes to the log. event_ms: the time that decides on its acceptance; None: none does."""

    topic: str
    key: bytes | None
    value: bytes
    event_ms: int | None


class Placed(NamedTuple):
    """A message and the bytes of the file that it takes, `[at, end)`."""

    at: int
    end: int
    message: Message


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment says of itself; key_id is None where that is damaged."""

    key_id: str | None
    mark: int


class Found(NamedTuple):
    """The messages in a stretch of a segment that begin before `next_at`.

    wanted: bytes that the record at `next_at` takes, where the stretch ends within it; else 0.
    """

    placed: list[Placed]
    next_at: int
    wanted: int


def header(key_id: str) -> bytes:
    """The header of a new segment; key_id: at most 8 ASCII characters."""
    told = MAGIC + key_id.encode("ascii").ljust(8, b"\0")
    return told + struct.pack("<I4x", zlib.crc32(told)) + mark_bytes(HEADER_BYTES)


def read_header(data: bytes) -> Header | None:
    """What `data`, the beginning of a segment, says; None where its layout is another.

    One that a crash left without its header holds nothing that anybody was told of.
    """
    if len(data) < HEADER_BYTES or not any(data):
        return Header(None, HEADER_BYTES)
    if not data.startswith(MAGIC):
        return None
    _, key_id, check = _HEADER.unpack_from(data)
    mark, complement = _MARK.unpack_from(data, MARK_AT)
    is_right = zlib.crc32(data[:16]) == check
    return Header(
        key_id.rstrip(b"\0").decode("ascii") if is_right else None,
        mark if mark ^ complement == _ONES and mark >= HEADER_BYTES else HEADER_BYTES,
    )


def mark_bytes(mark: int) -> bytes:
    """What stands in a header at MARK_AT: everything before `mark` is acknowledged."""
    return _MARK.pack(mark, mark ^ _ONES)


def record_bytes(topic: bytes, key: bytes | None, value: bytes) -> int:
    """How long the record of a message is."""
    return _HEAD.size + _BODY.size + len(topic) + len(key or b"") + len(value)


def record(topic: bytes, key: bytes | None, value: bytes, event_ms: int | None, at: int) -> bytes:
    """The record of a message at this place in its file."""
    time_ms = _NO_TIME if event_ms is None else event_ms
    n_key = _NO_KEY if key is None else len(key)
    body = b"".join((_BODY.pack(time_ms, len(topic), n_key), topic, key or b"", value))
    return _HEAD.pack(_MARKER, len(body), zlib.crc32(body, at & 0xFFFFFFFF)) + body


def found_in(data: bytes, base: int, end: int) -> Found:
    """The messages in `data`, which lies at `base` of a file with `end` bytes.

    What lies between them is no record. Read on from `next_at`, stretches of any length give what
    the whole file gives.
    """
    placed: list[Placed] = []
    place = wanted = 0
    while place < len(data):
        n = _length_at(data, place)
        if n and base + place + n <= end:
            if place + n > len(data):
                wanted = n
                break
            message = _message_at(data, place, n, base + place)
            if message is not None:
                placed.append(Placed(base + place, base + place + n, message))
                place += n
                continue
        place = _next_marker(data, place + 1, is_end=base + len(data) >= end)
    return Found(placed, base + place, wanted)


def _length_at(data: bytes, place: int) -> int:
    """Bytes of the record that begins here; of its head where that is cut; 0 where none does."""
    if len(data) - place < _HEAD.size:
        return _HEAD.size
    marker, n, _ = _HEAD.unpack_from(data, place)
    is_one = marker == _MARKER and _BODY.size <= n <= MOST_BODY_BYTES
    return _HEAD.size + int(n) if is_one else 0


def _next_marker(data: bytes, place: int, *, is_end: bool) -> int:
    found = data.find(_MARKER, place)
    if found >= 0:
        return found
    # A marker may begin in the last bytes, and go on in the next stretch.
    return len(data) if is_end else max(place, len(data) - len(_MARKER) + 1)


def _message_at(data: bytes, place: int, n: int, at: int) -> Message | None:
    body = data[place + _HEAD.size : place + n]
    _, _, check = _HEAD.unpack_from(data, place)
    if zlib.crc32(body, at & 0xFFFFFFFF) != check:
        return None
    time_ms, n_topic, n_key = _BODY.unpack_from(body)
    key_at = _BODY.size + n_topic
    value_at = key_at + (0 if n_key == _NO_KEY else n_key)
    return Message(
        body[_BODY.size : key_at].decode("ascii"),
        None if n_key == _NO_KEY else body[key_at:value_at],
        body[value_at:],
        None if time_ms == _NO_TIME else time_ms,
    )
