"""Feature specifications: what the model sees, declared in TOML or Python, checked when made.

Rule: a specification that exists is consistent, and its fingerprint covers everything that can
change a value or the meaning of a stored record. Not part of it: reason codes, sentences, the
specification's name, and label delays, which say how a file is read.
Order of the feature vector: the `features` as declared, then each window group's aggregates,
for each aggregate its lengths.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Final, Literal

import msgspec

from freshscore.config.decoding import as_type
from freshscore.config.errors import BadSpecification
from freshscore.features.money import is_currency_code
from freshscore.features.transaction import KINDS, MAX_STRING_BYTES

# Limits of the record format (features/layout.py): bits that one record has for them.
MAX_FACTS: Final = 8
MAX_CONDITIONS: Final = 16
MAX_DISTINCT_OF_ENTITY: Final = 4
MAX_ENTITIES: Final = 8

Function = Literal["count", "sum", "mean", "std", "min", "max", "last", "distinct", "share"]
GRID_FUNCTIONS: Final = ("count", "sum", "mean", "std", "share")

_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
# Ten years: no card lives longer, and a sum of two still fits beside the years 1990 to 2100. The
# sender's instant of a fact lies within 17 years of its event (layout.SENDER_LIMIT_MS).
MAX_DURATION_DAYS: Final = 3_653
_DURATION = re.compile(r"([0-9]{1,9})([smhd])\Z")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")

CROSS_FUNCTIONS: Final = ("ratio", "difference", "zscore")


def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as `10m`, `1h`, `30d`, at most ten years.

    Raises BadSpecification.
    """
    match = _DURATION.match(text)
    if match is None:
        raise BadSpecification(
            f"a duration is a number and s, m, h or d, such as 30d; not {text!r}"
        )
    duration = int(match[1]) * _UNITS_MS[match[2]]
    if duration > MAX_DURATION_DAYS * _UNITS_MS["d"]:
        raise BadSpecification(
            f"a duration is at most {MAX_DURATION_DAYS}d (ten years); not {text!r}"
        )
    return duration


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly one of: `kind` is this, `fact` is known to be true, `field` equals `value`."""

    kind: str | None = None
    fact: str | None = None
    field: str | None = None
    value: str | None = None

    @property
    def label(self) -> str:
        """What feature names say of it."""
        if self.field is not None:
            return re.sub(r"[^a-z0-9]+", "_", f"{self.field}_{self.value}".lower())
        return self.kind or self.fact or ""


class Aggregate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One aggregate over windows.

    of: for `share` a fact, for `distinct` an entity; every other function but `count` reads the
    amount. where: counts only events that meet it. empty: the value over no event (finite, or NaN
    for missing), where it is not the usual one (count and sum 0, all else missing). name: replaces
    the middle part of the feature's name. reason, sentence: for explanations; `{window}` stands
    for the length.
    """

    function: Function
    of: str | None = None
    where: Condition | None = None
    empty: float | None = None
    name: str | None = None
    reason: str | None = None
    sentence: str | None = None

    @property
    def stem(self) -> str:
        """The middle part of the feature's name."""
        if self.name is not None:
            return self.name
        plain = {
            "count": "count",
            "distinct": f"distinct_{self.of}",
            "share": f"{self.of}_share",
        }.get(self.function, f"amount_{self.function}")
        return plain if self.where is None else f"{plain}_{self.where.label}"


class WindowGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Windows `(as_of - delay - length, as_of - delay]` of one entity.

    current: whether the transaction being scored counts in them.
    """

    entity: str
    lengths: tuple[str, ...]
    aggregates: tuple[Aggregate, ...]
    delay: str = "0s"
    current: bool = True

    @property
    def lengths_ms(self) -> tuple[int, ...]:
        """Window lengths in ms, as declared."""
        return tuple(duration_ms(length) for length in self.lengths)

    @property
    def delay_ms(self) -> int:
        """Delay in ms."""
        return duration_ms(self.delay)


class Entity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of entity.

    of: the names in a transaction's `entities` that make it; by default its own name, several
    make a tuple (card and merchant together). mode: `exact` keeps its events, `grid` lets windows
    begin on lines that lie `resolution` x length apart, so that whole steps can be folded.
    """

    name: str
    of: tuple[str, ...] = ()
    mode: Literal["exact", "grid"] = "exact"
    resolution: float | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names in a transaction's `entities`."""
        return self.of or (self.name,)


