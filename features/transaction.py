"""The transaction schema: one payment attempt, checked once, at the door.

Rule: a Transaction that exists is valid and never changes, so everything behind it trusts it,
and the packed form that a scorer keeps beside it stays true.
Its `repr` shows names of entities, never their identifiers, nor any other (a payment's own is one
too); a name that looks like an identifier is shown by its length alone, here and in every message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, cast

from freshscore.config.errors import BadTransaction
from freshscore.features.money import MAX_AMOUNT_MINOR, is_currency_code

KINDS: Final = ("authorisation", "verification", "refund", "reversal", "payout")
KIND_CODES: Final = MappingProxyType({kind: code for code, kind in enumerate(KINDS)})

# Times outside these years are units mixed up (seconds, microseconds) or damage.
EARLIEST_MS: Final = 631_152_000_000  # 1990-01-01
LATEST_MS: Final = 4_102_444_800_000  # 2100-01-01
# Bytes of one identifier or field value, as UTF-8; longer ones are payloads put in the wrong place.
MAX_STRING_BYTES: Final = 256

FieldValue = str | int | float | bool | None
_UNPACKED: Final[tuple[object, bytes]] = (None, b"")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
# Longer strings and numbers in a message may be card numbers, which no message shows.
_MOST_SHOWN: Final = 24
_MOST_SHOWN_INT: Final = 10**12
_LONGEST_SHOWN_NAME: Final = 64
# Six or more, also in groups as on a card: no name of an entity or a field needs that.
_MANY_DIGITS: Final = re.compile(r"(?:\d[ .\-]?){6}")
_REQUIRED: Final = ("transaction_id", "time", "amount_minor", "currency", "entities")
_OPTIONAL: Final = ("kind", "base_amount_minor", "original_id", "fields", "location", "flags")


def time_ms(value: object, name: str = "time") -> int:
    """Milliseconds UTC of an aware datetime or an int; raises BadTransaction for anything else."""
    if value.__class__ is int:
        instant: int = value
    elif isinstance(value, datetime):
        if value.tzinfo is None:
            raise BadTransaction(f"{name} is a naive datetime; it needs a time zone")
        instant = (value - _EPOCH) // _MILLISECOND
    else:
        raise BadTransaction(
            f"{name} must be an aware datetime or int milliseconds UTC, not {_kind(value)}"
        )
    if not EARLIEST_MS <= instant < LATEST_MS:
        raise BadTransaction(
            f"{name} is {_shown(instant)} ms, outside {EARLIEST_MS} to {LATEST_MS}"
            " (1990 to 2100, in milliseconds)"
        )
    return instant


class Transaction:
    """One payment attempt.

    transaction_id: string, 1 to 256 bytes; the payment's identity, kept by retries and stages.
    time: event time of the first attempt, aware datetime or int ms UTC.
    amount_minor: int >= 0, at most 2^40, minor units of `currency` (a verification: 0).
    currency: ISO 4217 code.
    entities: entity name -> identifier; an absent one gives missing values.
    kind: one of KINDS.
    base_amount_minor: the amount in the specification's currency, where `currency` is another.
    original_id: for a refund or reversal, the transaction that it undoes.
    fields: name -> str, number, bool or None: whatever else the specification reads.
    location: (latitude, longitude) in degrees.
    flags: facts known with the event itself, name -> bool.

    Raises BadTransaction, which names the field, the limit and the value (never an identifier).
    """

    __slots__ = (
        "_amount_minor",
        "_base_amount_minor",
        "_currency",
        "_entities",
        "_fields",
        "_flags",
        "_kind",
        "_location",
        "_original_id",
        "_time",
        "_transaction_id",
        "packed",
    )

    def __init__(
        self,
        transaction_id: str,
        time: datetime | int,
        amount_minor: int,
        currency: str,
        entities: Mapping[str, str],
        kind: str = "authorisation",
        base_amount_minor: int | None = None,
        original_id: str | None = None,
        fields: Mapping[str, FieldValue] = _NOTHING,
        location: tuple[float, float] | None = None,
        flags: Mapping[str, bool] = _NOTHING,
    ) -> None:
        self._transaction_id = _checked_string("transaction_id", transaction_id)
        self._time = time_ms(time)
        self._amount_minor = _checked_amount("amount_minor", amount_minor)
        if not is_currency_code(currency):
            raise BadTransaction(
                f"currency must be an ISO 4217 code such as EUR, not {_shown(currency)}"
            )
        self._currency = currency
        self._entities = _checked_entities(entities)
        # In a tuple, for an unhashable value is in no mapping.
        if kind not in KINDS:
            raise BadTransaction(f"kind must be one of {', '.join(KINDS)}; it is {_shown(kind)}")
        if kind == "verification" and amount_minor != 0:
            raise BadTransaction(
                f"a verification has amount_minor 0; it is {amount_minor} (kind 'verification')"
            )
        self._kind = kind
        self._base_amount_minor = (
            None
            if base_amount_minor is None
            else _checked_amount("base_amount_minor", base_amount_minor)
        )
        self._original_id = (
            None if original_id is None else _checked_string("original_id", original_id)
        )
        self._fields = _checked_fields(fields)
        self._location = None if location is None else _checked_location(location)
        self._flags = _checked_flags(flags)
        # What a scorer or store made of this transaction, and which one did: theirs to set.
        self.packed: tuple[object, bytes] = _UNPACKED

    @classmethod
    def of(cls, value: Transaction | Mapping[str, Any]) -> Transaction:
        """`value` itself, or the Transaction that a mapping of the same names describes."""
        if value.__class__ is cls:
            return value
        if not isinstance(value, Mapping):
            raise BadTransaction(f"a transaction is a Transaction or a mapping, not {_kind(value)}")
        try:
            return cls(**value)
        except TypeError:
            raise BadTransaction(_names_problem(value)) from None

    @property
    def transaction_id(self) -> str:
        """The payment's identity."""
        return self._transaction_id

    @property
    def time(self) -> int:
        """Event time, ms UTC."""
        return self._time

    @property
    def amount_minor(self) -> int:
        """Amount in minor units of `currency`."""
        return self._amount_minor

    @property
    def currency(self) -> str:
        """ISO 4217 code."""
        return self._currency

    @property
    def entities(self) -> Mapping[str, str]:
        """Entity name -> identifier."""
        return MappingProxyType(self._entities)

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self._kind

    @property
    def base_amount_minor(self) -> int | None:
        """Amount in minor units of the specification's currency, if given."""
        return self._base_amount_minor

    @property
    def original_id(self) -> str | None:
        """The transaction that a refund or reversal undoes."""
        return self._original_id

    @property
    def fields(self) -> Mapping[str, FieldValue]:
        """Name -> value of everything else."""
        return MappingProxyType(self._fields)

    @property
    def location(self) -> tuple[float, float] | None:
        """(latitude, longitude) in degrees."""
        return self._location

    @property
    def flags(self) -> Mapping[str, bool]:
        """Facts known with the event itself."""
        return MappingProxyType(self._flags)

    def base_amount(self, currency: str) -> int:
        """Minor units of `currency`, the specification's; raises BadTransaction if unknown."""
        if self._currency == currency:
            return self._amount_minor
        if self._base_amount_minor is None:
            raise BadTransaction(
                f"currency is {self._currency} and the specification's is {currency}:"
                " base_amount_minor is needed, converted by the caller"
            )
        return self._base_amount_minor

    def _key(self) -> tuple[object, ...]:
        return (
            self._transaction_id,
            self._time,
            self._amount_minor,
            self._currency,
            self._kind,
            self._base_amount_minor,
            self._original_id,
            self._location,
            tuple(sorted(self._entities.items())),
            tuple(sorted((name, repr(value)) for name, value in self._fields.items())),
            tuple(sorted(self._flags.items())),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transaction) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._transaction_id)

    def __repr__(self) -> str:
        names = ", ".join(map(_plain_name, sorted(self._entities)))
        return (
            f"Transaction(time={self._time}, amount_minor={self._amount_minor},"
            f" currency={self._currency!r}, kind={self._kind!r}, entities=<{names}>)"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (
            Transaction,
            (
                self._transaction_id,
                self._time,
                self._amount_minor,
                self._currency,
                self._entities,
                self._kind,
                self._base_amount_minor,
                self._original_id,
                self._fields,
                self._location,
                self._flags,
            ),
        )


def _kind(value: object) -> str:
    return type(value).__name__


def _shown(value: object) -> str:
    """A wrong value in a message, unless an identifier may have come into the wrong place."""
    if isinstance(value, str) and len(value) <= _MOST_SHOWN and value.isalpha():
        return repr(value)
    if isinstance(value, int) and abs(value) < _MOST_SHOWN_INT:
        return str(value)
    if isinstance(value, int):
        return f"a number of {value.bit_length()} bits"
    return f"a {_kind(value)} that is not shown"


def shown_name(name: object) -> str:
    """A name in a message, unless it may be an identifier that came into the wrong place."""
    text = str(name)
    if len(text) > _LONGEST_SHOWN_NAME or _MANY_DIGITS.search(text):
        return f"<a name of {len(text)} characters>"
    return repr(text)


def _plain_name(name: object) -> str:
    """The same without quotation marks, where it is a word."""
    text = str(name)
    return text if text.isidentifier() and shown_name(text) == repr(text) else shown_name(text)


def _checked_string(what: str, value: object, name: str | None = None) -> str:
    """The value, if it is text within its limit; `name` says which of several it is."""
    if not isinstance(value, str):
        raise BadTransaction(f"{_which(what, name)} must be a string, not {_kind(value)}")
    try:
        length = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise BadTransaction(f"{_which(what, name)} is not valid Unicode") from None
    if not 1 <= length <= MAX_STRING_BYTES:
        raise BadTransaction(
            f"{_which(what, name)} has {length} bytes; it needs 1 to {MAX_STRING_BYTES}"
        )
    return value


def _which(what: str, name: str | None) -> str:
    return what if name is None else f"{what} {shown_name(name)}"


def _checked_amount(name: str, value: object) -> int:
    # bool is an int to Python, and never an amount.
    if value.__class__ is not int:
        if isinstance(value, float) and not math.isfinite(value):
            raise BadTransaction(f"{name} is {value!r}; it must be an integer of minor units")
        raise BadTransaction(f"{name} must be an int of minor units, not {_kind(value)}")
    if not 0 <= value <= MAX_AMOUNT_MINOR:
        raise BadTransaction(
            f"{name} is {_shown(value)}; it must be 0 to {MAX_AMOUNT_MINOR}"
            " (money that goes back is a refund, reversal or payout with a positive amount)"
        )
    return value


def _checked_entities(entities: object) -> dict[str, str]:
    if not isinstance(entities, Mapping):
        raise BadTransaction(f"entities must be a mapping, not {_kind(entities)}")
    checked = {}
    for name, identifier in entities.items():
        if identifier is None:
            continue
        if not isinstance(name, str):
            raise BadTransaction(f"the name of an entity must be a string, not {_kind(name)}")
        checked[name] = _checked_string("entity", identifier, name)
    return checked


def _checked_fields(fields: object) -> dict[str, FieldValue]:
    if not isinstance(fields, Mapping):
        raise BadTransaction(f"fields must be a mapping, not {_kind(fields)}")
    for name, value in fields.items():
        if not isinstance(name, str):
            raise BadTransaction(f"the name of a field must be a string, not {_kind(name)}")
        if isinstance(value, str):
            _checked_string("field", value or "-", name)
        elif value is not None and not isinstance(value, (int, float)):
            raise BadTransaction(f"field {shown_name(name)} must be a string, number, bool or None")
    return dict(fields)


def _checked_location(location: object) -> tuple[float, float]:
    try:
        north, east = cast("tuple[Any, Any]", location)
        latitude, longitude = float(north), float(east)
    except (TypeError, ValueError, OverflowError):
        raise BadTransaction("location must be (latitude, longitude) in degrees") from None
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        raise BadTransaction(
            f"location is ({latitude}, {longitude}); latitude is -90 to 90, longitude -180 to 180"
        )
    return latitude, longitude


def _checked_flags(flags: object) -> dict[str, bool]:
    if not isinstance(flags, Mapping):
        raise BadTransaction(f"flags must be a mapping, not {_kind(flags)}")
    for name, value in flags.items():
        if not isinstance(name, str) or not isinstance(value, bool):
            raise BadTransaction(f"flag {_shown(name)} must be a name with True or False")
    return dict(flags)


def _names_problem(value: Mapping[str, Any]) -> str:
    missing = [name for name in _REQUIRED if name not in value]
    if missing:
        return f"missing: {', '.join(missing)}"
    unknown = [_plain_name(name) for name in value if name not in (*_REQUIRED, *_OPTIONAL)]
    return f"unknown: {', '.join(unknown)}; known are {', '.join((*_REQUIRED, *_OPTIONAL))}"
