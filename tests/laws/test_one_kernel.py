"""Law 4: a live replay, a batch and the history of a whole file give the same bits."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pandas as pd
import pytest

from freshscore.config.errors import AsOfTooOld, EventRefused
from freshscore.features.history import Acceptance, history_features
from freshscore.features.reading import read_payments
from freshscore.scoring.serving import ServableModel
from tests.laws.files import Line, frame_of, in_arrival_order
from tests.laws.law_models import KINDS, law_model
from tests.laws.law_specifications import Scaled, mixed, shipped
from tests.laws.records import Floats, different_bits
from tests.laws.traffic import Traffic, changed
from tests.laws.worlds import MINUTE_MS, Limits, World


def specification_of(name: str, seed: int) -> Scaled:
    """By name, or a random one."""
    return mixed(np.random.default_rng(seed)) if name == "mixed" else shipped(name)


def lines_of(scaled: Scaled, seed: int, n: int = 700) -> list[Line]:
    """A file: late, early, repeated and conflicting lines, facts known sooner or later."""
    traffic = Traffic(scaled, random.Random(seed))
    chance = traffic.chance
    lines: list[Line] = []
    for _ in range(n):
        draw = chance.random()
        if lines and draw < 0.08:
            old = chance.choice(lines[-30:])
            lines.append(Line(old.payment, old.arrival_ms + chance.randrange(5_000)))
            continue
        if lines and draw < 0.12:
            old = chance.choice(lines[-30:])
            content = changed(old.payment, amount_minor=chance.randrange(5_000), kind="refund")
            lines.append(Line(content, old.arrival_ms + chance.randrange(5_000)))
            continue
        payment = traffic.new().first
        # Of flags only the true ones can be told from nothing in a file.
        flags = {name: True for name, value in payment.flags.items() if value}
        payment = changed(payment, flags=flags)
        arrival_ms = max(payment.time, traffic.newest_ms) + chance.choice((0, 0, 400, -2_000))
        traffic.newest_ms = max(traffic.newest_ms, payment.time)
        facts = {}
        if chance.random() < 0.3:
            name = chance.choice(scaled.specification.facts)
            if name not in flags:
                facts[name] = payment.time + chance.randrange(1, 40) * scaled.gap_ms
        lines.append(Line(payment, arrival_ms, facts))
    return lines


def world_of(scaled: Scaled, model: ServableModel) -> World:
    """An empty world with room for lines that are a little late."""
    return World(
        scaled.specification,
        model,
        Limits(horizon_ms=scaled.horizon_ms, skew_ms=MINUTE_MS),
    )


def replayed(world: World, lines: list[Line]) -> tuple[Floats, list[float | None]]:
    """Features and scores of each line at its own time, line by line, then observed.

    Facts are told when they become known.
    """
    facts = [
        (known_at, world.row(line.payment), world.specification.facts.index(name))
        for line in lines
        for name, known_at in line.known_at_ms.items()
    ]
    facts.sort(reverse=True)
    features, scores = [], []
    for line in lines:
        payment = line.payment
        while facts and facts[-1][0] <= line.arrival_ms:
            known_at, row, fact = facts.pop()
            world.store.label(row, fact, True, known_at, known_at, False)
        try:
            scores.append(world.scorer.score(payment, as_of=payment.time).score)
        except AsOfTooOld:
            scores.append(None)
        features.append(world.features(payment, payment.time))
        with contextlib.suppress(EventRefused):
            world.scorer.observe(payment, arrival=line.arrival_ms)
    return np.array(features), scores


def history_of(world: World, frame: pd.DataFrame) -> Floats:
    """The history of the file, in arrival order."""
    table = read_payments(frame, world.specification)
    assert len(table) == len(frame), table.rejected.listed(5)
    return history_features(
        table,
        world.store.program,
        world.store.keys,
        mode="known",
        acceptance=Acceptance(world.limits.horizon_ms, world.limits.skew_ms),
        categories=world.model.codes,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mixed", "payments", "handbook", "sparkov"])
def test_history_as_known_is_a_live_replay(name: str, kind: str, seed: int) -> None:
    scaled = specification_of(name, seed)
    world = world_of(scaled, law_model(kind, scaled, seed))
    lines = in_arrival_order(lines_of(scaled, seed))
    history = history_of(world, frame_of(lines, scaled.specification))
    live, scores = replayed(world, lines)
    answered = np.array([score is not None for score in scores])
    assert answered.mean() > 0.7
    differ = different_bits(live[answered], history[answered])
    assert not differ.any(), columns_that(differ, world)
    from_history = world.model.predict(history[answered])
    assert from_history.tolist() == [score for score in scores if score is not None]


def columns_that(differ: np.ndarray, world: World) -> list[str]:
    """Names of the columns in which two matrices differ."""
    names = world.specification.feature_names
    return [names[column] for column in np.flatnonzero(differ.any(axis=0))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mixed", "payments", "sparkov"])
def test_a_batch_gives_what_single_scores_give(name: str, kind: str, seed: int) -> None:
    """A frame, a list, and one by one, each past a cache of its own."""
    scaled = specification_of(name, seed)
    model = law_model(kind, scaled, seed)
    world = world_of(scaled, model)
    lines = lines_of(scaled, seed, n=300)
    replayed(world, in_arrival_order(lines))
    newest = world.store.newest_ms
    recent = newest - scaled.horizon_ms
    asked = [line.payment for line in lines[-60:] if line.payment.time > recent]
    assert len(asked) > 20
    frame = frame_of([Line(payment, newest) for payment in asked], scaled.specification)
    frame = frame.drop(columns=["arrival_ms"])
    for as_of in (None, newest + 1_234):
        asked_at = [as_of or max(newest, payment.time) for payment in asked]
        of_frame, of_list, singly = (
            World(scaled.specification, model, world.limits, store=world.store) for _ in range(3)
        )
        one_by_one = [singly.scorer.score(payment, as_of=as_of) for payment in asked]
        batch = of_frame.scorer.score_many(frame, as_of=as_of)
        listed = of_list.scorer.score_many(asked, as_of=as_of)
        expected = [result.score for result in one_by_one]
        assert batch["error"].isna().all()
        assert batch["score"].tolist() == expected
        assert [result.score for result in listed] == expected
        assert batch["as_of"].tolist() == asked_at
        assert batch["valid_until"].tolist() == [r.valid_until for r in one_by_one]
        assert batch["decision"].tolist() == [r.decision for r in one_by_one]
        assert [r.state_versions for r in listed] == [r.state_versions for r in one_by_one]


def test_rows_of_a_batch_do_not_see_each_other(seed: int) -> None:
    scaled = shipped("payments")
    world = world_of(scaled, law_model("walked", scaled, seed))
    payment = Traffic(scaled, random.Random(seed)).new().first
    others = [changed(payment, transaction_id=f"t{i}") for i in range(20)]
    scores = [result.score for result in world.scorer.score_many(others)]
    assert len(set(scores)) == 1
    assert world.store.n_payments == 0


def test_canary_a_history_that_knows_facts_too_early_is_found(seed: int) -> None:
    scaled = shipped("payments")
    world = world_of(scaled, law_model("callable", scaled, seed))
    lines = in_arrival_order(lines_of(scaled, seed))
    early = [Line(line.payment, line.arrival_ms, at_once(line)) for line in lines]
    history = history_of(world, frame_of(early, scaled.specification))
    live, scores = replayed(world, lines)
    answered = np.array([score is not None for score in scores])
    assert different_bits(live[answered], history[answered]).any()


def at_once(line: Line) -> dict[str, int]:
    """Its facts, known a moment after the payment."""
    return dict.fromkeys(line.known_at_ms, line.payment.time + 1)


def test_canary_a_history_that_misses_a_line_is_found(seed: int) -> None:
    scaled = mixed(np.random.default_rng(1))
    world = world_of(scaled, law_model("callable", scaled, seed))
    lines = in_arrival_order(lines_of(scaled, seed, n=300))
    gone = [line for number, line in enumerate(lines) if number != 100]
    history = history_of(world, frame_of(gone, scaled.specification))
    live, _ = replayed(world, lines)
    assert different_bits(np.delete(live, 100, axis=0), history).any()
