"""Computing states again from the log, and comparing them with what Redis holds.

Order makes it exact while the stream runs: the nodes' markers are read, then the states of a
sample, then the ends of the log. A state holds at least what lies before the markers and at most
what lies before the ends; both sets are made in one pass over the log.
Rule: only the log up to the markers is what a state must hold; reads, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from freshscore.config.errors import DamagedState, Unavailable
from freshscore.features.decoded_state import DecodedState
from freshscore.features.past_events import Past
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_keys import tag_of
from freshscore.features.redis_lines import command
from freshscore.features.redis_reading import StateReading, Wanted
from freshscore.invalidation.assembling import decoder, message_columns
from freshscore.invalidation.batches import Batcher
from freshscore.invalidation.comparing_states import (
    EQUAL,
    MOVING,
    Bounds,
    Evaluated,
    FromLog,
    Stored,
    compared,
)
from freshscore.invalidation.deployment import Deployment
from freshscore.invalidation.entity_reading import Aggregates
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.log_records import LogBatches, LogRecords, Stretch, named_in
from freshscore.invalidation.node_reports import NodeReport, node_reports
from freshscore.invalidation.past_writing import topic_ids
from freshscore.invalidation.set_aside import MOST_SET_ASIDE, SetAside, set_aside

# States of one exchange: one can have megabytes.
_AT_ONCE: Final = 64


class StateFinding(msgspec.Struct, frozen=True):
    """What came of one state; entity by name, token in hexadecimal digits, verdict in words."""

    entity: str
    token: str
    verdict: str
    n_stored: int
    n_of_log: int

    @property
    def is_difference(self) -> bool:
        """Whether the state is not what the log gives."""
        return self.verdict not in (EQUAL, MOVING)


class StatesVerified(msgspec.Struct, frozen=True):
    """What came of a sample; line_ms: what is from then on was compared, 0 for everything.

    n_letters_left_out: dead letters beyond the limit; their messages may show as missing records.
    """

    findings: tuple[StateFinding, ...]
    n_messages: int
    line_ms: int
    n_letters_left_out: int = 0


def verify_states(
    deployment: Deployment,
    sample: Sequence[Wanted],
    n_recent: int = 0,
    most_letters: int = MOST_SET_ASIDE,
) -> StatesVerified:
    """Compare the states of a sample with the log, and those that its last payments name.

    n_recent: payments of each partition that are looked at for that; a state that has vanished is
    in no sample of what is there. most_letters: dead letters that are looked at. Raises
    SettingsError, Unavailable.
    """
    kafka, layouts = deployment.settings.kafka, deployment.store.maker.layouts
    ids = topic_ids(deployment)
    reports = _whole(node_reports(deployment.nodes, deployment.redis_keys))
    wanted = [*dict.fromkeys([*sample, *_named_lately(deployment, reports, ids, n_recent)])]
    blobs = _read(deployment, wanted)
    reader = LogReader(kafka, [*ids], group=None)
    try:
        places = [(topic, number) for topic in ids for number in reader.partitions(topic)]
        markers = {at: _marker(reports, ids[at[0]], at[1]) for at in places}
        first, ends = reader.beginnings(places), reader.ends(places)
        stretches = [Stretch(at, first[at], markers[at], ends[at]) for at in places]
        refused = set_aside(kafka, ids, stretches, most_letters)
        batches = _batches(deployment, reader, refused)
        log = LogRecords(batches, layouts, wanted)
        log.read(stretches, kafka.labels_topic)
    finally:
        reader.close()
    now_ms = deployment.clock.now_ms()
    log_from_ms = _log_from(deployment, reports, stretches, batches, now_ms)
    bounds = Bounds(log_from_ms, _held_from(deployment, now_ms))
    findings = _findings(deployment, wanted, blobs, log, bounds, now_ms)
    return StatesVerified(tuple(findings), batches.n_messages, log_from_ms, refused.n_left_out)


def _named_lately(
    deployment: Deployment, reports: Sequence[NodeReport], ids: Mapping[str, str], n: int
) -> Iterator[Wanted]:
    """The states of the last `n` payments of each partition that are applied."""
    topic = deployment.settings.kafka.transactions_topic
    reader = LogReader(deployment.settings.kafka, [topic], group=None)
    try:
        places = [(topic, number) for number in reader.partitions(topic)]
        first = reader.beginnings(places)
        markers = {at: _marker(reports, ids[topic], at[1]) for at in places}
        stretches = [
            Stretch(at, max(first[at], markers[at] - n), markers[at], markers[at]) for at in places
        ]
        refused = set_aside(deployment.settings.kafka, ids, stretches)
        batches = _batches(deployment, reader, refused)
        yield from named_in(batches, deployment.store.maker.layouts, stretches)
    finally:
        reader.close()


def _batches(deployment: Deployment, reader: LogReader, refused: SetAside) -> LogBatches:
    settings, program = deployment.settings, deployment.program
    batcher = Batcher.of(
        settings,
        program,
        deployment.keys,
        deployment.nodes.node_of_slot,
        columns=message_columns(settings, program),
        decode=decoder(settings),
    )
    limit_s = settings.kafka.request_timeout_s
    return LogBatches(reader, batcher, refused, limit_s, deployment.clock)


def _findings(
    deployment: Deployment,
    wanted: Sequence[Wanted],
    blobs: Sequence[tuple[bytes, Past]],
    log: LogRecords,
    bounds: Bounds,
    now_ms: int,
) -> Iterator[StateFinding]:
    aggregates = Aggregates(deployment.program)
    for one, (blob, past) in zip(wanted, blobs, strict=True):
        entity, token = one
        found = compared(
            Stored(deployment.store.maker.layouts[entity], blob, past),
            FromLog(
                bytes(log.applied[one]),
                bytes(log.more[one]),
                log.erased_below_ms.get(one, 0),
                log.erased_later_ms.get(one, 0),
            ),
            bounds,
            _evaluated(aggregates, one, now_ms),
        )
        name = deployment.program.entities[entity].name
        yield StateFinding(name, token.hex(), *found)


def _evaluated(aggregates: Aggregates, one: Wanted, now_ms: int) -> Evaluated:
    def evaluated(state: DecodedState | None) -> dict[str, float]:
        # Below its lines a grid answers nothing.
        as_of_ms = max(now_ms, 0 if state is None else state.closed_below_ms)
        return aggregates.at(*one, state, as_of_ms)

    return evaluated


def _held_from(deployment: Deployment, now_ms: int) -> int:
    """Before when a state may have been forgotten, as an idle one is, ms."""
    if deployment.settings.kafka.historical:
        return 0
    store = deployment.store
    return now_ms - store.held_ms - store.limits.horizon_ms


def _whole(reports: list[NodeReport]) -> list[NodeReport]:
    for one in reports:
        if one.epoch is None:
            raise Unavailable(
                f"the node of Redis with tag {one.tag} has no data, or is being rebuilt; wait until"
                " `freshscore lag` calls every node whole"
            )
    return reports


def _read(deployment: Deployment, wanted: Sequence[Wanted]) -> list[tuple[bytes, Past]]:
    """Each state as stored, and what it asks of what was folded of it."""
    reading, layouts = deployment.store.reading, deployment.store.maker.layouts
    found: list[tuple[bytes, Past]] = []
    for first in range(0, len(wanted), _AT_ONCE):
        some = wanted[first : first + _AT_ONCE]
        asked = [(tag_of(t), command(b"GET", reading.state_key(e, t))) for e, t in some]
        for one, blob in zip(some, replies_to(deployment.nodes, asked), strict=True):
            is_whole = blob is None or not layouts[one[0]].is_grid
            found.append((blob or b"", {}) if is_whole else _read_grid(reading, *one, blob))
    return found


def _read_grid(reading: StateReading, entity: int, token: bytes, blob: bytes) -> tuple[bytes, Past]:
    try:
        return reading.whole(entity, token)
    except DamagedState:
        return blob, {}


def _marker(reports: Sequence[NodeReport], topic_id: str, number: int) -> int:
    """Up to where every node holds a partition."""
    return min(one.markers.get((topic_id, number), (0, 0))[0] for one in reports)


def _log_from(
    deployment: Deployment,
    reports: Sequence[NodeReport],
    stretches: Sequence[Stretch],
    batches: LogBatches,
    now_ms: int,
) -> int:
    """From when on events are in the log for certain, ms; 0 where it has everything."""
    skew_ms = 1_000 * deployment.settings.store.skew_s
    lines = [one.cut_over_ms for one in reports if one.cut_over_ms is not None]
    for stretch in stretches:
        if stretch.first > 0:
            # Of a partition without messages nothing is left to compare with.
            lines.append(batches.first_arrivals_ms.get(stretch.at, now_ms) + skew_ms)
    return max(lines, default=0)
