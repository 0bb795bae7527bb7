"""Raw columns as strings: identifiers one by one, everything else coded by its distinct values.

Whole numbers become their digits, so that an integer column of ids and its text are the same ids;
12.0 is 12, since pandas turns integers with gaps into floats.
Rule: only valid Unicode leaves here; checks of content look at distinct values, not at rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from freshscore.config.errors import BadFile
from freshscore.features.numeric_columns import is_missing, masked
from freshscore.features.sources import RawColumn
from freshscore.features.table import ABSENT, Bools, Coded
from freshscore.features.transaction import MAX_STRING_BYTES

# Up to here every whole number is a double of its own.
_MAX_WHOLE: Final = float(2**53)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Identifiers:
    """texts: pyarrow strings (n,), null where absent; masks (n,)."""

    texts: pa.StringArray
    wrong: Bools
    too_long: Bools
    empty: Bools


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CodedColumn:
    """A coded column (n rows); masks (n,): of another type or no Unicode, too long, of 0 bytes."""

    coded: Coded
    wrong: Bools
    too_long: Bools
    empty: Bools


def identifiers(column: RawColumn, what: str) -> Identifiers:
    """The strings of a column whose values hardly repeat; absent ones are `empty`.

    Raises BadFile for a type that holds none, naming `what` they should be.
    """
    values = column.values
    if not isinstance(values, list) and pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if isinstance(values, list) or not _has_texts(values.type, False):
        texts, wrong = _of_objects(column.cells_or_refused(what))
    else:
        texts, wrong = _texts(values, column.name, anything=False)
    sizes = pc.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False)
    return Identifiers(texts, wrong, sizes > MAX_STRING_BYTES, (sizes == 0) & ~wrong)


def coded_column(column: RawColumn, what: str, *, anything: bool = False) -> CodedColumn:
    """The strings of a column whose values repeat; `anything`: truths and fractions as text, too.

    Raises BadFile for a type that holds none, naming `what` they should be.
    """
    values = column.values
    if isinstance(values, list) or not _has_texts(_type_of_values(values), anything):
        texts, wrong = _of_objects(column.cells_or_refused(what))
        encoded = texts.dictionary_encode()
        distinct, wrong_values = encoded.dictionary, np.zeros(len(encoded.dictionary), np.bool_)
    else:
        encoded = values if pa.types.is_dictionary(values.type) else _encoded(values)
        distinct, wrong_values = _texts(encoded.dictionary, column.name, anything=anything)
        wrong = np.zeros(len(values), np.bool_)
    codes = encoded.indices.cast(pa.int32()).fill_null(ABSENT).to_numpy(zero_copy_only=False)
    sizes = pc.binary_length(distinct).fill_null(0).to_numpy(zero_copy_only=False)
    present = masked(distinct.is_valid())
    return CodedColumn(
        _distinct(np.where(_rows(codes, present), codes, np.int32(ABSENT)), distinct),
        wrong | _rows(codes, wrong_values),
        _rows(codes, sizes > MAX_STRING_BYTES),
        _rows(codes, (sizes == 0) & present),
    )


def original_of_text(texts: pa.StringArray) -> pa.Array:
    """CSV text as the integers that it is, where nothing of it would be lost; else itself."""
    try:
        whole = texts.cast(pa.int64())
    except pa.ArrowInvalid:
        return texts
    return whole if whole.cast(pa.string()).equals(texts) else texts


def _encoded(values: pa.Array) -> pa.DictionaryArray:
    # Arrow cannot encode a column of nothing as it is.
    plain = values.cast(pa.string()) if pa.types.is_null(values.type) else values
    return plain.dictionary_encode()


def _distinct(codes: NDArray[np.int32], values: pa.StringArray) -> Coded:
    """Coded, with values that are distinct and not null whatever came."""
    if values.null_count == 0 and pc.count_distinct(values).as_py() == len(values):
        return Coded(codes, values)
    encoded = values.fill_null("").dictionary_encode()
    places = np.append(encoded.indices.to_numpy(zero_copy_only=False), np.int32(ABSENT))
    return Coded(places[codes].astype(np.int32), encoded.dictionary)


def _rows(codes: NDArray[np.int32], of_values: Bools) -> Bools:
    """What holds for values, for the rows that have them; False for absent ones."""
    rows: Bools = np.append(of_values, False)[codes]
    return rows


def _type_of_values(values: pa.Array) -> pa.DataType:
    return values.type.value_type if pa.types.is_dictionary(values.type) else values.type


def _is_string(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _has_texts(kind: pa.DataType, anything: bool) -> bool:
    """Whether values of this type are strings, or have one text each."""
    return (
        _is_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_null(kind)
        or (anything and bool(pa.types.is_boolean(kind)))
    )


def _texts(values: pa.Array, name: str, *, anything: bool) -> tuple[pa.StringArray, Bools]:
    """The text of each value, and where it has none; `anything`: fractions have one."""
    if _is_string(values.type):
        return _valid_unicode(_as_strings(values, name))
    if pa.types.is_floating(values.type):
        return _of_floats(values, anything)
    return values.cast(pa.string()), np.zeros(len(values), np.bool_)


def _as_strings(values: pa.Array, name: str) -> pa.StringArray:
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid as problem:
        # The offsets of Arrow's strings have 32 bits.
        raise BadFile(f"column {name!r} has more than 2 GiB of text; split the file") from problem


def _valid_unicode(texts: pa.StringArray) -> tuple[pa.StringArray, Bools]:
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        # Neither Parquet's bytes are checked when they are read, nor those of damaged CSV.
        raw = texts.cast(pa.binary()).to_pylist()
        decoded = [_decoded(value) for value in raw]
        wrong = np.array([b is not None and t is None for b, t in zip(raw, decoded, strict=True)])
        return pa.array(decoded, pa.string()), wrong
    return texts, np.zeros(len(texts), np.bool_)


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _of_floats(values: pa.Array, anything: bool) -> tuple[pa.StringArray, Bools]:
    doubles = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    whole = (np.abs(doubles) <= _MAX_WHOLE) & (doubles == np.rint(doubles))
    digits = pa.array(np.where(whole, doubles, 0.0).astype(np.int64)).cast(pa.string())
    others = pa.array(doubles, from_pandas=True).cast(pa.string())
    texts = pc.if_else(pa.array(whole), digits, others)
    return texts, np.zeros(len(values), np.bool_) if anything else ~(whole | np.isnan(doubles))


def _of_objects(values: list[object]) -> tuple[pa.StringArray, Bools]:
    texts = [None if is_missing(value) else _of_object(value) for value in values]
    wrong = [t is None and not is_missing(v) for t, v in zip(texts, values, strict=True)]
    return pa.array(texts, pa.string()), np.array(wrong, np.bool_)


def _of_object(value: object) -> str | None:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_WHOLE:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value
