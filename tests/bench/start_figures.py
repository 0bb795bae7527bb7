"""Figures of a new process: the first score with and without kernels compiled before."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from tests.bench.figures import Figure, at_most

_FIRST_SCORE = """
import time
started = time.perf_counter()
import lightgbm
imported = time.perf_counter()
from freshscore import Scorer
scorer = Scorer.open(settings={"store.specification": "handbook"}, model=MODEL)
scorer.score({"transaction_id": "t", "time": 1_700_000_000_000, "amount_minor": 500,
              "currency": "EUR", "entities": {"card": "c", "merchant": "m"}})
print(time.perf_counter() - imported, imported - started)
"""
_CALLED = "lambda rows: rows[:, 0] * 0.0"


def first_score() -> list[Figure]:
    """Seconds from a new process to the first score, LightGBM's import aside."""
    with tempfile.TemporaryDirectory() as folder:
        first, _ = _run(folder)
        again = sorted(_run(folder) for _ in range(3))[1]
    return [
        at_most("first score, the very first time", first, "s", 20.0),
        at_most(
            "first score, kernels compiled before",
            again[0],
            "s",
            1.5,
            reference="importing LightGBM",
            reference_value=again[1],
        ),
    ]


def _run(folder: str) -> tuple[float, float]:
    code = _FIRST_SCORE.replace("MODEL", _CALLED)
    environment = os.environ | {"FRESHSCORE_CACHE_DIR": folder}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    beyond, imported = done.stdout.split()[-2:]
    return float(beyond), float(imported)
