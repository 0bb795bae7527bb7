"""From accumulators to features: the one function that every way of evaluating ends in.

Online scoring, batches, history, replay and audit fill the same accumulators (integers, so that
no order of addition can matter) and call `finished`, history its parts one by one, so equal sets
give equal bits (law 4).
No division here is by zero, so none is checked; what is called for every column is inlined: a call
costs as much as a column.
"""

from __future__ import annotations

import math
from typing import Final

from freshscore.features import program as p
from freshscore.features import row as r
from freshscore.features.compiled import kernel
from freshscore.features.layout import NO_PLACE
from freshscore.features.memory import f64, i32, i64, put_f64, put_i64, spread_double, u64

_NAN: Final = math.nan
_RADIANS: Final = math.pi / 180 * 1e-7
_EARTH_KM: Final = 6371.0088
# Latitude is the upper half of a place's word, which is the later half in memory.
_NORTH: Final = 4

# Where an absent minimum, maximum and last event stand; amounts are 0 to 2^40.
NO_SMALLEST: Final = 2**62
NO_LARGEST: Final = -1
NO_LAST: Final = -1


@kernel
def clear_slot(slot: int) -> None:
    """Make the accumulators of `slot` those of no event."""
    for word in range(p.SLOT):
        put_i64(slot + 8 * word, 0)
    put_i64(slot + 8 * p.SMALLEST, NO_SMALLEST)
    put_i64(slot + 8 * p.LARGEST, NO_LARGEST)
    put_i64(slot + 8 * p.LAST_TIME, NO_LAST)


@kernel
def add_current(slot: int, condition: int, row: int) -> None:
    """Count the transaction in `row` in `slot`, if it meets the condition; it has no facts."""
    bits = i64(row + r.BITS)
    if condition >= p.FACT_CONDITION:
        return
    if condition >= 0 and ((bits >> (16 + condition)) & 1) == 0:
        return
    amount = i64(row + r.AMOUNT)
    upper = amount >> 20
    lower = amount & 0xFFFFF
    put_i64(slot, i64(slot) + 1)
    put_i64(slot + 8 * p.SUM, i64(slot + 8 * p.SUM) + amount)
    put_i64(slot + 8 * p.SQUARES_HIGH, i64(slot + 8 * p.SQUARES_HIGH) + upper * upper)
    put_i64(slot + 8 * p.SQUARES_MIDDLE, i64(slot + 8 * p.SQUARES_MIDDLE) + upper * lower)
    put_i64(slot + 8 * p.SQUARES_LOW, i64(slot + 8 * p.SQUARES_LOW) + lower * lower)
    put_i64(slot + 8 * p.SMALLEST, min(i64(slot + 8 * p.SMALLEST), amount))
    put_i64(slot + 8 * p.LARGEST, max(i64(slot + 8 * p.LARGEST), amount))
    time = i64(row + r.TIME)
    last = i64(slot + 8 * p.LAST_TIME)
    if time > last or (
        time == last and u64(row + r.IDENTITY_LOW) > u64(slot + 8 * p.LAST_IDENTITY)
    ):
        put_i64(slot + 8 * p.LAST_AMOUNT, amount)
        put_i64(slot + 8 * p.LAST_TIME, time)


@kernel(error_model="numpy")
def distance_km(here: int, there: int) -> float:
    """Kilometres on a sphere between the places at addresses `here` and `there`."""
    north_there = i32(there + _NORTH) * _RADIANS
    north_here = i32(here + _NORTH) * _RADIANS
    half_north = math.sin((north_here - north_there) / 2)
    half_east = math.sin((i32(here) * _RADIANS - i32(there) * _RADIANS) / 2)
    chord = half_north * half_north + math.cos(north_there) * math.cos(north_here) * (
        half_east * half_east
    )
    return 2 * _EARTH_KM * math.asin(min(1.0, math.sqrt(chord)))


@kernel(error_model="numpy", forceinline=True)
def aggregate(
    operation: int, slot: int, operand: int, has_empty: int, empty: float, scale: float
) -> float:
    """The value of one aggregate, from the accumulators at `slot`."""
    count = i64(slot)
    if count == p.ABSENT:
        return _NAN
    if count == 0:
        if has_empty:
            return empty
        if operation == p.OP_COUNT or operation == p.OP_SUM or operation == p.OP_DISTINCT:
            return 0.0
        return _NAN
    if operation == p.OP_COUNT:
        return float(count)
    if operation == p.OP_SUM:
        return float(i64(slot + 8 * p.SUM)) / scale
    if operation == p.OP_MEAN:
        return (float(i64(slot + 8 * p.SUM)) / float(count)) / scale
    if operation == p.OP_STD:
        spread = spread_double(
            count,
            i64(slot + 8 * p.SUM),
            i64(slot + 8 * p.SQUARES_HIGH),
            i64(slot + 8 * p.SQUARES_MIDDLE),
            i64(slot + 8 * p.SQUARES_LOW),
        )
        return (math.sqrt(spread) / float(count)) / scale
    if operation == p.OP_MIN:
        return float(i64(slot + 8 * p.SMALLEST)) / scale
    if operation == p.OP_MAX:
        return float(i64(slot + 8 * p.LARGEST)) / scale
    if operation == p.OP_LAST:
        return float(i64(slot + 8 * p.LAST_AMOUNT)) / scale
    if operation == p.OP_DISTINCT:
        return float(i64(slot + 8 * (p.DISTINCT + operand)))
    return float(i64(slot + 8 * (p.FACT_COUNTS + operand))) / float(count)


