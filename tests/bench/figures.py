"""What a benchmark reports: figures beside the alternative measured in the same run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    value beside reference_value (what `reference` names); ratio = value / reference_value.
    goal: in words; met: None where the figure is only stated.
    """

    name: str
    value: float
    unit: str
    reference: str = ""
    reference_value: float | None = None
    goal: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """value / reference_value, None without a reference."""
        return None if not self.reference_value else self.value / self.reference_value


def at_most(name: str, value: float, unit: str, limit: float, **more: Any) -> Figure:
    """A figure whose value must not exceed `limit`."""
    return Figure(name, value, unit, goal=f"<= {limit:g} {unit}", met=value <= limit, **more)


def ratio_at_most(
    name: str, value: float, unit: str, limit: float, reference: str, reference_value: float
) -> Figure:
    """A figure whose ratio to the reference must not exceed `limit`."""
    met = value <= limit * reference_value
    return Figure(name, value, unit, reference, reference_value, f"<= {limit:g} x", met)


def ratio_at_least(
    name: str, value: float, unit: str, limit: float, reference: str, reference_value: float
) -> Figure:
    """A figure whose ratio to the reference must reach `limit`."""
    met = value >= limit * reference_value
    return Figure(name, value, unit, reference, reference_value, f">= {limit:g} x", met)


def each_ns(call: Callable[[Any], object], arguments: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Nanoseconds of `call` on each argument, less the cost of asking the clock."""
    elapsed = np.empty(len(arguments), np.int64)
    for i, argument in enumerate(arguments):
        started = perf_counter_ns()
        call(argument)
        elapsed[i] = perf_counter_ns() - started
    return np.maximum(elapsed - clock_ns(), 1)


def clock_ns() -> int:
    """What two readings of the clock cost, median of many."""
    costs = []
    for _ in range(1001):
        started = perf_counter_ns()
        costs.append(perf_counter_ns() - started)
    return sorted(costs)[500]


def p50_us(elapsed_ns: np.ndarray[Any, Any]) -> float:
    """Median, microseconds."""
    return float(np.median(elapsed_ns)) / 1000


def p99_us(elapsed_ns: np.ndarray[Any, Any]) -> float:
    """99th percentile, microseconds."""
    return float(np.percentile(elapsed_ns, 99)) / 1000


def written(figures: Sequence[Figure], path: Path) -> None:
    """Write the figures as a list of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(figure) | {"ratio": figure.ratio} for figure in figures]
    path.write_text(json.dumps(rows, indent=1) + "\n")
