"""A specification compiled to numbers: what the kernels read instead of names.

One int64 array, reached by address. All positions in it are in words. Its parts:

    head      sizes and positions of the parts, as the constants below name them
    spans     one for each (entity, delay): conditions, windows, and the slot of every
              (window, condition, current or not)
    slots     for each slot what its finishing needs: condition, current, entity
    lasts     for each entity that is asked for its last event: the members of first_pair
    columns   for each feature: operation, operands, the declared value of an empty window
    order     the columns in the order of evaluation: cross features after aggregates

The accumulators of a slot (SLOT words) and of a last event (LAST words) are what evaluation fills
(a scan of one entity, prefix sums, or the moving pointers of history) and what the one finishing
function turns into features, so that all of them give the same bits.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshscore.features.layout import record_words
from freshscore.features.money import minor_digits
from freshscore.features.specification import (
    CROSS_FUNCTIONS,
    Aggregate,
    Column,
    FeatureSpecification,
    WindowGroup,
    has_location,
    members_of,
)

# The head.
N_ENTITIES: Final = 0
N_SLOTS: Final = 1
N_COLUMNS: Final = 2
N_SPANS: Final = 3
N_LASTS: Final = 4
N_NUMBERS: Final = 5
N_CATEGORIES: Final = 6
SPANS_AT: Final = 7
SLOTS_AT: Final = 8
LASTS_AT: Final = 9
COLUMNS_AT: Final = 10
ORDER_AT: Final = 11
SCALE_BITS: Final = 12
REACH_MS: Final = 13
HELD_MS: Final = 14
MEMBERS_AT: Final = 15
N_FACTS: Final = 16
N_WINDOWS: Final = 17
HEAD: Final = 20

# A span: fixed part, then its conditions, then per window its length, step and slots.
SPAN_ENTITY: Final = 0
SPAN_DELAY: Final = 1
SPAN_IS_GRID: Final = 2
SPAN_N_WINDOWS: Final = 3
SPAN_N_CONDITIONS: Final = 4
SPAN_WANTS: Final = 5
SPAN_FACTS: Final = 6
SPAN_MEMBERS: Final = 7
SPAN_NEXT: Final = 8
SPAN_FIRST_WINDOW: Final = 9
SPAN_FIXED: Final = 10
# What a span accumulates beyond count and sum.
WANT_SQUARES: Final = 1
WANT_EXTREMES: Final = 2
WANT_LAST: Final = 4
WANT_FACTS: Final = 8
WANT_DISTINCT: Final = 16
# A condition: none, a bit of the record, or a fact.
NO_CONDITION: Final = -1
FACT_CONDITION: Final = 32

# Accumulators of a slot, in words.
COUNT: Final = 0
SUM: Final = 1
SQUARES_HIGH: Final = 2
SQUARES_MIDDLE: Final = 3
SQUARES_LOW: Final = 4
SMALLEST: Final = 5
LARGEST: Final = 6
LAST_AMOUNT: Final = 7
LAST_TIME: Final = 8
LAST_IDENTITY: Final = 9
FACT_COUNTS: Final = 10
DISTINCT: Final = 18
OWN_MEMBER_SEEN: Final = 22
SLOT: Final = 26
# A count of -1 says that the transaction has no such entity.
ABSENT: Final = -1

# A slot's description: whether the transaction being scored counts, the condition, the entity.
SLOT_ENTITY: Final = 2
SLOT_FIXED: Final = 4

# What is known of the last event before a payment: found, its time, its place, pairs seen.
LAST_AT: Final = 1
LAST_PLACE: Final = 2
LAST_PAIR: Final = 3
LAST: Final = 8

# A column: operation, three operands, whether an empty value is declared, its bits.
COLUMN: Final = 8
OP_COUNT: Final = 0
OP_SUM: Final = 1
OP_MEAN: Final = 2
OP_STD: Final = 3
OP_MIN: Final = 4
OP_MAX: Final = 5
OP_LAST: Final = 6
OP_DISTINCT: Final = 7
OP_SHARE: Final = 8
OP_AMOUNT: Final = 10
OP_NUMBER: Final = 11
OP_CATEGORY: Final = 12
OP_HOUR: Final = 13
OP_WEEKDAY: Final = 14
OP_NIGHT: Final = 15
OP_WEEKEND: Final = 16
OP_RATIO: Final = 20
OP_DIFFERENCE: Final = 21
OP_ZSCORE: Final = 22
OP_SINCE_LAST: Final = 30
OP_FIRST_PAIR: Final = 31
OP_DISTANCE: Final = 32
OP_SPEED: Final = 33

_AGGREGATE_OPS: Final = {
    "count": OP_COUNT,
    "sum": OP_SUM,
    "mean": OP_MEAN,
    "std": OP_STD,
    "min": OP_MIN,
    "max": OP_MAX,
    "last": OP_LAST,
    "distinct": OP_DISTINCT,
    "share": OP_SHARE,
}
_FEATURE_OPS: Final = {
    "amount": OP_AMOUNT,
    "field": OP_NUMBER,
    "category": OP_CATEGORY,
    "hour": OP_HOUR,
    "weekday": OP_WEEKDAY,
    "night": OP_NIGHT,
    "weekend": OP_WEEKEND,
    "ratio": OP_RATIO,
    "difference": OP_DIFFERENCE,
    "zscore": OP_ZSCORE,
    "since_last": OP_SINCE_LAST,
    "first_pair": OP_FIRST_PAIR,
    "distance": OP_DISTANCE,
    "speed": OP_SPEED,
}
_WANTS: Final = {
    "std": WANT_SQUARES,
    "min": WANT_EXTREMES,
    "max": WANT_EXTREMES,
    "last": WANT_LAST,
    "share": WANT_FACTS,
    "distinct": WANT_DISTINCT,
}


class EntityLayout(msgspec.Struct, frozen=True):
    """How the records of one entity look.

    members: the entities whose identity each record carries; place_at: byte position of the place
    in a record, or 0; words: of 8 bytes in a record.
    """

    name: str
    parts: tuple[str, ...]
    members: tuple[str, ...]
    place_at: int
    words: int


class Program(msgspec.Struct, frozen=True):
    """A compiled specification: the array `code`, and the layouts of its entities in order."""

    specification: FeatureSpecification
    code: NDArray[np.int64]
    entities: tuple[EntityLayout, ...]

    @property
    def n_columns(self) -> int:
        """Features."""
        return int(self.code[N_COLUMNS])

    @property
    def n_distinct(self) -> int:
        """Conditions times members of the span in which a record is looked up most often."""
        at, most = int(self.code[SPANS_AT]), 0
        for _ in range(int(self.code[N_SPANS])):
            if self.code[at + SPAN_WANTS] & WANT_DISTINCT:
                most = max(
                    most, int(self.code[at + SPAN_N_CONDITIONS] * self.code[at + SPAN_MEMBERS])
                )
            at += int(self.code[at + SPAN_NEXT])
        return most

    @property
    def scratch_words(self) -> int:
        """Words that one evaluation needs: accumulators, then the next change of each window."""
        accumulators = int(self.code[N_SLOTS]) * SLOT + int(self.code[N_LASTS]) * LAST
        return accumulators + int(self.code[N_WINDOWS])


class _Slots:
    """Numbers the (entity, delay, window, condition, current) combinations that columns read."""

    def __init__(self, spec: FeatureSpecification) -> None:
        self.spec = spec
        self.numbers: dict[tuple[str, int, int, int, bool], int] = {}
        self.wants: dict[tuple[str, int], int] = {}

    def number(self, group: WindowGroup, length_ms: int, aggregate: Aggregate) -> int:
        """The slot of one aggregate over one window."""
        key = (
            group.entity,
            group.delay_ms,
            length_ms,
            condition_code(self.spec, aggregate),
            group.current,
        )
        span = key[:2]
        self.wants[span] = self.wants.get(span, 0) | _WANTS.get(aggregate.function, 0)
        return self.numbers.setdefault(key, len(self.numbers))


def condition_code(spec: FeatureSpecification, aggregate: Aggregate) -> int:
    """NO_CONDITION, a bit number of a record's conditions, or FACT_CONDITION + a fact's index."""
    where = aggregate.where
    if where is None:
        return NO_CONDITION
    if where.fact is not None:
        return FACT_CONDITION + spec.facts.index(where.fact)
    return spec.conditions.index(where)


def static_conditions(
    spec: FeatureSpecification, kind: str, fields: Mapping[str, object] | None
) -> int:
    """Condition bits of an event of `kind` with these fields."""
    bits = 0
    for bit, condition in enumerate(spec.conditions):
        if condition.kind is not None:
            holds = condition.kind == kind
        else:
            holds = fields is not None and fields.get(condition.field or "") == condition.value
        bits |= holds << bit
    return bits


def compiled(spec: FeatureSpecification) -> Program:
    """The program of `spec`."""
    layouts = tuple(_layout(spec, entity.name) for entity in spec.entities)
    names = [layout.name for layout in layouts]
    slots = _Slots(spec)
    lasts: dict[str, int] = {}
    columns = [_column(spec, column, slots, lasts, layouts) for column in spec.columns]
    spans, n_windows = _spans(spec, slots, names)
    described = _described_slots(slots, names)
    last_parts = [
        word
        for entity in lasts
        for word in _last(spec, names.index(entity), layouts[names.index(entity)])
    ]
    order = sorted(range(len(columns)), key=lambda at: columns[at][0] in _CROSS_OPS)
    members = [
        names.index(layouts[e].members[m]) if m < len(layouts[e].members) else -1
        for e in range(len(layouts))
        for m in range(4)
    ]

    head = [0] * HEAD
    parts: list[int] = []

    def add(position: int, words: list[int]) -> None:
        head[position] = HEAD + len(parts)
        parts.extend(words)

    add(SPANS_AT, spans)
    add(SLOTS_AT, described)
    add(LASTS_AT, last_parts)
    add(COLUMNS_AT, [word for column in columns for word in column])
    add(ORDER_AT, order)
    add(MEMBERS_AT, members)
    head[N_ENTITIES] = len(layouts)
    head[N_SLOTS] = len(slots.numbers)
    head[N_COLUMNS] = len(columns)
    head[N_SPANS] = len(slots.wants)
    head[N_LASTS] = len(lasts)
    head[N_NUMBERS] = len(spec.plain_fields)
    head[N_CATEGORIES] = len(spec.categories)
    head[SCALE_BITS] = _bits(float(10 ** minor_digits(spec.currency)))
    head[REACH_MS] = spec.reach_ms
    head[HELD_MS] = spec.held_ms
    head[N_FACTS] = len(spec.facts)
    head[N_WINDOWS] = n_windows
    return Program(spec, np.array(head + parts, np.int64), layouts)


_CROSS_OPS: Final = tuple(_FEATURE_OPS[name] for name in CROSS_FUNCTIONS)


def _layout(spec: FeatureSpecification, name: str) -> EntityLayout:
    members = members_of(spec, name)
    placed = has_location(spec, name)
    words = record_words(len(members), placed)
    place_at = 8 * (words - 1) if placed else 0
    return EntityLayout(name, spec.entity(name).parts, members, place_at, words)


def _bits(value: float) -> int:
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits


def _column(
    spec: FeatureSpecification,
    column: Column,
    slots: _Slots,
    lasts: dict[str, int],
    layouts: tuple[EntityLayout, ...],
) -> list[int]:
    if column.aggregate is not None:
        return _aggregate_column(spec, column, slots, layouts)
    feature = column.feature
    assert feature is not None  # a column is an aggregate or a feature
    operation = _FEATURE_OPS[feature.function]
    operands = [-1, -1, -1]
    if feature.function == "field":
        operands[0] = spec.plain_fields.index(feature.of or "")
    elif feature.function == "category":
        operands[0] = spec.categories.index(feature.of or "")
    elif feature.function in CROSS_FUNCTIONS:
        if feature.of is not None:
            operands[0] = spec.plain_fields.index(feature.of)
        operands[1] = spec.feature_names.index(feature.to or "")
        if feature.spread is not None:
            operands[2] = spec.feature_names.index(feature.spread)
    elif feature.entity is not None:
        operands[0] = lasts.setdefault(feature.entity, len(lasts))
        if feature.function == "first_pair":
            layout = next(one for one in layouts if one.name == feature.entity)
            operands[1] = layout.members.index(feature.of or "")
            operands[2] = [one.name for one in layouts].index(feature.of or "")
    return [operation, *operands, 0, 0, 0, 0]


def _aggregate_column(
    spec: FeatureSpecification,
    column: Column,
    slots: _Slots,
    layouts: tuple[EntityLayout, ...],
) -> list[int]:
    aggregate = column.aggregate
    assert aggregate is not None  # the caller saw it
    group = spec.windows[column.group]
    length_ms = dict(zip(group.lengths, group.lengths_ms, strict=True))[column.length]
    slot = slots.number(group, length_ms, aggregate)
    operand = -1
    if aggregate.function == "share":
        operand = spec.facts.index(aggregate.of or "")
    elif aggregate.function == "distinct":
        layout = next(one for one in layouts if one.name == group.entity)
        operand = layout.members.index(aggregate.of or "")
    declared = aggregate.empty is not None
    empty = _bits(aggregate.empty) if aggregate.empty is not None else 0
    return [_AGGREGATE_OPS[aggregate.function], slot, operand, -1, int(declared), empty, 0, 0]


def _spans(spec: FeatureSpecification, slots: _Slots, names: list[str]) -> tuple[list[int], int]:
    words: list[int] = []
    n_windows = 0
    for (entity, delay), wants in slots.wants.items():
        keys = [key for key in slots.numbers if key[:2] == (entity, delay)]
        conditions = sorted({key[3] for key in keys})
        lengths = sorted({key[2] for key in keys})
        body = list(conditions)
        group = next(g for g in spec.windows if (g.entity, g.delay_ms) == (entity, delay))
        for length in lengths:
            body += [length, spec.step_ms(group, length)]
            for condition in conditions:
                for current in (False, True):
                    body.append(slots.numbers.get((entity, delay, length, condition, current), -1))
        fixed = [0] * SPAN_FIXED
        fixed[SPAN_ENTITY] = names.index(entity)
        fixed[SPAN_DELAY] = delay
        fixed[SPAN_IS_GRID] = int(spec.entity(entity).mode == "grid")
        fixed[SPAN_N_WINDOWS] = len(lengths)
        fixed[SPAN_N_CONDITIONS] = len(conditions)
        fact_conditions = any(condition >= FACT_CONDITION for condition in conditions)
        fixed[SPAN_WANTS] = wants | (WANT_FACTS if fact_conditions else 0)
        fixed[SPAN_FACTS] = len(spec.facts)
        fixed[SPAN_MEMBERS] = len(members_of(spec, entity))
        fixed[SPAN_NEXT] = SPAN_FIXED + len(body)
        fixed[SPAN_FIRST_WINDOW] = n_windows
        n_windows += len(lengths)
        words += fixed + body
    return words, n_windows


def _described_slots(slots: _Slots, names: list[str]) -> list[int]:
    words: list[int] = []
    for entity, _, _, condition, current in slots.numbers:
        words += [int(current), condition, names.index(entity), 0]
    return words


def _last(spec: FeatureSpecification, number: int, layout: EntityLayout) -> list[int]:
    pairs = any(f.function == "first_pair" and f.entity == layout.name for f in spec.features)
    return [number, len(layout.members) if pairs else 0, layout.place_at, 0]
