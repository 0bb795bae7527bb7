"""What had been applied when: the log of a replay, for oracles to read.

Positions: history first, in arrival order, then touch i of the stream at `start` + i. A request has
seen whatever has a smaller position than its own.
Rule: the log says what was sent and when, never what counts; that is for an oracle to decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from freshscore.features.table import Bools, Coded, Int64s
from freshscore.simulations.shapes import TouchKind
from freshscore.simulations.streams import (
    MAX_STAGES,
    NO_FACT,
    Stream,
    content_number,
    last_stage,
)


@dataclass(frozen=True, eq=False)
class AppliedEvents:
    """Events in order of position: (e,) each. content: see `streams.content_number`."""

    position: Int64s
    content: Int64s
    arrival_ms: Int64s


@dataclass(frozen=True, eq=False)
class AppliedFacts:
    """Facts, by position: (k,) each. name: index into the specification's facts."""

    position: Int64s
    payment: Int64s
    name: Int64s
    value: Bools
    sender_ms: Int64s
    known_at_ms: Int64s


@dataclass(frozen=True, eq=False)
class AppliedLog:
    """All that a stream applies. start: the position of its first touch."""

    events: AppliedEvents
    facts: AppliedFacts
    start: int


def applied_log(stream: Stream) -> AppliedLog:
    """The log of `stream`."""
    table, past = stream.table, stream.history_table()
    start = len(past)
    stage = np.full(start, last_stage(stream.shape), np.int64)
    played = np.flatnonzero(stream.kind == TouchKind.OBSERVE)
    told = np.flatnonzero(stream.fact != NO_FACT)
    events = AppliedEvents(
        position=np.concatenate([np.arange(start), start + played]),
        content=np.concatenate([content_number(stream.history, stage), stream.content[played]]),
        arrival_ms=np.concatenate([table.arrival_ms[stream.history], stream.at_ms[played]]),
    )
    facts = AppliedFacts(
        # Known before the start: seen by every request.
        position=np.concatenate([np.full(len(past.facts), -1), start + told]),
        payment=np.concatenate([stream.history[past.facts.row], stream.payment[told]]),
        name=np.concatenate([past.facts.name, stream.fact[told]]).astype(np.int64),
        value=np.concatenate([past.facts.value, stream.value[told]]),
        sender_ms=np.concatenate([past.facts.sender_ms, stream.at_ms[told]]),
        known_at_ms=np.concatenate([past.facts.known_at_ms, stream.at_ms[told]]),
    )
    return AppliedLog(events, facts, start)


def payments_of(contents: Int64s) -> Int64s:
    """The payments that contents are of."""
    return contents // MAX_STAGES


def times_ms(stream: Stream) -> Int64s:
    """Event time of each payment, (payments,)."""
    return np.concatenate([stream.table.time_ms, stream.added.time_ms])


@dataclass(frozen=True, eq=False)
class EntityNumbers:
    """Whose each payment is: number (payments,), -1 where the entity is absent, a place in `keys`.

    keys: (parts, keys) codes of identifiers, for `texts`.
    """

    number: Int64s
    keys: Int64s
    columns: tuple[Coded, ...]

    def texts(self, numbers: Int64s) -> list[tuple[str, ...]]:
        """The identifiers of keys, a part each."""
        parts = [
            column.values.take(pa.array(codes)).to_pylist()
            for column, codes in zip(self.columns, self.keys[:, numbers], strict=True)
        ]
        return list(zip(*parts, strict=True))


def entity_numbers(stream: Stream, entity: str) -> EntityNumbers:
    """Whose each payment of the stream is."""
    parts = stream.table.specification.entity(entity).parts
    tables = (stream.table, stream.added)
    codes = np.stack(
        [np.concatenate([table.entities[part].codes for table in tables]) for part in parts]
    ).astype(np.int64)
    number = np.full(codes.shape[1], -1, np.int64)
    present = (codes >= 0).all(axis=0)
    # Distinct columns of one row are distinct values, which sort a hundred times faster.
    one_part = len(parts) == 1
    keys, places = np.unique(
        codes[0, present] if one_part else codes[:, present],
        axis=None if one_part else 1,
        return_inverse=True,
    )
    number[present] = places.reshape(-1)
    # The values of an added payment go on from those of the table.
    columns = tuple(stream.added.entities[part] for part in parts)
    return EntityNumbers(number, keys.reshape(len(parts), -1), columns)
