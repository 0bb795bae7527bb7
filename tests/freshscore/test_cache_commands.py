"""`freshscore cache show` and `cache invalidate` beside scorers that hold leases."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.invalidation.control import (
    COHORT,
    ENTITY,
    EVERYTHING,
    MODEL,
    Control,
    Invalidation,
)
from freshscore.scoring.leases import LeaseKeeper
from freshscore.scoring.model_file import CohortThresholds
from freshscore.scoring.registry import Registry
from freshscore.scoring.remote_scores import ScoreKeeper, encoded
from tests.freshscore.shared_deployment import CARDS, SECRET, SharedDeployment, now_ms
from tests.scoring.small_models import small_model
from tests.servers.redis_servers import RedisServer

TOKEN = bytes(range(1, 17))


@pytest.fixture
def deployment(
    redis_server: RedisServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SharedDeployment:
    """Without Kafka, which these commands do not need."""
    monkeypatch.setenv("FRESHSCORE_SECRET", SECRET)
    given = {
        "redis.url": redis_server.url,
        "redis.namespace": namespace,
        "redis.lease_s": 1.0,
        "redis.heartbeat_s": 0.05,
    }
    return SharedDeployment(tmp_path, given)


@pytest.fixture
def nodes(deployment: SharedDeployment) -> Iterator[Nodes]:
    found = Nodes.open(deployment.settings.redis)
    yield found
    found.close()


def keep(deployment: SharedDeployment, nodes: Nodes, model: str, *records: bytes) -> None:
    names = RedisKeys(deployment.settings.redis.namespace)
    keeper = ScoreKeeper(nodes, names, model, most=4, ttl_s=600)
    for record in records:
        keeper.keep(TOKEN, record)


def test_scores_are_shown_and_end(
    deployment: SharedDeployment, nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    show = ("cache", "show", "--entity", "card", "--hash", TOKEN.hex(), "--model")
    assert deployment.figures(*show, "m-1")["scores"] == []
    at_ms = now_ms()
    whole = encoded(bytes(range(16)), 0.125, at_ms, 0)
    keep(deployment, nodes, "m-1", whole[:-1] + b"?", whole)
    keep(deployment, nodes, "m-2", whole)
    shown = deployment.figures(*show, "m-1")
    assert [one["score"] for one in shown["scores"]] == [0.125, None]
    assert [one["is_served"] for one in shown["scores"]] == [True, False]
    assert shown["scores"][0]["feature_hash"] == bytes(range(16)).hex()
    assert 0 < shown["life_s"] <= 600
    assert "damaged" in capsys.readouterr().out

    assert deployment.run("cache", "invalidate", "--cohort", "all") == 0
    assert not deployment.figures(*show, "m-1")["scores"][0]["is_served"]
    ended = deployment.figures("cache", "invalidate", "--entity", "card", "--hash", TOKEN.hex())
    assert (ended["n_dropped"], ended["n_scorers"], ended["what"]) == (2, 0, TOKEN.hex())
    assert deployment.figures(*show, "m-1")["scores"] == []


def test_an_invalidation_waits_for_those_who_hold_a_lease(
    deployment: SharedDeployment, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that answers has carried it out; one that has gone is waited for until its lease ends."""
    told: list[Invalidation] = []
    done = threading.Event()

    def carry_out(some: Sequence[Invalidation]) -> None:
        told.extend(some)
        done.set()

    settings = deployment.settings.redis
    control = Control(nodes, settings.namespace)
    keeper = LeaseKeeper(control, "a", settings.lease_s, settings.heartbeat_s, carry_out)
    keeper.start()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{CARDS[0]}\n"))
    of_card = deployment.figures("cache", "invalidate", "--entity", "card")
    assert (of_card["n_scorers"], of_card["n_behind"]) == (1, 0)
    assert of_card["took_s"] < settings.lease_s
    assert told[-1] == Invalidation(ENTITY, of_card["what"])
    assert CARDS[0] not in str(of_card)
    deployment.figures("cache", "invalidate", "--model", "m 1")
    assert told[-1] == Invalidation(MODEL, "m 1")
    deployment.figures("cache", "invalidate", "--cohort", "gb")
    assert told[-1] == Invalidation(COHORT, "gb")

    control.renew("gone", round(1000 * settings.lease_s), -1)
    waited = deployment.figures("cache", "invalidate", "--everything")
    assert (waited["n_scorers"], waited["n_behind"]) == (2, 0)
    assert settings.lease_s / 2 < waited["took_s"] <= settings.lease_s + 1
    assert told[-1] == Invalidation(EVERYTHING, "")
    keeper.close()