class Feature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A feature of the transaction itself, or of it beside an aggregate.

    function: local ones (amount, field, category, hour, weekday, night, weekend); since_last
    (seconds), distance (km) and speed (km/h) from the `entity`'s last other event; first_pair
    (1 if `entity` was not seen with the entity `of` before, else 0); ratio, difference and zscore
    of the amount (or of the plain field `of`) to the aggregates `to` (zscore: `to` is the mean's
    feature name, `spread` the std's).
    """

    name: str
    function: Literal[
        "amount",
        "field",
        "category",
        "hour",
        "weekday",
        "night",
        "weekend",
        "ratio",
        "difference",
        "zscore",
        "since_last",
        "first_pair",
        "distance",
        "speed",
    ]
    of: str | None = None
    entity: str | None = None
    to: str | None = None
    spread: str | None = None
    reason: str | None = None
    sentence: str | None = None


class Column(msgspec.Struct, frozen=True):
    """One column of the feature vector: a Feature, or a group's aggregate over one length."""

    name: str
    feature: Feature | None
    group: int = -1
    aggregate: Aggregate | None = None
    length: str = ""

    @property
    def reason(self) -> str | None:
        """Its reason code."""
        source = self.feature or self.aggregate
        return None if source is None else source.reason

    @property
    def sentence(self) -> str | None:
        """Its plain sentence."""
        source = self.feature or self.aggregate
        if source is None or source.sentence is None:
            return None
        return source.sentence.replace("{window}", self.length)


class FeatureSpecification(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """A checked specification; make it with `from_toml`, `shipped` or the constructor.

    currency: ISO 4217, in which all amount features are computed. facts: the flags that can
    become known after an event. label_delay: fact -> duration after which a file that does not
    say when its labels became known is taken to have known them.
    """

    name: str
    currency: str
    entities: tuple[Entity, ...] = ()
    windows: tuple[WindowGroup, ...] = ()
    features: tuple[Feature, ...] = ()
    facts: tuple[str, ...] = ()
    label_delay: dict[str, str] = {}

    def __post_init__(self) -> None:
        """Refuse what contradicts itself, naming what, which and the limit."""
        _check(self)

    @staticmethod
    def from_toml(text: str, source: str = "specification") -> FeatureSpecification:
        """The specification in TOML `text`; raises BadSpecification, naming `source`."""
        try:
            return as_type(msgspec.toml.decode, text, FeatureSpecification)
        except BadSpecification as problem:
            raise BadSpecification(f"{source}: {problem}") from None
        except (msgspec.MsgspecError, ValueError) as problem:
            raise BadSpecification(f"{source}: {problem}") from problem

    @staticmethod
    def shipped(name: str) -> FeatureSpecification:
        """One of the specifications that come with freshscore: handbook, payments, sparkov."""
        folder = resources.files("freshscore.features") / "specifications"
        names = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))
        if name not in names:
            raise BadSpecification(f"no specification {name!r} ships; there are {', '.join(names)}")
        return FeatureSpecification.from_toml((folder / f"{name}.toml").read_text("utf-8"), name)

    @staticmethod
    def named(name: str) -> FeatureSpecification:
        """A shipped specification by name, or one in a TOML file by path.

        Raises BadSpecification, also for a file that cannot be read or is not UTF-8.
        """
        if name.endswith(".toml"):
            try:
                text = Path(name).read_text("utf-8")
            except OSError as problem:
                raise BadSpecification(f"cannot read {name}: {problem.strerror}") from problem
            except ValueError as problem:  # not UTF-8, or no possible path
                raise BadSpecification(f"cannot read {name!r}: {problem}") from problem
            return FeatureSpecification.from_toml(text, name)
        return FeatureSpecification.shipped(name)

    @functools.cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the feature vector, in order."""
        return tuple(_columns(self))

    @functools.cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    @functools.cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """The distinct conditions on kind and field, in order: their bits in a record."""
        found = dict.fromkeys(
            aggregate.where
            for group in self.windows
            for aggregate in group.aggregates
            if aggregate.where is not None and aggregate.where.fact is None
        )
        return tuple(found)

    @functools.cached_property
    def plain_fields(self) -> tuple[str, ...]:
        """Names of the numeric fields that features read, in order of first use."""
        names = [f.of for f in self.features if f.function == "field"]
        names += [f.of for f in self.features if f.function in CROSS_FUNCTIONS]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @functools.cached_property
    def categories(self) -> tuple[str, ...]:
        """Names of the category fields that features read, in order of first use."""
        names = [f.of for f in self.features if f.function == "category"]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @functools.cached_property
    def reach_ms(self) -> int:
        """The largest delay + window, ms; 0 without windows."""
        return max((g.delay_ms + max(g.lengths_ms) for g in self.windows), default=0)

    @functools.cached_property
    def held_ms(self) -> int:
        """How far before `as_of` a window can begin: reach, and a grid step where there is one."""
        steps = [
            self.step_ms(group, length) for group in self.windows for length in group.lengths_ms
        ]
        return self.reach_ms + 2 * max(steps, default=0)

    def entity(self, name: str) -> Entity:
        """The entity called `name`; raises KeyError."""
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Entity]:
        return {entity.name: entity for entity in self.entities}

    def step_ms(self, group: WindowGroup, length_ms: int) -> int:
        """The grid step of a window of `group`, ms; 0 for an exact entity."""
        entity = self.entity(group.entity)
        if entity.mode == "exact" or entity.resolution is None:
            return 0
        return max(1, round(entity.resolution * length_ms))

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """128-bit digest of everything that can change a feature's value."""
        meaning = {
            "format": 1,
            "currency": self.currency,
            "facts": self.facts,
            "entities": self.entities,
            "columns": [_meaning(self, column) for column in self.columns],
        }
        encoded = msgspec.json.encode(meaning)
        return hashlib.blake2b(encoded, digest_size=16, person=b"feature-spec").digest()


