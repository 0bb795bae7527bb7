"""What the vectorised oracle is asked about: payments, facts and requests as columns.

Rule: columns say what was on the stream and when it was applied, never what counts: acceptance by
time, repetitions, conflicts and the order of facts are for the oracle to decide.
Positions: everything that was applied (events, facts) has a position on one common scale, and a
request has seen whatever has a smaller one.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features.specification import Condition, FeatureSpecification
from freshscore.features.transaction import KINDS, Transaction

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Key = tuple[str, ...]

# A position that no request has seen; as a request's own position: it has seen everything else.
NEVER: Final = int(np.iinfo(np.int64).max)
# A position that every request has seen.
ALWAYS: Final = -1
ANY_TIME: Final = -1


@dataclass(frozen=True)
class OracleRows:
    """n payments, observed or only scored; in any order.

    transaction: int64[n], equal where the ids are equal, in [0, n).
    identity: uint64[n], see `identities`; read where times are equal.
    time_ms, amount_minor (in the specification's currency), kind (place in KINDS): int64[n].
    entities: entity -> int64[n], equal where the keys are equal, in [0, n); -1 where absent.
    members: entity -> uint64[n], `identities` of its key, 0 where absent; read only between
    contents of one id that differ in nothing before it.
    conditions: bool[n, conditions of the specification]; flags: bool[n, its facts].
    latitude, longitude: float64[n] in degrees, NaN where absent.
    numbers: field -> float64[n]; categories: field -> float64[n], codes; both NaN where missing.
    applied: int64[n], position at which the row was applied; NEVER if refused or only scored.
    """

    transaction: Ints
    identity: Words
    time_ms: Ints
    amount_minor: Ints
    kind: Ints
    entities: Mapping[str, Ints]
    members: Mapping[str, Words]
    conditions: Bools
    flags: Bools
    latitude: Floats
    longitude: Floats
    numbers: Mapping[str, Floats]
    categories: Mapping[str, Floats]
    applied: Ints

    def __post_init__(self) -> None:
        """Refuse columns whose lengths differ: ValueError."""
        for name in self.__dataclass_fields__:
            column = getattr(self, name)
            columns = column if isinstance(column, Mapping) else {name: column}
            for label, values in columns.items():
                if len(values) != len(self):
                    raise ValueError(
                        f"{label} has {len(values)} rows where time_ms has {len(self)}"
                    )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.time_ms)


@dataclass(frozen=True)
class OracleFacts:
    """k facts; flags of the rows are not among them.

    transaction: int64[k], codes as in OracleRows; name: int64[k], place in the specification's
    facts; value: bool[k]; sender_ms, known_at_ms: int64[k]; time_ms: int64[k], its event's time,
    ANY_TIME for any event of the id; applied: int64[k], ALWAYS if only known_at_ms decides.
    """

    transaction: Ints
    name: Ints
    value: Bools
    sender_ms: Ints
    known_at_ms: Ints
    time_ms: Ints
    applied: Ints

    @staticmethod
    def none() -> OracleFacts:
        """No facts."""
        nothing = np.zeros(0, np.int64)
        return OracleFacts(
            nothing, nothing, np.zeros(0, np.bool_), nothing, nothing, nothing, nothing
        )


@dataclass(frozen=True)
class OracleRequests:
    """m requests: int64[m] each.

    row: the payment scored; as_of_ms; applied: everything with a smaller position had been
    applied when the request was made.
    """

    row: Ints
    as_of_ms: Ints
    applied: Ints

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.row)


def arrival_positions(arrival_ms: Ints) -> Ints:
    """int64[n]: the place of each row in arrival order (arrival, row)."""
    positions = np.empty(len(arrival_ms), np.int64)
    positions[np.argsort(arrival_ms, kind="stable")] = np.arange(len(arrival_ms))
    return positions


def is_accepted(time_ms: Ints, arrival_ms: Ints, horizon_ms: int, skew_ms: int) -> Bools:
    """bool[n]: whether the event time lies between arrival - horizon and arrival + skew."""
    return (time_ms >= arrival_ms - horizon_ms) & (time_ms <= arrival_ms + skew_ms)


def history_requests(rows: OracleRows, positions: Ints | None) -> OracleRequests:
    """One request per row, at its own time.

    positions: `arrival_positions` for the history mode `known`; None for `true`.
    """
    seen = np.full(len(rows), NEVER) if positions is None else positions
    return OracleRequests(np.arange(len(rows)), rows.time_ms, seen)


def rows_of(
    specification: FeatureSpecification,
    transactions: Sequence[Transaction],
    applied: Ints,
    *,
    record_key: bytes,
    categories: Mapping[str, Mapping[str, int]] | None = None,
) -> OracleRows:
    """Columns of `transactions`, one by one: whole files make their columns themselves.

    applied: as in OracleRows. record_key: 16 bytes, the key of identities. categories: field ->
    value -> code. Raises ValueError for a string where a number is read.
    """
    n, facts, conditions = len(transactions), specification.facts, specification.conditions
    keys = {e.name: [_key(tx, e.parts) for tx in transactions] for e in specification.entities}
    places = [tx.location or (np.nan, np.nan) for tx in transactions]
    met = [[_is_met(condition, tx) for condition in conditions] for tx in transactions]
    flags = [[tx.flags.get(fact, False) for fact in facts] for tx in transactions]
    return OracleRows(
        transaction=_codes([tx.transaction_id for tx in transactions]),
        identity=identities([tx.transaction_id.encode() for tx in transactions], record_key),
        time_ms=np.array([tx.time for tx in transactions], np.int64),
        amount_minor=np.array(
            [tx.base_amount(specification.currency) for tx in transactions], np.int64
        ),
        kind=np.array([KINDS.index(tx.kind) for tx in transactions], np.int64),
        entities={name: _codes(of_rows) for name, of_rows in keys.items()},
        members={name: _member_words(of_rows, record_key) for name, of_rows in keys.items()},
        conditions=np.array(met, np.bool_).reshape(n, len(conditions)),
        flags=np.array(flags, np.bool_).reshape(n, len(facts)),
        latitude=np.array([latitude for latitude, _ in places], np.float64),
        longitude=np.array([longitude for _, longitude in places], np.float64),
        numbers={
            name: np.array([tx.fields.get(name) for tx in transactions], np.float64)
            for name in specification.plain_fields
        },
        categories={
            name: _category_codes(transactions, name, (categories or {}).get(name, {}))
            for name in specification.categories
        },
        applied=applied,
    )


def identities(encoded: Sequence[bytes], record_key: bytes) -> Words:
    """uint64[n]: the first half of SipHash-2-4-128 of each of `encoded`, all of a length at once.

    Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012).
    """
    found = np.empty(len(encoded), np.uint64)
    lengths = np.array([len(data) for data in encoded], np.int64)
    for length in np.unique(lengths).tolist():
        these = np.flatnonzero(lengths == length)
        width = (length // 8 + 1) * 8
        text = b"".join(encoded[i].ljust(width, b"\0") for i in these.tolist())
        words = np.frombuffer(text, "<u8").reshape(len(these), width // 8).T.copy()
        words[-1] |= np.uint64(length % 256 << 56)
        found[these] = _siphash_first_half(words, record_key)
    return found


def _siphash_first_half(words: Words, key: bytes) -> Words:
    """uint64[n] of words[w, n], whose last row holds the length already."""
    k0, k1 = np.frombuffer(key, "<u8")
    start = np.frombuffer(b"somepseudorandomlygeneratedbytes", ">u8").astype(np.uint64)
    keys = np.array([k0, k1 ^ np.uint64(0xEE), k0, k1])
    lanes: Words = np.repeat((start ^ keys)[:, None], words.shape[1], axis=1)
    for word in words:
        lanes[3] ^= word
        _mix(lanes, 2)
        lanes[0] ^= word
    lanes[2] ^= np.uint64(0xEE)
    _mix(lanes, 4)
    half: Words = lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3]
    return half


def _mix(lanes: Words, n_rounds: int) -> None:
    """Rounds over lanes[4, n], in place: two lanes take in the other two, then change partners."""
    for _ in range(n_rounds):
        for takers, givers, shifts in (((0, 2), (1, 3), (13, 16)), ((2, 0), (1, 3), (17, 21))):
            for taker, giver, bits in zip(takers, givers, shifts, strict=True):
                lanes[taker] += lanes[giver]
                lanes[giver] = _turned(lanes[giver], bits) ^ lanes[taker]
            lanes[takers[0]] = _turned(lanes[takers[0]], 32)


def _turned(lane: Words, bits: int) -> Words:
    return (lane << np.uint64(bits)) | (lane >> np.uint64(64 - bits))


def _key(transaction: Transaction, parts: tuple[str, ...]) -> Key | None:
    key = tuple(transaction.entities[part] for part in parts if part in transaction.entities)
    return key if len(key) == len(parts) else None


def _is_met(condition: Condition, transaction: Transaction) -> bool:
    if condition.field is None:
        return transaction.kind == condition.kind
    return transaction.fields.get(condition.field) == condition.value


def _codes(values: Sequence[Hashable | None]) -> Ints:
    """int64[n]: equal where the values are equal, -1 where one is None."""
    codes: dict[Hashable | None, int] = {}
    for value in values:
        if value is not None:
            codes.setdefault(value, len(codes))
    return np.array([codes.get(value, -1) for value in values], np.int64)


def _member_words(keys: Sequence[Key | None], record_key: bytes) -> Words:
    """uint64[n]: the identity of each key, whose parts stand behind their lengths if several."""
    encoded = [_joined([part.encode() for part in key or ()]) for key in keys]
    absent = np.array([key is None for key in keys], np.bool_)
    return np.where(absent, np.uint64(0), identities(encoded, record_key))


def _joined(parts: Sequence[bytes]) -> bytes:
    if len(parts) == 1:
        return parts[0]
    return b"".join(struct.pack("<H", len(part)) + part for part in parts)


def _category_codes(
    transactions: Sequence[Transaction], field: str, codes: Mapping[str, int]
) -> Floats:
    values = [tx.fields.get(field) for tx in transactions]
    found = [codes.get(value) if isinstance(value, str) else None for value in values]
    return np.array(found, np.float64)
