"""One batch as it is sent: a byte stream of commands for each node, and what the answers mean.

Rule: nothing is sent here. A batch is whole until the second batch after it is built, for its
buffers are re-used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshscore.features.memory import address_of
from freshscore.features.redis_reading import Wanted
from freshscore.invalidation import append_plan as p
from freshscore.invalidation.append_commands import route_groups, write_commands
from freshscore.invalidation.append_plan import AppendLimits, AppendPlan
from freshscore.invalidation.message_reading import ReadLabel


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that is to be set aside: its place in its sequence, and why, without its content.

    A conflict is set aside and applied all the same.
    """

    is_label: bool
    index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Erasure:
    """An order among the labels: what these states hold of before `below_ms` is to be erased."""

    index: int
    states: tuple[Wanted, ...]
    below_ms: int


@dataclass(frozen=True, slots=True)
class Lookup:
    """A label whose payment is to be looked up in the index, by the low word of its identity."""

    index: int
    identity: int
    label: ReadLabel


@dataclass(frozen=True, slots=True)
class Found:
    """A label with what the index has of its payment: time, ms, and the tokens of its entities."""

    lookup: Lookup
    time_ms: int
    tokens: bytes


@dataclass(slots=True)
class Buffers:
    """What one batch keeps, and the batch after the next overwrites."""

    body: NDArray[np.uint8]
    groups: NDArray[np.int64]
    nodes: list[NDArray[np.uint8]]


class Batch:
    """What was made of one poll; nothing of it is sent yet.

    counts: outcome -> messages; they add up to all of them. refused: to be set aside. lookups:
    labels that are not in it yet. erasures: what else labels order. far: labels that were looked
    up, and lie more than 17 years from their payments. n_slow: messages that the kernel left to the
    careful reader. n_groups, n_records: of states.
    """

    def __init__(
        self, plan: AppendPlan, limits: AppendLimits, words: NDArray[np.int64], buffers: Buffers
    ) -> None:
        self._plan = plan
        self._compact_records = limits.compact_records
        self._words = words
        self._buffers = buffers
        self.counts: dict[str, int] = {}
        self.refused: list[Refusal] = []
        self.lookups: list[Lookup] = []
        self.erasures: list[Erasure] = []
        self.far: list[Found] = []
        self.n_slow = 0
        self.n_groups = self._word(p.N_STATES)
        self.n_records = self._word(p.N_RECORDS)
        self.n_replies: list[int] = []
        self._n_bytes: list[int] = []
        widths = [layout.width for layout in plan.layouts]
        self._widths = np.array([*widths, 16 + 16 * len(widths)], np.int64)
        self._are_grids = np.array([*(layout.is_grid for layout in plan.layouts), False])

    @property
    def body(self) -> memoryview:
        """The groups of states with their records, as the invalidation stream carries them."""
        return self._buffers.body.data[: self._word(p.STATE_BYTES)]

    @property
    def requests(self) -> list[memoryview | None]:
        """For each node the commands to send, None where there are none."""
        return [
            buffer.data[:n_bytes] if n_bytes else None
            for buffer, n_bytes in zip(self._buffers.nodes, self._n_bytes, strict=False)
        ]

    def route(self, node_of_slot: NDArray[np.uint16]) -> None:
        """Write the commands for these nodes, uint16[16384]; again, where they have moved."""
        n = int(node_of_slot.max()) + 1
        sizes = np.zeros(n, np.int64)
        replies = np.zeros(n, np.int64)
        self._set(p.N_NODES, n)
        self._set(p.NODES, address_of(node_of_slot))
        self._set(p.SIZES, address_of(sizes))
        self._set(p.REPLIES, address_of(replies))
        route_groups(self._plan.address, address_of(self._words))
        self._n_bytes = sizes.tolist()
        self.n_replies = replies.tolist()
        nodes = self._buffers.nodes
        nodes += [np.empty(0, np.uint8) for _ in range(n - len(nodes))]
        for node, n_bytes in enumerate(self._n_bytes):
            nodes[node] = with_room(nodes[node], n_bytes)
            # Each node's size becomes the place that its next command is written to.
            sizes[node] = address_of(nodes[node])
        write_commands(self._plan.address, address_of(self._words))

    def add_command(self, node: int, command: bytes) -> None:
        """Put one more command, with one reply, behind those of a node."""
        at = self._n_bytes[node]
        buffer = self._buffers.nodes[node]
        if len(buffer) < at + len(command):
            grown = with_room(buffer, at + len(command))
            grown[:at] = buffer[:at]
            self._buffers.nodes[node] = buffer = grown
        buffer[at : at + len(command)] = np.frombuffer(command, np.uint8)
        self._n_bytes[node] = at + len(command)
        self.n_replies[node] += 1

    def compaction_candidates(self, node: int, replies: Sequence[Any]) -> list[tuple[int, bytes]]:
        """Entity number and token of the states that have doubled, by the replies of a node.

        A state's length crossed a power of two times the least size for compaction, that of a grid
        a multiple of it. Replies that are no lengths are passed over.
        """
        groups = self._groups(node)
        if not len(groups) or not replies:
            return []
        lengths = _lengths(replies)[groups[:, p.REPLY // 8]]
        entities = groups[:, p.ENTITY // 8]
        sent = groups[:, p.COUNT // 8] * self._widths[entities]
        unit = self._widths[entities] * self._compact_records
        # The exponent of a whole number is that of the power of two above it; -1 // unit has none.
        before, after = (lengths - sent) // unit, lengths // unit
        crossed = np.frexp(after)[1] > np.frexp(before)[1]
        crossed |= self._are_grids[entities] & (after > before)
        doubled = groups[crossed & (lengths >= sent)]
        tokens = np.ascontiguousarray(doubled[:, p.LOW // 8 : p.HIGH // 8 + 1]).tobytes()
        return [
            (int(entity), tokens[16 * i : 16 * i + 16])
            for i, entity in enumerate(doubled[:, p.ENTITY // 8])
        ]

    def _groups(self, node: int) -> NDArray[np.int64]:
        """The groups of states of a node: int64[n, words of a group]."""
        groups = self._buffers.groups[: self._word(p.N_GROUPS)]
        is_state = groups[:, p.ENTITY // 8] < len(self._plan.layouts)
        on_node: NDArray[np.int64] = groups[is_state & (groups[:, p.NODE // 8] == node)]
        return on_node

    def _word(self, at: int) -> int:
        return int(self._words[at // 8])

    def _set(self, at: int, value: int) -> None:
        self._words[at // 8] = value


def with_room(buffer: NDArray[np.uint8], n_bytes: int) -> NDArray[np.uint8]:
    """`buffer`, or a larger one; what it holds is not kept."""
    return buffer if len(buffer) >= n_bytes else np.empty(n_bytes + n_bytes // 2, np.uint8)


def _lengths(replies: Sequence[Any]) -> NDArray[np.int64]:
    """Replies as lengths; -1 for what is none."""
    try:
        return np.fromiter(replies, np.int64, len(replies))
    except (TypeError, ValueError):
        return np.array([one if isinstance(one, int) else -1 for one in replies], np.int64)
