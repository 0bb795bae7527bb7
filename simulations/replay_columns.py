"""A replay as the columns that the vectorised oracle reads, so that it can follow every touch.

Rule: as in `oracle_columns`: columns say what was sent and when, and leave what counts to the
oracle.
Memory: some 200 bytes for each payment and 8 for each of its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from freshscore.features.layout import PLACE_UNITS
from freshscore.features.table import Bools, Floats, Int64s
from freshscore.invalidation.feed import Acceptance
from freshscore.simulations.applied_log import (
    AppliedLog,
    applied_log,
    entity_numbers,
    payments_of,
    times_ms,
)
from freshscore.simulations.oracle_columns import (
    NEVER,
    OracleFacts,
    OracleRequests,
    OracleRows,
    Words,
    identities,
    is_accepted,
)
from freshscore.simulations.oracle_set import member_bytes
from freshscore.simulations.oracle_vectorised import VectorisedOracle
from freshscore.simulations.streams import MAX_STAGES, NO_FACT, Stream

Advance = Callable[[int], None]
Codes = Mapping[str, Mapping[str, int]]
# A piece of requests and what the oracle makes of it stay within some hundred megabytes.
_REQUESTS_AT_ONCE: Final = 65_536


def vectorised_features(
    stream: Stream,
    touches: Int64s,
    acceptance: Acceptance,
    record_key: bytes,
    codes: Codes,
    advance: Advance = lambda touches: None,
) -> Floats:
    """Feature vectors at `touches` (scores of the stream) by the oracle, (n, columns)."""
    specification = stream.table.specification
    log = applied_log(stream)
    contents = np.unique(np.concatenate([log.events.content, stream.content[touches]]))
    applied = _applied(stream, log, contents, acceptance)
    rows = _rows(stream, contents, applied, record_key, codes)
    oracle = VectorisedOracle(specification, rows, _facts(stream, contents, log))
    found = np.empty((len(touches), len(specification.feature_names)))
    for first in range(0, len(touches), _REQUESTS_AT_ONCE):
        piece = touches[first : first + _REQUESTS_AT_ONCE]
        requests = OracleRequests(
            np.searchsorted(contents, stream.content[piece]),
            stream.at_ms[piece],
            log.start + piece,
        )
        found[first : first + len(piece)] = oracle.features(requests)
        advance(len(piece))
    return found


def _applied(stream: Stream, log: AppliedLog, contents: Int64s, acceptance: Acceptance) -> Int64s:
    """The position at which each content was first applied, NEVER for what was not."""
    events = log.events
    time_ms = _column(stream, "time_ms")[payments_of(events.content)]
    accepted = is_accepted(time_ms, events.arrival_ms, acceptance.horizon_ms, acceptance.skew_ms)
    applied = np.full(len(contents), NEVER)
    places = np.searchsorted(contents, events.content[accepted])
    np.minimum.at(applied, places, events.position[accepted])
    return applied


def _rows(
    stream: Stream, contents: Int64s, applied: Int64s, record_key: bytes, codes: Codes
) -> OracleRows:
    spec = stream.table.specification
    payment = payments_of(contents)
    entities, members = _entities(stream, contents, record_key)
    place = _places(stream)[payment]
    fields = (*spec.plain_fields, *spec.categories)
    absent = {name: _lacks(stream, contents, (name,)) for name in fields}
    return OracleRows(
        transaction=np.unique(stream.identity[payment], return_inverse=True)[1],
        identity=identities(_ids(stream, payment), record_key),
        time_ms=_column(stream, "time_ms")[payment],
        amount_minor=_amounts_minor(stream, contents),
        kind=_column(stream, "kind")[payment].astype(np.int64),
        entities=entities,
        members=members,
        conditions=_conditions(stream, contents),
        flags=_bits(_column(stream, "flags")[payment], len(spec.facts)),
        latitude=place[:, 0],
        longitude=place[:, 1],
        numbers={
            name: np.where(absent[name], np.nan, _number(stream, name)[payment])
            for name in spec.plain_fields
        },
        categories={
            name: np.where(absent[name], np.nan, _category(stream, name, codes)[payment])
            for name in spec.categories
        },
        applied=applied,
    )


def _facts(stream: Stream, contents: Int64s, log: AppliedLog) -> OracleFacts:
    """The facts of payments that are among the rows."""
    facts = log.facts
    known = np.unique(stream.identity[payments_of(contents)])
    kept = np.flatnonzero(np.isin(stream.identity[facts.payment], known))
    payment = facts.payment[kept]
    return OracleFacts(
        transaction=np.searchsorted(known, stream.identity[payment]),
        name=facts.name[kept],
        value=facts.value[kept],
        sender_ms=facts.sender_ms[kept],
        known_at_ms=facts.known_at_ms[kept],
        time_ms=times_ms(stream)[payment],
        applied=facts.position[kept],
    )


def _entities(
    stream: Stream, contents: Int64s, record_key: bytes
) -> tuple[dict[str, Int64s], dict[str, Words]]:
    """Whose each content is, and the hash of that; absent at a stage that does not have it yet."""
    whose, members = {}, {}
    for entity in stream.table.specification.entities:
        numbers = entity_numbers(stream, entity.name)
        number = numbers.number[payments_of(contents)]
        number[_lacks(stream, contents, entity.parts)] = -1
        used, place = np.unique(number[number >= 0], return_inverse=True)
        # Numbered by what occurs: the oracle wants numbers below that of its rows.
        whose[entity.name] = np.full(len(contents), -1)
        whose[entity.name][number >= 0] = place
        texts = numbers.texts(used)
        hashes = identities([member_bytes(key) for key in texts], record_key)
        members[entity.name] = np.append(hashes, np.uint64(0))[whose[entity.name]]
    return whose, members


def _lacks(stream: Stream, contents: Int64s, names: tuple[str, ...]) -> Bools:
    """Which contents do not have one of `names` yet."""
    shape = stream.shape
    lacking = [not set(names).isdisjoint(shape.hidden(s)) for s in range(len(shape.stages))]
    return np.array(lacking)[contents % MAX_STAGES]


def _amounts_minor(stream: Stream, contents: Int64s) -> Int64s:
    amounts_minor: Int64s = _column(stream, "amount_minor")[payments_of(contents)]
    touched = np.flatnonzero((stream.fact == NO_FACT) & np.isin(stream.content, contents))
    places = np.searchsorted(contents, stream.content[touched])
    amounts_minor[places] = stream.amount_minor[touched]
    return amounts_minor


def _conditions(stream: Stream, contents: Int64s) -> Bools:
    conditions = stream.table.specification.conditions
    met = _bits(_column(stream, "conditions")[payments_of(contents)], len(conditions))
    for place, condition in enumerate(conditions):
        if condition.field is not None:
            met[_lacks(stream, contents, (condition.field,)), place] = False
    return met


def _bits(packed: NDArray[np.integer[Any]], n_bits: int) -> Bools:
    bits: Bools = (packed[:, None] >> np.arange(n_bits) & 1).astype(np.bool_)
    return bits


def _ids(stream: Stream, payment: Int64s) -> list[bytes]:
    ids = pa.concat_arrays([stream.table.transaction_id, stream.added.transaction_id])
    return [text.encode() for text in ids.take(pa.array(payment)).to_pylist()]


def _places(stream: Stream) -> Floats:
    """Latitude and longitude of each payment in degrees, (payments, 2); NaN where absent."""
    degrees = np.full((stream.n_payments, 2), np.nan)
    at = 0
    for table in (stream.table, stream.added):
        if table.location is not None and table.located is not None:
            part = degrees[at : at + len(table)]
            part[table.located] = table.location[table.located] / PLACE_UNITS
        at += len(table)
    return degrees


def _number(stream: Stream, name: str) -> Floats:
    return np.concatenate([stream.table.numbers[name], stream.added.numbers[name]])


def _category(stream: Stream, name: str, codes: Codes) -> Floats:
    columns = [table.categories[name] for table in (stream.table, stream.added)]
    code_of = codes.get(name, {})
    values = [float(code_of.get(v, np.nan)) for v in columns[0].values.to_pylist()]
    # An added payment copies its category: the values are the table's. The last is for the absent.
    found: Floats = np.array([*values, np.nan])[
        np.concatenate([column.codes for column in columns])
    ]
    return found


def _column(stream: Stream, name: str) -> NDArray[Any]:
    """A column of both tables of payments, one after the other."""
    return np.concatenate([getattr(stream.table, name), getattr(stream.added, name)])
