"""Random messages, whole and damaged, under a specification with all that they can say."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshscore.config.secret import Secret
from freshscore.features.packing import Keys
from freshscore.features.program import Program, compiled
from freshscore.features.specification import FeatureSpecification
from freshscore.features.transaction import KINDS
from freshscore.invalidation.append_plan import AppendLimits
from freshscore.invalidation.batches import Batcher, BatchLimits, Messages
from freshscore.invalidation.feed import Acceptance

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
SECRET = Secret(b"\x07" * 32, "this test")
HORIZON_MS = 2 * DAY_MS
SKEW_MS = 60_000

# A tuple of parts, a grid, members, a place, conditions on kind and text (one that JSON escapes),
# numbers, categories, and names of one character and of more than sixteen.
SPECIFICATION = """
name = "messages"
currency = "EUR"
facts = ["fraud", "declined"]

features = [
    { name = "amount", function = "amount" },
    { name = "risk", function = "field", of = "risk" },
    { name = "long", function = "field", of = "a_name_of_more_than_sixteen_bytes" },
    { name = "mcc", function = "category", of = "mcc" },
    { name = "speed", function = "speed", entity = "card" },
    { name = "first", function = "first_pair", entity = "card", of = "pair" },
]

[[entities]]
name = "card"

[[entities]]
name = "m"

[[entities]]
name = "pair"
of = ["card", "shop"]

[[entities]]
name = "grid"
of = ["shop"]
mode = "grid"
resolution = 0.5

