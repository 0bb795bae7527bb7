"""Small replays to test on: generated payments, a model of them, and a stream."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pandas as pd

from freshscore.config.clock import SystemClock
from freshscore.config.settings import ModelSettings, Settings
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import PaymentTable
from freshscore.scoring.model import Model
from freshscore.scoring.training_sets import TrainingScope, trained
from freshscore.simulations.generator import Parameters, generate
from freshscore.simulations.generator_attacks import BurstShape
from freshscore.simulations.replay import Replay, replay
from freshscore.simulations.shapes import Shape, preset
from freshscore.simulations.streaming import stream_of
from freshscore.simulations.streams import Stream

DAY_MS = 86_400_000
MADE_AT_MS = 1_546_300_800_000
DAYS, REPLAYED_DAYS = 44, 3
SMALL = Settings(model=ModelSettings(num_trees=25, num_leaves=15, min_child_samples=10))
SPECIFICATIONS = ("payments", "handbook", "sparkov")


@functools.cache
def frame(columns: str = "freshscore") -> pd.DataFrame:
    """Some 6,000 payments in freshscore's columns, or as a Sparkov file has them."""
    parameters = Parameters(customers=70, terminals=150, days=DAYS, radius=12, devices=True)
    payments = generate(parameters, np.random.default_rng(5))
    return payments if columns == "freshscore" else as_sparkov(payments)


def as_sparkov(payments: pd.DataFrame) -> pd.DataFrame:
    """The same payments as a Sparkov file: categories and places, no currency, no devices."""
    rng = np.random.default_rng(6)
    home = {card: rng.uniform(-60, 60, 2) for card in payments.card.unique()}
    homes = np.array([home[card] for card in payments.card])
    away = homes + rng.normal(0, 0.5, homes.shape)
    return pd.DataFrame(
        {
            "transaction_id": payments.transaction_id,
            "timestamp": payments.time_ms // 1000,
            "card_id": payments.card,
            "merchant_id": payments.merchant,
            "category": rng.choice(["fuel", "food", "travel"], len(payments)),
            "amount": payments.amount,
            "card_lat": homes[:, 0],
            "card_long": homes[:, 1],
            "merchant_lat": away[:, 0],
            "merchant_long": away[:, 1],
            "is_fraud": payments.fraud,
        }
    )


@functools.cache
def table(specification: str = "payments") -> PaymentTable:
    """The payments, read for a shipped specification."""
    source = frame("sparkov" if specification == "sparkov" else "freshscore")
    return read_payments(source, FeatureSpecification.shipped(specification))


def start_of(payments: PaymentTable) -> int:
    """Midnight of the first replayed day."""
    return (int(payments.time_ms[-1]) // DAY_MS + 1 - REPLAYED_DAYS) * DAY_MS


@functools.cache
def model(specification: str = "payments") -> Model:
    """A model of what comes before the replayed days."""
    payments = table(specification)
    start_ms = start_of(payments)
    scope = TrainingScope(before_ms=start_ms, known_by_ms=start_ms)
    return trained(payments, scope, SMALL, made_at_ms=MADE_AT_MS)


def shape(name: str) -> Shape:
    """A preset whose bursts are as small as the rest; `untidy` has all that can go wrong."""
    if name == "untidy":
        return dataclasses.replace(
            shape("reuse"),
            event_jitter_ms=60_000,
            late_share=0.05,
            duplicate_share=0.1,
            declined_known_ms=500,
        )
    burst = BurstShape(duration_ms=3_000)
    return dataclasses.replace(preset(name), bursts=2 if name != "none" else 0, burst=burst)


def stream(specification: str = "payments", name: str = "reuse", seed: int = 7) -> Stream:
    """The replayed days under a shape."""
    payments = table(specification)
    return stream_of(payments, shape(name), start_of(payments), np.random.default_rng(seed))


def played(
    specification: str = "payments",
    name: str = "reuse",
    *,
    seed: int = 7,
    settings: Settings = SMALL,
    oracle_share: float = 0.0,
) -> Replay:
    """A replay of `stream`."""
    return replay(
        stream(specification, name, seed),
        model(specification),
        settings,
        np.random.default_rng(seed),
        SystemClock(),
        oracle_share=oracle_share,
    )


@functools.cache
def reused() -> Replay:
    """One replay for all tests that only look at one."""
    return played()
