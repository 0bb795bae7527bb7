"""The page about adopting: every command and every line of code on it runs as it stands there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from freshscore import cli
from freshscore.config.clock import SystemClock
from freshscore.simulations.generator import Parameters, generate
from tests.freshscore.shared_deployment import SECRET
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "adopting.md"
_DAY_MS = 86_400_000
_LIMIT_S = 120.0
# What keeps tests apart, and small; all else is as the page says.
_SMALL = {"MODEL__NUM_TREES": "8", "STORE__ARENA_BYTES": str(1 << 26), "KAFKA__PARTITIONS": "2"}
# What the page says to set.
_SET = {"STORE__PATH": "freshscore-data"}


@pytest.fixture
def place(
    kafka: KafkaBroker,
    redis_server: RedisServer,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with the file that the page begins with: two months of payments, up to now."""
    given = {"SECRET": SECRET, "REDIS__URL": redis_server.url, "REDIS__NAMESPACE": namespace}
    given |= {"KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap, "KAFKA__GROUP": namespace}
    given |= _SMALL | _SET
    for kind in ("transactions", "labels", "decisions", "dead_letters"):
        given[f"KAFKA__{kind.upper()}_TOPIC"] = f"{namespace}-{kind}"
    for name, value in given.items():
        monkeypatch.setenv(f"FRESHSCORE_{name}", value)
    days = 60
    start_ms = SystemClock().now_ms() // _DAY_MS * _DAY_MS - days * _DAY_MS
    parameters = Parameters(customers=40, terminals=80, days=days, start_ms=start_ms)
    frame = generate(parameters, np.random.default_rng(5))
    frame.to_parquet(tmp_path / "payments.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_runs_as_it_stands(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Step by step, in its order; what each step says must be seen is seen."""
    steps = re.split(r"^## \d\. .*$", _PAGE.read_text("utf-8"), flags=re.M)
    assert len(steps) == 6
    said = [_run(step, capsys) for step in steps[1:]]
    assert "Answers by source" in said[0]
    assert "How well scores tell frauds" in said[0]
    assert (place / "replay.html").exists()
    assert re.search(r"complete since, now", said[1])
    assert "whole" in said[1]
    assert re.search(r"published\W+1\b", said[2])
    assert re.search(r"degraded\W+0\b", said[2])
    assert re.search(r"^(approve|review|decline) \d+ 0$", said[3], re.M)
    # Every line of the shadow's table that the page explains is one that it prints.
    for name in re.findall(r"^\| `([a-z ]+)`.*\|", steps[3], re.M):
        assert name in said[2], name
    ran = sum(len(_commands(step)) for step in steps)
    assert ran == len(re.findall(r"^freshscore ", _PAGE.read_text("utf-8"), re.M)) == 9


def _commands(step: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", step, re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line]


def _run(step: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a step's commands, and its code, printed."""
    said = ""
    for line in _commands(step):
        words = line.split()[1:]
        if words[0] == "shadow":
            said += _shadowed(words)
            continue
        # In the page's own words it works until it is stopped.
        more = ["--until-caught-up"] if words[0] == "consume" else []
        code = cli.main([*words, *more])
        said += capsys.readouterr().out
        assert code == 0, line
    for block in re.findall(r"^```python\n(.*?)^```", step, re.M | re.S):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, _PAGE.name, "exec"), {})
        said += printed.getvalue()
    return said


def _shadowed(words: list[str]) -> str:
    """What a shadow printed that saw one payment."""
    command = [sys.executable, "-m", "freshscore", *words]
    more = {"FRESHSCORE_OUTPUT__PROGRESS_LINE_S": "0.1"}
    pipe = subprocess.PIPE
    shadow = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | more)
    ends = threading.Timer(_LIMIT_S, shadow.kill)
    ends.start()
    try:
        assert shadow.stderr is not None
        _read_until(shadow.stderr, "partitions are read here")
        _pay()
        _read_until(shadow.stderr, "1 payments")
        shadow.send_signal(signal.SIGTERM)
        out, problem = shadow.communicate()
    finally:
        ends.cancel()
        shadow.kill()
    assert shadow.returncode == 0, problem
    return out


def _read_until(lines: Iterable[str], words: str) -> None:
    for line in lines:
        if words in line:
            return
    raise AssertionError(f"the shadow ended without saying {words!r}")


def _pay() -> None:
    """One payment, by a producer of the team's own."""
    from freshscore.config.loading import load_settings
    from freshscore.invalidation.kafka_writing import LogWriter

    kafka = load_settings("shared").kafka
    now_ms = SystemClock().now_ms()
    payment = {"transaction_id": "own-1", "time": now_ms, "amount_minor": 4_999}
    payment |= {"currency": "EUR", "entities": {"card": "c-42", "merchant": "m-7"}}
    writer = LogWriter(kafka)
    writer.send(kafka.transactions_topic, None, json.dumps(payment).encode())
    writer.flush(_LIMIT_S)
    writer.close(_LIMIT_S)
