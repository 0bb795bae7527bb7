"""Looking through the keys of a node, a thousand at a time, so that nobody waits long for it.

A scan shows every key that is there all along; one that comes or goes meanwhile may be missed, and
one may be shown twice.
Rule: keys hold tokens only, and a scan has a limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from freshscore.features.redis_commands import error_of
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_lines import ReplyError

_KEYS_AT_ONCE: Final = b"1000"


def scanned(nodes: Nodes, node: int, pattern: bytes, most: int) -> Iterator[bytes]:
    """The keys of one node that match a pattern of Redis, of the first `most` that it looks at.

    Raises Unavailable, SettingsError where Redis refuses it to its user.
    """
    cursor = b"0"
    for _ in range(-(-most // int(_KEYS_AT_ONCE))):
        with nodes.lines() as lines:
            reply = lines.ask(node, b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _KEYS_AT_ONCE)
        if isinstance(reply, ReplyError):
            raise error_of(reply)
        cursor, keys = reply
        yield from keys
        if cursor == b"0":
            return


def literal(text: bytes) -> bytes:
    """`text` as part of a pattern: the characters that mean something there, as themselves."""
    special = b"*?[]^\\"
    return b"".join(b"\\" + bytes((one,)) if one in special else bytes((one,)) for one in text)
