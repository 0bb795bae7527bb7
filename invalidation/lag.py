"""How far states are behind the log: one look at it, at the group and at every node of Redis.

What the group committed and what the nodes hold is asked for before the ends of the log, so what
comes meanwhile is counted as behind, never as less than nothing.
Rule: a node counts as far as its lowest marker; one without an epoch holds nothing that counts.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from freshscore.config.errors import SettingsError, Unavailable
from freshscore.config.settings import Settings
from freshscore.features.program import compiled
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.specification import FeatureSpecification
from freshscore.features.state_layout import state_fingerprints
from freshscore.invalidation.kafka_admin import LogAdmin
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.node_reports import NodeReport, node_reports
from freshscore.invalidation.partitions import Partition

_TRIES: Final = 20
_BETWEEN_TRIES_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """One partition; offsets are those of the next message.

    committed: None where the group has committed nothing. applied: the lowest marker of all nodes,
    None where one has none. behind: messages that are not applied, of all that it holds where none
    is.
    """

    topic: str
    partition: int
    end: int
    committed: int | None
    applied: int | None
    behind: int


@dataclass(frozen=True, slots=True)
class NodeLag:
    """One node: address, hash tag, whether it has its epoch or is being rebuilt.

    watermark_age_s: since the arrival up to which it holds everything; None while not every
    partition has reported.
    """

    address: str
    tag: str
    has_epoch: bool
    is_rebuilding: bool
    watermark_age_s: float | None
    complete_since_ms: int


@dataclass(frozen=True, slots=True)
class Lag:
    """One look at a deployment, at `at_ms`."""

    at_ms: int
    partitions: tuple[PartitionLag, ...]
    nodes: tuple[NodeLag, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every node has its epoch."""
        return all(node.has_epoch for node in self.nodes)


def lag_of(settings: Settings, nodes: Nodes, now_ms: int) -> Lag:
    """How far the states are behind at `now_ms`.

    Raises SettingsError, BadSpecification, Unavailable.
    """
    kafka = settings.kafka
    program = compiled(FeatureSpecification.named(settings.store.specification))
    names = (kafka.transactions_topic, kafka.labels_topic)
    with LogAdmin(kafka) as admin:
        topics = admin.topics(names)
        missing = [name for name in names if name not in topics]
        if missing:
            raise SettingsError(
                f"no topic {', '.join(missing)} at {kafka.bootstrap_servers};"
                " make them with: freshscore topics check --create"
            )
        committed = _committed(admin, kafka.group)
    reports = node_reports(nodes, RedisKeys(settings.redis.namespace, state_fingerprints(program)))
    places = [(name, number) for name in names for number in range(topics[name].n_partitions)]
    reader = LogReader(kafka, names, group=None)
    try:
        first, ends = reader.beginnings(places), reader.ends(places)
    finally:
        reader.close()
    partitions = []
    for at in places:
        applied = _applied(reports, (topics[at[0]].topic_id, at[1]))
        behind = ends[at] - (first[at] if applied is None else max(applied, first[at]))
        partitions.append(
            PartitionLag(*at, ends[at], committed.get(at), applied, max(0, behind)),
        )
    sources = [(topics[name].topic_id, number) for name, number in places]
    found = [
        _node_lag(report, address, sources, now_ms)
        for report, address in zip(reports, nodes.topology.addresses, strict=True)
    ]
    return Lag(now_ms, tuple(partitions), tuple(found))


def _committed(admin: LogAdmin, group: str) -> dict[Partition, int]:
    """What the group has committed, from a broker that may first have to find its coordinator."""
    for _ in range(_TRIES):
        try:
            return admin.committed(group)
        except Unavailable:
            # The first question about groups makes a new broker prepare for them, and fails.
            threading.Event().wait(_BETWEEN_TRIES_S)
    return admin.committed(group)


def _applied(reports: Sequence[NodeReport], source: tuple[str, int]) -> int | None:
    offsets = [one.markers[source][0] if source in one.markers else None for one in reports]
    known = [
        offset
        for offset, one in zip(offsets, reports, strict=True)
        if offset is not None and one.epoch is not None
    ]
    return min(known) if len(known) == len(reports) else None


def _node_lag(
    report: NodeReport, address: tuple[str, int], sources: Sequence[tuple[str, int]], now_ms: int
) -> NodeLag:
    arrivals = [report.markers[one][1] for one in sources if one in report.markers]
    age_s = None
    if report.epoch is not None and len(arrivals) == len(sources) and min(arrivals) > 0:
        age_s = max(0, now_ms - min(arrivals)) / 1_000
    return NodeLag(
        address=f"{address[0]}:{address[1]}",
        tag=report.tag,
        has_epoch=report.epoch is not None,
        is_rebuilding=report.is_rebuilding,
        watermark_age_s=age_s,
        complete_since_ms=report.complete_since_ms,
    )
