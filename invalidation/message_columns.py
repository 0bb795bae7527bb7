"""Column maps of messages: which part of a team's own message is which part of a payment.

A path such as `payment.card.pan` leads through objects by their names. A map names what differs
from freshscore's own names, as those of files do (features/columns.py); whatever it does not name
is looked up under those: Transaction's, one for each entity, field and fact of the specification.
Rule: what a map names for the payment's identity, time and amount has to be there; all else may be
absent, but a path that something other than an object bars is not absent: it is refused. What does
not fit is refused by naming the path, which is the map's, never a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

import msgspec

from freshscore.config.decoding import as_type
from freshscore.config.errors import BadFile
from freshscore.features.columns import AmountColumn, TimeColumn
from freshscore.features.money import minor_digits
from freshscore.features.program import Program

_PER_MS: Final = {"s": (1_000, 1), "ms": (1, 1), "us": (1, 1_000), "ns": (1, 1_000_000)}
_OWN_PLACE: Final = ("location.latitude", "location.longitude")
# What may stand in a message, in words.
_KINDS_OF_VALUE: Final = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    bytes: "bytes",
    datetime: "a timestamp",
}
# Digits of a number that a message may have as text: enough for any amount and any instant.
_MOST_DIGITS: Final = 40


class MessageMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Paths of one kind of message, as a TOML table has them."""

    transaction_id: str = "transaction_id"
    time: TimeColumn = TimeColumn("time")
    amount: AmountColumn = AmountColumn("amount_minor", "minor")
    base_amount: AmountColumn = AmountColumn("base_amount_minor", "minor")
    currency: str | None = None
    currency_column: str = "currency"
    kind: str = "kind"
    kinds: dict[str, str] = {}
    original_id: str = "original_id"
    latitude: str = _OWN_PLACE[0]
    longitude: str = _OWN_PLACE[1]
    entities: dict[str, str] = {}
    fields: dict[str, str] = {}
    facts: dict[str, str] = {}
    sent_at: TimeColumn = TimeColumn("sent_at")
    known_at: TimeColumn = TimeColumn("known_at")


