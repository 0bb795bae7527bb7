"""What the benchmarks run on: a month of random payments, a booster of 500 x 63, a warm scorer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from freshscore.config.settings import Settings
from freshscore.features.specification import FeatureSpecification
from freshscore.features.transaction import Transaction
from freshscore.scoring.model import ALL, Model
from freshscore.scoring.model_file import CohortThresholds
from freshscore.scoring.model_making import import_booster
from freshscore.scoring.scorer import Scorer

SPECIFICATION = str(Path(__file__).with_name("specification.toml"))
START_MS = 1_700_000_000_000
DAY_MS = 86_400_000
# Two days are scored, and scored again at their end.
HORIZON_S = 3 * 86_400


@dataclass(frozen=True)
class Material:
    """Payments of `n_days`, the last 20,000 of which are what is scored."""

    n_cards: int = 5_000
    n_merchants: int = 10_000
    n_days: int = 40
    n_payments: int = 400_000
    n_scored: int = 20_000
    seed: int = 7
    specification: str = SPECIFICATION

    @cached_property
    def payments(self) -> list[Transaction]:
        """In time order."""
        rng = np.random.default_rng(self.seed)
        n = self.n_payments
        times = START_MS + np.sort(rng.integers(0, self.n_days * DAY_MS, n))
        cards = rng.integers(0, self.n_cards, n)
        merchants = rng.integers(0, self.n_merchants, n)
        amounts = rng.lognormal(8.0, 1.0, n).astype(np.int64) + 1
        more = {"device": cards // 2, "ip": cards // 3, "email": cards}
        return [
            Transaction(
                f"payment-{i:09d}",
                int(times[i]),
                int(amounts[i]),
                "EUR",
                {"card": f"card-{cards[i]:012d}", "merchant": f"merchant-{merchants[i]:06d}"}
                | {name: f"{name}-{codes[i]}" for name, codes in more.items()},
            )
            for i in range(n)
        ]

    @property
    def history(self) -> list[Transaction]:
        """What the aggregates hold before anything is scored."""
        return self.payments[: -self.n_scored]

    @property
    def scored(self) -> list[Transaction]:
        """What is scored: `n_scored` random payments."""
        return self.payments[-self.n_scored :]

    @property
    def scored_from_ms(self) -> int:
        """The time of the last event before what is scored."""
        return self.history[-1].time

    def scorer(self, model: Any) -> Scorer:
        """A scorer that has observed the history."""
        store = {"specification": self.specification, "horizon_s": HORIZON_S}
        settings = Settings.model_validate({"store": store})
        scorer = Scorer.open(settings=settings, model=model)
        for payment in self.history:
            scorer.observe(payment)
        return scorer

    @cached_property
    def matrix(self) -> np.ndarray[Any, Any]:
        """Features of what is scored, float64 (n_scored, 32)."""
        with self.scorer(lambda rows: rows[:, 0] * 0.0) as scorer:
            serving = scorer._serving
            assert serving is not None  # it is open
            found = [
                scorer._store.features(serving.packer.row(payment), payment.time)
                for payment in self.scored
            ]
        return np.array(found)

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """The matrix as dicts, name -> value."""
        names = FeatureSpecification.named(self.specification).feature_names
        return [dict(zip(names, row, strict=True)) for row in self.matrix.tolist()]

    @cached_property
    def booster(self) -> lightgbm.Booster:
        """500 trees of 63 leaves over all features."""
        return self._trained()

    @cached_property
    def linear_booster(self) -> lightgbm.Booster:
        """The same with linear models in its leaves, which the walk does not cover."""
        return self._trained(linear_tree=True)

    @cached_property
    def model(self) -> Model:
        """The booster as it is served."""
        return self.imported(self.specification)

    @cached_property
    def linear_model(self) -> Model:
        """The linear booster as it is served."""
        return self.imported(self.specification, self.linear_booster)

    def imported(self, specification: str, booster: lightgbm.Booster | None = None) -> Model:
        """A booster as it is served for a specification with features of the same names."""
        return import_booster(
            (booster or self.booster).model_to_string(),
            FeatureSpecification.named(specification),
            cohorts=[CohortThresholds(ALL, 0.5, 0.9)],
            made_at_ms=START_MS,
        )

    def _trained(self, **more: Any) -> lightgbm.Booster:
        rng = np.random.default_rng(self.seed)
        known = np.nan_to_num(self.matrix)
        scaled = (known - known.mean(0)) / (known.std(0) + 1e-9)
        logits = scaled @ rng.normal(0, 0.7, scaled.shape[1]) + np.sin(3 * scaled[:, 0])
        labels = rng.random(len(logits)) < 1 / (1 + np.exp(-logits))
        parameters = {
            "objective": "binary",
            "num_leaves": 63,
            "learning_rate": 0.05,
            "min_child_samples": 5,
            "verbose": -1,
            "num_threads": 1,
            "seed": self.seed,
            **more,
        }
        names = list(FeatureSpecification.named(self.specification).feature_names)
        data = lightgbm.Dataset(self.matrix, labels, feature_name=names)
        return lightgbm.train(parameters, data, 500)
