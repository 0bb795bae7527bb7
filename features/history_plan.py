"""What history does for each entity, compiled from a program: passes over its events, then columns.

A pass is one window under one condition: its accumulators move along an entity's events once, and
all columns that read them, with and without the payment itself, are written as they pass.
What is left (the payment's own features, those beside its last event, those beside aggregates) is
written in the entity's last round, once all that it reads is there.
Rule: every column of the program belongs to exactly one pass or round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features import program as p
from freshscore.features.history_layout import CONDITION_BIT, FACT_BIT, entry_bytes
from freshscore.features.program import Program

# The head of one entity's plan, in words.
N_PASSES: Final = 0
LAST: Final = 1  # byte position of its last event's accumulators, or -1
PAIRS: Final = 2  # bits of the members that first_pair reads
HAS_PLACE: Final = 3
ENTRY_BYTES: Final = 4
N_MEMBERS: Final = 5
ROUND_AT: Final = 6  # byte position of the columns of its round
REACH_MS: Final = 7
FIRST_BYTE: Final = 8  # of what it writes of a row of the output, and the byte after its last
END_BYTE: Final = 9
MEMBER_ENTITIES: Final = 10  # four words: which entity each member is
PLAN_HEAD: Final = 14

# A pass: fixed words, then the columns without the payment itself, those with it, words to copy.
PASS_DELAY: Final = 0
PASS_LENGTH: Final = 1
PASS_STEP: Final = 2
PASS_MASK: Final = 3  # bits that an event's state must have to count
PASS_WANTS: Final = 4
PASS_FACTS: Final = 5  # bits of the facts that are counted
PASS_MEMBERS: Final = 6  # bits of the members that are counted apart
PASS_READS_FACTS: Final = 7  # whether what becomes known of an event can change its accumulators
PASS_COPIED: Final = 8  # byte position of the list of words that columns read beside count and sum
PASS_WITH_OWN: Final = 9  # byte position of the columns with the payment itself
PASS_IS_SUM: Final = 10  # whether `sum_pass` will do
PASS_NEXT: Final = 11
PASS_COLUMNS: Final = 12
# A list of a pass's columns is their number, then for each: its byte position in the vector,
# operation, operand, whether an empty value is declared, its bits.
AGGREGATE_WORDS: Final = 5
# A list of other columns: their number, then for each: byte positions in the vector and program.
COLUMN_WORDS: Final = 2

_CROSS: Final = (p.OP_RATIO, p.OP_DIFFERENCE, p.OP_ZSCORE)
_WANTS: Final = {
    p.OP_STD: p.WANT_SQUARES,
    p.OP_MIN: p.WANT_EXTREMES,
    p.OP_MAX: p.WANT_EXTREMES,
    p.OP_LAST: p.WANT_LAST,
    p.OP_SHARE: p.WANT_FACTS,
    p.OP_DISTINCT: p.WANT_DISTINCT,
}


@dataclass(frozen=True, slots=True)
class EntityPlan:
    """The plan of entity number `entity`.

    words: int64, what the kernels read. reads_facts: whether facts change anything.
    members: the entities that its entries name. distinct: for each pass which of them (by place)
    are counted apart; pairs: which are looked up by pair.
    """

    entity: int
    words: NDArray[np.int64]
    reads_facts: bool
    members: tuple[int, ...]
    distinct: tuple[tuple[int, ...], ...]
    pairs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HistoryPlan:
    """Plans of the entities in the order in which they are done, and the columns after them.

    rest: int64, a list of columns that are written row by row at the end.
    """

    entities: tuple[EntityPlan, ...]
    rest: NDArray[np.int64]


def history_plan(program: Program) -> HistoryPlan:
    """The plan of `program`."""
    columns = [_Column(program.code, number) for number in range(program.n_columns)]
    passes = [*_passes(program.code)]
    used = {one.entity for one in passes}
    lasts = _last_parts(program.code)
    order = sorted(used | {entity for entity, _ in lasts})
    rounds: dict[int, list[int]] = {entity: [] for entity in order}
    rest: list[int] = []
    # Cross features come behind the aggregates that they read: the program's own order.
    at = int(program.code[p.ORDER_AT])
    for number in program.code[at : at + program.n_columns].tolist():
        if columns[number].operation > p.OP_SHARE:
            entity = _round_of(columns, number, program.code, order, lasts)
            (rest if entity is None else rounds[entity]).append(number)
    plans = [
        _entity_plan(program, entity, [one for one in passes if one.entity == entity], round_)
        for entity, round_ in rounds.items()
    ]
    return HistoryPlan(tuple(plans), np.array(_listed(program, rest), np.int64))


class _Column:
    """The words of one column in the program."""

    def __init__(self, code: NDArray[np.int64], number: int) -> None:
        at = int(code[p.COLUMNS_AT]) + p.COLUMN * number
        words: list[int] = code[at : at + 4].tolist()
        self.operation, self.first, self.second, self.third = words


@dataclass(frozen=True, slots=True)
class _Pass:
    """One window under one condition, and the slots that read it."""

    entity: int
    delay: int
    length: int
    step: int
    condition: int
    slots: tuple[int, int]


def _passes(code: NDArray[np.int64]) -> Iterator[_Pass]:
    span = code[int(code[p.SPANS_AT]) :]
    for _ in range(code[p.N_SPANS]):
        entity, delay = int(span[p.SPAN_ENTITY]), int(span[p.SPAN_DELAY])
        n = int(span[p.SPAN_N_CONDITIONS])
        conditions = span[p.SPAN_FIXED : p.SPAN_FIXED + n].tolist()
        windows = span[p.SPAN_FIXED + n : int(span[p.SPAN_NEXT])].reshape(-1, 2 + 2 * n)
        for length, step, *slots in windows.tolist():
            for c, condition in enumerate(conditions):
                without, with_own = slots[2 * c : 2 * c + 2]
                if max(without, with_own) >= 0:
                    yield _Pass(entity, delay, length, step, condition, (without, with_own))
        span = span[int(span[p.SPAN_NEXT]) :]


def _last_parts(code: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(entity, byte position of the place in its records) of each last event."""
    at = int(code[p.LASTS_AT])
    parts = code[at : at + 4 * int(code[p.N_LASTS])].reshape(-1, 4)
    return [(entity, place) for entity, _, place, _ in parts.tolist()]


