"""Simulated worlds keep the laws; with any protection taken out they break one.

A run of worlds says the first seed that fails, and where: `python -m pytest ... --seed N` explores.
What it says first is a row of `REGRESSIONS`; there it is repeated alone, and stays.
"""

from __future__ import annotations

import functools
import itertools
import logging
import random
import traceback
from collections.abc import Iterator

import pytest

from freshscore.config.clock import SystemClock
from freshscore.simulations.simulated_world import Ground, SimulatedWorld
from freshscore.simulations.world_failover import repaired
from freshscore.simulations.world_specification import (
    digest_model,
    tree_model,
    world_program,
    world_settings,
)
from freshscore.simulations.world_truth import BrokenLaw
from tests.simulations.world_canaries import CANARIES, Canary

# Worlds in which a law was once broken, with kind, scores, acts and surveys: they stay. The first:
# a partition of labels was held, and its marker said that nothing older was still to come (with
# `held_as_if_read` it breaks still). The second: repetitions of late events came behind a state
# that was folded early, and a compaction that forgot the former counted the latter once more. Who
# changes what a world draws looks for others in which it does.
REGRESSIONS = ((7, "trees", 4_000, 4_000, 0), (1002, "early", 15_000, 700, 6))
# Scores of a million that the oracles must have checked, in worlds of each kind: no two of those
# that are checked at once with the same payment, instant and states, none degraded, none refused.
# In shares, so that tests run side by side. In "moving" worlds slots of a cluster change nodes.
_KINDS = (
    ("digest", 150_000),
    *[("trees", 150_000)] * 4,
    ("early", 50_000),
    ("moving", 50_000),
    ("trees", 150_000),
)
_SCORES = 60_000
_ACTS = 700
_MOST_WORLDS = 40
# A world in which all there is happens.
_BUSY_WORLD = 1
_BUSY_SCORES = 12_000
_FAILOVER_WORLDS = 4
_FAILOVERS = 3
_LONGEST_HEARTBEAT_S = 4.0
# What passes beside a heartbeat: waits after trouble and in vain, and the steps of the clock.
_NOTICED_S = 2.0
# In "early" worlds grids with more records than this are folded at once.
_EARLY_RECORDS = 8
_CANARY_WORLDS = 60
_CANARY_SCORES = 4_000
_CANARY_ACTS = 4_000


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every world is full of trouble, which its processes say."""
    with caplog.at_level(logging.CRITICAL, "freshscore"):
        yield


@functools.cache
def _ground(kind: str = "trees") -> Ground:
    program, keys = world_program()
    model = digest_model() if kind == "digest" else tree_model(program, keys, random.Random(7))
    if kind == "early":
        early = world_settings(grid_records=_EARLY_RECORDS)
        return Ground(early, program, keys, model, contradicts=False)
    if kind == "moving":
        return Ground(world_settings(), program, keys, model, moves=True)
    return Ground(world_settings(), program, keys, model)


def _run(
    seed: int,
    n_scores: int,
    kind: str = "trees",
    n_acts: int = 1_000,
    *,
    n_surveyed: int | None = None,
) -> SimulatedWorld:
    """Run one world; a failure begins with the line that joins `REGRESSIONS`, which repeats it."""
    world = SimulatedWorld(random.Random(seed), _ground(kind))
    if n_surveyed is not None:
        world.n_surveyed = n_surveyed
    row = (seed, kind, n_scores, n_acts, world.n_surveyed)
    try:
        world.run(n_scores, most_acts=n_acts)
        return world
    except Exception as problem:  # noqa: BLE001  # whatever it is, its seed comes first
        said = f"seed {row}\n{problem!r}\n{traceback.format_exc()}"
    # From here, and without pytest's own picture: both would stand before the seed.
    pytest.fail(said, pytrace=False)


@pytest.mark.parametrize("share", range(len(_KINDS)))
def test_worlds_keep_the_laws(seed: int, share: int) -> None:
    """Every answer is that of the set that it reports, and everything comes to rest.

    A tree model shows how scores are cached; of the other one no bit of any feature may differ.
    """
    kind, n_left = _KINDS[share]
    for number in range(_MOST_WORLDS):
        # Of those that it answers a world checks four in five, or fewer.
        checks = _run(seed + number, min(_SCORES, n_left * 5 // 4), kind, _ACTS).checks
        assert checks.n_plain >= checks.n_checked // 1_000
        n_left -= checks.n_distinct
        if n_left <= 0:
            return
    pytest.fail(f"seed {seed}: {_MOST_WORLDS} worlds leave {n_left} scores to be checked")


def test_all_there_is_happens_in_a_world() -> None:
    """One fixed world: answers of every source, pending ones, degraded ones, and trouble."""
    world = _run(_BUSY_WORLD, _BUSY_SCORES)
    answers = world.answers.counts
    # All of what is whole is checked by the vectorised oracle.
    assert world.checks.n_checked == answers["whole"] > answers["degraded"] > 0
    for name in ("memo", "cell", "box", "computed", "with pending", "near"):
        assert answers[name] > 0, name


@pytest.mark.parametrize(("number", "kind", "n_scores", "n_acts", "n_surveyed"), REGRESSIONS)
def test_worlds_that_once_broke_a_law_keep_it(
    number: int, kind: str, n_scores: int, n_acts: int, n_surveyed: int
) -> None:
    _run(number, n_scores, kind, n_acts, n_surveyed=n_surveyed)


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


@pytest.mark.parametrize("canary", CANARIES, ids=lambda one: one.change.__name__)
def test_without_a_protection_a_law_breaks(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each protection is needed, and its absence is found within a few worlds."""
    changed = canary.change(monkeypatch)
    for number in range(canary.first, canary.first + _CANARY_WORLDS):
        world = SimulatedWorld(random.Random(number), _ground(canary.kind), changed)
        # Protections matter while things happen.
        world.n_surveyed = 0
        for name, value in canary.trouble.items():
            setattr(world.faults, name, value)
        try:
            world.run(_CANARY_SCORES, most_acts=_CANARY_ACTS)
        except BrokenLaw:
            return
    pytest.fail(f"{_CANARY_WORLDS} worlds do without this protection")