def _columns(spec: FeatureSpecification) -> Iterator[Column]:
    for feature in spec.features:
        yield Column(feature.name, feature)
    for number, group in enumerate(spec.windows):
        for aggregate in group.aggregates:
            for length in group.lengths:
                name = f"{group.entity}_{aggregate.stem}_{length}"
                yield Column(name, None, number, aggregate, length)


def _meaning(spec: FeatureSpecification, column: Column) -> list[object]:
    if column.feature is not None:
        bare = msgspec.structs.replace(column.feature, reason=None, sentence=None)
        return [column.name, bare]
    assert column.aggregate is not None  # a column is one or the other
    group = spec.windows[column.group]
    bare_aggregate = msgspec.structs.asdict(
        msgspec.structs.replace(column.aggregate, reason=None, sentence=None, name=None)
    )
    if bare_aggregate["empty"] is not None and math.isnan(bare_aggregate["empty"]):
        bare_aggregate["empty"] = "nan"  # JSON would write null, which is what no value is
    window = [group.entity, duration_ms(column.length), group.delay_ms, group.current]
    return [column.name, window, bare_aggregate]


def _check(spec: FeatureSpecification) -> None:
    if not is_currency_code(spec.currency):
        raise BadSpecification(f"currency must be an ISO 4217 code, not {spec.currency!r}")
    _check_count("facts", len(spec.facts), MAX_FACTS)
    _check_count("entities", len(spec.entities), MAX_ENTITIES)
    _check_unique("entity", [entity.name for entity in spec.entities])
    _check_unique("fact", list(spec.facts))
    for name in (spec.name, *spec.facts, *(e.name for e in spec.entities)):
        _check_name(name)
    for fact, delay in spec.label_delay.items():
        _known("label_delay", fact, spec.facts)
        _check_duration(f"label_delay of {fact!r}", delay)
    for entity in spec.entities:
        _check_entity(entity)
    for group in spec.windows:
        _check_group(spec, group)
    _check_count("conditions on kind and field", len(spec.conditions), MAX_CONDITIONS)
    _check_unique("feature", list(spec.feature_names))
    if not spec.columns:
        raise BadSpecification("a specification needs at least one feature")
    for feature in spec.features:
        _check_feature(spec, feature)
    _check_fields(spec)