def test_names_are_those_of_registered_models(
    deployment: SharedDeployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cohort that no model has ends nothing; a version may be one that only scorers know."""
    deployment.given["store.path"] = str(tmp_path)
    invalidate = ("cache", "invalidate")
    assert deployment.run(*invalidate, "--cohort", "gb") == 0
    assert "no model is registered here" in capsys.readouterr().err
    assert deployment.run(*invalidate, "--model", "m 1") == 0
    assert "'m 1' (there are: none)" in capsys.readouterr().err

    registry = Registry.of(tmp_path)
    abroad = CohortThresholds("abroad", 0.2, 0.4, "country", "GB")
    first = registry.add(small_model(0, cohorts=(abroad,)), "first", 1)
    second = registry.add(small_model(1), "second", 2)
    assert deployment.run(*invalidate, "--cohort", "gb", redis__url="redis://127.0.0.1:1/0") == 2
    assert "no registered model has a cohort 'gb'; there are all, abroad" in capsys.readouterr().err
    # Also one of a version that some scorers may still serve.
    for known in ("all", "abroad"):
        assert deployment.figures(*invalidate, "--cohort", known)["what"] == known
    # The beginning of a version, as `models show` takes it, means the version.
    assert deployment.figures(*invalidate, "--model", second)["what"] == second
    assert deployment.figures(*invalidate, "--model", second[:-4])["what"] == second
    assert capsys.readouterr().err == ""
    assert deployment.figures(*invalidate, "--model", "callable")["what"] == "callable"
    said = capsys.readouterr().err
    assert f"'callable' (there are: {first}, {second})" in said
    assert deployment.run(*invalidate, "--model", "2019") == 2
    assert "could be any of" in capsys.readouterr().err

    show = ("cache", "show", "--entity", "card", "--hash", TOKEN.hex(), "--model")
    assert deployment.figures(*show, second[:-4])["model"] == second
    assert capsys.readouterr().err == ""
    assert deployment.figures(*show, "callable")["model"] == "callable"
    said = capsys.readouterr().err
    assert f"no registered model has version 'callable' (there are: {first}, {second})" in said
    assert deployment.run(*show, "2019") == 2
    assert "could be any of" in capsys.readouterr().err


def test_a_lease_that_outlasts_the_setting_is_not_called_done(
    deployment: SharedDeployment, nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scorers with a longer lease than the operator's settings say: the exit code tells."""
    Control(nodes, deployment.settings.redis.namespace).renew("slow", 60_000, -1)
    words = ("cache", "invalidate", "--everything")
    found = deployment.figures(*words, code=1, redis__lease_s=0.1)
    assert found["n_behind"] == 1
    assert "not taken effect everywhere" in capsys.readouterr().err


def test_first_mistakes(
    deployment: SharedDeployment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    invalidate = ("cache", "invalidate")
    assert deployment.run(*invalidate) == 2
    assert "given: none" in capsys.readouterr().err
    assert deployment.run(*invalidate, "--model", "a", "--everything") == 2
    assert "--model and --everything" in capsys.readouterr().err
    assert deployment.run(*invalidate, "--hash", TOKEN.hex(), "--everything") == 2
    assert "give --entity" in capsys.readouterr().err
    assert deployment.run(*invalidate, "--everything", redis__url="redis://127.0.0.1:1/0") == 2
    assert "127.0.0.1:1" in capsys.readouterr().err
    show = ("cache", "show", "--model", "m", "--hash", TOKEN.hex(), "--entity")
    assert deployment.run(*show, "cart") == 2
    assert "no entity 'cart'" in capsys.readouterr().err
    monkeypatch.delenv("FRESHSCORE_SECRET")
    assert deployment.run(*show, "card") == 2
    assert "FRESHSCORE_SECRET" in capsys.readouterr().err
