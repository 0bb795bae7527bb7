"""A rotation of the identifier secret on real servers: processes one by one, answers right."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from freshscore import Scorer
from freshscore.config.errors import WrongSecret
from freshscore.features.redis_commands import remove_namespace
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_door import Nodes
from freshscore.features.specification import FeatureSpecification
from freshscore.invalidation.assembling import open_consumer
from freshscore.invalidation.sampling import sampled_states
from tests.freshscore.shared_deployment import (
    MERCHANTS,
    SECRET,
    SharedDeployment,
    now_ms,
    payment,
)
from tests.freshscore.stored_models import payments
from tests.freshscore.test_near_scoring import until

# A rotation begins so much later than it is made: it must be announced within 7 s, who does not
# know it is refused from 8 s on, and payments from behind its instant are taken from 9 s on.
AHEAD_MS = 14_000
SKEW_S = 5


class Working:
    """A consumer in a thread, and what ended it."""

    def __init__(self, deployment: SharedDeployment) -> None:
        self._consumer = open_consumer(deployment.settings)
        self.problem: Exception | None = None
        # A test that fails does not wait for it.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._consumer.run()
        except WrongSecret as problem:
            self.problem = problem

    def ended(self) -> Exception | None:
        """What it ended with, within the time that a session takes."""
        self._thread.join(60.0)
        assert not self._thread.is_alive()
        return self.problem

    def stop(self) -> None:
        """Let it end."""
        self._consumer.stop()
        assert self.ended() is None

    @property
    def counts(self) -> dict[str, int]:
        return dict(self._consumer.counts)


class Told:
    """Plain counting: the payments of one card, whoever was told them, however often."""

    def __init__(self, deployment: SharedDeployment) -> None:
        specification = FeatureSpecification.named(deployment.given["store.specification"])
        names = specification.feature_names
        self._column = next(i for i, name in enumerate(names) if "card" in name and "2d" in name)
        assert "count" in names[self._column]
        self._deployment = deployment
        self._number = 0
        self.times_ms: dict[int, int] = {}

    def model(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        return matrix[:, self._column] / 1_000.0

    def new(self, time_ms: int) -> dict[str, Any]:
        """One more payment of the card; six numbers have one card each."""
        self._number += 6
        self.times_ms[self._number] = time_ms
        return payment(self._number, time_ms)

    def is_seen(self, scorer: Scorer, as_of_ms: int) -> bool:
        """Whether a scorer counts all of them up to an instant, and the request."""
        told = sum(time_ms <= as_of_ms for time_ms in self.times_ms.values())
        result = scorer.score(payment(600_000, as_of_ms), as_of=as_of_ms)
        if result.degraded:
            return False
        return bool(result.score == (told + 1) / 1_000.0)

    @contextmanager
    def scorer(self) -> Iterator[Scorer]:
        with Scorer.open("shared", settings=self._deployment.given, model=self.model) as scorer:
            yield scorer


@pytest.fixture
def told(deployment: SharedDeployment) -> Told:
    deployment.given |= {"store.skew_s": SKEW_S, "redis.lease_s": 1.0}
    return Told(deployment)


def wait_until(at_ms: int) -> None:
    """Let the time of the servers come to an instant."""
    until(lambda: now_ms() >= at_ms)


def rotate(deployment: SharedDeployment, since_ms: int) -> str:
    """What `secret next` writes."""
    path = deployment.folder / "next.secret"
    path.unlink(missing_ok=True)
    at = f"{np.datetime64(since_ms, 'ms')}Z"
    assert deployment.run("secret", "next", "--from", at, "--out", path) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    return path.read_text("ascii").strip()


def test_processes_are_restarted_one_by_one_and_no_answer_is_wrong(
    deployment: SharedDeployment,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun_ms = now_ms()
    first = Working(deployment)
    with told.scorer() as old:
        for number in range(4):
            old.observe(told.new(begun_ms - 1_000 * number))
        deployment.send([told.new(begun_ms - 500)])
        before = now_ms() + 1_000
        until(lambda: told.is_seen(old, before))
        capsys.readouterr()
        since_ms = now_ms() + AHEAD_MS
        after = since_ms + 5_000
        successor = rotate(deployment, since_ms)
        said = capsys.readouterr().out
        assert successor not in said
        assert successor[:16] not in said
        monkeypatch.setenv("FRESHSCORE_SECRET", successor)
        with pytest.raises(WrongSecret, match="FRESHSCORE_FORMER_SECRET is needed"):
            Scorer.open("shared", settings=deployment.given, model=told.model)
        monkeypatch.setenv("FRESHSCORE_FORMER_SECRET", SECRET)
        second = Working(deployment)
        until(lambda: deployment.figures("secret", "status", code=1)["noted"].count(" ") == 2)
        with told.scorer() as new:
            assert deployment.figures("secret", "status", code=1)["is_former_needed"]
            assert told.is_seen(old, before)
            assert told.is_seen(new, before)
            old.observe(told.new(now_ms()))
            # Nobody sends a payment from behind the instant before all who do not know it are out.
            assert isinstance(first.ended(), WrongSecret)
            assert now_ms() < since_ms - 1_000 * SKEW_S
            with pytest.raises(WrongSecret, match="a rotation has begun"):
                until(lambda: not told.is_seen(old, before))
            wait_until(since_ms - 1_000 * SKEW_S + 100)
            new.observe(told.new(since_ms + 1))
            assert told.is_seen(new, after)
            deployment.send([told.new(since_ms - 1), told.new(since_ms), told.new(since_ms + 2)])
            until(lambda: told.is_seen(new, after))
            until(lambda: deployment.figures("lag")["partitions"][0]["behind"] == 0)
            assert told.is_seen(new, after)
            assert second.counts.get("wrong key", 0) == 0
            assert deployment.figures("dead-letters", "list")["letters"] == []
            _lose_everything(deployment)
            until(lambda: told.is_seen(new, after))
            until(lambda: deployment.figures("secret", "status", code=1)["noted"].count(" ") == 2)
            second.stop()


def _lose_everything(deployment: SharedDeployment) -> None:
    """The note, the epochs and all states: what the log has under both keys is read again."""
    nodes = Nodes.open(deployment.settings.redis)
    remove_namespace(nodes, deployment.settings.redis.namespace)
    nodes.close()


def test_what_cannot_be_right_is_refused(
    deployment: SharedDeployment,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert deployment.figures("secret", "status")["is_former_needed"] is False
    out = tmp_path / "next.secret"
    assert deployment.run("secret", "next", "--from", "2020-01-01", "--out", out) == 2
    assert "a secret begins in the future" in capsys.readouterr().err
    deployment.send([told.new(now_ms() - 1_000)])
    assert deployment.consume()["applied"] == 1
    # Announced too late for those who run.
    successor = rotate(deployment, now_ms() + 1_500)
    monkeypatch.setenv("FRESHSCORE_SECRET", successor)
    monkeypatch.setenv("FRESHSCORE_FORMER_SECRET", SECRET)
    capsys.readouterr()
    assert deployment.run("consume", "--until-caught-up") == 2
    assert "was not announced before" in capsys.readouterr().err
    with pytest.raises(WrongSecret, match="was not announced before"):
        Scorer.open("shared", settings=deployment.given, model=told.model)
    # Two secrets of which one is not the other's successor; the second has not ended.
    monkeypatch.setenv("FRESHSCORE_FORMER_SECRET", "0dd5ec" * 8)
    assert deployment.run("lag") == 0
    assert deployment.run("secret", "status") == 2
    assert "is no successor of" in capsys.readouterr().err
    monkeypatch.setenv("FRESHSCORE_FORMER_SECRET", SECRET)
    assert deployment.run("secret", "next", "--from", "2090-01-01", "--out", out) == 2
    assert "a rotation is under way" in capsys.readouterr().err


def test_both_states_of_an_entity_are_shown_verified_invalidated_and_forgotten(
    deployment: SharedDeployment,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    since_ms = now_ms() + AHEAD_MS
    successor = rotate(deployment, since_ms)
    monkeypatch.setenv("FRESHSCORE_SECRET", successor)
    monkeypatch.setenv("FRESHSCORE_FORMER_SECRET", SECRET)
    assert deployment.run("consume", "--until-caught-up") == 0
    data = deployment.folder / "payments.parquet"
    payments().to_parquet(data)
    deployment.given["store.path"] = str(deployment.folder / "store")
    assert deployment.run("train", "--data", data, model__num_trees=8) == 0
    wait_until(since_ms - 1_000 * SKEW_S + 2_100)
    deployment.send([told.new(since_ms - 5_000 + 1_000 * n) for n in range(8)])
    assert deployment.consume()["applied"] == 8
    monkeypatch.setattr("freshscore.named_entity._asked", lambda part: "card-number-0")
    shown = deployment.figures("entities", "show", "--entity", "card")
    assert (shown["n_events"], shown["former"]["n_events"]) == (3, 5)
    assert shown["token"] != shown["former"]["token"]
    _check_verified(deployment, since_ms)
    ended = deployment.figures("cache", "invalidate", "--entity", "card")
    assert ended["what"] == shown["token"]
    assert ended["former"] == shown["former"]["token"]
    # A merchant that is folded under either token.
    monkeypatch.setattr("freshscore.named_entity._asked", lambda part: MERCHANTS[0])
    both = deployment.figures("entities", "show", "--entity", "merchant")
    assert both["n_events"] == 3
    assert both["former"]["n_tiles"] > 0
    wait_until(since_ms + 2_100)
    working = Working(deployment)
    forgotten = deployment.figures("entities", "forget", "--entity", "merchant")
    working.stop()
    for order in (forgotten, forgotten["former"]):
        assert order["is_carried_out"]
    left = deployment.figures("entities", "show", "--entity", "merchant")
    for state in (left, left["former"]):
        assert (state["n_events"], state["n_tiles"]) == (0, 0)


def _check_verified(deployment: SharedDeployment, since_ms: int) -> None:
    """Scores on both states of each entity, also of a merchant that is folded under either."""
    with deployment.opened() as found:
        wanted = sampled_states(found, 50, np.random.default_rng(1))
        compactor = Compactor(found.store)
        done = compactor.compact(wanted, fold_below_ms=since_ms - 2_500, only_due=False)
        assert done["swapped"] == len(wanted) > 3
    with Scorer.open("shared", settings=deployment.given) as scorer:
        for number in range(4):
            assert scorer.score(payment(600 + 6 * number, since_ms + 2_100)).degraded == ()
        scorer.flush(30.0)
    verified = deployment.figures("verify")
    assert {one["verdict"] for one in verified["states"]["findings"]} == {"equal"}
    assert verified["scores"] == {"outcomes": {"equal": 4}, "differences": []}
