"""Raw columns as instants, numbers and truths, each with a mask of what is wrong in it.

A column of one Arrow type is converted as a whole; in a file, a type that cannot be that thing
(text where numbers are needed) is BadFile. Objects of a frame are held to Transaction's rules one
by one; CSV text is parsed cell by cell where one damaged cell has made a whole column text.
Rule: a wrong cell never changes another one, and is never turned into a value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from freshscore.config.errors import BadTransaction
from freshscore.features.sources import RawColumn
from freshscore.features.table import Bools, Floats, Int64s
from freshscore.features.transaction import time_ms

_PER_SECOND: Final = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# Beyond this, seconds overflow 64 bits as milliseconds; both ends are far from any valid time.
_MAX_SECONDS: Final = 2**52
_MAX_MS: Final = float(2**62)
_MISSING_NUMBERS: Final = ("", "nan", "na", "n/a", "null", "none")
_TRUE: Final = ("true", "t", "yes", "1")
_FALSE: Final = ("false", "f", "no", "0")
# Text that begins with a whole date. Left to itself, pandas takes `now` and `today` from the clock,
# and a year or a month for its first day.
_DATE: Final = r"^\d{4}([-/. ]\d{1,2}[-/. ]\d{1,2}|\d{4})(\D|$)"


# None of these shows its values in a repr: a column may be another one than it was said to be.
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Instants:
    """ms: int64 (n,) UTC, 0 where `missing` (n,) or `wrong` (n,)."""

    ms: Int64s
    missing: Bools
    wrong: Bools


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Numbers:
    """values: float64 (n,), NaN where absent or `wrong` (n,)."""

    values: Floats
    wrong: Bools


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Truths:
    """values: bool (n,), False where absent or `wrong` (n,)."""

    values: Bools
    wrong: Bools


def instants(column: RawColumn, unit: str) -> Instants:
    """Milliseconds UTC, floored; numbers are in `unit`, timestamps without a zone are UTC.

    Raises BadFile for a type that holds no instants.
    """
    values = column.values
    if _is_text(column):
        return _instants_of_text(values, unit)
    if not isinstance(values, list):
        if pa.types.is_date(values.type):
            values = values.cast(pa.timestamp("ms"))
        if pa.types.is_timestamp(values.type):
            return _in_ms(values.cast(pa.int64()), values.type.unit)
        if pa.types.is_signed_integer(values.type):
            return _in_ms(values.cast(pa.int64()), unit)
        if _is_numeric(values.type):
            return _rounded_to_ms(numbers(column, "times").values, unit)
    cells = column.cells_or_refused("times")
    found, missing, wrong = _each(cells, lambda value: _instant_ms(value, unit))
    return Instants(np.array([at or 0 for at in found], np.int64), missing, wrong)


def _instant_ms(value: object, unit: str) -> int:
    # Integers are in the column's unit also where another cell has made objects of them.
    return time_ms(value * 1_000 // _PER_SECOND[unit] if type(value) is int else value)


def _in_ms(values: pa.Int64Array, unit: str) -> Instants:
    missing = masked(values.is_null())
    raw: Int64s = values.fill_null(0).to_numpy(zero_copy_only=False)
    if unit == "s":
        raw = np.clip(raw, -_MAX_SECONDS, _MAX_SECONDS) * 1_000
    elif unit != "ms":
        raw = raw // (_PER_SECOND[unit] // 1_000)
    return Instants(raw, missing, np.zeros(len(raw), np.bool_))


def _rounded_to_ms(values: Floats, unit: str) -> Instants:
    missing = np.isnan(values)
    # Not floored: 1.001 s times 1,000 is a hair below 1,001 ms.
    ms = np.rint(np.where(missing, 0.0, values) * (1_000 / _PER_SECOND[unit]))
    ms = np.clip(ms, -_MAX_MS, _MAX_MS)
    return Instants(ms.astype(np.int64), missing, np.zeros(len(ms), np.bool_))


def _instants_of_text(texts: pa.StringArray, unit: str) -> Instants:
    """ISO 8601, or numbers in `unit`."""
    import pandas  # only damaged files need it; it takes longer than a small file

    numeric = _numbers_of_text(texts, False)
    by_number = _rounded_to_ms(numeric.values, unit)
    rest = texts.filter(pa.array(numeric.wrong))
    dates = pc.if_else(pc.match_substring_regex(rest, _DATE), rest, None)
    cells = pandas.Series(dates.to_pylist(), dtype="object")
    parsed = pa.array(pandas.to_datetime(cells, format="ISO8601", utc=True, errors="coerce"))
    by_text = _in_ms(parsed.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64()), "us")
    ms, wrong = by_number.ms.copy(), np.zeros(len(texts), np.bool_)
    ms[numeric.wrong], wrong[numeric.wrong] = by_text.ms, by_text.missing
    return Instants(ms, by_number.missing & ~numeric.wrong, wrong)


def numbers(column: RawColumn, what: str, *, truths_too: bool = False) -> Numbers:
    """Doubles; True and False are 1 and 0 if `truths_too`, else no numbers.

    Raises BadFile for a type that holds none, naming `what` they should be.
    """
    values = column.values
    if _is_text(column):
        return _numbers_of_text(values, truths_too)
    if not isinstance(values, list):
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if truths_too and pa.types.is_boolean(values.type):
            values = values.cast(pa.uint8())
    if isinstance(values, list) or not _is_numeric(values.type):
        cells = column.cells_or_refused(what)
        found, _, wrong = _each(cells, _number_or_truth if truths_too else _number)
        return Numbers(np.array([np.nan if x is None else x for x in found], np.float64), wrong)
    doubles: Floats = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return Numbers(doubles, np.zeros(len(doubles), np.bool_))


def _numbers_of_text(texts: pa.StringArray, truths_too: bool) -> Numbers:
    import pandas  # see _instants_of_text

    absent = _one_of(texts, _MISSING_NUMBERS)
    cells = pandas.Series(texts.to_pylist(), dtype="object")
    found: Floats = np.array(pandas.to_numeric(cells, errors="coerce"), np.float64)
    if truths_too:
        found[_one_of(texts, ("true",))] = 1.0
        found[_one_of(texts, ("false",))] = 0.0
    return Numbers(found, np.isnan(found) & ~absent)


def truths(column: RawColumn) -> Truths:
    """True and False, also as 1 and 0; absent is False. Raises BadFile for another type."""
    if _is_text(column):
        true, false = _one_of(column.values, _TRUE), _one_of(column.values, _FALSE)
        return Truths(true & ~false, ~(true | false | _one_of(column.values, _MISSING_NUMBERS)))
    found = numbers(column, "flags", truths_too=True)
    known = (found.values == 0.0) | (found.values == 1.0) | np.isnan(found.values)
    return Truths(found.values == 1.0, found.wrong | ~known)


def masked(values: pa.BooleanArray) -> Bools:
    """An Arrow array of truths without nulls as numpy's."""
    mask: Bools = values.to_numpy(zero_copy_only=False)
    return mask


