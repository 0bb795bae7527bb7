"""Forgetting what was said of sets of slots that no node has any more.

A node's tag names the set of its slots (features/redis_door.py). When slots move, its markers stay
behind under the old tag, and with them an epoch. If the slots came back later, that would vouch for
them again, though nobody has seen what became of them elsewhere. So the tags that nodes have had
are kept, and of those that none has now markers and progress are removed.
Rule: removing too much costs a rebuild; whoever believes in old nodes does that harm and no other.
"""

from __future__ import annotations

from typing import Final

from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes, command
from freshscore.features.redis_keys import CONTROL, RedisKeys

_TAGS: Final = "tags"


def forget_former_nodes(nodes: Nodes, keys: RedisKeys) -> int:
    """Remove markers and progress under tags that no node has any more; how many tags.

    To be called by whoever begins to write markers, before it reads them. Raises Unavailable.
    """
    if not nodes.settings.cluster:
        return 0
    tags = {tag.encode() for tag in nodes.tags}
    # Of these layouts alone: what others say of the same nodes has keys of its own.
    layouts = keys.markers("").rpartition(b":")[2].decode()
    known, control = keys.control(f"{_TAGS}:{layouts}"), CONTROL.encode()
    replies_to(nodes, [(control, command(b"SADD", known, *sorted(tags)))])
    held = replies_to(nodes, [(control, command(b"SMEMBERS", known))])[0]
    former = sorted(set(held) - tags)
    for name in (keys.progress, keys.markers):
        replies_to(nodes, [(tag, command(b"DEL", name(tag.decode()))) for tag in former])
    if former:
        replies_to(nodes, [(control, command(b"SREM", known, *former))])
    return len(former)
