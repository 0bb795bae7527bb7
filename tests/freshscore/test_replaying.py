"""Which model a replay takes, and what it says where there is none to take."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from freshscore import replaying
from freshscore.config.clock import SystemClock
from freshscore.config.errors import BadFile
from freshscore.config.settings import Settings
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.scoring.registry import Registry
from freshscore.simulations.shapes import preset
from freshscore.simulations.streaming import stream_of
from freshscore.simulations.streams import Stream
from tests.freshscore.stored_models import payments, trained_store

DAY_MS = 86_400_000
START_MS = 1_522_540_800_000  # 2018-04-01


def stream_from(start_ms: int) -> Stream:
    table = read_payments(payments(), FeatureSpecification.shipped("handbook"))
    return stream_of(table, preset("none"), start_ms, np.random.default_rng(1))


def chosen(stream: Stream, store: Path) -> replaying.ChosenModel:
    own = Settings().store.model_copy(update={"path": store})
    settings = Settings().model_copy(update={"store": own})
    return replaying.chosen_model(stream, settings, SystemClock(), None)


def test_payments_held_back_from_training_count_as_seen(tmp_path: Path) -> None:
    """Calibration and thresholds are made of the last fifth; its last payment is the last seen."""
    store = trained_store(tmp_path)
    facts = Registry(store / "models").champion().facts
    assert facts.last_ms is not None
    assert facts.last_ms == stream_from(START_MS).table.time_ms[-1]
    held_back = stream_from(facts.last_ms - 5 * DAY_MS)
    assert "it may have seen what is replayed" in chosen(held_back, store).said


def test_where_no_label_is_known_yet_that_is_the_cause_that_is_said(tmp_path: Path) -> None:
    stream = stream_from(START_MS + 3 * DAY_MS)
    with pytest.raises(BadFile) as refused:
        chosen(stream, tmp_path)
    said = str(refused.value)
    assert "no champion yet, and none can be trained" in said
    assert f"{len(stream.history):,} payments before 2018-04-04 00:00 UTC" in said
    assert "label 'fraud' of none of them was known by then: it takes 7d" in said
    first = datetime.fromtimestamp(stream.table.time_ms[0] / 1000, UTC)
    assert f"none is before {first:%Y-%m}-{first.day + 7:02d} {first:%H:%M} UTC" in said
    assert "--from" in said


def test_where_nothing_comes_before_the_replay_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"0 payments before 2018-04-01 00:00 UTC.*--from"):
        chosen(stream_from(START_MS), tmp_path)
