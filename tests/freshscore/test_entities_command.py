"""`freshscore entities show`: one state, by its hash or by an identifier that is never shown."""

from __future__ import annotations

import io

import pytest

from freshscore.features.redis_compaction import Compactor
from tests.freshscore.shared_deployment import (
    CARDS,
    MERCHANTS,
    SharedDeployment,
    label,
    now_ms,
    payment,
    recent,
)
from tests.servers.redis_servers import RedisServer


def show(
    deployment: SharedDeployment,
    monkeypatch: pytest.MonkeyPatch,
    entity: str,
    identifier: str,
    code: int = 0,
) -> dict[str, object]:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{identifier}\n"))
    found: dict[str, object] = deployment.figures("entities", "show", "--entity", entity, code=code)
    return found


def test_a_state_by_identifier_and_by_hash(
    deployment: SharedDeployment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    payments = recent(12)
    deployment.send(payments, [label(payments[1])])
    assert deployment.consume() == {"applied": 12, "looked up": 1}
    card = show(deployment, monkeypatch, "card", CARDS[1])
    assert (card["n_events"], card["n_facts"], card["n_tiles"]) == (2, 1, 0)
    assert card["oldest_ms"] == payments[1]["time"]
    assert card["newest_ms"] == payments[7]["time"]
    # Of the card's payments 1 and 7.
    assert card["aggregates"] == {
        "card_count_1h": 2.0,
        "card_count_2d": 2.0,
        "card_amount_sum_1h": 2.08,
        "card_amount_sum_2d": 2.08,
    }
    assert deployment.figures("entities", "show", "--entity", "card", "--hash", card["token"]) | {
        "now_ms": 0,
        "life_s": 0,
    } == card | {"now_ms": 0, "life_s": 0}
    shop = show(deployment, monkeypatch, "merchant", MERCHANTS[1])
    assert (shop["n_events"], shop["n_facts"]) == (6, 1)
    said = capsys.readouterr()
    for identifier in (*CARDS, *MERCHANTS, "payment-"):
        assert identifier not in said.out + said.err
        assert identifier not in (deployment.folder / "figures.json").read_text()


def test_on_a_terminal_the_identifier_is_asked_for_without_echo(
    deployment: SharedDeployment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts: list[str] = []

    def unseen(prompt: str) -> str:
        prompts.append(prompt)
        return CARDS[2]

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    deployment.send(recent(12))
    deployment.consume()
    monkeypatch.setattr("sys.stdin", Terminal("never read"))
    monkeypatch.setattr("getpass.getpass", unseen)
    assert deployment.figures("entities", "show", "--entity", "card")["n_events"] == 2
    assert prompts == ["card: "]
    assert CARDS[2] not in capsys.readouterr().out


def test_what_was_folded_and_forgotten_is_said(
    deployment: SharedDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.send(recent(40, until_ms=now_ms() - 2_400_000))
    deployment.consume()
    with deployment.opened() as found:
        wanted = [(1, deployment.token(found, "merchant", MERCHANTS[0]))]
        line_ms = now_ms()
        Compactor(found.store).compact(wanted, fold_below_ms=line_ms, only_due=False)
    shop = show(deployment, monkeypatch, "merchant", MERCHANTS[0])
    assert (shop["fold_ms"], shop["generation"], shop["n_events"]) == (line_ms, 1, 0)
    assert isinstance(shop["n_tiles"], int)
    assert shop["n_tiles"] > 0


def test_first_mistakes(
    deployment: SharedDeployment,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each has its sentence, and none shows what was typed."""
    words = ("entities", "show", "--entity", "card")
    assert show(deployment, monkeypatch, "card", "nobody", code=1)["problem"] == "state lost"
    deployment.send([payment(0, now_ms())])
    deployment.consume()
    absent = show(deployment, monkeypatch, "card", "nobody-at-all", code=1)
    assert (absent["problem"], absent["n_bytes"], absent["version"]) == (None, 0, None)
    assert deployment.run("entities", "show", "--entity", "cart") == 2
    assert "it has card, merchant" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        deployment.run(*words, "--hash", "card-number-1")
    said = capsys.readouterr()
    assert "32 hexadecimal digits" in said.err
    assert "card-number-1" not in said.err
    with pytest.raises(SystemExit):
        deployment.run(*words, "--hash", "0" * 32)
    assert "32 zeros stand for an entity that is absent" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert deployment.run(*words) == 2
    assert "no identifier of card" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("secret-card" * 40))
    assert deployment.run(*words) == 2
    assert "secret-card" not in capsys.readouterr().err
    assert deployment.run(*words, "--hash", "ab" * 16, redis__url="redis://127.0.0.1:1/0") == 2
    assert "127.0.0.1:1" in capsys.readouterr().err
    monkeypatch.setenv("FRESHSCORE_SECRET", "07" * 16)
    assert deployment.run(*words, "--hash", "ab" * 16) == 2
    assert "under identifier key" in capsys.readouterr().err
    monkeypatch.delenv("FRESHSCORE_SECRET")
    assert deployment.run(*words, "--hash", "ab" * 16) == 2
    assert "FRESHSCORE_SECRET" in capsys.readouterr().err


def test_damage_is_said(
    deployment: SharedDeployment, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.send([payment(0, now_ms())])
    deployment.consume()
    with deployment.opened() as found:
        key = found.store.reading.state_key(0, deployment.token(found, "card", CARDS[0]))
    with redis_server.client() as client:
        client.setrange(key, 9, b"\x01\x02")
    assert show(deployment, monkeypatch, "card", CARDS[0], code=1)["problem"] == "state damaged"
