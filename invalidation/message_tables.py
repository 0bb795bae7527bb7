"""What the message kernel reads: the names that it knows, and what they mean to a specification.

One int64 array, reached by address, with tables of names and a scratch area of the thread's own.
A name is kept with its closing quote, so that one comparison of words finds it and its end; each
table remembers which name came in which place last, for producers write their names in one order.
Rule: only names and values that JSON writes as they are stand in a table; a message that spells one
of the others, or anything with an escape, is left to message_reading.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features.memory import address_of
from freshscore.features.packing import Keys
from freshscore.features.program import Program, static_conditions
from freshscore.features.transaction import KINDS, MAX_STRING_BYTES
from freshscore.invalidation.messages import RAW

# The tables, in bytes.
N_ENTITIES: Final = 0
ROW_KEYS: Final = 8
MAX_BYTES: Final = 16
CURRENCY: Final = 24  # three characters, little-endian
SIX_BITS: Final = 32  # uint8[256]: values of base64url, 255 for what is none
KIND_BITS: Final = 40  # condition bits of each kind
ENTITIES: Final = 48  # for each entity ENTITY words: its name, its parts
CONDITIONS: Final = 56
N_CONDITIONS: Final = 64
NAME_USES: Final = 72  # of entities' names: IS_PART, IS_ENTITY
FIELD_USES: Final = 80  # IS_NUMBER, IS_CATEGORY
SPANS: Final = 88  # where the identifier under each of those names lies: address, length
UNNAMED: Final = 96  # digests of names that no table has, of one object
JOINED: Final = 104  # room for an identifier of several parts
SAID: Final = 112  # what a message says, as below
TABLES: Final = 120
# A table of names: its entries, their number, the order of last time, the object at hand.
TABLE: Final = 32
TABLE_N: Final = 8
TABLE_ORDER: Final = 16
TABLE_OBJECT: Final = 24
TOP: Final = TABLES
IDS: Final = TABLES + TABLE
KIND: Final = TABLES + 2 * TABLE
NAME: Final = TABLES + 3 * TABLE
FIELD: Final = TABLES + 4 * TABLE
FACT: Final = TABLES + 5 * TABLE
# Payments before this instant are hashed under the former keys, at this address.
SINCE: Final = TABLES + 6 * TABLE
FORMER_ROW_KEYS: Final = SINCE + 8
N_BYTES: Final = FORMER_ROW_KEYS + 8

# An entry: its text, length with the quote, first 8 bytes and which of them count, last 8 bytes,
# the object that it was last seen in.
ENTRY: Final = 48
ENTRY_LENGTH: Final = 8
ENTRY_FIRST: Final = 16
ENTRY_MASK: Final = 24
ENTRY_LAST: Final = 32
ENTRY_OBJECT: Final = 40
# Places of an object's members whose names are remembered; a power of two.
ORDER: Final = 64
MOST_UNNAMED: Final = 64
MOST_PARTS: Final = 8
ENTITY: Final = 16 + 8 * MOST_PARTS  # name, number of parts, parts
CONDITION: Final = 32  # field, address of the value, its length, its bit

# Of a name that no plain message can have.
_LONGER_THAN_ANY: Final = 1 << 40
_BEFORE_ALL: Final = -(2**62)

# What SAID_HASHED says: 0 raw, 1 under the current key, or this.
UNDER_FORMER: Final = 2

IS_PART: Final = 1
IS_ENTITY: Final = 2
IS_NUMBER: Final = 1
IS_CATEGORY: Final = 2

# Names of members of a message, and their places in the table.
TOP_NAMES: Final = (
    *("v", "ids", "transaction_id", "time", "amount_minor", "currency", "entities", "kind"),
    *("base_amount_minor", "original_id", "fields", "location", "flags", "sent_at", "known_at"),
)
V: Final = 0
IDS_KEY: Final = 1
TRANSACTION_ID: Final = 2
TIME: Final = 3
AMOUNT: Final = 4
CURRENCY_KEY: Final = 5
ENTITIES_KEY: Final = 6
KIND_KEY: Final = 7
BASE_AMOUNT: Final = 8
ORIGINAL_ID: Final = 9
FIELDS_KEY: Final = 10
LOCATION: Final = 11
FLAGS: Final = 12
SENT_AT: Final = 13
KNOWN_AT: Final = 14

# What a message says, in bytes.
SAID_HASHED: Final = 0
SAID_IDENTITY: Final = 8  # address, length
SAID_TIME: Final = 24
SAID_AMOUNT: Final = 32
SAID_CURRENCY: Final = 40
SAID_KIND: Final = 48
SAID_BASE: Final = 56
SAID_PLACE: Final = 64
SAID_GIVEN: Final = 72
SAID_VALUES: Final = 80
SAID_CONDITIONS: Final = 88
SAID_SENT: Final = 96
SAID_KNOWN: Final = 104
SAID_KEYS: Final = 112  # a bit for each member
SAID_NAMED: Final = 120  # IS_PART, IS_ENTITY: whether an entity was named
SAID_TEXT: Final = 128  # the last text that was read: address, length
SAID_BYTES: Final = 144


class MessageTables:
    """The tables for one program and its keys; one thread's own."""

    def __init__(self, program: Program, keys: Keys, max_message_bytes: int) -> None:
        spec = program.specification
        self._held: list[Any] = [program, keys]
        self.words = np.zeros(N_BYTES // 8, np.int64)
        self.address = address_of(self.words)
        names = list(
            dict.fromkeys(
                name for layout in program.entities for name in (*layout.parts, layout.name)
            )
        )
        parts = {part for layout in program.entities for part in layout.parts}
        entities = {layout.name for layout in program.entities}
        compared = [one.field for one in spec.conditions if one.field is not None]
        fields = list(dict.fromkeys((*spec.plain_fields, *spec.categories, *compared)))
        self._set(N_ENTITIES, len(program.entities))
        former = keys.former
        self._set(ROW_KEYS, address_of(keys.row_keys))
        self._set(SINCE, _BEFORE_ALL if former is None else keys.since_ms)
        self._set(FORMER_ROW_KEYS, 0 if former is None else address_of(former.row_keys))
        self._set(MAX_BYTES, max_message_bytes)
        self._set(CURRENCY, int.from_bytes(spec.currency.encode(), "little"))
        self._set(SIX_BITS, self._kept(_six_bits()))
        self._put(KIND_BITS, (static_conditions(spec, kind, None) for kind in KINDS))
        self._put(ENTITIES, _entity_words(program, names))
        self._put(CONDITIONS, self._condition_words(program, fields))
        self._set(N_CONDITIONS, sum(one.field is not None for one in spec.conditions))
        uses = (IS_PART * (name in parts) | IS_ENTITY * (name in entities) for name in names)
        self._put(NAME_USES, uses)
        self._put(
            FIELD_USES,
            (
                IS_NUMBER * (name in spec.plain_fields) | IS_CATEGORY * (name in spec.categories)
                for name in fields
            ),
        )
        self._put(SPANS, [0] * (2 * len(names)))
        self._put(UNNAMED, [0] * MOST_UNNAMED)
        self._put(JOINED, [0] * (MOST_PARTS * (MAX_STRING_BYTES + 8) // 8))
        self._put(SAID, [0] * (SAID_BYTES // 8))
        self._put_table(TOP, TOP_NAMES)
        key_ids = (keys.key_id,) if former is None else (keys.key_id, former.key_id)
        self._put_table(IDS, (RAW, *key_ids))
        self._put_table(KIND, KINDS)
        self._put_table(NAME, names)
        self._put_table(FIELD, fields)
        self._put_table(FACT, spec.facts)

    def _put_table(self, at: int, names: Iterable[str]) -> None:
        """Enter a table; a name that JSON would have to escape matches nothing."""
        entries: list[int] = []
        for name in names:
            text = f'{name}"'.encode()
            first, last = text[:8].ljust(8, b"\x00"), text[-8:].ljust(8, b"\x00")
            mask = (1 << 8 * min(8, len(text))) - 1
            address = self._kept(np.frombuffer(text, np.uint8).copy())
            words = int.from_bytes(first, "little"), mask, int.from_bytes(last, "little")
            length = len(text) if is_plain(name) else _LONGER_THAN_ANY
            entries += [address, length, *map(_signed, words), 0]
        self._put(at, entries)
        self._set(at + TABLE_N, len(entries) * 8 // ENTRY)
        self._put(at + TABLE_ORDER, [-1] * ORDER)

    def _condition_words(self, program: Program, fields: list[str]) -> list[int]:
        words: list[int] = []
        for bit, condition in enumerate(program.specification.conditions):
            if condition.field is None or condition.value is None:
                continue
            # Text that is not plain is in no plain message, so it is never equal.
            text = condition.value.encode()
            address = self._kept(np.frombuffer(text or b"\x00", np.uint8).copy())
            words += [fields.index(condition.field), address, len(text), 1 << bit]
        return words

    def _put(self, at: int, words: Iterable[int]) -> None:
        self._set(at, self._kept(np.array([*words] or [0], np.int64)))

    def _set(self, at: int, value: int) -> None:
        self.words[at // 8] = value

    def _kept(self, array: NDArray[Any]) -> int:
        self._held.append(array)
        return address_of(array)


def is_plain(text: str) -> bool:
    """Whether JSON writes `text` as it is."""
    return text.isascii() and all(c >= " " and c not in '"\\' for c in text)


def fits(program: Program) -> bool:
    """Whether the tables have room for a specification; else all messages are read carefully."""
    return all(len(layout.parts) <= MOST_PARTS for layout in program.entities)


def _entity_words(program: Program, names: list[str]) -> list[int]:
    words: list[int] = []
    for layout in program.entities:
        parts = [names.index(part) for part in layout.parts][:MOST_PARTS]
        padding = [0] * (MOST_PARTS - len(parts))
        words += [names.index(layout.name), len(parts), *parts, *padding]
    return words


def _six_bits() -> NDArray[np.uint8]:
    values = np.full(256, 255, np.uint8)
    for value, character in enumerate(
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    ):
        values[character] = value
    return values


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
