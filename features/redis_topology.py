"""Which nodes there are, as Redis or its Sentinels say it.

A node's tag names the very set of slots that the node has, so what is kept under it, its markers
and its epoch, vouches for these slots and no others. A node that gets or gives slots has another
tag from then on, and under it no epoch: whether states came with a slot, and all of them, cannot be
seen (the slots of a lost node are given to others empty), so it is rebuilt like one that is new.
Rejected: a tag that stays while its slot does; a slot that came empty then held only new entities.
A replica that takes over has the same tag: what it holds is the beginning of what was written, and
its markers, which come with that, say how much.
Rule: pure; what is asked of whom is for the door to say (features/redis_door.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import SettingsError, Unavailable
from freshscore.features.redis_keys import SLOTS, slot_of
from freshscore.features.redis_lines import Address, Reply, ReplyError

# Where tags begin, by the digest of a node's slots: one pair of sets in 10^9 begins alike. From
# there on so many numbers are tried: for one slot alone 2^14 on average.
_TAGS: Final = 1 << 30
_TAGS_TRIED: Final = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """The nodes at one moment, in the order of their lowest slot.

    addresses: of the primaries. node_of_slot: uint16[16384]. tags: of each node a decimal number
    whose slot it owns, as text, that follows from the set of all its slots; "0" of a single server.
    """

    addresses: tuple[Address, ...]
    node_of_slot: NDArray[np.uint16]
    tags: tuple[str, ...]

    def node_of(self, tag: bytes) -> int:
        """The node that owns a hash tag."""
        return int(self.node_of_slot[slot_of(tag)])

    def is_like(self, other: Topology) -> bool:
        """Whether nothing has moved between the two."""
        return self.addresses == other.addresses and np.array_equal(
            self.node_of_slot, other.node_of_slot
        )


def of_one_server(address: Address) -> Topology:
    """One server has all slots."""
    return Topology((address,), np.zeros(SLOTS, np.uint16), ("0",))


def of_cluster(slots: Reply, asked: Address) -> Topology:
    """What the node at `asked` says to CLUSTER SLOTS.

    Raises Unavailable while slots have no node, SettingsError where it is no cluster.
    """
    place = f"Redis at {asked[0]}:{asked[1]}"
    if isinstance(slots, ReplyError):
        if "cluster support disabled" in str(slots):
            raise SettingsError(f"{place} is no cluster, and redis.cluster is true")
        raise Unavailable(f"{place}: {slots}")
    ranges = sorted((first, last, node[0] or b"", node[1]) for first, last, node, *_ in slots)
    # Without an announced name a node is where the one that was asked is.
    places = [(host.decode() or asked[0], int(port)) for _, _, host, port in ranges]
    addresses = tuple(dict.fromkeys(places))
    owners = np.full(SLOTS, len(addresses), np.uint16)
    for (first, last, _, _), found in zip(ranges, places, strict=True):
        owners[first : last + 1] = addresses.index(found)
    n_missing = int(np.count_nonzero(owners == len(addresses)))
    if n_missing:
        raise Unavailable(f"{place}: {n_missing} of {SLOTS} slots have no node")
    return Topology(addresses, owners, _node_tags(owners, len(addresses)))


def of_primary(told: Reply, primary: str, asked: Address) -> Topology:
    """What the Sentinel at `asked` says to SENTINEL GET-MASTER-ADDR-BY-NAME.

    Raises Unavailable where it knows no primary of that name, SettingsError where it may not say.
    """
    place = f"the Sentinel at {asked[0]}:{asked[1]}"
    if isinstance(told, ReplyError):
        if told.word in {"NOAUTH", "NOPERM"}:
            raise SettingsError(
                f"{place} refuses redis.sentinel_username or redis.sentinel_password"
                f" (FRESHSCORE_REDIS__SENTINEL_PASSWORD): {told}"
            )
        if "unknown command" in str(told):
            raise SettingsError(
                f"Redis at {asked[0]}:{asked[1]} is no Sentinel, and redis.url names it as one"
            )
        raise Unavailable(f"{place}: {told}")
    if told is None:
        raise Unavailable(f"{place} knows no primary that is called {primary} (redis.url)")
    host, port = told
    return of_one_server((host.decode(), int(port)))


def in_info(reply: Reply) -> dict[str, str]:
    """The lines of an answer to INFO; nothing where the user may not ask."""
    if not isinstance(reply, bytes):
        return {}
    pairs: Sequence[list[str]] = [
        line.split(":", 1) for line in reply.decode().splitlines() if ":" in line
    ]
    return {name: value.strip() for name, value in pairs}


def _node_tags(owners: NDArray[np.uint16], n: int) -> tuple[str, ...]:
    return tuple(_tag_of_set(owners == node) for node in range(n))


def _tag_of_set(owned: NDArray[np.bool_]) -> str:
    """The tag of a node with these slots, bool[16384]: the first number that lies in one of them.

    Counted from the digest of the set on.
    """
    packed = np.packbits(owned).tobytes()
    digest = hashlib.blake2b(packed, digest_size=8, person=b"slots-of-a-node").digest()
    first = int.from_bytes(digest, "little") % _TAGS
    numbers = range(first, first + _TAGS_TRIED)
    return next(str(number) for number in numbers if owned[slot_of(b"%d" % number)])
