"""What tests of stored states share: specifications, payments, and records made the slow way."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from freshscore.config.secret import Secret
from freshscore.features import layout as rec
from freshscore.features import row as r
from freshscore.features import tables as t
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import Program, compiled
from freshscore.features.specification import FeatureSpecification
from freshscore.features.state_layout import StateLayout, state_layout
from freshscore.features.store import MemoryStore, StoreLimits
from freshscore.features.transaction import Transaction

NOON_MS = 1_700_006_400_000
SECRET = Secret(b"\x07" * 32, "this test")
OTHER_SECRET = Secret(b"\x08" * 32, "this test")
DAY_MS = 86_400_000
LIMITS = StoreLimits(
    max_entities=20_000,
    max_payments=100_000,
    max_events_per_entity=10_000,
    horizon_ms=30 * DAY_MS,
    arena_bytes=1 << 23,
)

# An exact entity with all that a record can carry, and two grids: one whose windows read facts,
# with delays and steps that are no multiples of each other, and one whose windows do not.
SPECIFICATION = """
name = "states"
currency = "EUR"
facts = ["fraud", "declined"]

features = [
    { name = "amount", function = "amount" },
    { name = "card_since_last", function = "since_last", entity = "card" },
    { name = "card_speed", function = "speed", entity = "card" },
    { name = "card_first", function = "first_pair", entity = "card", of = "merchant" },
]

[[entities]]
name = "card"

[[entities]]
name = "merchant"
mode = "grid"
resolution = 0.25

[[entities]]
name = "terminal"
mode = "grid"
resolution = 0.1

[[windows]]
entity = "card"
lengths = ["20s", "3m"]
aggregates = [
    { function = "count" },
    { function = "sum", where = { kind = "refund" } },
    { function = "std" },
    { function = "min" },
    { function = "last" },
    { function = "distinct", of = "merchant" },
    { function = "share", of = "fraud" },
    { function = "count", where = { fact = "declined" } },
]

[[windows]]
entity = "merchant"
lengths = ["8s", "28s", "2m"]
aggregates = [
    { function = "count" },
    { function = "mean" },
    { function = "std" },
    { function = "sum", where = { fact = "declined" } },
]

[[windows]]
entity = "merchant"
lengths = ["20s", "1m"]
delay = "10s"
current = false
aggregates = [
    { function = "share", of = "fraud" },
    { function = "count", where = { field = "channel", value = "web" } },
    { function = "share", of = "declined", where = { kind = "refund" } },
]

[[windows]]
entity = "terminal"
lengths = ["10s", "1m"]
aggregates = [{ function = "count" }, { function = "sum" }]
"""


@dataclass(frozen=True)
class Payment:
    """A transaction in a few numbers."""

    number: int
    time_ms: int
    amount_minor: int = 100
    card: int = 0
    merchant: int = 0
    refund: bool = False
    web: bool = False
    declined: bool = False
    located: bool = True

    @property
    def transaction(self) -> Transaction:
        """The transaction."""
        return Transaction(
            transaction_id=f"t{self.number}",
            time=self.time_ms,
            amount_minor=self.amount_minor,
            currency="EUR",
            entities={
                "card": f"c{self.card}",
                "merchant": f"m{self.merchant}",
                "terminal": f"m{self.merchant}",
            },
            kind="refund" if self.refund else "authorisation",
            fields={"channel": "web" if self.web else "shop"},
            location=(48.0 + self.card / 10, 11.5) if self.located else None,
            flags={"declined": True} if self.declined else {},
        )


@dataclass(frozen=True)
class Fact:
    """A fact of a payment; senders are later than the payment's time by `after_ms`."""

    payment: Payment
    fact: int
    value: bool
    known_at_ms: int
    after_ms: int = 0

    @property
    def sender_ms(self) -> int:
        """The sender's instant."""
        return self.payment.time_ms + self.after_ms


