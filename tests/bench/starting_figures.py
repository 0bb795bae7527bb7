"""64 scorers that start at once against one Redis, beside the same without turns of connecting.

Four processes of sixteen scorers each: all open at one moment, then sixteen threads of each score
for the first time. Another process reads meanwhile as a score does, and its latencies say what the
others do to Redis; on two cores the clients themselves take part of what it waits for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from tests.bench.figures import Figure
from tests.servers.certificates import Authority
from tests.servers.folder import Folder
from tests.servers.redis_servers import RedisServer, Tls

_CHILD: Final = Path(__file__).with_name("starting_child.py")
_PROCESSES, _SCORERS, _THREADS = 4, 16, 16
_BEFORE_S: Final = 1.0


def starting() -> list[Figure]:
    """With TLS and without, paced and not, by turns."""
    figures = []
    with ExitStack() as stack:
        for said, server in _servers(stack):
            unpaced, paced = (_Herd(server, paced=paced).run() for paced in (False, True))
            for name, value in paced.items():
                unit = "us" if "works" in name else "s" if "until" in name else "1/s"
                title = f"64 scorers start, {said}: {name}"
                figures.append(Figure(title, value, unit, "all at once", unpaced[name]))
    return figures


def _servers(stack: ExitStack) -> Sequence[tuple[str, RedisServer]]:
    folder = Folder()
    stack.callback(folder.remove)
    authority = Authority(folder.path, "bench")
    tls = Tls(authority.ca_file, authority.issued("redis"))
    return [
        ("plain", stack.enter_context(RedisServer())),
        ("TLS", stack.enter_context(RedisServer(tls=tls))),
    ]


class _Herd:
    """The processes of one run."""

    def __init__(self, server: RedisServer, *, paced: bool) -> None:
        self._server = server
        self._paced = paced

    def run(self) -> dict[str, float]:
        """Name -> figure."""
        herd = [self._child(_SCORERS) for _ in range(_PROCESSES)]
        working = self._child(0)
        before = self._counts()
        _tell([working])
        threading.Event().wait(_BEFORE_S)
        begun_s = perf_counter()
        _tell(herd)
        took_s = [json.loads(_line(one))["took_s"] for one in herd]
        ended_s = perf_counter()
        _tell([working])
        found = np.array(json.loads(_line(working))["found"])
        for one in (*herd, working):
            one.wait()
        after = self._counts()
        us = 1e6 * found[:, 1]
        # The monotonic clock is one for all processes of a machine.
        meanwhile = us[(found[:, 0] >= begun_s) & (found[:, 0] < ended_s)]
        return {
            "connections a second": (after[0] - before[0]) / max(took_s),
            "until all have scored": max(took_s),
            "a scorer that works, before, p99": float(np.quantile(us[found[:, 0] < begun_s], 0.99)),
            "a scorer that works, meanwhile, p99": float(np.quantile(meanwhile, 0.99)),
            "a scorer that works, meanwhile, longest": float(meanwhile.max()),
        }

    def _counts(self) -> tuple[int, int]:
        with self._server.client() as client:
            found: Any = client.info("stats")
        return found["total_connections_received"], found["total_commands_processed"]

    def _child(self, n_scorers: int) -> subprocess.Popen[str]:
        given: dict[str, Any] = {
            "paced": self._paced,
            "scorers": n_scorers,
            "threads": _THREADS,
            "redis": {"url": self._server.url, "timeout_ms": 60_000},
        }
        child = subprocess.Popen(
            [sys.executable, str(_CHILD), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert _line(child) == "ready\n"
        return child


def _tell(children: Sequence[subprocess.Popen[str]]) -> None:
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()
