"""Simulated worlds keep the laws; with any protection taken out they break one.

A run of worlds says the first seed that fails, and where: `python -m pytest ... --seed N` explores.
"""

from __future__ import annotations

import functools
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from freshscore.simulations.simulated_world import Ground, SimulatedWorld
from freshscore.simulations.world_processes import Process
from freshscore.simulations.world_specification import (
    digest_model,
    tree_model,
    world_program,
    world_settings,
)
from freshscore.simulations.world_truth import BrokenLaw
from tests.simulations.world_canaries import CANARIES

# Worlds in which a law was once broken, with how many scores: they stay. These two: a partition of
# labels was held, and its marker said that nothing older was still to come (with `held_as_if_read`
# they break still).
REGRESSIONS = ((6, 1_500), (11, 1_500))
_WORLDS = 8
_SCORES = 4_000
_SOAKED_WORLDS = 200
_CANARY_WORLDS = 60
_CANARY_SCORES = 1_500


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every world is full of trouble, which its processes say."""
    with caplog.at_level(logging.CRITICAL, "freshscore"):
        yield


@functools.cache
def _ground(kind: str = "trees") -> Ground:
    program, keys = world_program()
    model = tree_model(program, keys, random.Random(7)) if kind == "trees" else digest_model()
    return Ground(world_settings(), program, keys, model)


def _run(seed: int, n_scores: int, kind: str = "trees") -> SimulatedWorld:
    """Run one world; what it raises begins with its seed."""
    try:
        world = SimulatedWorld(random.Random(seed), _ground(kind))
        world.run(n_scores)
    except Exception as problem:
        raise AssertionError(f"seed {seed}, {n_scores} scores, {kind}: {problem!r}") from problem
    return world


@pytest.mark.parametrize("kind", ["trees", "digest"])
def test_worlds_keep_the_laws(seed: int, kind: str) -> None:
    """Every answer is that of the set that it reports, and everything comes to rest."""
    counts: Counter[str] = Counter()
    for number in range(_WORLDS):
        world = _run(seed + number, _SCORES if kind == "trees" else _SCORES // 4, kind)
        counts += world.answers.counts
        counts["checked"] += world.checks.n_checked
        counts["plainly"] += world.checks.n_plain
    # All of what is whole is checked by the vectorised oracle, of 1,000 one by the plain one too.
    assert counts["checked"] == counts["whole"] > counts["degraded"] > 0
    assert counts["plainly"] >= counts["checked"] // 1_000
    assert counts["memo"] > 0
    assert counts["with pending"] > 0


@pytest.mark.parametrize(("number", "n_scores"), REGRESSIONS)
def test_worlds_that_once_broke_a_law_keep_it(number: int, n_scores: int) -> None:
    _run(number, n_scores)


def test_one_seed_makes_one_world(seed: int) -> None:
    """Whatever ran before: the same steps, answers and log."""
    first, second = _run(seed, 1_000), _run(seed, 1_000)
    assert first.n_steps == second.n_steps
    assert first.counts == second.counts
    assert first.answers.counts == second.answers.counts
    assert [one.values for one in first.log.partitions.values()] == [
        one.values for one in second.log.partitions.values()
    ]
    for one, other in zip(first.servers.servers, second.servers.servers, strict=True):
        assert one.node.content() == other.node.content()
    assert _run(seed + 1, 1_000).counts != first.counts


@pytest.mark.parametrize(("canary", "trouble"), CANARIES, ids=lambda one: _name_of(one))
def test_without_a_protection_a_law_breaks(
    canary: Callable[[pytest.MonkeyPatch], Callable[[Process], None]],
    trouble: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each protection is needed, and its absence is found within a few worlds."""
    changed = canary(monkeypatch)
    for number in range(_CANARY_WORLDS):
        world = SimulatedWorld(random.Random(number), _ground(), changed)
        for name, value in trouble.items():
            setattr(world.faults, name, value)
        try:
            world.run(_CANARY_SCORES)
        except BrokenLaw:
            return
    pytest.fail(f"{_CANARY_WORLDS} worlds do without this protection")


def _name_of(one: object) -> str:
    return getattr(one, "__name__", "")


@pytest.mark.soak
def test_many_worlds_keep_the_laws(seed: int) -> None:
    """Longer worlds, and many of them."""
    n = 0
    for number in range(_SOAKED_WORLDS):
        n += _run(seed + number, 5 * _SCORES).counts["scores"]
        print(f"{number + 1} worlds, {n:,} scores", flush=True)
