"""Column maps: which column of a file or frame is which part of a payment.

A map names what differs from freshscore's own names; whatever it does not name is looked up under
those: Transaction's field names, one column per entity name, one bool column per fact (with
`<fact>_known_at` beside it), one column per field.
Rule: a source is read by a map only if it has every column that the map names for identity, time,
amount and entities, so that a file is never read by a map that happens to fit half of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Final, Literal

import msgspec

from freshscore.config.decoding import as_type
from freshscore.config.errors import BadFile
from freshscore.features.specification import FeatureSpecification, has_location

# Column names shown in a message: enough to see what a file is, not enough to fill a screen.
_MAX_NAMES_SHOWN: Final = 30
# What looks like a name. A file without a header has its first row there, card numbers and e-mail
# addresses included: so no other characters, and no more digits than `V28` or `nb_tx_30_day` need.
_NAME: Final = re.compile(r"[^\W\d][\w .:/()%-]{0,39}")
_MAX_DIGITS: Final = 3


class TimeColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A column of instants.

    unit: of numbers; timestamps carry their own. zone: of timestamps without one.
    """

    column: str
    unit: Literal["s", "ms", "us", "ns"] = "ms"
    zone: Literal["UTC"] = "UTC"


class AmountColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A column of amounts, in major (12.34) or minor (1234) units of the row's currency.

    Major units are rounded to the nearest minor unit, for files have converted amounts with more
    digits than their currency; minor units must be whole.
    """

    column: str
    unit: Literal["major", "minor"] = "major"


class Distance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A field in km: great circle between two (latitude, longitude) pairs of columns in degrees."""

    start: tuple[str, str]
    end: tuple[str, str]


class ColumnMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names of columns; of several the first that is there counts.

    currency: the code of all amounts; None: that of the `currency_column`, or, where there is
    none, the specification's. entities, fields, facts: name -> column, where they differ.
    known_at: fact -> column of the instant at which it became known.
    derived: fields computed from other columns.
    """

    name: str
    transaction_id: str = "transaction_id"
    time: tuple[TimeColumn, ...] = (TimeColumn("time_ms"), TimeColumn("time"))
    amount: tuple[AmountColumn, ...] = (
        AmountColumn("amount_minor", "minor"),
        AmountColumn("amount"),
    )
    currency: str | None = None
    currency_column: str = "currency"
    base_amount: tuple[AmountColumn, ...] = (AmountColumn("base_amount_minor", "minor"),)
    kind: str = "kind"
    original_id: str = "original_id"
    arrival: tuple[TimeColumn, ...] = (TimeColumn("arrival_ms"), TimeColumn("arrival"))
    latitude: str = "latitude"
    longitude: str = "longitude"
    entities: dict[str, str] = {}
    fields: dict[str, str] = {}
    facts: dict[str, str] = {}
    known_at: dict[str, TimeColumn] = {}
    derived: dict[str, Distance] = {}

    @staticmethod
    def from_toml(text: str, source: str = "column map") -> ColumnMap:
        """The map in TOML `text`; raises BadFile, naming `source`."""
        try:
            return as_type(msgspec.toml.decode, text, ColumnMap)
        except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
            raise BadFile(f"{source}: {problem}") from problem

    @staticmethod
    def shipped() -> tuple[ColumnMap, ...]:
        """The maps that come with freshscore: its own names first, then by name."""
        folder = resources.files("freshscore.features") / "column_maps"
        files = [file for file in folder.iterdir() if file.name.endswith(".toml")]
        maps = [ColumnMap.from_toml(file.read_text("utf-8"), file.name) for file in files]
        return tuple(sorted(maps, key=lambda one: (one.name != "freshscore", one.name)))

    @staticmethod
    def named(name: str) -> ColumnMap:
        """A shipped map by name, or one in a TOML file by path; raises BadFile."""
        if name.endswith(".toml"):
            try:
                text = Path(name).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as problem:
                raise BadFile(f"cannot read the column map {name}: {problem}") from problem
            return ColumnMap.from_toml(text, name)
        maps = {one.name: one for one in ColumnMap.shipped()}
        if name not in maps:
            raise BadFile(f"no column map {name!r} ships; there are {', '.join(maps)}")
        return maps[name]

    def lacking(self, names: Collection[str]) -> list[str]:
        """What a source with columns `names` lacks to be read by this map; alternatives as one."""
        needed = [
            (self.transaction_id,),
            tuple(one.column for one in self.time),
            tuple(one.column for one in self.amount),
            *((column,) for column in self.entities.values()),
        ]
        return [
            " or ".join(columns) for columns in needed if not any(one in names for one in columns)
        ]

    def resolved(self, names: Sequence[str], spec: FeatureSpecification) -> Roles:
        """Which of the columns `names` the reader of `spec` takes for what.

        `names` lack nothing. Raises BadFile if `spec` has entities and no column is one.
        """
        parts = dict.fromkeys(part for entity in spec.entities for part in entity.parts)
        texts = [c.field for c in spec.conditions if c.field is not None]
        texts = [f for f in (*spec.categories, *texts) if f not in spec.plain_fields]
        known_at = {fact: TimeColumn(f"{fact}_known_at") for fact in spec.facts} | self.known_at
        located = any(has_location(spec, entity.name) for entity in spec.entities)
        roles = Roles(
            transaction_id=self.transaction_id,
            time=next(one for one in self.time if one.column in names),
            amount=next(one for one in self.amount if one.column in names),
            currency=self.currency,
            currency_column=_present(self.currency_column, names),
            base_amount=next((one for one in self.base_amount if one.column in names), None),
            kind=_present(self.kind, names),
            original_id=_present(self.original_id, names),
            arrival=next((one for one in self.arrival if one.column in names), None),
            entities={part: _present(self.entities.get(part, part), names) for part in parts},
            numbers={f: _present(self.fields.get(f, f), names) for f in spec.plain_fields},
            derived={
                f: self.derived[f]
                for f in spec.plain_fields
                if f in self.derived
                and self.fields.get(f, f) not in names
                and {*self.derived[f].start, *self.derived[f].end} <= set(names)
            },
            categories={f: _present(self.fields.get(f, f), names) for f in dict.fromkeys(texts)},
            facts={fact: _present(self.facts.get(fact, fact), names) for fact in spec.facts},
            known_at={f: one for f, one in known_at.items() if one.column in names},
            place=(self.latitude, self.longitude)
            if located and self.latitude in names and self.longitude in names
            else None,
            reads_place=located,
        )
        if parts and not any(roles.entities.values()):
            raise BadFile(
                f"none of the columns is an entity of specification {spec.name!r}"
                f" ({', '.join(parts)}); there are {shown(names)}"
            )
        return roles


class Roles(msgspec.Struct, frozen=True):
    """The columns of one source by what they are; None where the source has none."""

    transaction_id: str
    time: TimeColumn
    amount: AmountColumn
    currency: str | None
    currency_column: str | None
    base_amount: AmountColumn | None
    kind: str | None
    original_id: str | None
    arrival: TimeColumn | None
    entities: dict[str, str | None]
    numbers: dict[str, str | None]
    derived: dict[str, Distance]
    categories: dict[str, str | None]
    facts: dict[str, str | None]
    known_at: dict[str, TimeColumn]
    place: tuple[str, str] | None
    reads_place: bool

    def texts(self) -> set[str]:
        """Columns that hold strings, whatever their content looks like."""
        named = (self.transaction_id, self.currency_column, self.kind, self.original_id)
        return set(_given(*named, *self.entities.values(), *self.categories.values()))

    def wanted(self) -> list[str]:
        """All columns to read, each once."""
        instants = [one.column for one in (self.time, self.arrival, *self.known_at.values()) if one]
        amounts = [one.column for one in (self.amount, self.base_amount) if one]
        places = [*(self.place or ())]
        for distance in self.derived.values():
            places += [*distance.start, *distance.end]
        others = _given(*self.numbers.values(), *self.facts.values())
        return list(dict.fromkeys([*sorted(self.texts()), *instants, *amounts, *places, *others]))

    def absent(self) -> tuple[str, ...]:
        """What the specification reads and the source has no column for."""
        named = self.entities | self.numbers | self.categories | self.facts
        lacking = [n for n, column in named.items() if column is None and n not in self.derived]
        return (*lacking, "location") if self.reads_place and self.place is None else (*lacking,)


def chosen_map(names: Sequence[str], columns: ColumnMap | str | None, source: str) -> ColumnMap:
    """The map that a source with columns `names` is read by.

    columns: a map, the name of a shipped one, the path of a TOML file, or None: the shipped one
    that fits. Raises BadFile, which says what is missing and which maps were tried.
    """
    if columns is None:
        tried = ColumnMap.shipped()
    elif isinstance(columns, ColumnMap):
        tried = (columns,)
    else:
        tried = (ColumnMap.named(columns),)
    for one in tried:
        if not one.lacking(names):
            return one
    lacking = "; ".join(f"{one.name} lacks {', '.join(one.lacking(names))}" for one in tried)
    raise BadFile(f"{source}: its columns fit no column map: {lacking}. It has {shown(names)}")


def shown(names: Sequence[str], of: Sequence[str] | None = None) -> str:
    """Column names for a message, cut where they are many; of: all names, if these are some.

    What does not look like a name is shown as its place among all, from 1: it may be a value.
    """
    places = names if of is None else of
    first = [
        name if _looks_like_a_name(name) else f"column {places.index(name) + 1}"
        for name in names[:_MAX_NAMES_SHOWN]
    ]
    rest = len(names) - len(first)
    return (", ".join(first) or "no columns") + (f" and {rest} more" if rest else "")


def _looks_like_a_name(text: str) -> bool:
    digits = sum(character.isdigit() for character in text)
    return _NAME.fullmatch(text) is not None and digits <= _MAX_DIGITS


def _present(column: str, names: Collection[str]) -> str | None:
    return column if column in names else None


def _given(*columns: str | None) -> Iterator[str]:
    return (column for column in columns if column is not None)
