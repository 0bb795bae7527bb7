"""`freshscore consume` as a supervisor sees it: being told to stop is no failure, at any time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.freshscore.shared_deployment import SharedDeployment

_LIMIT_S = 60.0


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(_LIMIT_S)
        yield server


def started(deployment: SharedDeployment, **further: Any) -> subprocess.Popen[str]:
    """A consumer in a process of its own."""
    given = deployment.given | {name.replace("__", "."): one for name, one in further.items()}
    told = [f"--settings={name}={json.dumps(value)}" for name, value in given.items()]
    figures = f"--json={deployment.folder / 'figures.json'}"
    command = [sys.executable, "-m", "freshscore", "consume", "--profile", "shared", figures, *told]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("server", ["kafka", "redis"])
def test_a_consumer_that_is_still_connecting_ends_well(
    deployment: SharedDeployment, silent: socket.socket, server: str, number: signal.Signals
) -> None:
    """While Kafka, or Redis behind it, does not answer."""
    address = f"127.0.0.1:{silent.getsockname()[1]}"
    where: dict[str, Any] = {
        "kafka": {"kafka__bootstrap_servers": address, "kafka__request_timeout_s": 300.0},
        "redis": {"redis__url": f"redis://{address}/0", "redis__timeout_ms": 60_000},
    }
    consumer = started(deployment, **where[server])
    try:
        connection, _ = silent.accept()
        with connection:
            consumer.send_signal(number)
            _, said = consumer.communicate(timeout=_LIMIT_S)
    finally:
        consumer.kill()
    assert consumer.returncode == 0, said
    assert "Traceback" not in said
    assert "before it had begun" in said
    assert json.loads((deployment.folder / "figures.json").read_text("utf-8")) == {"outcomes": {}}