class MessageColumns:
    """A map for the messages of one specification."""

    def __init__(self, program: Program, paths: MessageMap) -> None:
        spec = program.specification
        self._map = paths
        self._currency = spec.currency
        parts = dict.fromkeys(part for layout in program.entities for part in layout.parts)
        conditions = [one.field for one in spec.conditions if one.field is not None]
        read = dict.fromkeys((*spec.plain_fields, *spec.categories, *conditions))
        self._entities = {name: paths.entities.get(name, f"entities.{name}") for name in parts}
        self._fields = {name: paths.fields.get(name, f"fields.{name}") for name in read}
        self._facts = {name: paths.facts.get(name, f"flags.{name}") for name in spec.facts}

    @classmethod
    def named(cls, path: str, program: Program) -> MessageColumns:
        """The map in a TOML file; raises BadFile."""
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise BadFile(f"cannot read the column map {path}: {problem}") from problem
        return cls.from_toml(text, program, path)

    @classmethod
    def from_toml(cls, text: str, program: Program, source: str = "column map") -> MessageColumns:
        """The map in TOML `text`; raises BadFile, naming `source`."""
        try:
            return cls(program, as_type(msgspec.toml.decode, text, MessageMap))
        except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
            raise BadFile(f"{source}: {problem}") from problem

    def transaction(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Transaction's arguments out of a message; raises LookupError, naming the path."""
        paths = self._map
        currency = paths.currency or _at(tree, paths.currency_column) or self._currency
        kind = _at(tree, paths.kind)
        given = {
            "transaction_id": _text(_needed(tree, paths.transaction_id)),
            "time": _instant(tree, paths.time, _needed(tree, paths.time.column)),
            "amount_minor": _minor(paths.amount, _needed(tree, paths.amount.column), currency),
            "currency": currency,
            "entities": self._named(tree, self._entities, _text),
            "fields": self._named(tree, self._fields),
            "flags": self._named(tree, self._facts),
            "original_id": _text(_at(tree, paths.original_id)),
        }
        if kind is not None:
            given["kind"] = paths.kinds.get(kind, kind) if isinstance(kind, str) else kind
        base = _at(tree, paths.base_amount.column)
        if base is not None:
            given["base_amount_minor"] = _minor(paths.base_amount, base, self._currency)
        place = self._place(tree)
        if place is not None:
            given["location"] = place
        return given

    def label(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """What a label message has, out of a message; raises LookupError, naming the path."""
        paths = self._map
        given: dict[str, Any] = {
            "transaction_id": _text(_needed(tree, paths.transaction_id)),
            "flags": self._named(tree, self._facts),
        }
        for name, column in (("sent_at", paths.sent_at), ("known_at", paths.known_at)):
            given[name] = _instant(tree, column, _at(tree, column.column))
        entities = self._named(tree, self._entities, _text)
        time = _instant(tree, paths.time, _at(tree, paths.time.column))
        if entities and time is not None:
            given |= {"entities": entities, "time": time}
        return given

    def _place(self, tree: Mapping[str, Any]) -> Any:
        """Latitude and longitude: by their paths, or, where none is named, a list as ours."""
        paths = self._map.latitude, self._map.longitude
        if paths == _OWN_PLACE and isinstance(tree.get("location"), list):
            return tree["location"]
        place = tuple(_at(tree, path) for path in paths)
        return None if None in place else place

    def _named(
        self, tree: Mapping[str, Any], paths: Mapping[str, str], made: Any = lambda value: value
    ) -> dict[str, Any]:
        found = ((name, _at(tree, path)) for name, path in paths.items())
        return {name: made(value) for name, value in found if value is not None}


def _at(tree: Mapping[str, Any], path: str) -> Any:
    """What is at a path; None where something on the way is not there.

    Raises LookupError where the way leads through what is no object: a payment without its card
    would count, and nobody would know.
    """
    value: Any = tree
    if path in tree:
        return tree[path]
    names = path.split(".")
    for depth, name in enumerate(names):
        if value is None:
            return None
        if not isinstance(value, Mapping):
            kind = _KINDS_OF_VALUE.get(value.__class__, "something else")
            above = ".".join(names[:depth])
            raise LookupError(f"{path} needs an object at {above}, which is {kind}")
        value = value.get(name)
    return value


def _needed(tree: Mapping[str, Any], path: str) -> Any:
    value = _at(tree, path)
    if value is None:
        raise LookupError(f"{path} is missing")
    return value


def _text(value: Any) -> Any:
    # Identifiers are numbers in many a message; they are names all the same.
    return str(value) if value.__class__ is int and abs(value) < 10**_MOST_DIGITS else value


def _instant(tree: Mapping[str, Any], column: TimeColumn, value: Any) -> int | datetime | None:
    """An instant in ms, or a datetime as Transaction takes it."""
    if value is None or isinstance(value, datetime):
        return value
    number = _number(value)
    if number is None:
        return _timestamp(column, value)
    times, over = _PER_MS[column.unit]
    return int(number * times // over)


def _timestamp(column: TimeColumn, value: Any) -> datetime:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            pass
        else:
            return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    raise LookupError(f"{column.column} is neither a number nor a timestamp")


def _minor(column: AmountColumn, value: Any, currency: Any) -> int:
    """An amount in minor units: major ones to the nearest, minor ones must be whole."""
    number = _number(value)
    if number is None:
        raise LookupError(f"{column.column} is no number")
    if column.unit == "major":
        digits = minor_digits(currency if isinstance(currency, str) else "")
        return int((number * 10**digits).to_integral_value())
    if number != int(number):
        raise LookupError(f"{column.column} is in minor units and not whole")
    return int(number)


def _number(value: Any) -> Decimal | None:
    """A number, or a text that is one; None for anything else, and for what no number is."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = str(value) if not isinstance(value, int) or abs(value) < 10**_MOST_DIGITS else ""
    if not text or len(text) > _MOST_DIGITS:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    # An exponent of a billion would be written out.
    is_sane = number.is_finite() and abs(number.adjusted()) < _MOST_DIGITS
    return number if is_sane or number == 0 else None
