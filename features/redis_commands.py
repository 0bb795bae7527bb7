"""Single commands, each sent to the node that owns its key, whatever moves meanwhile.

Commands of one call are grouped by node and sent to all nodes before any reply is read. Those that
met a node which no longer owns their slot, or has lost its scripts, are sent again.
Rule: an error of the server never passes for a reply. All commands here may be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from freshscore.config.errors import FreshscoreError, SettingsError, StoreFull, Unavailable
from freshscore.features.redis_lines import MOVED_WORDS, Lines, Reply, ReplyError

if TYPE_CHECKING:
    from freshscore.features.redis_door import Nodes

# A tag and the command for a key that has it.
Tagged = tuple[bytes, bytes]

# The first try, one with new nodes or scripts, and one for what moved while they were found.
_TRIES: Final = 3
_AGAIN: Final = MOVED_WORDS | {"NOSCRIPT"}
REFUSED_WORDS: Final = frozenset({"NOAUTH", "NOPERM", "WRONGPASS"})
# A command or key inside a script that the user may not have: it comes under the word ERR.
_REFUSED_INSIDE: Final = "The user executing the script can't"


def replies_to(nodes: Nodes, commands: Sequence[Tagged]) -> list[Reply]:
    """The reply to each command, in order.

    Raises Unavailable while a node is away or its slots move, StoreFull where a server's memory is
    full, SettingsError for what the user may not do, RuntimeError for a wrong command.
    """
    replies: list[Reply] = [None] * len(commands)
    waiting = list(range(len(commands)))
    problem: FreshscoreError | None = None
    for _ in range(_TRIES):
        if problem is not None:
            nodes.refresh()
        with nodes.lines() as lines:
            waiting, problem = _tried(nodes, lines, commands, waiting, replies)
        if problem is None:
            return replies
        if not problem.retryable:
            raise problem
    raise problem or Unavailable("Redis was not asked")


def _tried(
    nodes: Nodes,
    lines: Lines,
    commands: Sequence[Tagged],
    waiting: list[int],
    replies: list[Reply],
) -> tuple[list[int], FreshscoreError | None]:
    """Fill in the replies to what is waiting; what is to be sent again, and why."""
    topology = nodes.topology
    mine: list[list[int]] = [[] for _ in topology.addresses]
    for number in waiting:
        mine[topology.node_of(commands[number][0])].append(number)
    requests = [b"".join(commands[i][1] for i in some) or None for some in mine]
    if lines.n != len(mine):
        return waiting, Unavailable("the nodes of Redis have changed")
    again: list[int] = []
    problem: FreshscoreError | None = None
    for some, found in zip(mine, lines.attempt(requests, [len(s) for s in mine]), strict=True):
        if isinstance(found, Unavailable):
            again += some
            problem = problem or found
            continue
        for number, reply in zip(some, found, strict=True):
            if type(reply) is ReplyError:
                again.append(number)
                problem = problem or error_of(reply)
                if reply.word == "NOSCRIPT":
                    lines.close()  # a new connection loads them
            else:
                replies[number] = reply
    return again, problem


def error_of(reply: ReplyError) -> FreshscoreError:
    """The error that an error reply means; RuntimeError is raised for a wrong command."""
    word = reply.word
    if word in _AGAIN or word in {"MISCONF", "NOREPLICAS", "BUSY"}:
        return Unavailable(f"Redis: {reply}")
    if word == "OOM":
        return StoreFull(f"Redis has reached its maxmemory: {reply}")
    if word in REFUSED_WORDS or _REFUSED_INSIDE in str(reply):
        return SettingsError(f"Redis refuses a command to this user: {reply}")
    raise RuntimeError(f"Redis: {reply}")


def remove_namespace(nodes: Nodes, namespace: str) -> int:
    """Remove every key of a namespace, on all nodes; how many there were. Raises Unavailable."""
    n = 0
    with nodes.lines() as lines:
        for node in range(nodes.n):
            cursor = b"0"
            while True:
                pattern = namespace.encode() + b":*"
                found = lines.ask(node, b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"1000")
                if type(found) is ReplyError:
                    raise error_of(found)
                cursor, keys = found
                for key in keys:
                    # One by one, for in a cluster the keys of one command share a slot.
                    n += lines.ask(node, b"UNLINK", key) == 1
                if cursor == b"0":
                    break
    return n