@dataclass(repr=False)
class Ground:
    """A program with keys, and what is made for it."""

    program: Program = field(
        default_factory=lambda: compiled(FeatureSpecification.from_toml(SPECIFICATION))
    )
    secret: Secret = SECRET

    def __post_init__(self) -> None:
        self.keys = Keys(self.program, self.secret)
        self.packer = Packer(self.program, self.keys)
        self.layouts: list[StateLayout] = [
            state_layout(self.program, self.keys, e) for e in range(len(self.program.entities))
        ]

    def store(self, **limits: int) -> MemoryStore:
        """An empty store."""
        return MemoryStore(self.program, self.keys, replace(LIMITS, **limits))

    def row(self, payment: Payment) -> bytes:
        """The packed row."""
        return self.packer.row(payment.transaction)

    def apply(self, store: MemoryStore, what: Payment | Fact) -> str:
        """Apply an event or a fact to the store."""
        if isinstance(what, Payment):
            return store.observe(self.row(what))
        return store.label(
            self.row(what.payment), what.fact, what.value, what.known_at_ms, what.sender_ms, False
        )

    def record(self, what: Payment | Fact, entity: int) -> NDArray[np.uint64]:
        """uint64[1, words]: the record of an event or fact, as features/layout.py says it is."""
        if isinstance(what, Payment):
            return self._event_record(self.row(what), entity)
        return self._fact_record(what, entity)

    def _event_record(self, row: bytes, entity: int) -> NDArray[np.uint64]:
        layout = self.program.entities[entity]
        identity, _, time, amount, bits, place = struct.unpack_from("<2Q4q", row)
        names = [one.name for one in self.program.entities]
        members_at = r.TOKENS + 16 * len(names)
        words = [
            identity,
            time << 16 | rec.EVENT << 14 | (bits & 0xFFFF),
            amount << 16 | (bits >> 16 & 0xFFFF),
            0,
        ]
        for member in layout.members:
            words += struct.unpack_from("<Q", row, members_at + 8 * names.index(member))
        if layout.place_at:
            words.append(place & (2**64 - 1))
        return np.array([words], np.uint64)

    def _fact_record(self, what: Fact, entity: int) -> NDArray[np.uint64]:
        (identity,) = struct.unpack_from("<Q", self.row(what.payment))
        words = [0] * self.program.entities[entity].words
        ago = what.after_ms
        words[0] = identity
        words[1] = what.payment.time_ms << 16 | rec.FACT << 14
        words[2] = what.known_at_ms << 16 | (ago >> 32 & 0xFF) << 8 | what.fact << 4 | what.value
        words[3] = (ago & 0xFFFFFFFF) << 32
        return np.array([words], np.uint64)

    def token(self, payment: Payment, entity: int) -> bytes:
        """The token of one of a payment's entities."""
        at = r.TOKENS + 16 * entity
        return self.row(payment)[at : at + 16]


def held(store: MemoryStore, entity: int, token: bytes) -> tuple[NDArray[np.uint64], int]:
    """Records (uint64[n, words], checksums cleared) and version of one entity of a store."""
    low, high = struct.unpack("<2Q", token)
    head = store.address + t.ENTITY + t.ENTITY_HEAD * entity
    number = t.find_entity(head, np.uint64(low), np.uint64(high))
    if number < 0:
        return np.empty((0, store.program.entities[entity].words), np.uint64), 0
    row = _words_at(t.entity_row(head, number), t.ENTITY_ROW // 8)
    n, width = int(row[t.COUNT // 8]), 8 * store.program.entities[entity].words
    copied = _words_at(int(row[t.RECORDS // 8]), n * width // 8).reshape(n, width // 8)
    version = int(row[t.VERSION // 8 + 1]) << 64 | int(row[t.VERSION // 8])
    return without_checks(copied), version


def without_checks(records: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The records with nothing in their checksums' place."""
    cleared = records.copy()
    cleared[:, 3] &= np.uint64(0xFFFFFFFF00000000)
    return cleared


def _words_at(address: int, n: int) -> NDArray[np.uint64]:
    """A copy of `n` words in memory."""
    words = np.zeros(n, np.uint64)
    ctypes.memmove(words.ctypes.data, address, words.nbytes)
    return words
