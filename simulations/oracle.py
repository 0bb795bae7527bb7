"""The slow, obvious oracle, second half: the feature vector, in plain Python.

Rule: as in `oracle_set`, no code is shared with what it checks; every feature looks at every
event of its entity, and nothing is carried over from one call to the next.
It must never be made fast: `oracle_vectorised` is there to follow a whole replay.

Cost: a feature vector costs O(columns x events of its entities).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from freshscore.features.specification import (
    Aggregate,
    Feature,
    FeatureSpecification,
    WindowGroup,
    members_of,
)
from freshscore.features.transaction import Transaction
from freshscore.simulations.oracle_set import PlainFact, PlainRecord, PlainSet

CategoryCodes = Mapping[str, Mapping[str, int]]
Events = list[PlainRecord]
Sight = tuple[PlainRecord, Events]

_MISSING = math.nan
_EARTH_RADIUS_KM = 6371.0088
_RADIANS_PER_FIXED = math.pi / 180 * 1e-7
# ISO 4217, typed from the standard's list rather than imported from the code under test.
_MINOR_DIGITS = {
    **dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI".split(), 0),
    **dict.fromkeys("VND VUV XAF XOF XPF".split(), 0),
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3),
    **dict.fromkeys("CLF UYW".split(), 4),
}


class PlainOracle(PlainSet):
    """The set of accepted events, and features evaluated on it; arguments as PlainSet's."""

    def features(
        self,
        transaction: Transaction,
        as_of_ms: int,
        categories: CategoryCodes | None = None,
    ) -> list[float]:
        """The feature vector at `as_of_ms`, in the specification's order; NaN is missing.

        categories: field -> value -> code. Raises ValueError for an `as_of_ms` before the
        payment, and TypeError for a string where a number is read.
        """
        if as_of_ms < transaction.time:
            raise ValueError(f"as_of {as_of_ms} is before the payment's time {transaction.time}")
        seen = {e.name: self._seen(transaction, e.name) for e in self._spec.entities}
        values: dict[str, float] = {}
        for column in self._spec.columns:
            if column.aggregate is not None:
                group = self._spec.windows[column.group]
                length_ms = group.lengths_ms[group.lengths.index(column.length)]
                inside = self._inside(group, length_ms, as_of_ms, seen[group.entity])
                values[column.name] = self._aggregate(
                    group, column.aggregate, transaction, as_of_ms, inside
                )
        for feature in self._spec.features:
            sight = seen.get(feature.entity or "")
            values[feature.name] = self._feature(feature, transaction, sight, values, categories)
        return [values[name] for name in self._spec.feature_names]

    def _seen(self, transaction: Transaction, entity: str) -> Sight | None:
        """The payment, and the entity's events of others; None if the payment does not name it."""
        key = self._key(transaction, entity)
        if key is None:
            return None
        events = self.events_of(entity, key)
        others = [e for e in events if e.transaction_id != transaction.transaction_id]
        return self._record(transaction, entity), others

    def _inside(
        self,
        group: WindowGroup,
        length_ms: int,
        as_of_ms: int,
        sight: Sight | None,
    ) -> Events | None:
        """The events in a window, the payment itself included where it counts."""
        if sight is None:
            return None
        own, others = sight
        events = [*others, own] if group.current else others
        begin_ms = as_of_ms - group.delay_ms - length_ms
        end_ms = as_of_ms - group.delay_ms
        step_ms = self._spec.step_ms(group, length_ms)
        if step_ms:
            begin_ms -= begin_ms % step_ms
            if group.delay_ms:
                end_ms -= end_ms % step_ms
        return [event for event in events if begin_ms < event.time_ms <= end_ms]

    def _aggregate(
        self,
        group: WindowGroup,
        aggregate: Aggregate,
        transaction: Transaction,
        as_of_ms: int,
        inside: Events | None,
    ) -> float:
        def is_known(event: PlainRecord, fact: str) -> bool:
            is_own = event.transaction_id == transaction.transaction_id
            return not is_own and self.holds(event, fact, as_of_ms)

        def is_counted(event: PlainRecord) -> bool:
            if aggregate.where is None:
                return True
            if aggregate.where.fact is not None:
                return is_known(event, aggregate.where.fact)
            return event.conditions[self._spec.conditions.index(aggregate.where)]

        if inside is None:
            return _MISSING
        counted = [event for event in inside if is_counted(event)]
        if not counted:
            nothing = 0.0 if aggregate.function in ("count", "sum", "distinct") else _MISSING
            return nothing if aggregate.empty is None else aggregate.empty
        if aggregate.function == "share":
            n_true = sum(is_known(event, aggregate.of or "") for event in counted)
            return float(n_true) / float(len(counted))
        if aggregate.function == "distinct":
            place = members_of(self._spec, group.entity).index(aggregate.of or "")
            return float(len({event.members[place] for event in counted} - {None}))
        return self._of_amounts(aggregate.function, counted)

    def _of_amounts(self, function: str, events: Events) -> float:
        amounts = [event.amount_minor for event in events]
        n, total, squares = len(amounts), sum(amounts), sum(a * a for a in amounts)
        if function == "count":
            return float(n)
        if function == "sum":
            return float(total) / self._scale
        if function == "mean":
            return float(total) / float(n) / self._scale
        if function == "std":
            return math.sqrt(float(n * squares - total * total)) / float(n) / self._scale
        if function == "min":
            return float(min(amounts)) / self._scale
        if function == "max":
            return float(max(amounts)) / self._scale
        assert function == "last"  # every other function is above, or takes no amount
        return float(max(events, key=lambda e: e.order).amount_minor) / self._scale

    @property
    def _scale(self) -> float:
        return float(10 ** _MINOR_DIGITS.get(self._spec.currency, 2))

    def _feature(
        self,
        feature: Feature,
        transaction: Transaction,
        sight: Sight | None,
        aggregates: Mapping[str, float],
        categories: CategoryCodes | None,
    ) -> float:
        of = feature.of or ""
        amount = float(transaction.base_amount(self._spec.currency)) / self._scale
        if feature.function in ("ratio", "difference", "zscore"):
            x = amount if feature.of is None else _number(transaction, of)
            spread = aggregates.get(feature.spread or "", _MISSING)
            return _crossed(feature.function, x, aggregates[feature.to or ""], spread)
        if feature.entity is not None:
            return _MISSING if sight is None else self._beside_others(feature, *sight)
        if feature.function == "amount":
            return amount
        if feature.function == "field":
            return _number(transaction, of)
        if feature.function == "category":
            value, codes = transaction.fields.get(of), (categories or {}).get(of, {})
            return float(codes[value]) if isinstance(value, str) and value in codes else _MISSING
        return _calendar(feature.function, transaction.time)

    def _beside_others(self, feature: Feature, own: PlainRecord, others: Events) -> float:
        """first_pair, since_last, distance, speed: beside the events before the payment."""
        oldest_ms = own.time_ms - self._spec.reach_ms
        before = [e for e in others if e.order < own.order and e.time_ms > oldest_ms]
        if feature.function == "first_pair":
            place = members_of(self._spec, feature.entity or "").index(feature.of or "")
            member = own.members[place]
            if member is None:
                return _MISSING
            return 0.0 if any(event.members[place] == member for event in before) else 1.0
        if not before:
            return _MISSING
        return _beside_last(feature.function, max(before, key=lambda e: e.order), own)