def _check_fields(spec: FeatureSpecification) -> None:
    """Each field is a number or a string to all that read it."""
    compared = [one.field for one in spec.conditions if one.field is not None]
    for name in (*spec.plain_fields, *spec.categories, *compared):
        _check_text("the name of a field", name)
    for name in spec.plain_fields:
        if name in spec.categories:
            raise BadSpecification(f"field {name!r} is read both as a number and as a category")
        if name in compared:
            raise BadSpecification(
                f"field {name!r} is read as a number, and a condition compares it with a string,"
                " which no number equals"
            )


def _check_entity(entity: Entity) -> None:
    for part in entity.parts:
        _check_text(f"a part of entity {entity.name!r}", part)
    _check_unique(f"entity {entity.name!r}: part", list(entity.parts))
    if entity.mode == "grid" and not 0 < (entity.resolution or 0) <= 1:
        raise BadSpecification(
            f"entity {entity.name!r} is a grid and needs a resolution above 0 and at most 1"
            f" (a fraction of each window); it is {entity.resolution}"
        )
    if entity.mode == "exact" and entity.resolution is not None:
        raise BadSpecification(f"entity {entity.name!r} is exact; only a grid has a resolution")


def _check_group(spec: FeatureSpecification, group: WindowGroup) -> None:
    _known("windows: entity", group.entity, [entity.name for entity in spec.entities])
    for duration in (*group.lengths, group.delay):
        _check_duration(f"windows of {group.entity!r}", duration)
    if not group.lengths or min(group.lengths_ms) <= 0:
        raise BadSpecification(f"windows of {group.entity!r} need lengths above 0")
    _check_unique("length", [str(length) for length in group.lengths_ms])
    if not group.aggregates:
        # Its lengths would still reach into first_pair and since_last, unseen in any column.
        raise BadSpecification(f"windows of {group.entity!r} have no aggregates")
    mode = spec.entity(group.entity).mode
    for aggregate in group.aggregates:
        if mode == "grid" and aggregate.function not in GRID_FUNCTIONS:
            raise BadSpecification(
                f"{group.entity!r} is a grid, which supports {', '.join(GRID_FUNCTIONS)};"
                f" not {aggregate.function}"
            )
        _check_aggregate(spec, aggregate)
    members = members_of(spec, group.entity)
    _check_count(f"distinct entities of {group.entity!r}", len(members), MAX_DISTINCT_OF_ENTITY)


def _check_aggregate(spec: FeatureSpecification, aggregate: Aggregate) -> None:
    if aggregate.name is not None:
        _check_name(aggregate.name)
    if aggregate.empty is not None and math.isinf(aggregate.empty):
        raise BadSpecification(
            f"{aggregate.function}: empty is {aggregate.empty}; it is a finite number, or nan for"
            " missing"
        )
    if aggregate.function == "share":
        _known("share: of", aggregate.of, spec.facts)
    elif aggregate.function == "distinct":
        _known("distinct: of", aggregate.of, [entity.name for entity in spec.entities])
    elif aggregate.of not in (None, "amount"):
        raise BadSpecification(f"{aggregate.function} is of the amount; not of {aggregate.of!r}")
    where = aggregate.where
    if where is None:
        return
    if sum(part is not None for part in (where.kind, where.fact, where.field)) != 1:
        raise BadSpecification("a condition names exactly one of kind, fact and field")
    if where.kind is not None:
        _known("where: kind", where.kind, KINDS)
    if where.fact is not None:
        _known("where: fact", where.fact, spec.facts)
    if (where.field is None) != (where.value is None):
        raise BadSpecification("a condition on a field has a value, and only that one has")
    if where.value is not None and _n_bytes(where.value) > MAX_STRING_BYTES:
        raise BadSpecification(
            f"a condition's value has {_n_bytes(where.value)} bytes; a field has at most"
            f" {MAX_STRING_BYTES}"
        )