def test_what_a_failover_loses_comes_back(seed: int) -> None:
    """States, markers and stream lose the same instant, so consumers read on from there.

    Repaired with the next heartbeat at the latest, which finds the connections closed.
    """
    chance, repairs = random.Random(seed), []
    for number in range(_FAILOVER_WORLDS):
        world = SimulatedWorld(random.Random(seed + number), _ground())
        world.faults.kinds, world.faults.kill = ("go on",), 0.0
        for _ in range(_FAILOVERS):
            world.run(100, rests=1)
            n_nodes = len(world.servers.servers)
            repairs.append(repaired(world, chance.randrange(n_nodes), chance.choice((5, 20, 100))))
    lost = [one for one in repairs if one.n_records]
    times_s = sorted(one.repaired_s for one in lost)
    print(
        f"failovers, seed {seed}: {len(lost)} of {len(repairs)} lost records, {lost}: back after"
        f" {times_s[len(times_s) // 2]} s (p50), {times_s[-1]} s (longest)"
    )
    assert len(lost) >= len(repairs) // 2
    assert times_s[-1] <= _LONGEST_HEARTBEAT_S + _NOTICED_S


@pytest.mark.soak
def test_many_worlds_keep_the_laws(pytestconfig: pytest.Config) -> None:
    """Worlds from the run's seed on, until so many minutes are over (`make soak`)."""
    seed: int = pytestconfig.getoption("--seed")
    clock, n_checked = SystemClock(), 0
    ends_s = clock.monotonic_s() + 60.0 * pytestconfig.getoption("--minutes")
    for number in itertools.count(seed):
        kind, _ = _KINDS[number % len(_KINDS)]
        n_checked += _run(number, _SCORES, kind, _ACTS).checks.n_distinct
        print(f"worlds {seed} to {number}: {n_checked:,} scores checked", flush=True)
        if clock.monotonic_s() >= ends_s:
            return
