"""Messages about payments and about facts: their format, and how freshscore writes them.

Version 1 is a JSON object with Transaction's names (docs/messages.md). Its identifiers are raw, or
hashed under the key that `ids` names: then `transaction_id` is base64url of the identity's 16 bytes
and each entity, by its name in the specification, of its token's 16 and its member identity's 8.
Rule: what is written here has no identifier in it, only keyed hashes.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from freshscore.config.errors import FreshscoreError
from freshscore.features import row as r
from freshscore.features.program import Program
from freshscore.features.transaction import FieldValue, Transaction, time_ms

VERSION: Final = 1
RAW: Final = "raw"
# Reasons for which a message is refused.
MALFORMED: Final = "malformed"
OVERSIZED: Final = "oversized"
LATE: Final = "late"
EARLY: Final = "early"
CONFLICT: Final = "conflict"
WRONG_KEY: Final = "wrong key"
UNKNOWN_TRANSACTION: Final = "unknown transaction"
REASONS: Final = (MALFORMED, OVERSIZED, LATE, EARLY, CONFLICT, WRONG_KEY, UNKNOWN_TRANSACTION)

# What each message made here begins with, up to the id of its key; and past that.
OWN_BEGINNING: Final = b'{"v":%d,"ids":"' % VERSION
_OWN_NEXT: Final = re.compile(rb'[0-9a-f]{8}","(?:transaction_id|erased)":')
_ERASURE_NEXT: Final = re.compile(rb'[0-9a-f]{8}","erased":')

IDENTITY_CHARACTERS: Final = 22
TOKEN_CHARACTERS: Final = 22
ENTITY_CHARACTERS: Final = 32
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*\Z")
Entities = dict[str, str | None]


class MessageRefused(FreshscoreError, ValueError):
    """A message that cannot be applied: the reason, one of those above, and what is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class TransactionMessage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False
):
    """A payment as it travels; see Transaction for what the names mean."""

    v: int | UnsetType = UNSET
    ids: str | UnsetType = UNSET
    transaction_id: str
    time: int
    amount_minor: int
    currency: str
    entities: Entities
    kind: str | UnsetType = UNSET
    base_amount_minor: int | UnsetType | None = UNSET
    original_id: str | UnsetType | None = UNSET
    fields: dict[str, FieldValue] | UnsetType = UNSET
    location: tuple[float, float] | UnsetType | None = UNSET
    flags: dict[str, bool] | UnsetType = UNSET


class LabelMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What became known of a payment: flags, since when, and the payment's entities and time.

    sent_at: the sender's instant; copies of one label carry the same. known_at: where the fact was
    known later than it was sent. entities, time: the payment's own, or neither.
    """

    v: int | UnsetType = UNSET
    ids: str | UnsetType = UNSET
    transaction_id: str
    flags: dict[str, bool]
    sent_at: int | UnsetType | None = UNSET
    known_at: int | UnsetType | None = UNSET
    entities: Entities | UnsetType | None = UNSET
    time: int | UnsetType | None = UNSET


class ErasureMessage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False
):
    """An order to erase the states of entities up to the message's arrival; always hashed.

    erased: name of the entity in the specification -> base64url of its token.
    """

    v: int | UnsetType = UNSET
    ids: str | UnsetType = UNSET
    erased: dict[str, str]


def encode_transaction(
    program: Program, key_id: str, transaction: Transaction, row: bytes
) -> bytes:
    """The message of a payment with hashed identifiers, and what the specification reads.

    row: of a packer for this program, under the keys that `key_id` names.
    """
    spec = program.specification
    conditions = [one.field for one in spec.conditions if one.field is not None]
    read = dict.fromkeys((*spec.plain_fields, *spec.categories, *conditions))
    fields = {n: _sendable(transaction.fields[n]) for n in read if n in transaction.fields}
    reads_place = any(layout.place_at for layout in program.entities)
    foreign = transaction.currency != spec.currency
    message = TransactionMessage(
        transaction_id=_text(row[:16]),
        time=transaction.time,
        amount_minor=transaction.amount_minor,
        currency=transaction.currency,
        entities=_hashed_entities(program, row),
        kind=UNSET if transaction.kind == "authorisation" else transaction.kind,
        base_amount_minor=transaction.base_amount_minor if foreign else UNSET,
        fields=fields or UNSET,
        location=transaction.location if reads_place and transaction.location else UNSET,
        flags=dict(transaction.flags) or UNSET,
    )
    return _encoded(key_id, message)


def encode_label(
    program: Program,
    key_id: str,
    row: bytes,
    flags: Mapping[str, bool],
    sent_at_ms: int,
    known_at_ms: int | None = None,
    *,
    looked_up: bool = False,
) -> bytes:
    """The message of facts of the payment in `row`, of which only the identity counts if looked up.

    Raises BadTransaction for impossible instants.
    """
    entities: Entities | UnsetType = UNSET
    time: int | UnsetType = UNSET
    if not looked_up:
        entities = _hashed_entities(program, row)
        (time,) = struct.unpack_from("<q", row, r.TIME)
    message = LabelMessage(
        transaction_id=_text(row[:16]),
        flags=dict(flags),
        sent_at=time_ms(sent_at_ms, "sent_at"),
        known_at=UNSET if known_at_ms is None else time_ms(known_at_ms, "known_at"),
        entities=entities,
        time=time,
    )
    return _encoded(key_id, message)


def encode_erasure(key_id: str, entity: str, token: bytes) -> bytes:
    """The message that has the state of an entity erased, up to its arrival."""
    return _encoded(key_id, ErasureMessage(erased={entity: _text(token)}))


def is_erasure(value: bytes) -> bool:
    """Whether a message is such an order; only freshscore writes them, and always this way."""
    if not value.startswith(OWN_BEGINNING):
        return False
    return _ERASURE_NEXT.match(value, len(OWN_BEGINNING)) is not None


def is_own(value: bytes) -> bool:
    """Whether the functions above made a message; by its first bytes, which no map changes."""
    begins = value.startswith(OWN_BEGINNING)
    return begins and _OWN_NEXT.match(value, len(OWN_BEGINNING)) is not None


def _encoded(key_id: str, message: TransactionMessage | LabelMessage | ErasureMessage) -> bytes:
    """A message of which all but `v` and `ids` is given."""
    return b'%b%b",%b' % (OWN_BEGINNING, key_id.encode(), msgspec.json.encode(message)[1:])


def _hashed_entities(program: Program, row: bytes) -> Entities:
    """Name -> base64url of token and member, of the entities that a row has."""
    n = len(program.entities)
    found: Entities = {}
    for e, layout in enumerate(program.entities):
        token = row[r.TOKENS + 16 * e : r.TOKENS + 16 * e + 16]
        member = row[r.TOKENS + 16 * n + 8 * e : r.TOKENS + 16 * n + 8 * e + 8]
        if any(token):
            found[layout.name] = _text(token + member)
    return found


def _sendable(value: FieldValue) -> FieldValue:
    # JSON as msgspec writes it has integers of 64 bits.
    return float(value) if isinstance(value, int) and abs(value) >= 2**63 else value


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def bytes_of(text: object, n_characters: int, what: str) -> bytes:
    """The bytes of base64url without padding, in its one canonical form."""
    if isinstance(text, str) and len(text) == n_characters and _BASE64URL.match(text):
        data = base64.urlsafe_b64decode(text + "=" * (-n_characters % 4))
        if _text(data) == text:
            return data
    raise MessageRefused(
        MALFORMED, f"{what} needs {n_characters} characters of base64url: identifiers are hashed"
    )
