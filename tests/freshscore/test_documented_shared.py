"""The page about many processes: what it tells to start runs as it stands there."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from freshscore import cli
from tests.freshscore.shared_deployment import SECRET
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "shared.md"


def test_what_to_start_runs_as_it_stands(
    kafka: KafkaBroker,
    redis_server: RedisServer,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the variables alone that say where servers are and keep tests apart."""
    page = _PAGE.read_text("utf-8").partition("## What to start")[2].partition("\n## ")[0]
    assert "pip install 'freshscore[shared]'" in page
    create, consume = re.findall(r"^\d\. .*`freshscore ((?:topics|consume) .*)`", page, re.M)
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    given = {"SECRET": SECRET, "REDIS__URL": redis_server.url, "REDIS__NAMESPACE": namespace}
    given |= {"KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap, "KAFKA__GROUP": namespace}
    for kind in ("transactions", "labels", "decisions", "dead_letters"):
        given[f"KAFKA__{kind.upper()}_TOPIC"] = f"{namespace}-{kind}"
    for name, value in given.items():
        monkeypatch.setenv(f"FRESHSCORE_{name}", value)
    assert cli.main(create.split()) == 0
    assert cli.main([*consume.split(), "--until-caught-up"]) == 0
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, _PAGE.name, "exec"), {})
    assert printed.getvalue() == "0.0\n1\n"
    capsys.readouterr()
    assert cli.main([*consume.split(), "--until-caught-up"]) == 0
    assert re.search(r"applied\W+1\b", capsys.readouterr().out)
