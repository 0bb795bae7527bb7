"""The careful way of reading a message: any JSON, any column map, any callable of a team's own.

The kernels (message_kernels.py, message_rows.py) read what is plain; all else comes here, and what
both read gives the same row, bit for bit. A raw identifier becomes a keyed hash here and goes no
further.
Rule: what is refused says why without a word of its content: no value, and no name that the message
brought. Nothing that a message holds raises anything but MessageRefused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec
from msgspec import UNSET

from freshscore.config.decoding import as_type
from freshscore.config.errors import BadTransaction
from freshscore.features import row as r
from freshscore.features.layout import SENDER_LIMIT_MS
from freshscore.features.memory import BYTES_AT
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import Program
from freshscore.features.record_making import time_of
from freshscore.features.redis_reading import Wanted
from freshscore.features.transaction import Transaction, time_ms
from freshscore.invalidation.message_texts import count_keys
from freshscore.invalidation.messages import (
    ENTITY_CHARACTERS,
    IDENTITY_CHARACTERS,
    MALFORMED,
    RAW,
    TOKEN_CHARACTERS,
    VERSION,
    WRONG_KEY,
    ErasureMessage,
    LabelMessage,
    MessageRefused,
    TransactionMessage,
    bytes_of,
    is_own,
)

if TYPE_CHECKING:
    from freshscore.invalidation.message_columns import MessageColumns

# What is wrong with a label that a record has no room for.
FAR: Final = "a label lies more than 17 years from its payment"
_OTHERS_UNKNOWN: Final = "hashed identifiers are of one key, and the secret is being rotated"
# What a row needs and a label that is looked up does not have.
_ANY_TIME_MS: Final = 946_684_800_000
# What msgspec says of types and of names that the format knows; the rest repeats the message.
_SAFE: Final = ("Expected ", "JSON is malformed: ", "Input data was truncated", "Object missing ")
# What Transaction says begins with the name of what is wrong.
_LIMITS: Final = {
    "transaction_id": "transaction_id needs 1 to 256 bytes of text",
    "original_id": "original_id needs 1 to 256 bytes of text",
    "time": "time needs milliseconds UTC from 1990 to 2100",
    "amount_minor": "amount_minor needs 0 to 2^40 minor units",
    "base_amount_minor": "base_amount_minor needs 0 to 2^40 minor units",
    "currency": "currency needs an ISO 4217 code, and base_amount_minor beside a foreign one",
    "entity": "an identifier needs 1 to 256 bytes of text",
    "entities": "entities needs a name and an identifier each",
    "field": "a field is not of the type that the specification reads, or beyond 256 bytes",
    "fields": "fields needs names with text, numbers, true, false or null",
    "location": "location needs degrees: latitude -90 to 90, longitude -180 to 180",
    "kind": "kind is none of those that there are",
    "a": "a verification has an amount of 0",
    "flag": "a flag is no fact of the specification, or neither true nor false",
    "flags": "flags needs names with true or false",
    "missing:": "a name that every transaction has is missing",
    "unknown:": "a name that no transaction has",
}


@dataclass(frozen=True, slots=True)
class ReadLabel:
    """A label as the kernels take it: the row of its payment, and what it says in four words.

    needs_lookup: the row has the payment's identity and nothing else.
    """

    row: bytes
    given: int
    values: int
    known_ms: int
    sender_ms: int
    needs_lookup: bool


class MessageReader:
    """Reads messages one by one, for one specification and one set of keys.

    columns: the names of a team's own messages. decode: bytes to a mapping, instead of JSON.
    Neither is asked about what freshscore's own scorers wrote into the same topics.
    """

    def __init__(
        self,
        program: Program,
        keys: Keys,
        columns: MessageColumns | None = None,
        decode: Callable[[bytes], Any] | None = None,
    ) -> None:
        self._program = program
        self._spec = program.specification
        self._keys = keys
        self._packer = Packer(program, keys)
        self._columns = columns
        self._decode = decode
        self._names = [layout.name for layout in program.entities]
        self._parts = {part for layout in program.entities for part in layout.parts}
        self.row_bytes = 8 * r.row_words(len(self._names), 0, 0)
        self._transactions = _decoder(TransactionMessage)
        self._labels = _decoder(LabelMessage)
        self._erasures = _decoder(ErasureMessage)

    @property
    def is_plain(self) -> bool:
        """Whether messages have freshscore's own format, which the kernel reads too."""
        return self._columns is None and self._decode is None

    def transaction(self, value: bytes | None) -> bytes:
        """The row of the payment in `value`, without numbers and categories; or MessageRefused."""
        given = self._given(value, self._transactions)
        key_id = self._hashed_under(given)
        entities = _mapping(given.get("entities"), "entities")
        if key_id is not None:
            given["entities"] = {}
        row = bytearray(self._packed(given))
        if key_id is not None:
            self._check_time(key_id, row)
            self._put_hashes(row, given["transaction_id"], entities)
        return bytes(row)

    def payment(self, value: bytes | None, packer: Packer) -> Transaction:
        """The payment in `value`, to be scored: it keeps the row that `packer` makes of it.

        Of a message with hashed identifiers the transaction has those hashes in its row alone; it
        is refused while the secret is rotated, for nobody here knows its entities' other hashes.
        Raises MessageRefused.
        """
        given = self._given(value, self._transactions)
        key_id = self._hashed_under(given)
        if key_id is not None and packer.others_at:
            raise MessageRefused(WRONG_KEY, _OTHERS_UNKNOWN)
        entities = _mapping(given.get("entities"), "entities")
        if key_id is not None:
            given["entities"] = {}
        try:
            transaction = Transaction.of(given)
            made = packer.row(transaction)
        except BadTransaction as problem:
            _refuse(problem)
        if key_id is not None:
            row = bytearray(made)
            self._put_hashes(row, given["transaction_id"], entities)
            transaction.packed = (packer, packer.with_content(row))
        return transaction

    def label(self, value: bytes | None, arrival_ms: int) -> ReadLabel:
        """The label in `value`; or MessageRefused."""
        given = self._given(value, self._labels)
        key_id = self._hashed_under(given)
        hashed = key_id is not None
        entities, time = given.get("entities"), given.get("time")
        if (entities is None) != (time is None):
            raise MessageRefused(MALFORMED, "a label brings entities and time together, or neither")
        given_mask, values = self._facts(given.get("flags"))
        entities = {} if entities is None else _mapping(entities, "entities")
        if time is not None and not (set(self._names) if hashed else self._parts) & {*entities}:
            raise MessageRefused(
                MALFORMED, "none of a label's entities is one that the specification reads"
            )
        payment = {
            "transaction_id": given.get("transaction_id"),
            "time": _ANY_TIME_MS if time is None else time,
            "amount_minor": 0,
            "currency": self._spec.currency,
            "entities": {} if hashed else entities,
        }
        row = bytearray(self._packed(payment))
        if key_id is not None:
            # Without a time its entities come from the index of labels.
            if time is not None:
                self._check_time(key_id, row)
            self._put_hashes(row, payment["transaction_id"], entities)
        known_ms, sender_ms = _instants(given, arrival_ms)
        if time is not None and is_far(row, sender_ms):
            raise MessageRefused(MALFORMED, FAR)
        return ReadLabel(bytes(row), given_mask, values, known_ms, sender_ms, time is None)

    def erasure(self, value: bytes) -> list[Wanted]:
        """The states that the order in `value` erases: entity number, token; or MessageRefused."""
        given = _own(value, self._erasures)
        if self._hashed_under(given) is None:
            raise MessageRefused(MALFORMED, "what is erased is named by hashes alone")
        wanted = []
        for name, text in given["erased"].items():
            if name not in self._names:
                # A specification without this entity has nothing of it to erase.
                continue
            token = bytes_of(text, TOKEN_CHARACTERS, "an entity")
            if not any(token):
                raise MessageRefused(MALFORMED, "an entity's hash is zero")
            wanted.append((self._names.index(name), token))
        return wanted

    def _given(self, value: bytes | None, decoder: msgspec.json.Decoder[Any]) -> dict[str, Any]:
        """What a message holds by Transaction's names, of the right types or not yet known."""
        if value is None:
            raise MessageRefused(MALFORMED, "a message without content")
        if self.is_plain or is_own(value):
            return _own(value, decoder)
        tree = _tree(value) if self._decode is None else _decoded(self._decode, value)
        if self._columns is None:
            return dict(tree)
        is_label = decoder is self._labels
        try:
            return self._columns.label(tree) if is_label else self._columns.transaction(tree)
        except LookupError as problem:
            raise MessageRefused(MALFORMED, str(problem.args[0])) from None

    def _hashed_under(self, given: dict[str, Any]) -> str | None:
        """The valid key under which identifiers are hashed; None where they are raw."""
        version, ids = given.pop("v", VERSION), given.pop("ids", RAW)
        if version.__class__ is not int or version != VERSION:
            raise MessageRefused(MALFORMED, f"v needs {VERSION}, the version that is known here")
        if ids == RAW:
            return None
        former = self._keys.former
        for known in (self._keys, former):
            if known is not None and ids == known.key_id:
                return known.key_id
        both = self._keys.key_id if former is None else f"{self._keys.key_id} and {former.key_id}"
        raise MessageRefused(WRONG_KEY, f"its identifiers are hashed under another key than {both}")

    def _check_time(self, key_id: str, row: bytearray) -> None:
        """Refuse hashes under a key that does not hold at the payment's own time.

        Among sums of the wrong state nothing could tell a payment that comes under the right key
        too.
        """
        wanted = self._keys.key_id_at(time_of(bytes(row)))
        if key_id != wanted:
            raise MessageRefused(
                WRONG_KEY,
                f"its identifiers are hashed under key {key_id}; at its time {wanted} holds",
            )

    def _packed(self, given: dict[str, Any]) -> bytes:
        """The row of what a message says of a payment, its digest of content cleared."""
        try:
            row = self._packer.row(Transaction.of(given))
        except BadTransaction as problem:
            _refuse(problem)
        return row[: r.CONTENT_LOW] + bytes(16) + row[r.TOKENS : self.row_bytes]

    def _put_hashes(self, row: bytearray, identity: object, entities: Mapping[str, Any]) -> None:
        """Fill in what the message says of hashes."""
        row[:16] = bytes_of(identity, IDENTITY_CHARACTERS, "transaction_id")
        members = r.TOKENS + 16 * len(self._names)
        for e, name in enumerate(self._names):
            text = entities.get(name)
            if text is None:
                continue
            hashes = bytes_of(text, ENTITY_CHARACTERS, "an entity")
            if not any(hashes[:16]):
                raise MessageRefused(MALFORMED, "an entity's hash is zero")
            row[r.TOKENS + 16 * e : r.TOKENS + 16 * e + 16] = hashes[:16]
            row[members + 8 * e : members + 8 * e + 8] = hashes[16:]

    def _facts(self, flags: object) -> tuple[int, int]:
        """Which facts a label gives and their values, as bits."""
        named = _mapping(flags, "flags")
        if not named:
            raise MessageRefused(MALFORMED, "a label needs at least one flag")
        given = values = 0
        for name, value in named.items():
            if name not in self._spec.facts or not isinstance(value, bool):
                raise MessageRefused(MALFORMED, _LIMITS["flag"])
            bit = self._spec.facts.index(name)
            given |= 1 << bit
            values |= value << bit
        return given, values