@kernel(error_model="numpy", forceinline=True)
def _beside_last(operation: int, last: int, row: int, column: int, n_entities: int) -> float:
    if operation == p.OP_FIRST_PAIR:
        token = row + r.TOKENS + 16 * i64(column + 24)
        if i64(last) == p.ABSENT or (i64(token) == 0 and i64(token + 8) == 0):
            return _NAN
        return 1.0 - float(i64(last + 8 * (p.LAST_PAIR + i64(column + 16))))
    if i64(last) != 1:
        return _NAN
    elapsed = i64(row + r.TIME) - i64(last + 8 * p.LAST_AT)
    if operation == p.OP_SINCE_LAST:
        return elapsed / 1000.0
    if i64(row + r.PLACE) == NO_PLACE or i64(last + 8 * p.LAST_PLACE) == NO_PLACE:
        return _NAN
    distance = distance_km(row + r.PLACE, last + 8 * p.LAST_PLACE)
    if operation == p.OP_DISTANCE:
        return distance
    return distance / (elapsed / 3_600_000.0) if elapsed > 0 else _NAN


@kernel(error_model="numpy", forceinline=True)
def _local(operation: int, operand: int, row: int, numbers: int, scale: float) -> float:
    time = i64(row + r.TIME)
    if operation == p.OP_AMOUNT:
        return float(i64(row + r.AMOUNT)) / scale
    if operation == p.OP_NUMBER or operation == p.OP_CATEGORY:
        return f64(numbers + 8 * operand)
    if operation == p.OP_HOUR:
        return float(time // 3_600_000 % 24)
    if operation == p.OP_NIGHT:
        return 1.0 if time // 3_600_000 % 24 <= 6 else 0.0
    # 1970-01-01 was a Thursday: day 3 of a week whose Monday is 0.
    weekday = (time // 86_400_000 + 3) % 7
    if operation == p.OP_WEEKDAY:
        return float(weekday)
    return 1.0 if weekday >= 5 else 0.0


@kernel(error_model="numpy", forceinline=True)
def _cross(operation: int, left: float, to: float, spread: float) -> float:
    if operation == p.OP_DIFFERENCE:
        return left - to
    if operation == p.OP_RATIO:
        return left / to if to != 0.0 else _NAN
    return (left - to) / spread if spread != 0.0 else _NAN


@kernel(error_model="numpy", forceinline=True)
def feature(code: int, column: int, slots: int, row: int, out: int) -> float:
    """The value of the column described at `column`, from accumulators at `slots`.

    A cross feature reads the aggregates that it names from `out`.
    """
    operation = i64(column)
    first = i64(column + 8)
    scale = f64(code + 8 * p.SCALE_BITS)
    if operation <= p.OP_SHARE:
        return aggregate(
            operation,
            slots + 8 * p.SLOT * first,
            i64(column + 16),
            i64(column + 32),
            f64(column + 40),
            scale,
        )
    n_entities = i64(code + 8 * p.N_ENTITIES)
    numbers = row + r.TOKENS + 24 * n_entities
    if operation >= p.OP_SINCE_LAST:
        lasts = slots + 8 * p.SLOT * i64(code + 8 * p.N_SLOTS)
        return _beside_last(operation, lasts + 8 * p.LAST * first, row, column, n_entities)
    if operation >= p.OP_RATIO:
        left = f64(numbers + 8 * first) if first >= 0 else float(i64(row + r.AMOUNT)) / scale
        third = i64(column + 24)
        spread = f64(out + 8 * third) if third >= 0 else 1.0
        return _cross(operation, left, f64(out + 8 * i64(column + 16)), spread)
    if operation == p.OP_CATEGORY:
        first += i64(code + 8 * p.N_NUMBERS)
    return _local(operation, first, row, numbers, scale)


@kernel(error_model="numpy")
def finished(code: int, slots: int, row: int, out: int) -> None:
    """Write all features, float64, to `out`: the vector of the transaction in `row`."""
    columns = code + 8 * i64(code + 8 * p.COLUMNS_AT)
    order = code + 8 * i64(code + 8 * p.ORDER_AT)
    for i in range(i64(code + 8 * p.N_COLUMNS)):
        number = i64(order + 8 * i)
        value = feature(code, columns + 8 * p.COLUMN * number, slots, row, out)
        put_f64(out + 8 * number, value)
