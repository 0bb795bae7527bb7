"""The vectorised oracle: the feature matrix of every request of a replay, with numpy and pandas.

Rule: it shares no code with the kernels, nor with the plain oracle; it reads the specification
and the digits of currencies, and decides the rest itself.
Exact for any order of application, any `as_of`, late, repeated and conflicting events, facts
known late, taken back and copied.
Limits: everything is in memory, about 100 bytes per row and entity; a window has at most 2^22
events; a window with min, max, last or distinct costs its events for every request.
"""

from __future__ import annotations

import math

import numpy as np

from freshscore.features.money import minor_digits
from freshscore.features.specification import CROSS_FUNCTIONS, Feature, FeatureSpecification
from freshscore.simulations.oracle_columns import (
    Floats,
    Ints,
    OracleFacts,
    OracleRequests,
    OracleRows,
)
from freshscore.simulations.oracle_entries import (
    Entries,
    FactTable,
    Timeline,
    entries_of,
    fixed_degrees,
)
from freshscore.simulations.oracle_tallies import Limits, Stream
from freshscore.simulations.oracle_windows import Windows

_EARTH_RADIUS_KM = 6371.0088
_RADIANS_PER_FIXED = math.pi / 180 * 1e-7
_HOUR_MS = 3_600_000
# 1970-01-01 was a Thursday.
_FIRST_WEEKDAY = 3


class VectorisedOracle:
    """Features over one whole stream, for any requests on it."""

    def __init__(
        self,
        specification: FeatureSpecification,
        rows: OracleRows,
        facts: OracleFacts,
        limits: Limits | None = None,
    ) -> None:
        self._spec, self._rows = specification, rows
        self._stream = Stream(
            specification,
            rows,
            FactTable(rows, facts, len(specification.facts)),
            limits or Limits(),
        )
        timeline = Timeline(rows)
        names = {group.entity for group in specification.windows}
        names |= {f.entity for f in specification.features if f.entity is not None}
        self._entries = {name: entries_of(specification, timeline, name) for name in names}
        self._windows = [
            Windows(self._stream, self._entries[group.entity], group)
            for group in specification.windows
        ]
        self._pairs = {
            (f.entity, f.of): self._pairs_of(f.entity or "", f.of or "")
            for f in specification.features
            if f.function == "first_pair"
        }

    def features(self, requests: OracleRequests) -> Floats:
        """float64[m, columns]: the feature vector of each request; NaN is missing.

        Raises ValueError for an `as_of_ms` before the payment's own time.
        """
        too_old = int((requests.as_of_ms < self._rows.time_ms[requests.row]).sum())
        if too_old:
            raise ValueError(f"{too_old} requests have an as_of before their payment's time")
        values = self._aggregates(requests)
        for feature in self._spec.features:
            values[feature.name] = self._feature(feature, requests, values)
        return np.column_stack([values[name] for name in self._spec.feature_names])

    def _aggregates(self, requests: OracleRequests) -> dict[str, Floats]:
        found = {}
        for number, group in enumerate(self._spec.windows):
            for length, length_ms in zip(group.lengths, group.lengths_ms, strict=True):
                columns = self._windows[number].values(length_ms, requests)
                for aggregate, column in zip(group.aggregates, columns, strict=True):
                    found[number, aggregate, length] = column
        return {
            column.name: found[column.group, column.aggregate, column.length]
            for column in self._spec.columns
            if column.aggregate is not None
        }

    def _feature(
        self, feature: Feature, requests: OracleRequests, values: dict[str, Floats]
    ) -> Floats:
        if feature.entity is not None:
            return self._beside_others(feature, feature.entity, requests)
        of, row = feature.of or "", requests.row
        if feature.function in CROSS_FUNCTIONS:
            x = self._amount(row) if feature.of is None else self._rows.numbers[of][row]
            spread = values.get(feature.spread or "", np.zeros(0))
            return _crossed(feature.function, x, values[feature.to or ""], spread)
        if feature.function == "amount":
            return self._amount(row)
        if feature.function == "field":
            return self._rows.numbers[of][row]
        if feature.function == "category":
            return self._rows.categories[of][row]
        return _calendar(feature.function, self._rows.time_ms[row])

    def _amount(self, row: Ints) -> Floats:
        scale = float(10 ** minor_digits(self._spec.currency))
        return self._rows.amount_minor[row].astype(np.float64) / scale

    def _beside_others(self, feature: Feature, entity: str, requests: OracleRequests) -> Floats:
        entries, code = self._entries[entity], self._rows.entities[entity]
        reach_ms = self._spec.reach_ms
        if feature.function == "first_pair":
            pair, of_pairs = self._pairs[entity, feature.of]
            place = of_pairs.last_before(pair, requests, reach_ms)
            return np.where(pair[requests.row] < 0, np.nan, np.where(place < 0, 1.0, 0.0))
        place = entries.last_before(code, requests, reach_ms)
        found = np.full(len(requests), np.nan)
        some = np.flatnonzero(place >= 0)
        own, last = requests.row[some], entries.row[place[some]]
        found[some] = self._beside_last(feature.function, last, own)
        return found

    def _pairs_of(self, entity: str, of: str) -> tuple[Ints, Entries]:
        """int64[n], one code for each pair of keys, -1 where one is absent; entries by it."""
        code, member = self._rows.entities[entity], self._rows.entities[of]
        pair = np.full(len(code), -1)
        both = (code >= 0) & (member >= 0)
        pair[both] = np.unique(code[both] * len(code) + member[both], return_inverse=True)[1]
        return pair, self._entries[entity].regrouped(pair)

    def _beside_last(self, function: str, last: Ints, own: Ints) -> Floats:
        elapsed_ms = (self._rows.time_ms[own] - self._rows.time_ms[last]).astype(np.float64)
        if function == "since_last":
            return elapsed_ms / 1000.0
        distance_km = self._distance_km(last, own)
        if function == "distance":
            return distance_km
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(elapsed_ms == 0, np.nan, distance_km / (elapsed_ms / _HOUR_MS))

    def _distance_km(self, start: Ints, end: Ints) -> Floats:
        """float64[m]: great-circle distances, one by one.

        numpy's own sines may differ in the last bit from those of the C library.
        """
        degrees = np.stack([self._rows.latitude, self._rows.longitude], axis=1)
        radians = fixed_degrees(degrees) * _RADIANS_PER_FIXED
        found = np.full(len(start), np.nan)
        known = ~np.isnan(degrees[start] + degrees[end]).any(axis=1)
        pairs = np.concatenate([radians[start], radians[end]], axis=1)[known].tolist()
        found[known] = [_great_circle_km(*pair) for pair in pairs]
        return found


def _crossed(function: str, x: Floats, to: Floats, spread: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if function == "difference":
            return x - to
        if function == "ratio":
            return np.where(to == 0, np.nan, x / to)
        return np.where(spread == 0, np.nan, (x - to) / spread)


def _calendar(function: str, time_ms: Ints) -> Floats:
    hour = time_ms // _HOUR_MS % 24
    weekday = (time_ms // (24 * _HOUR_MS) + _FIRST_WEEKDAY) % 7
    found = {
        "hour": hour,
        "weekday": weekday,
        "night": hour <= 6,
        "weekend": weekday >= 5,
    }
    return found[function].astype(np.float64)


def _great_circle_km(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    north, east = math.sin((lat2 - lat1) / 2), math.sin((lon2 - lon1) / 2)
    a = north * north + math.cos(lat1) * math.cos(lat2) * (east * east)
    return 2 * _EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(a)))
