"""Messages that nobody should send: valid ones that are damaged, and others made up.

Most damaged payments are no JSON any more; some still are, with another amount, time or identifier,
and must then be applied as they stand. So what is expected follows from reading them plainly.
Labels bring entities and time: what a label without them finds depends on what came before it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Final

from tests.faults.streams import Message, Stream

_NUMBERS: Final = (
    *("0", "-1", "1e3", "1.5", "5.0", "1e400", "-0", "-0.0", "01", "1_000", "0x10", "NaN"),
    *("Infinity", "9" * 30, "9" * 400, "-" + "9" * 19, str(2**63), str(2**64), str(2**40 + 1)),
)
_VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    "",
    "x",
    0,
    -1,
    1.5,
    10**20,
    [],
    {},
    [[]],
    {"a": {}},
    ["x"],
)
_MANY: Final = 120


def fuzzed(stream: Stream, n: int, now_ms: int) -> list[Message]:
    """`n` messages, seven of eight damaged."""
    chance = stream.chance
    valid = stream.valid(_MANY, now_ms)
    messages: list[Message] = []
    for _ in range(n):
        topic, value = chance.choice(valid)
        damage = chance.choice(_DAMAGES) if chance.random() < 7 / 8 else None
        made = damage(chance, value) if damage else value
        if topic == stream.ground.labels and _is_forgotten(stream, made, now_ms):
            made = value
        messages.append((topic, made))
    return messages


def _is_forgotten(stream: Stream, value: bytes, now_ms: int) -> bool:
    """Whether it may be a fact of a payment that no window reaches: states then differ in time."""
    try:
        time_ms = json.loads(value)["time"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    reach_ms = stream.ground.specification.held_ms // 2
    return isinstance(time_ms, int) and time_ms < now_ms - reach_ms


def _flip(chance: random.Random, value: bytes) -> bytes:
    data = bytearray(value)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _truncate(chance: random.Random, value: bytes) -> bytes:
    return value[: chance.randrange(len(value))]


def _splice(chance: random.Random, value: bytes) -> bytes:
    """A run of it is left out, comes twice, or is random bytes."""
    first = chance.randrange(len(value))
    last = min(len(value), first + chance.randrange(1, 20))
    middle = chance.choice((b"", value[first:last] * 2, chance.randbytes(last - first)))
    return value[:first] + middle + value[last:]


def _other_type(chance: random.Random, value: bytes) -> bytes:
    """One value is of another type, or missing; never both of a label's entities and time."""
    said = json.loads(value)
    holder = said
    name = chance.choice([*said])
    while isinstance(holder[name], dict) and holder[name] and chance.random() < 0.7:
        holder = holder[name]
        name = chance.choice([*holder])
    if chance.random() < 0.15:
        del holder[name]
    else:
        holder[name] = chance.choice(_VALUES)
    return json.dumps(said).encode()


def _number(chance: random.Random, value: bytes) -> bytes:
    """One number is huge, or written as none should be."""
    said = json.loads(value)
    names = [name for name, one in said.items() if isinstance(one, int)]
    if not names:
        return value
    name = chance.choice(names)
    whole = json.dumps({**said, name: "@"})
    return whole.replace('"@"', chance.choice(_NUMBERS)).encode()


def _nested(chance: random.Random, value: bytes) -> bytes:
    depth = chance.choice((2, 30, 300, 800))
    begin, end = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
    deep = begin * depth + b"1" + end * depth
    return deep if chance.random() < 0.5 else value[:-1] + b',"fields":{"x":' + deep + b"}}"


def _twice(chance: random.Random, value: bytes) -> bytes:
    """A name comes twice, written in the same way or another."""
    said: dict[str, Any] = json.loads(value)
    name = chance.choice([*said])
    again = json.dumps(said[name] if chance.random() < 0.5 else chance.choice(_VALUES))
    key = json.dumps(name) if chance.random() < 0.6 else f'"\\u{ord(name[0]):04x}{name[1:]}"'
    return value[:-1] + f",{key}:{again}}}".encode()


def _spaced(chance: random.Random, value: bytes) -> bytes:
    """The same in other words: white space, escapes, another order."""
    said = json.loads(value)
    names = [*said]
    chance.shuffle(names)
    return json.dumps({name: said[name] for name in names}, indent=chance.choice((1, 4))).encode()


def _long(chance: random.Random, value: bytes) -> bytes:
    return value[:-1] + b" " * chance.choice((10, 1_500, 3_000)) + b"}"


_DAMAGES: Final[tuple[Callable[[random.Random, bytes], bytes], ...]] = (
    _flip,
    _flip,
    _truncate,
    _splice,
    _other_type,
    _number,
    _nested,
    _twice,
    _spaced,
    _long,
)
