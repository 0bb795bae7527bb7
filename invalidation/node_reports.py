"""What each node of Redis says of itself, all of it, for whoever looks on: reads, never writes.

Rule: what a node does not say is None; nothing is made up for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.redis_lines import command

# The field of the instant from which the log is the source, where a backfill has moved the begin.
CUT_OVER: Final = "cut_over"

# Topic id and partition.
Source = tuple[str, int]


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node, by its hash tag.

    epoch: 16 hexadecimal digits, None where it has lost its data or is new. complete_since_ms: 0
    for unknown. cut_over_ms: from when on the log is the source, None where it is all there is.
    markers: next offset and lowest arrival still to come, ms, of each partition.
    """

    tag: str
    epoch: str | None
    is_rebuilding: bool
    key_id: str | None
    complete_since_ms: int
    cut_over_ms: int | None
    markers: Mapping[Source, tuple[int, int]]


def node_reports(nodes: Nodes, keys: RedisKeys) -> list[NodeReport]:
    """What each node says, in their order, in one exchange. Raises Unavailable."""
    tags = nodes.tags
    asked = [(tag.encode(), command(b"HGETALL", keys.markers(tag))) for tag in tags]
    return [_report(tag, held) for tag, held in zip(tags, replies_to(nodes, asked), strict=True)]


def _report(tag: str, held: list[bytes]) -> NodeReport:
    fields = [one.decode() for one in held]
    said = dict(zip(fields[::2], fields[1::2], strict=True))
    markers = {}
    for name, value in said.items():
        if name.startswith("m:"):
            _, topic_id, partition = name.split(":")
            offset, arrival_ms = value.split()
            markers[topic_id, int(partition)] = int(offset), int(arrival_ms)
    cut_over = said.get(CUT_OVER)
    return NodeReport(
        tag=tag,
        epoch=said.get("epoch"),
        is_rebuilding="rebuilding" in said,
        key_id=said.get("key_id"),
        complete_since_ms=int(said.get("complete_since", 0)),
        cut_over_ms=None if cut_over is None else int(cut_over),
        markers=markers,
    )