def is_missing(value: object) -> bool:
    """Whether an object in a frame or list stands for an absent value."""
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    # By name: pandas' own markers, without importing pandas.
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _is_text(column: RawColumn) -> bool:
    return (
        column.cells == "text"
        and not isinstance(column.values, list)
        and bool(pa.types.is_string(column.values.type))
    )


def _is_numeric(kind: pa.DataType) -> bool:
    # A column without any value has Arrow's type of nothing: all its numbers are absent.
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or bool(pa.types.is_null(kind))
    )


def _one_of(texts: pa.StringArray, known: tuple[str, ...]) -> Bools:
    """Where a text is one of `known`, its case and the blanks around it aside; null is ""."""
    bare = pc.utf8_lower(pc.utf8_trim_whitespace(texts.fill_null("")))
    return masked(pc.is_in(bare, pa.array(known)))


def _each(values: list[object], convert: Callable[[object], Any]) -> tuple[list[Any], Bools, Bools]:
    """Each object converted (None where missing or wrong), with both masks."""
    found: list[Any] = [None] * len(values)
    missing, wrong = np.zeros(len(values), np.bool_), np.zeros(len(values), np.bool_)
    for i, value in enumerate(values):
        if is_missing(value):
            missing[i] = True
            continue
        try:
            found[i] = convert(value.item() if isinstance(value, np.generic) else value)
        except (BadTransaction, OverflowError):
            wrong[i] = True
    return found, missing, wrong


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise BadTransaction(f"{type(value).__name__} is no number")
    return float(value)


def _number_or_truth(value: object) -> float:
    return float(value) if isinstance(value, bool) else _number(value)