def _round_of(
    columns: list[_Column],
    number: int,
    code: NDArray[np.int64],
    order: list[int],
    lasts: list[tuple[int, int]],
) -> int | None:
    """The entity in whose round a column is written; None if row by row at the end."""
    column = columns[number]
    if column.operation >= p.OP_SINCE_LAST:
        entity, _ = lasts[column.first]
        return entity
    if column.operation in _CROSS:
        if column.first >= 0:
            return None
        described = code[int(code[p.SLOTS_AT]) :]
        read = [at for at in (column.second, column.third) if at >= 0]
        entities = [int(described[p.SLOT_FIXED * columns[at].first + p.SLOT_ENTITY]) for at in read]
        return max(entities, key=order.index)
    if column.operation in (p.OP_NUMBER, p.OP_CATEGORY) or not order:
        return None
    return order[0]


def _entity_plan(
    program: Program, entity: int, passes: list[_Pass], round_: list[int]
) -> EntityPlan:
    code = program.code
    layout = program.entities[entity]
    names = [one.name for one in program.entities]
    members = [names.index(name) for name in layout.members]
    described = [_described(program, one) for one in passes]
    body = [word for one in described for word in one]
    lasts = [last for last, _ in _last_parts(code)]
    operands = [(_Column(code, number).operation, number) for number in round_]
    pairs = {_Column(code, number).second for op, number in operands if op == p.OP_FIRST_PAIR}
    written = [*round_, *(number for one in passes for number in _read_by(program, one))]
    head = [0] * PLAN_HEAD
    head[N_PASSES] = len(passes)
    head[LAST] = -1
    if entity in lasts:
        head[LAST] = 8 * (int(code[p.N_SLOTS]) * p.SLOT + p.LAST * lasts.index(entity))
    head[PAIRS] = sum(1 << member for member in pairs)
    head[HAS_PLACE] = int(layout.place_at > 0)
    head[ENTRY_BYTES] = entry_bytes(len(members))
    head[N_MEMBERS] = len(members)
    head[ROUND_AT] = 8 * (PLAN_HEAD + len(body))
    head[REACH_MS] = int(code[p.REACH_MS])
    head[FIRST_BYTE] = 8 * min(written, default=0)
    head[END_BYTE] = 8 * (max(written, default=-1) + 1)
    head[MEMBER_ENTITIES : MEMBER_ENTITIES + len(members)] = members
    return EntityPlan(
        entity=entity,
        words=np.array([*head, *body, *_listed(program, round_)], np.int64),
        reads_facts=any(words[PASS_READS_FACTS] for words in described),
        members=tuple(members),
        distinct=tuple(
            tuple(m for m in range(len(members)) if words[PASS_MEMBERS] >> m & 1)
            for words in described
        ),
        pairs=tuple(sorted(pairs)),
    )