[[windows]]
entity = "card"
lengths = ["1d"]
aggregates = [
    { function = "count" },
    { function = "sum", where = { kind = "refund" } },
    { function = "count", where = { field = "channel", value = "web" } },
    { function = "sum", where = { field = "channel", value = "w\\"b" } },
    { function = "distinct", of = "m" },
    { function = "count", where = { fact = "declined" } },
]

[[windows]]
entity = "m"
lengths = ["1h"]
aggregates = [{ function = "count" }, { function = "count", where = { field = "mcc", value = "" } }]

[[windows]]
entity = "pair"
lengths = ["1h"]
aggregates = [{ function = "distinct", of = "card" }]

[[windows]]
entity = "grid"
lengths = ["1h"]
aggregates = [{ function = "count" }, { function = "share", of = "fraud" }]
"""
PARTS = ("card", "m", "shop")


def everything() -> Program:
    """The program of the specification above."""
    return compiled(FeatureSpecification.from_toml(SPECIFICATION))


def batcher_for(
    program: Program,
    node_of_slot: NDArray[np.uint16] | None = None,
    *,
    index_days: int = 0,
    compact_records: int = 4,
    max_message_bytes: int = 2_000,
    **readers: Any,
) -> Batcher:
    """A batcher with small limits."""
    return Batcher(
        program,
        Keys(program, SECRET),
        Acceptance(HORIZON_MS, SKEW_MS),
        AppendLimits("test", 1_000_000, index_days, compact_records),
        BatchLimits(max_message_bytes, 100_000),
        np.zeros(16_384, np.uint16) if node_of_slot is None else node_of_slot,
        **readers,
    )


def messages(values: list[bytes | None] | list[bytes], arrival_ms: int = NOW_MS) -> Messages:
    """Messages that arrived at one instant."""
    return Messages.of(values, [arrival_ms] * len(values))


def random_payment(chance: random.Random, number: int) -> dict[str, Any]:
    """A payment that is valid, in the names of a message; most are plain."""
    kind = chance.choice((*KINDS, *["authorisation"] * 6))
    payment: dict[str, Any] = {
        "transaction_id": f"t-{number}",
        "time": NOW_MS - chance.randrange(HORIZON_MS),
        "amount_minor": 0 if kind == "verification" else chance.choice((0, 5, 4_999, 2**40)),
        "currency": "EUR",
        "entities": {
            name: f"{name}-{chance.randrange(6)}" for name in PARTS if chance.random() < 0.9
        },
    }
    if chance.random() < 0.3:
        payment["entities"]["other"] = "o-1"
    if kind != "authorisation" or chance.random() < 0.1:
        payment["kind"] = kind
    if chance.random() < 0.2:
        payment |= {"currency": "JPY", "base_amount_minor": payment["amount_minor"]}
    if chance.random() < 0.5:
        payment["fields"] = _fields(chance)
    if chance.random() < 0.5:
        payment["location"] = chance.choice(
            ([50.85, 4.35], [-90, 180], [0.0000001, -4.3512345], [-0.5, 1.1234567890123456], None)
        )
    if chance.random() < 0.3:
        payment["flags"] = {chance.choice(("fraud", "declined")): chance.random() < 0.7}
    if chance.random() < 0.2:
        payment |= {"v": 1, "ids": "raw", "original_id": chance.choice((None, "t-0"))}
    return payment


def _fields(chance: random.Random) -> dict[str, Any]:
    every = {
        "risk": chance.choice((1, -2.5, 0.0, True, None, 1e-7, 12345678901234567890)),
        "a_name_of_more_than_sixteen_bytes": chance.choice((3, 4.25)),
        "mcc": chance.choice(("5411", "", None)),
        "channel": chance.choice(("web", "pos", 'w"b', "wéb", None, 7, False)),
        "not read": chance.choice(("x", 1, None, False)),
    }
    return {name: value for name, value in every.items() if chance.random() < 0.6}


def random_label(chance: random.Random, payment: dict[str, Any]) -> dict[str, Any]:
    """A label of a payment, which it brings or not."""
    label: dict[str, Any] = {
        "transaction_id": payment["transaction_id"],
        "flags": {
            name: chance.random() < 0.7 for name in ("fraud", "declined")[: chance.randrange(1, 3)]
        },
    }
    if chance.random() < 0.9:
        label["sent_at"] = payment["time"] + chance.randrange(DAY_MS)
    if chance.random() < 0.3:
        label["known_at"] = payment["time"] + chance.randrange(DAY_MS)
    if chance.random() < 0.8 and payment["entities"]:
        label |= {"entities": payment["entities"], "time": payment["time"]}
    return label


def written(chance: random.Random, message: dict[str, Any]) -> bytes:
    """A message as some producer writes it: order, blanks and escapes are its own."""
    names = [*message]
    if chance.random() < 0.3:
        chance.shuffle(names)
    separators = chance.choice(((",", ":"), (", ", ": "), (" ,\n", "\t: ")))
    text = json.dumps(
        {name: message[name] for name in names},
        separators=separators,
        ensure_ascii=chance.random() < 0.5,
    )
    return text.encode()


def damaged(chance: random.Random, value: bytes) -> bytes:
    """A message after something happened to it."""
    kind = chance.randrange(9)
    at = chance.randrange(len(value))
    if kind == 0:
        return value[:at]
    if kind == 1:
        return value[:at] + bytes([value[at] ^ 1 << chance.randrange(8)]) + value[at + 1 :]
    if kind == 2:
        return value[:at] + value[at + 1 :]
    if kind == 3:
        return value[:at] + bytes([chance.choice(b'"\\{}[],:0-9.eE \x00\x7f\xff')]) + value[at:]
    if kind == 4:
        first, last = sorted((at, chance.randrange(len(value))))
        return value[:last] + value[first:]
    if kind == 5:
        return _with_number(chance, value)
    if kind == 6:
        return value[:-1] + b',"' + chance.choice(_NAMES) + b'":' + chance.choice(_VALUES) + b"}"
    if kind == 7:
        return value.replace(chance.choice(_NAMES), chance.choice(_NAMES), 1)
    return value.replace(b"{", b"{" + chance.choice(_MEMBERS), chance.randrange(1, 4))


_NAMES = (
    *(b"time", b"amount_minor", b"entities", b"card", b"fields", b"risk", b"v", b"ids", b"kind"),
    *(b"flags", b"fraud", b"location", b"currency", b"sent_at", b"not read", b"\\u0074ime"),
)
_VALUES = (
    *(b"1", b"-1", b"1e400", b"NaN", b"null", b"true", b'"x"', b"{}", b"[]", b"9" * 400, b"0.1"),
    *(b'"\\ud800"', b"[" * 2_000, b'{"a":' * 1_000, b"1.0", b"01", b'"' + b"x" * 300 + b'"'),
    *(b'"raw"', b'"00000000"', b"[1,2]", b"[91,0]", b'{"card":"c"}', b'{"fraud":true}'),
)
_MEMBERS = (
    *(b'"card":"c-1",', b'"time":1,', b'"a":1,"a":2,', b'"a":"b",', b'"v":1,', b" ", b'"":"",'),
    *(b'"fraud":true,', b'"risk":1e5,', b'"mcc":5,'),
)


def _with_number(chance: random.Random, value: bytes) -> bytes:
    """One of the digits replaced by another number."""
    digits = [at for at, c in enumerate(value) if chr(c).isdigit()]
    at = chance.choice(digits) if digits else 0
    return (
        value[:at] + chance.choice((b"9" * 30, b"-1", b"1.5", b"1e3", b"00", b"")) + value[at + 1 :]
    )
