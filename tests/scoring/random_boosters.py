"""Random boosters of every kind that LightGBM trains, and vectors that hit their edges.

LightGBM itself is the oracle: it trains, and it predicts from the same text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from freshscore.scoring.booster_text import read_booster
from freshscore.scoring.forest import MASK_BYTES_LIMIT, Forest
from freshscore.scoring.forest_kernels import ZERO_WITHIN
from freshscore.scoring.objectives import link_of

Matrix = NDArray[np.float64]

# Each kind: what is added to the parameters, all else being random.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"objective": "binary"},
    "missing none": {"objective": "binary", "use_missing": False},
    "missing zero": {"objective": "binary", "zero_as_missing": True},
    "one-hot categories": {"objective": "binary", "max_cat_to_onehot": 1000},
    "sorted categories": {"objective": "binary", "max_cat_to_onehot": 1},
    "monotone": {"objective": "binary"},
    "dart": {"objective": "binary", "boosting": "dart", "drop_rate": 0.5},
    "random forest": {
        "objective": "binary",
        "boosting": "rf",
        "bagging_freq": 1,
        "bagging_fraction": 0.6,
        "feature_fraction": 0.8,
    },
    "stumps": {"objective": "binary", "num_leaves": 2},
    "large trees": {"objective": "binary", "num_leaves": 200, "min_data_in_leaf": 1},
    "sigmoid": {"objective": "binary", "sigmoid": 0.7123456789},
    "cross entropy": {"objective": "cross_entropy"},
    "regression": {"objective": "regression"},
    "square root": {"objective": "regression", "reg_sqrt": True},
    "absolute": {"objective": "regression_l1"},
    "counts": {"objective": "poisson"},
    "quantile": {"objective": "quantile"},
}


@dataclass(frozen=True)
class Trained:
    """A booster, its text, and the matrix that it was trained on."""

    booster: lightgbm.Booster
    text: str
    matrix: Matrix

    def forest(self, mask_bytes_limit: int = MASK_BYTES_LIMIT) -> Forest:
        """Its forest; raises NotWalked."""
        parsed = read_booster(self.text)
        return Forest(parsed, link_of(parsed), mask_bytes_limit=mask_bytes_limit)

    def reached(self, matrix: Matrix) -> NDArray[np.int64]:
        """The leaf that each row reaches in each tree, as LightGBM says."""
        leaves = np.asarray(self.booster.predict(matrix, pred_leaf=True), np.int64)
        return leaves.reshape(len(matrix), -1)


def random_matrix(rng: np.random.Generator, rows: int, features: int) -> tuple[Matrix, list[int]]:
    """Columns of many scales, some rounded, with missing values and zeros; and the categories."""
    matrix = rng.normal(size=(rows, features))
    categorical = []
    for f in range(features):
        shape = rng.integers(5)
        if shape == 0:
            matrix[:, f] = np.round(matrix[:, f])
        elif shape == 1:
            matrix[:, f] *= 10.0 ** rng.integers(-40, 40)
        elif shape == 2:
            matrix[:, f] = rng.integers(0, rng.integers(2, 200), rows)
            categorical.append(f)
        if rng.random() < 0.4:
            matrix[rng.random(rows) < 0.2, f] = np.nan
        if rng.random() < 0.3:
            matrix[rng.random(rows) < 0.3, f] = 0.0
    return matrix, categorical


def trained(kind: str, rng: np.random.Generator) -> Trained:
    """A random booster of one of KINDS."""
    rows, features = int(rng.integers(100, 1000)), int(rng.integers(1, 10))
    matrix, categorical = random_matrix(rng, rows, features)
    spread = np.nanstd(matrix[:, 0]) or 1.0
    labels = np.nan_to_num(matrix[:, 0]) / spread + rng.normal(size=rows) > 0
    parameters: dict[str, Any] = {
        "verbosity": -1,
        "num_threads": 1,
        "num_leaves": int(rng.choice([4, 31, 63])),
        "min_data_in_leaf": int(rng.integers(1, 10)),
        "min_data_per_group": 1,
        "cat_smooth": 1.0,
        "max_bin": int(rng.choice([15, 255])),
        "seed": int(rng.integers(1_000_000)),
        "feature_pre_filter": False,
        **KINDS[kind],
    }
    if kind == "monotone":
        parameters["monotone_constraints"] = [
            0 if f in categorical else int(rng.integers(-1, 2)) for f in range(features)
        ]
    return fitted(matrix, labels, categorical, parameters, int(rng.integers(1, 30)))


def fitted(
    matrix: Matrix,
    labels: NDArray[Any],
    categorical: list[int],
    parameters: dict[str, Any],
    trees: int,
    **options: Any,
) -> Trained:
    """Train with exactly these parameters."""
    data = lightgbm.Dataset(
        matrix,
        labels.astype(np.float64),
        categorical_feature=categorical,
        params=parameters,
        free_raw_data=False,
    )
    booster = lightgbm.train(parameters, data, trees, **options)
    return Trained(booster, booster.model_to_string(), matrix)


def probes(rng: np.random.Generator, of: Trained, forest: Forest, rows: int) -> Matrix:
    """Training rows in which half of the values are on an edge, beside one, or absurd."""
    matrix: Matrix = of.matrix[rng.integers(0, len(of.matrix), rows)].copy()
    tiny = np.array([ZERO_WITHIN, np.nextafter(ZERO_WITHIN, 1.0), np.nextafter(ZERO_WITHIN, 0.0)])
    absurd = np.concatenate(
        [
            [np.nan, np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, -5e-324, 1e-40, 1e300, -1e300],
            tiny,
            -tiny,
            # What the cast of a category to int makes of them: 0, 0, -1, 1, too large.
            [0.5, -0.5, -1.0, 1.5, 2.0**31, 2.0**31 - 1, 2.0**40, -(2.0**40), 999.0],
        ]
    )
    for f, edges in enumerate(forest.splits.edges):
        values = absurd
        if len(edges):
            some = rng.choice(edges, 30)
            up, down = np.nextafter(some, np.inf), np.nextafter(some, -np.inf)
            values = np.concatenate([absurd, some, up, down, some + 0.5, some - 0.5])
        changed = rng.random(rows) < 0.5
        matrix[changed, f] = rng.choice(values, np.count_nonzero(changed))
    return matrix


def with_its_sizes(text: str) -> str:
    """`text`, changed on purpose, with the lengths that its trees now have."""
    _, *blocks = text.partition("\nend of trees")[0].split("\nTree=")
    sizes = " ".join(str(len(block) + len("\nTree=")) for block in blocks)
    return re.sub(r"\ntree_sizes=.*", f"\ntree_sizes={sizes}", text, count=1)


def same_bits(left: Matrix, right: Matrix) -> NDArray[np.bool_]:
    """Which values have the very same bits."""
    same: NDArray[np.bool_] = left.view(np.uint64) == right.view(np.uint64)
    return same