def _read_by(program: Program, one: _Pass) -> list[int]:
    """The columns that read a pass."""
    return [number for slot in one.slots for number in _of_slot(program, slot)]


def _of_slot(program: Program, slot: int) -> list[int]:
    columns = [_Column(program.code, number) for number in range(program.n_columns)]
    return [
        number
        for number, column in enumerate(columns)
        if column.operation <= p.OP_SHARE and column.first == slot
    ]


def _described(program: Program, one: _Pass) -> list[int]:
    wants = facts = members = 0
    copied: dict[int, None] = {}
    for number in _read_by(program, one):
        column = _Column(program.code, number)
        copied |= dict.fromkeys(_words_of(column))
        wants |= _WANTS.get(column.operation, 0)
        facts |= int(column.operation == p.OP_SHARE) << max(0, column.second)
        members |= int(column.operation == p.OP_DISTINCT) << max(0, column.second)
    without, with_own = (_aggregates(program, _of_slot(program, slot)) for slot in one.slots)
    fixed = [0] * PASS_COLUMNS
    fixed[PASS_DELAY] = one.delay
    fixed[PASS_LENGTH] = one.length
    fixed[PASS_STEP] = one.step
    fixed[PASS_MASK] = _mask(one.condition)
    fixed[PASS_WANTS] = wants
    fixed[PASS_FACTS] = facts
    fixed[PASS_MEMBERS] = members
    fixed[PASS_READS_FACTS] = int(facts > 0 or one.condition >= p.FACT_CONDITION)
    fixed[PASS_IS_SUM] = int(one.delay == wants == fixed[PASS_MASK] == 0)
    fixed[PASS_WITH_OWN] = 8 * (PASS_COLUMNS + len(without))
    fixed[PASS_COPIED] = fixed[PASS_WITH_OWN] + 8 * len(with_own)
    words = [*fixed, *without, *with_own, len(copied), *(8 * word for word in copied)]
    words[PASS_NEXT] = 8 * len(words)
    return words


def _words_of(column: _Column) -> tuple[int, ...]:
    """The words of a slot that a column reads beside count and sum."""
    return {
        p.OP_STD: (p.SQUARES_HIGH, p.SQUARES_MIDDLE, p.SQUARES_LOW),
        p.OP_MIN: (p.SMALLEST,),
        p.OP_MAX: (p.LARGEST,),
        p.OP_LAST: (p.LAST_AMOUNT,),
        p.OP_SHARE: (p.FACT_COUNTS + column.second,),
        p.OP_DISTINCT: (p.DISTINCT + column.second,),
    }.get(column.operation, ())


def _mask(condition: int) -> int:
    if condition == p.NO_CONDITION:
        return 0
    if condition >= p.FACT_CONDITION:
        return 1 << (FACT_BIT + condition - p.FACT_CONDITION)
    return 1 << (CONDITION_BIT + condition)


def _aggregates(program: Program, numbers: list[int]) -> list[int]:
    words = [len(numbers)]
    for number in numbers:
        at = int(program.code[p.COLUMNS_AT]) + p.COLUMN * number
        operation, _, operand, _, declared, empty = program.code[at : at + 6].tolist()
        words += [8 * number, operation, operand, declared, empty]
    return words


def _listed(program: Program, numbers: list[int]) -> list[int]:
    words = [len(numbers)]
    for number in numbers:
        words += [8 * number, 8 * (int(program.code[p.COLUMNS_AT]) + p.COLUMN * number)]
    return words