def is_far(row: bytes | bytearray, sender_ms: int) -> bool:
    """Whether a record has no room for how far a label's sender is from the payment in `row`."""
    (time_ms,) = struct.unpack_from("<q", row, r.TIME)
    return bool(abs(sender_ms - time_ms) >= SENDER_LIMIT_MS)


def _decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    """A decoder; made one at a time, as config/decoding.py says."""
    decoder: msgspec.json.Decoder[Any] = as_type(_made_decoder, b"", kind)
    return decoder


def _made_decoder(_: bytes, **of: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(of["type"])


def _own(value: bytes, decoder: msgspec.json.Decoder[Any]) -> dict[str, Any]:
    """What a message of freshscore's own format holds, each name once."""
    message = _parsed(decoder.decode, value)
    given = {
        name: held
        for name in message.__struct_fields__
        if (held := getattr(message, name)) is not UNSET
    }
    n_keys = len(given) + sum(len(held) for held in given.values() if isinstance(held, dict))
    _check_each_once(value, n_keys)
    return given


def _tree(value: bytes) -> dict[str, Any]:
    """A JSON object of any shape, each name once in its object."""
    tree = _parsed(msgspec.json.decode, value)
    n_keys, waiting = 0, [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            n_keys += len(one)
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    _check_each_once(value, n_keys)
    return _mapping(tree, "a message")


def _parsed(decode: Callable[[bytes], Any], value: bytes) -> Any:
    try:
        return decode(value)
    except msgspec.MsgspecError as problem:
        said = str(problem)
        raise MessageRefused(
            MALFORMED, said if said.startswith(_SAFE) else "a name that no message has"
        ) from None
    except UnicodeDecodeError:
        raise MessageRefused(MALFORMED, "text that is not UTF-8") from None
    except RecursionError:
        raise MessageRefused(MALFORMED, "nested too deeply") from None


def _check_each_once(value: bytes, n_keys: int) -> None:
    # What a parser takes the last of may be what another takes the first of.
    if count_keys(id(value) + BYTES_AT, len(value)) != n_keys:
        raise MessageRefused(MALFORMED, "a name comes twice in one object")


def _decoded(decode: Callable[[bytes], Any], value: bytes) -> dict[str, Any]:
    """What a team's own callable makes of a message."""
    try:
        # As plain values: what else it may answer with could raise later.
        tree = msgspec.to_builtins(decode(value), builtin_types=(datetime, bytes))
    except KeyboardInterrupt:
        raise
    except BaseException as problem:  # noqa: BLE001  # theirs may raise anything, SystemExit too
        raise MessageRefused(
            MALFORMED, f"the decode callable raised {type(problem).__name__}"
        ) from None
    return _mapping(tree, "what the decode callable answers")


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise MessageRefused(MALFORMED, f"{what} needs names with values")
    return dict(value)


def _instants(given: dict[str, Any], arrival_ms: int) -> tuple[int, int]:
    """Since when a label's facts are known, and the sender's instant, ms."""
    sent_at, known_at = given.get("sent_at"), given.get("known_at")
    try:
        said = [time_ms(one) for one in (sent_at, known_at) if one is not None]
        known_ms = time_ms(max([arrival_ms, *said]))
    except BadTransaction:
        raise MessageRefused(
            MALFORMED, "sent_at and known_at need milliseconds UTC from 1990 to 2100"
        ) from None
    return known_ms, said[0] if said else known_ms


def _refuse(problem: BadTransaction) -> NoReturn:
    """Refuse a payment as Transaction did, without the value that it shows."""
    about = str(problem).split(" ", 1)[0]
    raise MessageRefused(MALFORMED, _LIMITS.get(about, "it is no valid transaction")) from None
