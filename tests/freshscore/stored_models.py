"""Commands run as users run them, on a small file and a store that a model was trained into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from freshscore import cli
from freshscore.simulations.generator import Parameters, generate

SPECIFICATION = ("--spec", "handbook")
# Seconds matter in a test: few trees, and an arena that a small store fills a tenth of.
SMALL = (
    "--settings", "model.num_trees=8",
    "--settings", "model.num_leaves=15",
    "--settings", "model.decline_rate=0.05",
    "--settings", "model.review_rate=0.1",
    "--settings", "store.arena_bytes=67108864",
)  # fmt: skip


def payments(days: int = 50) -> pd.DataFrame:
    """A few thousand payments with the Handbook's columns."""
    parameters = Parameters(customers=40, terminals=80, days=days)
    return generate(parameters, np.random.default_rng(5), "handbook")


def run(*words: object) -> int:
    """The exit code of one command line, with settings that make it quick."""
    return cli.main([*map(str, words), *SMALL])


def trained_store(folder: Path) -> Path:
    """A store in `folder` with a model trained on `payments()`."""
    data = folder / "payments.parquet"
    payments().to_parquet(data)
    store = folder / "store"
    assert run("train", "--data", data, *SPECIFICATION, "--store", store) == 0
    return store