def _check_feature(spec: FeatureSpecification, feature: Feature) -> None:
    _check_name(feature.name)
    needs = {
        "field": ("of",),
        "category": ("of",),
        "ratio": ("to",),
        "difference": ("to",),
        "zscore": ("to", "spread"),
        "since_last": ("entity",),
        "distance": ("entity",),
        "speed": ("entity",),
        "first_pair": ("entity", "of"),
    }.get(feature.function, ())
    optional = ("of",) if feature.function in CROSS_FUNCTIONS else ()
    for part in ("of", "entity", "to", "spread"):
        given = getattr(feature, part) is not None
        if part in needs and not given:
            raise BadSpecification(f"feature {feature.name!r} ({feature.function}) needs {part!r}")
        if given and part not in (*needs, *optional):
            raise BadSpecification(f"feature {feature.name!r} ({feature.function}) has no {part!r}")
    entities = [entity.name for entity in spec.entities]
    if feature.entity is not None:
        _known(f"feature {feature.name!r}: entity", feature.entity, entities)
        if spec.entity(feature.entity).mode == "grid":
            raise BadSpecification(
                f"feature {feature.name!r} looks at single events; {feature.entity!r} is a grid"
            )
    if feature.function == "first_pair":
        _known(f"feature {feature.name!r}: of", feature.of, entities)
        _check_pair(spec, feature)
    aggregates = {c.name: c.aggregate for c in spec.columns if c.aggregate is not None}
    for name in (feature.to, feature.spread):
        if name is not None:
            _known(f"feature {feature.name!r}: aggregate", name, list(aggregates))
    if feature.to is not None and feature.spread is not None:
        _check_zscore(spec, feature, aggregates[feature.to], aggregates[feature.spread])


def _check_zscore(
    spec: FeatureSpecification, feature: Feature, mean: Aggregate, std: Aggregate
) -> None:
    """Mean and std of one entity under one condition; over two lengths is a choice."""
    for name, aggregate, function in ((feature.to, mean, "mean"), (feature.spread, std, "std")):
        if aggregate.function != function:
            raise BadSpecification(
                f"feature {feature.name!r} (zscore) needs a {function}; {name!r} is a"
                f" {aggregate.function}"
            )
    of = {c.name: spec.windows[c.group].entity for c in spec.columns if c.aggregate is not None}
    if (of[feature.to or ""], mean.where) != (of[feature.spread or ""], std.where):
        raise BadSpecification(
            f"feature {feature.name!r} (zscore): {feature.to!r} and {feature.spread!r} are of other"
            " amounts: their entities or conditions differ"
        )


def _check_pair(spec: FeatureSpecification, feature: Feature) -> None:
    first, second = (spec.entity(name or "") for name in (feature.entity, feature.of))
    if set(first.parts) == set(second.parts):
        raise BadSpecification(
            f"feature {feature.name!r} asks whether {first.name!r} was seen with {second.name!r},"
            " which is the same identity"
        )


def members_of(spec: FeatureSpecification, entity: str) -> tuple[str, ...]:
    """The entities whose identity the records of `entity` carry: for distinct and first_pair."""
    found = [
        aggregate.of
        for group in spec.windows
        if group.entity == entity
        for aggregate in group.aggregates
        if aggregate.function == "distinct"
    ]
    found += [f.of for f in spec.features if f.function == "first_pair" and f.entity == entity]
    return tuple(dict.fromkeys(name for name in found if name is not None))


def has_location(spec: FeatureSpecification, entity: str) -> bool:
    """Whether the records of `entity` carry where they happened."""
    return any(f.function in ("distance", "speed") and f.entity == entity for f in spec.features)


def _check_name(name: str) -> None:
    if _NAME.match(name) is None:
        raise BadSpecification(
            f"a name is a small letter, then at most 63 small letters, digits and _; not {name!r}"
        )


def _check_duration(what: str, text: str) -> None:
    try:
        duration_ms(text)
    except BadSpecification as problem:
        raise BadSpecification(f"{what}: {problem}") from None


def _check_text(what: str, text: str) -> None:
    if not 1 <= _n_bytes(text) <= MAX_STRING_BYTES:
        raise BadSpecification(
            f"{what} has {_n_bytes(text)} bytes; it needs 1 to {MAX_STRING_BYTES}"
        )


def _n_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise BadSpecification(f"{text!r} is not valid Unicode") from None


def _check_count(what: str, actual: int, limit: int) -> None:
    if actual > limit:
        raise BadSpecification(f"{actual} {what}; the limit is {limit}")


def _check_unique(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise BadSpecification(f"{what} {name!r} appears more than once")


def _known(what: str, name: str | None, known: tuple[str, ...] | list[str]) -> None:
    if name not in known:
        raise BadSpecification(f"{what} is {name!r}; there are {', '.join(known) or 'none'}")
