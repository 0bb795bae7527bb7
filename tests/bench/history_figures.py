"""Figures of history: a whole file's point-in-time features, beside pandas' rolling windows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from freshscore.features import history
from freshscore.features.program import compiled
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.scoring.training_sets import training_keys
from freshscore.simulations.generator import Parameters, generate
from tests.bench.figures import Figure
from tests.bench.material import Material

_RUNS = 7
# What of history is compiled: grouping, passes, the columns after them.
_KERNELS = ("grouped", "do_plain", "do_others", "do_rest")


def whole_file(material: Material) -> list[Figure]:
    """Payments a second, from columns in memory to a matrix whose pages are touched; one core."""
    frame = generate(Parameters(), np.random.default_rng(material.seed), "handbook")
    spec = FeatureSpecification.named(material.specification)
    table = read_payments(frame, spec)
    program = compiled(spec)
    keys = training_keys(program)
    out = np.ones((len(table), program.n_columns))
    whole_s, kernels_s = [], []
    for _ in range(1 + _RUNS):
        inside = _Inside()
        began_s = time.perf_counter()
        with inside:
            history.history_features(table, program, keys, out=out)
        whole_s.append(time.perf_counter() - began_s)
        kernels_s.append(inside.seconds)
    tenth = frame.iloc[: len(frame) // 10]
    began_s = time.perf_counter()
    _pandas_rolling(tenth)
    pandas_rate = len(tenth) / (time.perf_counter() - began_s) / 1e6
    # The first run compiles.
    return [
        _at_least(f"history, {len(table):,} payments, {what}", rate, goal, pandas_rate)
        for what, rate, goal in (
            ("end to end", len(table) / float(np.median(whole_s[1:])) / 1e6, 2.0),
            ("in the kernels", len(table) / float(np.median(kernels_s[1:])) / 1e6, 4.0),
        )
    ]


def _at_least(name: str, rate: float, goal: float, pandas_rate: float) -> Figure:
    return Figure(
        name,
        rate,
        "M/s",
        "pandas rolling, 19 of the 32 features, a tenth of the data",
        pandas_rate,
        f">= {goal:g} M/s",
        rate >= goal,
    )


class _Inside:
    """Seconds spent in the kernels while it is entered."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._originals: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> None:
        for name in _KERNELS:
            self._originals[name] = getattr(history, name)
            setattr(history, name, self._timed(self._originals[name]))

    def __exit__(self, *_: object) -> None:
        for name, original in self._originals.items():
            setattr(history, name, original)

    def _timed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began_s = time.perf_counter()
            result = original(*arguments)
            self.seconds += time.perf_counter() - began_s
            return result

        return timed


def _pandas_rolling(frame: pd.DataFrame) -> None:
    indexed = frame.set_index("TX_DATETIME")
    of_card = indexed.groupby("CUSTOMER_ID")["TX_AMOUNT"]
    of_terminal = indexed.groupby("TERMINAL_ID")["TX_AMOUNT"]
    for length in ("1h", "1D", "7D", "30D"):
        card, terminal = of_card.rolling(length), of_terminal.rolling(length)
        card.count(), card.sum(), terminal.count(), terminal.mean()
    month = of_card.rolling("30D")
    month.mean(), month.std(ddof=0), month.max()
