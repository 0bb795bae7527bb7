"""From a Transaction to the row that kernels read.

Rule: a row is made once for a transaction and a packer, and kept with the transaction; identifiers
go in as bytes and come out as keyed hashes, and no copy of them stays behind. Which key a payment's
tokens are of follows from its own time alone, so that all processes hash it alike.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import BadTransaction, ModelMismatch
from freshscore.config.secret import Secret
from freshscore.features.layout import NO_PLACE, place
from freshscore.features.memory import BYTES_AT, address_of
from freshscore.features.program import Program, static_conditions
from freshscore.features.row import KEY_CONTENT, TOKENS, digest_content, make_row, row_words
from freshscore.features.transaction import KIND_CODES, Transaction, shown_name

if TYPE_CHECKING:
    from freshscore.features.specification import FeatureSpecification
    from freshscore.features.table import PaymentTable

_NAN: Final = float("nan")
# Before every payment.
_ALWAYS: Final = -(2**62)
# Where the number of a cohort stands in a row's bits; 8 bits.
COHORT_SHIFT: Final = 40
Codes = Mapping[str, Mapping[str, int]]


class Keys:
    """The hash keys of a store, derived from its secret; the arrays hold 16 bytes a key.

    record: of identities and members (8 bytes of them are kept), which never rotates.
    digests: of the records of each entity, which make the versions of states; they neither.
    since_ms: from which event time on tokens are those of `row_keys`; former: the keys of older
    ones, None outside of a rotation.
    """

    def __init__(self, program: Program, secret: Secret) -> None:
        self.key_id = secret.key_id
        self.record_id = secret.record_id
        self.record = secret.key("record")
        names = [layout.name for layout in program.entities]
        tokens = [secret.key("token") + name.encode() for name in names]
        content = secret.key("content")
        self.row_keys = _as_words(
            self.record, content, *(_derived(token, b"token") for token in tokens)
        )
        digest = secret.key("digest")
        self.digest_keys = _as_words(
            *(_derived(digest + name.encode(), b"digest") for name in names)
        )
        self.is_successor = secret.since_ms is not None
        self.since_ms = _ALWAYS if secret.since_ms is None else secret.since_ms
        former = secret.former
        self.former: Keys | None = None if former is None else Keys(program, former)

    def key_id_at(self, time_ms: int) -> str:
        """Under which key the identifiers of a payment are hashed, by its own time."""
        former = self.former
        return self.key_id if former is None or time_ms >= self.since_ms else former.key_id

    @property
    def answers_from_ms(self) -> int:
        """Windows that begin before it would miss what lies under a key that is gone."""
        return self.since_ms if self.former is None else _ALWAYS


def _derived(material: bytes, person: bytes) -> bytes:
    return hashlib.blake2b(material, digest_size=16, person=person).digest()


def _as_words(*keys: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(keys) or bytes(16), np.uint64).copy()


@dataclass(frozen=True, slots=True)
class Cohort:
    """A name for the transactions whose `field` has this value."""

    name: str
    field: str
    value: str


class Packer:
    """Makes rows for one program, one set of keys and one model's category codes and cohorts.

    Tokens are those of the key that holds at the payment's own time, whoever packs it and when.
    During a rotation a row is longer: from `others_at` on it has the tokens under the other key,
    in whose states the same entities have records too; 0 where there is no rotation.
    The cohort of a transaction is the first that it meets, else the one after the last (`all`).
    Raises ModelMismatch for a cohort of a field that the specification does not read.
    """

    def __init__(
        self,
        program: Program,
        keys: Keys,
        codes: Codes | None = None,
        cohorts: tuple[Cohort, ...] = (),
    ) -> None:
        spec = program.specification
        self.program = program
        self.keys = keys
        self._spec = spec
        self._codes = codes or {}
        _check_cohorts(spec, cohorts)
        self._cohorts = cohorts
        self._entity_parts = tuple(layout.parts for layout in program.entities)
        self._n_values = len(spec.plain_fields) + len(spec.categories)
        self._n_entities = len(program.entities)
        self.content_bytes = 8 * row_words(
            self._n_entities, len(spec.plain_fields), len(spec.categories)
        )
        self.others_at = 0
        self.row_bytes = self.content_bytes
        if keys.former is not None:
            # At a whole number of tokens from the others: then commands name both kinds alike.
            self.others_at = TOKENS + -(-(self.content_bytes - TOKENS) // 16) * 16
            self.row_bytes = self.others_at + 16 * self._n_entities
        self._form = struct.Struct(f"<4q{self._n_values}d{1 + self._n_entities}q").pack
        self._keys_at = address_of(keys.row_keys)
        self._conditions = bool(spec.conditions)
        self._facts = {fact: bit for bit, fact in enumerate(spec.facts)}

    def row(self, transaction: Transaction) -> bytes:
        """The row of `transaction`; raises BadTransaction for what cannot be read so."""
        owner, row = transaction.packed
        if owner is self:
            return row
        raw = self._raw(transaction)
        row = bytes(self.content_bytes)
        # A new bytes object that nobody else has seen yet is ours to fill, once.
        make_row(
            id(raw) + BYTES_AT, id(row) + BYTES_AT, self._keys_at, self._n_entities, self._n_values
        )
        if self.others_at:
            row = self._of_both(raw, row, transaction._time)
        # In one piece: two threads may pack one transaction for two scorers.
        transaction.packed = (self, row)
        return row

    def with_content(self, row: bytes | bytearray) -> bytes:
        """`row` with the digest of its content, after hashes were put into it."""
        made = bytearray(row)
        at = address_of(np.frombuffer(made, np.uint8))
        digest_content(at, at + self.content_bytes, self._keys_at + KEY_CONTENT)
        return bytes(made)

    def with_others(self, row: bytes) -> bytes:
        """`row` with each entity's token under the other key of a rotation instead of its own.

        Of a row of one key, from outside of a rotation, every entity is absent then.
        """
        n_bytes = 16 * self._n_entities
        others = row[self.others_at :].ljust(n_bytes, b"\0")
        return row[:TOKENS] + others + row[TOKENS + n_bytes : self.content_bytes]

    def _of_both(self, raw: bytes, row: bytes, time_ms: int) -> bytes:
        """The row that holds at `time_ms`, with the tokens of the other one behind it."""
        former = self.keys.former
        assert former is not None  # others_at says so
        other = bytes(self.content_bytes)
        make_row(
            id(raw) + BYTES_AT,
            id(other) + BYTES_AT,
            address_of(former.row_keys),
            self._n_entities,
            self._n_values,
        )
        if time_ms < self.keys.since_ms:
            row, other = other, row
        others = other[TOKENS : TOKENS + 16 * self._n_entities]
        return row + bytes(self.others_at - self.content_bytes) + others

    def _raw(self, transaction: Transaction) -> bytes:
        tx = transaction
        spec = self._spec
        identity = tx._transaction_id.encode()
        lengths = [len(identity)]
        texts = [identity]
        entities = tx._entities
        for parts in self._entity_parts:
            if len(parts) == 1:
                identifier = entities.get(parts[0])
                text = None if identifier is None else identifier.encode()
            else:
                text = _joined(parts, entities)
            if text is None:
                lengths.append(-1)
            else:
                lengths.append(len(text))
                texts.append(text)
        bits = KIND_CODES[tx._kind] << 8
        if tx._flags:
            bits |= self._flag_bits(tx._flags)
        if self._conditions:
            bits |= static_conditions(spec, tx._kind, tx._fields) << 16
        if self._cohorts:
            bits |= self._cohort(tx._fields) << COHORT_SHIFT
        amount = tx._amount_minor if tx._currency == spec.currency else self._base_amount(tx)
        where = NO_PLACE if tx._location is None else place(*tx._location)
        values = self._values(tx) if self._n_values else ()
        return self._form(tx._time, amount, bits, where, *values, *lengths) + b"".join(texts)

    def _base_amount(self, tx: Transaction) -> int:
        amount = tx.base_amount(self._spec.currency)
        if tx._kind == "verification" and amount != 0:
            raise BadTransaction(
                f"a verification has an amount of 0; base_amount_minor is {amount}"
                " (kind 'verification')"
            )
        return amount

    def _values(self, tx: Transaction) -> list[float]:
        values = []
        fields = tx._fields
        for name in self._spec.plain_fields:
            value = fields.get(name)
            if value is None:
                values.append(_NAN)
            elif isinstance(value, str):
                raise BadTransaction(
                    f"field {shown_name(name)} is a string; the specification reads it as a number"
                )
            else:
                values.append(_as_float(name, value))
        for name in self._spec.categories:
            value = fields.get(name)
            code = self._codes.get(name, {}).get(value) if isinstance(value, str) else None
            if value is not None and not isinstance(value, str):
                raise BadTransaction(
                    f"field {shown_name(name)} is a number;"
                    " the specification reads it as a category"
                )
            values.append(_NAN if code is None else float(code))
        return values

    def _cohort(self, fields: Mapping[str, object]) -> int:
        for number, cohort in enumerate(self._cohorts):
            if fields.get(cohort.field) == cohort.value:
                return number
        return len(self._cohorts)

    def cohorts_of(self, table: PaymentTable) -> NDArray[np.uint64]:
        """The cohort bits of each payment of a table."""
        numbers = np.full(len(table), len(self._cohorts), np.uint64)
        for number, cohort in reversed(list(enumerate(self._cohorts))):
            column = table.categories.get(cohort.field)
            if column is not None:
                values = column.values.to_pylist()
                held = np.array([*(value == cohort.value for value in values), False])
                numbers[held[column.codes]] = number
        return numbers << np.uint64(COHORT_SHIFT)

    def values_of(self, table: PaymentTable) -> Iterator[NDArray[np.float64]]:
        """Numbers and category codes of each payment of a table, column by column."""
        for name in self._spec.plain_fields:
            yield np.ascontiguousarray(table.numbers[name])
        for name in self._spec.categories:
            column = table.categories[name]
            codes = self._codes.get(name, {})
            known = [codes.get(value, _NAN) for value in column.values.to_pylist()]
            # The place after the last is for the absent: code -1 counts from the end.
            yield np.array([*known, _NAN], np.float64)[column.codes]

    def _flag_bits(self, flags: Mapping[str, bool]) -> int:
        bits = 0
        for name, value in flags.items():
            bit = self._facts.get(name)
            if bit is None:
                raise BadTransaction(
                    f"flag {shown_name(name)} is no fact of the specification;"
                    f" it has {', '.join(self._facts) or 'none'}"
                )
            bits |= value << bit
        return bits


def _as_float(name: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise BadTransaction(f"field {shown_name(name)} is beyond the largest float64") from None


def _check_cohorts(spec: FeatureSpecification, cohorts: tuple[Cohort, ...]) -> None:
    # A table holds only what its specification reads: any other field would make single payments
    # and batches decide differently.
    read = {*spec.categories, *(one.field for one in spec.conditions if one.field is not None)}
    for cohort in cohorts:
        if cohort.field not in read:
            raise ModelMismatch(
                f"cohort {cohort.name!r} is of the field {cohort.field!r}, which specification"
                f" {spec.name} does not read as text; it reads {', '.join(sorted(read)) or 'none'}"
            )


def _joined(parts: tuple[str, ...], entities: Mapping[str, str]) -> bytes | None:
    """Identifiers of several parts as one, each behind its length; None if one is absent."""
    joined = b""
    for part in parts:
        identifier = entities.get(part)
        if identifier is None:
            return None
        text = identifier.encode()
        joined += len(text).to_bytes(2, "little") + text
    return joined
