"""The checks of payments by column: each part of a payment as arrays, and what is wrong with it.

Rule: the checks and their order are those of Transaction, so that a row is refused here exactly
where a Transaction of the same content is, and for the same part of it.
The arrays hold any value in rows that are refused: whoever takes them takes the good rows only.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from freshscore.features.columns import AmountColumn, Distance, Roles, TimeColumn
from freshscore.features.layout import PLACE_UNITS, SENDER_LIMIT_MS
from freshscore.features.money import MAX_AMOUNT_MINOR, is_currency_code, minor_digits
from freshscore.features.numeric_columns import instants, numbers, truths
from freshscore.features.sources import Loaded
from freshscore.features.specification import FeatureSpecification, duration_ms
from freshscore.features.table import (
    ABSENT,
    Bits16,
    Bools,
    Bytes,
    Coded,
    FactTable,
    Floats,
    Int32s,
    Int64s,
    Problem,
)
from freshscore.features.text_columns import coded_column, identifiers
from freshscore.features.transaction import (
    EARLIEST_MS,
    KIND_CODES,
    KINDS,
    LATEST_MS,
    MAX_STRING_BYTES,
)

_EARTH_RADIUS_KM: Final = 6371.0088
_VERIFICATION: Final = KIND_CODES["verification"]
_YEARS: Final = "1990 to 2100"
_NO_CODE: Final = -2


class Faults:
    """The first problem of each row."""

    def __init__(self, n_rows: int) -> None:
        self.problem = np.full(n_rows, -1, np.int32)
        self.problems: list[Problem] = []

    def add(self, rows: Bools, reason: str, sentence: str) -> None:
        """The rows have this problem, unless an earlier one was found."""
        new = rows & (self.problem < 0)
        if new.any():
            self.problem[new] = len(self.problems)
            self.problems.append(Problem(reason, sentence))


class PaymentReader:
    """Reads the parts of the payments in `loaded`, collecting `faults`; each method once, in order.

    Every array has one row for each row that was loaded.
    """

    def __init__(self, loaded: Loaded, roles: Roles, spec: FeatureSpecification) -> None:
        self._columns = loaded.columns
        self._roles = roles
        self._spec = spec
        self._n = len(loaded.row)
        self.faults = Faults(self._n)

    def ids(self) -> pa.StringArray:
        """Transaction ids."""
        found = identifiers(self._columns[self._roles.transaction_id], "transaction ids")
        self._refuse_strings("transaction_id", "transaction_id", found.wrong, found.too_long)
        self.faults.add(found.empty, "transaction_id", "transaction_id is missing or empty")
        return found.texts

    def times_ms(self) -> Int64s:
        """Event times, ms UTC."""
        return self._instants(self._roles.time, "time")

    def arrivals_ms(self, times_ms: Int64s) -> Int64s:
        """Instants of arrival, ms UTC: the event's own time where the source does not say."""
        column = self._roles.arrival
        return times_ms if column is None else self._instants(column, "arrival", times_ms)

    def _instants(self, column: TimeColumn, part: str, default: Int64s | None = None) -> Int64s:
        found = instants(self._columns[column.column], column.unit)
        ms = found.ms if default is None else np.where(found.missing, default, found.ms)
        if default is None:
            self.faults.add(found.missing, part, f"{part} is missing")
        known = f"ISO 8601 nor a number of {column.unit}"
        if self._columns[column.column].cells == "objects":
            known = f"a datetime with a zone nor an int of {column.unit}"
        self.faults.add(found.wrong, part, f"{part} is no instant in {_YEARS}: neither {known}")
        inside = (ms >= EARLIEST_MS) & (ms < LATEST_MS)
        self.faults.add(~inside, part, f"{part} is outside {_YEARS}; its unit may be another")
        return ms

    def amounts_minor(self) -> tuple[Int64s, Bools]:
        """Amounts in minor units of each row's currency, and where that is the specification's."""
        name = self._roles.currency_column
        if self._roles.currency is not None or name is None:
            code = self._roles.currency or self._spec.currency
            amounts = self._amounts(self._roles.amount, "amount", 10.0 ** minor_digits(code))
            return amounts, np.full(self._n, code == self._spec.currency)
        found = coded_column(self._columns[name], "currencies")
        codes = found.coded.values.to_pylist()
        scales = np.array([10.0 ** minor_digits(code) for code in codes] + [1.0])
        amounts = self._amounts(self._roles.amount, "amount", scales[found.coded.codes])
        bad = [not is_currency_code(code) for code in codes] + [True]
        wrong = found.wrong | np.array(bad)[found.coded.codes]
        self.faults.add(wrong, "currency", "currency is missing or no ISO 4217 code")
        return amounts, found.coded.codes == _code_of(found.coded, self._spec.currency)

    def base_amounts_minor(self, own_minor: Int64s, in_base: Bools) -> tuple[Int64s, Bools]:
        """Amounts in the specification's currency, and where they are known."""
        column = self._roles.base_amount
        if column is None:
            return own_minor, in_base
        given = ~np.isnan(numbers(self._columns[column.column], "amounts").values)
        scale = 10.0 ** minor_digits(self._spec.currency)
        base = self._amounts(column, "base_amount", scale, optional=True)
        return np.where(in_base, own_minor, base), in_base | given

    def refuse_unknown_amounts(self, known: Bools) -> None:
        """Rows in another currency whose amount in the specification's is not known."""
        self.faults.add(
            ~known,
            "currency",
            f"currency is not {self._spec.currency}, the specification's, and there is no"
            " base_amount_minor, converted by the caller",
        )

    def _amounts(
        self, column: AmountColumn, reason: str, scale: Floats | float, optional: bool = False
    ) -> Int64s:
        found = numbers(self._columns[column.column], "amounts")
        absent = np.isnan(found.values)
        if optional:
            absent &= found.wrong
        self.faults.add(absent, reason, f"{reason} is missing or not a number")
        values = np.where(np.isnan(found.values), 0.0, found.values)
        self.faults.add(np.isinf(values), reason, f"{reason} is infinite")
        self.faults.add(
            values < 0,
            reason,
            f"{reason} is negative (money that goes back is a refund, reversal or payout)",
        )
        scaled = values if column.unit == "minor" else values * scale
        self.faults.add(
            ~(np.abs(scaled) <= MAX_AMOUNT_MINOR),
            reason,
            f"{reason} is above {MAX_AMOUNT_MINOR} minor units",
        )
        whole = np.rint(np.clip(scaled, -1.0, MAX_AMOUNT_MINOR))
        if column.unit == "minor":
            self.faults.add(scaled != whole, reason, f"{reason} is no whole number of minor units")
        minor: Int64s = whole.astype(np.int64)
        return minor

    def entities(self) -> dict[str, Coded]:
        """Identifiers by entity part."""
        found = {}
        for part, name in self._roles.entities.items():
            if name is None:
                found[part] = self._nothing()
                continue
            column = coded_column(self._columns[name], "identifiers")
            self._refuse_strings("entity", f"entity {part!r}", column.wrong, column.too_long)
            self.faults.add(column.empty, "entity", f"entity {part!r} has 0 bytes")
            found[part] = column.coded
        return found

    def kinds(self) -> Bytes:
        """Codes of kinds; an absent one is an authorisation."""
        if self._roles.kind is None:
            return np.zeros(self._n, np.uint8)
        found = coded_column(self._columns[self._roles.kind], "kinds")
        codes = [KIND_CODES.get(kind, -1) for kind in found.coded.values.to_pylist()]
        kinds = np.array([*codes, 0])[found.coded.codes]
        wrong = found.wrong | (kinds < 0)
        self.faults.add(wrong, "kind", f"kind must be one of {', '.join(KINDS)}")
        return kinds.astype(np.uint8)

    def refuse_verifications_of(self, kinds: Bytes, amounts_minor: Int64s) -> None:
        """Verifications with an amount."""
        wrong = (kinds == _VERIFICATION) & (amounts_minor != 0)
        self.faults.add(wrong, "kind", "a verification has amount 0")

    def refuse_original_ids(self) -> None:
        """Original ids that are no identifiers; nothing else is done with them."""
        if self._roles.original_id is None:
            return
        found = identifiers(self._columns[self._roles.original_id], "transaction ids")
        empty = found.empty & found.texts.is_valid().to_numpy(zero_copy_only=False)
        self._refuse_strings("original_id", "original_id", found.wrong, found.too_long | empty)

    def numbers(self) -> dict[str, Floats]:
        """Plain fields by name, NaN where absent."""
        found = {}
        for name, at in self._roles.numbers.items():
            if name in self._roles.derived:
                found[name] = self._distances_km(self._roles.derived[name])
            elif at is None:
                found[name] = np.full(self._n, np.nan)
            else:
                read = numbers(self._columns[at], f"field {name!r}", truths_too=True)
                self.faults.add(read.wrong, "field", f"field {name!r} must be a number")
                found[name] = read.values
        return found

    def _distances_km(self, distance: Distance) -> Floats:
        """Haversine distances; NaN where a place is absent."""
        lat1, lon1, lat2, lon2 = (
            np.radians(self._degrees(name, limit))
            for name, limit in zip((*distance.start, *distance.end), (90, 180) * 2, strict=True)
        )
        north, east = np.sin((lat2 - lat1) / 2), np.sin((lon2 - lon1) / 2)
        a = north * north + np.cos(lat1) * np.cos(lat2) * (east * east)
        km: Floats = 2 * _EARTH_RADIUS_KM * np.arcsin(np.minimum(1.0, np.sqrt(a)))
        return km

    def categories(self) -> dict[str, Coded]:
        """Category fields by name."""
        found = {}
        for name, at in self._roles.categories.items():
            if at is None:
                found[name] = self._nothing()
                continue
            column = coded_column(self._columns[at], f"field {name!r}", anything=True)
            self._refuse_strings("field", f"field {name!r}", column.wrong, column.too_long)
            found[name] = column.coded
        return found

    def places(self) -> tuple[Int32s | None, Bools | None]:
        """Latitude and longitude in 1e-7 degrees (n, 2), and where there is one (n,)."""
        if not self._roles.reads_place:
            return None, None
        if self._roles.place is None:
            return np.zeros((self._n, 2), np.int32), np.zeros(self._n, np.bool_)
        pair = zip(self._roles.place, (90, 180), strict=True)
        degrees = np.stack([self._degrees(name, limit) for name, limit in pair], axis=1)
        absent = np.isnan(degrees)
        located = ~(absent[:, 0] | absent[:, 1])
        half = absent[:, 0] != absent[:, 1]
        self.faults.add(half, "location", "location has only one of latitude and longitude")
        known = np.where(located[:, None], degrees, 0.0)
        return np.rint(known * PLACE_UNITS).astype(np.int32), located

    def _degrees(self, name: str, limit: int) -> Floats:
        found = numbers(self._columns[name], "degrees")
        outside = np.abs(found.values) > limit
        self.faults.add(
            found.wrong | outside, "location", f"column {name!r} is outside -{limit} to {limit}"
        )
        return np.where(outside, 0.0, found.values)

    def facts(self, times_ms: Int64s) -> tuple[Bytes, FactTable]:
        """Flags known at the event's own time, as bits, and the facts known at another."""
        flags = np.zeros(self._n, np.uint8)
        rows, names, known_ms = [times_ms[:0]], [flags[:0]], [times_ms[:0]]
        for bit, fact in enumerate(self._spec.facts):
            name = self._roles.facts[fact]
            if name is None:
                continue
            found = truths(self._columns[name])
            self.faults.add(found.wrong, "flag", f"flag {fact!r} must be true or false")
            at_ms = self._known_ms(fact, found.values, times_ms)
            own = found.values & (at_ms == times_ms)
            flags[own] |= 1 << bit
            later = np.flatnonzero(found.values & ~own)
            rows.append(later)
            names.append(np.full(len(later), bit, np.uint8))
            known_ms.append(at_ms[later])
        # A label says when it became known and nothing of a sender: they are one instant.
        instants_ms = np.concatenate(known_ms)
        row, true = np.concatenate(rows), np.ones(len(instants_ms), np.bool_)
        return flags, FactTable(row, np.concatenate(names), true, instants_ms, instants_ms)

    def _known_ms(self, fact: str, true: Bools, times_ms: Int64s) -> Int64s:
        """The instants at which `fact` became known: as told, else after the declared delay."""
        known_ms = times_ms + duration_ms(self._spec.label_delay.get(fact, "0s"))
        column = self._roles.known_at.get(fact)
        if column is not None:
            found = instants(self._columns[column.column], column.unit)
            known_ms = np.where(found.missing, known_ms, found.ms)
            inside = (known_ms >= EARLIEST_MS) & (known_ms < LATEST_MS)
            wrong = true & (found.wrong | ~(found.missing | inside))
            self.faults.add(
                wrong, "known_at", f"the instant at which {fact!r} became known is not in {_YEARS}"
            )
        far = true & (np.abs(known_ms - times_ms) >= SENDER_LIMIT_MS)
        self.faults.add(far, "known_at", f"{fact!r} became known over 17 years from its event")
        return known_ms

    def conditions(self, kinds: Bytes, categories: dict[str, Coded]) -> Bits16:
        """Bits of the specification's conditions that hold."""
        bits = np.zeros(self._n, np.uint16)
        for bit, condition in enumerate(self._spec.conditions):
            if condition.kind is not None:
                holds = kinds == KIND_CODES[condition.kind]
            elif condition.field in categories:
                column = categories[condition.field]
                holds = column.codes == _code_of(column, condition.value or "")
            else:
                # The field is read as a number, which equals no string.
                continue
            bits |= holds.astype(np.uint16) << bit
        return bits

    def _refuse_strings(self, reason: str, what: str, wrong: Bools, too_long: Bools) -> None:
        self.faults.add(wrong, reason, f"{what} must be a string of valid Unicode")
        self.faults.add(too_long, reason, f"{what} needs 1 to {MAX_STRING_BYTES} bytes")

    def _nothing(self) -> Coded:
        return Coded(np.full(self._n, ABSENT, np.int32), pa.array([], pa.string()))


def _code_of(column: Coded, text: str) -> int:
    """The code of `text`, or one that no row has."""
    place = pc.index(column.values, pa.scalar(text, pa.string())).as_py()
    return _NO_CODE if place < 0 else int(place)