def history(
    specification: FeatureSpecification,
    rows: Sequence[tuple[Transaction, int | None]],
    facts: Iterable[PlainFact],
    mode: Literal["known", "true"],
    *,
    horizon_ms: int,
    skew_ms: int,
    record_key: bytes,
    categories: CategoryCodes | None = None,
) -> list[list[float]]:
    """The matrix of (transaction, arrival_ms) rows, each at its own time and from nothing.

    known: the events before the row in arrival order (arrival, row), and the facts that became
    known by its arrival; true: all of them.
    """
    facts = list(facts)
    arrivals = [tx.time if arrival is None else arrival for tx, arrival in rows]
    matrix = []
    for own, (transaction, _) in enumerate(rows):
        oracle = PlainOracle(
            specification, horizon_ms=horizon_ms, skew_ms=skew_ms, record_key=record_key
        )
        for row, (event, arrival_ms) in enumerate(rows):
            if mode == "true" or (arrivals[row], row) < (arrivals[own], own):
                oracle.observe(event, arrival_ms)
        for f in facts:
            if mode == "known" and f.known_at_ms > arrivals[own]:
                continue
            oracle.label(f.transaction_id, f.name, f.value, f.sender_ms, f.known_at_ms, f.time_ms)
        matrix.append(oracle.features(transaction, transaction.time, categories))
    return matrix


def _number(transaction: Transaction, field: str) -> float:
    value = transaction.fields.get(field)
    if isinstance(value, str):
        raise TypeError(f"field {field!r} is a string where a number is read")
    return _MISSING if value is None else float(value)


def _crossed(function: str, x: float, to: float, spread: float) -> float:
    if function == "difference":
        return x - to
    if function == "ratio":
        return _MISSING if to == 0 or math.isnan(to) else x / to
    return _MISSING if spread == 0 or math.isnan(spread) else (x - to) / spread


def _calendar(function: str, time_ms: int) -> float:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
    if function == "hour":
        return float(moment.hour)
    if function == "weekday":
        return float(moment.weekday())
    if function == "night":
        return 1.0 if moment.hour <= 6 else 0.0
    assert function == "weekend"  # the last of the local functions
    return 1.0 if moment.weekday() >= 5 else 0.0


def _beside_last(function: str, last: PlainRecord, own: PlainRecord) -> float:
    elapsed_ms = float(own.time_ms - last.time_ms)
    if function == "since_last":
        return elapsed_ms / 1000.0
    if last.place is None or own.place is None:
        return _MISSING
    distance_km = _distance_km(last.place, own.place)
    if function == "distance":
        return distance_km
    return _MISSING if elapsed_ms == 0 else distance_km / (elapsed_ms / 3_600_000.0)


def _distance_km(start: tuple[int, int], end: tuple[int, int]) -> float:
    """Great-circle distance by the haversine formula; places in 1e-7 degrees."""
    lat1, lon1 = (fixed * _RADIANS_PER_FIXED for fixed in start)
    lat2, lon2 = (fixed * _RADIANS_PER_FIXED for fixed in end)
    north, east = math.sin((lat2 - lat1) / 2), math.sin((lon2 - lon1) / 2)
    # Products, not `** 2`: the power function of a C library need not round as a product does.
    a = north * north + math.cos(lat1) * math.cos(lat2) * (east * east)
    return 2 * _EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(a)))
