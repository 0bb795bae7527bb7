"""Specifications for the laws: those that ship, and random ones that mix everything there is.

A specification comes with the scale of time on which its windows live, so that events enter and
leave them while a campaign runs, often exactly on a border.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freshscore.features.specification import (
    Aggregate,
    Condition,
    Entity,
    Feature,
    FeatureSpecification,
    WindowGroup,
)
from tests.laws.worlds import DAY_MS, HOUR_MS, MINUTE_MS

FACTS = ("fraud", "declined", "challenged")
CHANNELS = ("web", "app", "pos")
CODES = {"channel": {"web": 3, "app": 0, "pos": 7}, "category": {"web": 1, "app": 0, "pos": 2}}


@dataclass(frozen=True)
class Scaled:
    """A specification and its scale: the mean gap between two events, and the lattice of times."""

    specification: FeatureSpecification
    gap_ms: int
    lattice_ms: int
    horizon_ms: int


def shipped(name: str) -> Scaled:
    """One that ships; its windows are of hours and days, its delays of a week."""
    return Scaled(FeatureSpecification.shipped(name), 2 * HOUR_MS, 10 * MINUTE_MS, 2 * DAY_MS)


def mixed(rng: np.random.Generator) -> Scaled:
    """A random one: windows of seconds, every function, conditions, facts, delays, grids."""
    entities = (
        Entity("card"),
        Entity("merchant"),
        Entity("device"),
        Entity("pair", of=("card", "merchant")),
        Entity("shop", of=("merchant",), mode="grid", resolution=float(rng.choice([0.1, 0.25, 1]))),
    )
    groups = tuple(_group(rng, number, entities) for number in range(int(rng.integers(3, 8))))
    specification = FeatureSpecification(
        name="mixed",
        currency="EUR",
        entities=entities,
        windows=groups,
        features=_features(rng, groups),
        facts=FACTS,
    )
    return Scaled(specification, 400, 250, 4 * MINUTE_MS)


_FUNCTIONS = ("count", "sum", "mean", "std", "share", "min", "max", "last", "distinct")
_ON_GRIDS = _FUNCTIONS[:5]
_MEMBERS = ("card", "merchant", "device", "pair")


def _group(rng: np.random.Generator, number: int, entities: tuple[Entity, ...]) -> WindowGroup:
    entity = entities[int(rng.integers(len(entities)))]
    # Members are limited to four of an entity: two are enough to tell them apart.
    members = _MEMBERS[:2] if entity.name in ("device", "pair") else _MEMBERS[1:3]
    functions = _ON_GRIDS if entity.mode == "grid" else _FUNCTIONS
    lengths = rng.choice(["1s", "2s", "5s", "20s", "1m", "3m", "10m"], 3, replace=False)
    aggregates = tuple(
        _aggregate(rng, f"g{number}_{i}", str(rng.choice(functions)), members)
        for i in range(int(rng.integers(1, 5)))
    )
    if number == 0:  # what a zscore needs
        aggregates += (Aggregate("mean", name="mean"), Aggregate("std", name="std"))
    return WindowGroup(
        entity.name,
        tuple(str(length) for length in lengths[: int(rng.integers(1, 4))]),
        aggregates,
        delay=str(rng.choice(["0s", "0s", "0s", "3s", "30s"])),
        current=bool(rng.random() < 0.6),
    )


def _aggregate(
    rng: np.random.Generator, name: str, function: str, members: tuple[str, ...]
) -> Aggregate:
    of = {"share": str(rng.choice(FACTS)), "distinct": str(rng.choice(members))}.get(function)
    where = {
        0: Condition(kind=str(rng.choice(["refund", "authorisation", "verification"]))),
        1: Condition(fact=str(rng.choice(FACTS))),
        2: Condition(field="channel", value=str(rng.choice(CHANNELS))),
    }.get(int(rng.integers(6)))
    empty = float(rng.choice([0.0, -7.5])) if rng.random() < 0.2 else None
    return Aggregate(function, of=of, where=where, empty=empty, name=name)  # type: ignore[arg-type]  # one of the functions


def _features(rng: np.random.Generator, groups: tuple[WindowGroup, ...]) -> tuple[Feature, ...]:
    simple = ("amount", "hour", "weekday", "night", "weekend")
    every = [
        *(Feature(name, name) for name in simple),  # type: ignore[arg-type]  # as named there
        Feature("risk", "field", of="risk"),
        Feature("channel", "category", of="channel"),
        Feature("since_last", "since_last", entity="card"),
        Feature("since_device", "since_last", entity="device"),
        Feature("distance", "distance", entity="card"),
        Feature("speed", "speed", entity="card"),
        Feature("first_at_merchant", "first_pair", entity="card", of="merchant"),
        Feature("first_device", "first_pair", entity="merchant", of="device"),
        *_crosses(rng, groups),
    ]
    kept = rng.random(len(every)) < 0.6
    return tuple(feature for feature, keep in zip(every, kept, strict=True) if keep)


def _crosses(rng: np.random.Generator, groups: tuple[WindowGroup, ...]) -> list[Feature]:
    names = [
        f"{group.entity}_{aggregate.name}_{length}"
        for group in groups
        for aggregate in group.aggregates
        for length in group.lengths
    ]
    some = [str(name) for name in rng.choice(names, 2)]
    to, spread = (f"{groups[0].entity}_{name}_{groups[0].lengths[0]}" for name in ("mean", "std"))
    return [
        Feature("ratio", "ratio", to=some[0]),
        Feature("risk_difference", "difference", to=some[1], of="risk"),
        Feature("zscore", "zscore", to=to, spread=spread),
    ]
