"""Where the nodes of Redis are: one server, the primary that Sentinels name, a cluster's primaries.

Sentinels are asked for an address and for nothing else, and the first that answers is believed: one
that is behind names a server that takes no writes (READONLY) or whose markers say how old it is, so
that costs time and nothing else.
Rule: each node is checked when it is first met, and a server that evicts keys is refused, for an
evicted state would look like a new entity.
"""

from __future__ import annotations

import logging
import socket
from functools import partial
from typing import Protocol

from freshscore.config.clock import Clock
from freshscore.config.errors import SettingsError
from freshscore.features.redis_connecting import Connecting
from freshscore.features.redis_lines import Address, Lines, Reply, command
from freshscore.features.redis_topology import (
    Topology,
    in_info,
    of_cluster,
    of_one_server,
    of_primary,
)


class Finding:
    """Asks for the nodes, over connections that are made for it; safe in many threads."""

    def __init__(self, connecting: Connecting, clock: Clock) -> None:
        self._connecting = connecting
        self._clock = clock
        self._checked: set[Address] = set()

    def found_from(self, address: Address, limit_s: float) -> Topology:
        """The nodes that `address` knows of, each checked when it is first met.

        limit_s: of each question. Raises Unavailable, and SettingsError for what is refused.
        """
        if self._connecting.primary is not None:
            found = self._told_by_sentinel(address, self._connecting.primary, limit_s)
        elif self._connecting.settings.cluster:
            found = of_cluster(self._asked(address, [(b"CLUSTER", b"SLOTS")], limit_s)[0], address)
        else:
            found = of_one_server(address)
        for node in found.addresses:
            if node not in self._checked:
                self._check(node, limit_s)
                self._checked.add(node)
        return found

    def _told_by_sentinel(self, address: Address, primary: str, limit_s: float) -> Topology:
        asked = (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", primary.encode())
        # They answer at once, and one that is away must not use up the time of all.
        most_s = self._connecting.settings.timeout_ms / 1_000 / len(self._connecting.servers)
        connected = self._connecting.sentinel_connected
        told = self._asked(address, [asked], min(limit_s, most_s), connected)
        return of_primary(told[0], primary, address)

    def _asked(
        self,
        address: Address,
        commands: list[tuple[bytes, ...]],
        limit_s: float,
        connected: _Connects | None = None,
    ) -> list[Reply]:
        connect = partial(connected or self._connecting.connected, clock=self._clock)
        lines = Lines([address], connect, self._clock, limit_s)
        request = b"".join(command(*parts) for parts in commands)
        try:
            return lines.exchange([request], [len(commands)])[0]
        finally:
            lines.close()

    def _check(self, address: Address, limit_s: float) -> None:
        """Refuse a server on which states could vanish, or of another kind than the settings."""
        place = f"Redis at {address[0]}:{address[1]}"
        # Not CONFIG GET: managed services bar it, the deployed users may not, and each try would be
        # a line of ACL LOG.
        asked: list[tuple[bytes, ...]] = [(b"INFO", b"memory"), (b"INFO", b"cluster")]
        memory, kind = self._asked(address, asked, limit_s)
        policy = in_info(memory).get("maxmemory_policy")
        if policy is None:
            # A service may bar INFO too, and has a setting of its own for this.
            logging.getLogger("freshscore").warning(
                "%s: INFO does not say whether it evicts keys when its memory is full; it must be"
                " set to noeviction, or states would be lost unnoticed",
                place,
            )
        elif policy != "noeviction":
            raise SettingsError(
                f"{place} has maxmemory-policy {policy}: when its memory is full it would drop"
                " states, which then look like new entities; set it to noeviction"
            )
        is_cluster = in_info(kind).get("cluster_enabled") == "1"
        if is_cluster and not self._connecting.settings.cluster:
            raise SettingsError(f"{place} is a node of a cluster, and redis.cluster is false")


class _Connects(Protocol):
    """Makes a connection on which the user is known."""

    def __call__(self, address: Address, limit_s: float, clock: Clock) -> socket.socket: ...
