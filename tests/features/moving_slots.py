"""Moving slots of a real cluster, as its own tool does, step by step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from tests.servers.ports import LOOPBACK
from tests.servers.redis_servers import RedisCluster, RedisServer

_LIMIT_MS: Final = 5_000
_KEYS_AT_ONCE: Final = 100
_LIMIT_S: Final = 30.0


def owner_of(cluster: RedisCluster, slot: int, by: RedisServer | None = None) -> RedisServer:
    """The node that has a slot now, by what one of them says; else by the first."""
    for first, last, (_, port, *_), *_ in _asked(by or cluster.nodes[0], "CLUSTER SLOTS", raw=True):
        if first <= slot <= last:
            return next(one for one in cluster.nodes if one.port == port)
    raise AssertionError(f"nobody has slot {slot}")


def move_slot(
    cluster: RedisCluster,
    slot: int,
    target: RedisServer,
    between: Callable[[], None] = lambda: None,
) -> int:
    """Bring a slot with all its keys to another node; how many keys.

    between: called when the slot is open, before and after each lot of keys.
    """
    source = owner_of(cluster, slot)
    ids = {one: _asked(one, "CLUSTER MYID") for one in (source, target)}
    _asked(target, "CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
    _asked(source, "CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
    n = 0
    while True:
        between()
        keys = _asked(source, "CLUSTER GETKEYSINSLOT", slot, _KEYS_AT_ONCE)
        if not keys:
            break
        _asked(source, "MIGRATE", LOOPBACK, target.port, "", 0, _LIMIT_MS, "KEYS", *keys)
        n += len(keys)
    for node in (target, *(one for one in cluster.primaries if one is not target)):
        _asked(node, "CLUSTER SETSLOT", slot, "NODE", ids[target])
    return n


def assign_slot(cluster: RedisCluster, slot: int, target: RedisServer) -> None:
    """Have a node take a slot, empty, and wait until all know, as where its node was lost.

    The node that had it forgets the keys at the moment at which it hears of it.
    """
    # First: from then on what it says counts for more than what others say. In between, the node
    # that had the slot could say so with a newer epoch, and have it back.
    _asked(target, "CLUSTER BUMPEPOCH")
    _asked(target, "CLUSTER SETSLOT", slot, "NODE", _asked(target, "CLUSTER MYID"))
    for node in cluster.primaries:
        node.wait_until(partial(_sees, cluster, slot, target, node), _LIMIT_S)


def _sees(cluster: RedisCluster, slot: int, target: RedisServer, node: RedisServer) -> bool:
    return owner_of(cluster, slot, node) is target


def _asked(node: RedisServer, *command: Any, raw: bool = False) -> Any:
    client: Any
    with node.client() as client:
        if raw:
            # As the server says it, not as the client makes of it.
            client.response_callbacks.clear()
        return client.execute_command(*command)
