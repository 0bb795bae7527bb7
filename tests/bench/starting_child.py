"""One process of the figures of starting: what scorers do to Redis as they open, or one that works.

Called as `starting_child.py JSON`; it says "ready", begins at a line of standard input, and prints
what it measured as JSON. There is no model and no state here: a scorer opens with its nodes, its
lease, and a connection for each thread that scores, and it is these that Redis feels.
paced: false takes the turns of connecting out.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freshscore.config.settings import RedisSettings
from freshscore.features import redis_door
from freshscore.features.redis_door import Nodes, command
from freshscore.invalidation.control import Control

_READS = command(b"GET", b"progress") + command(b"GET", b"card") + command(b"GET", b"merchant")


def main(given: dict[str, Any]) -> None:
    """Do what `given` says."""
    if not given["paced"]:
        vars(redis_door)["_CONNECTING_AT_ONCE"] = 1 << 16
    settings = RedisSettings.model_validate(given["redis"])
    Nodes.open(settings).close()
    print("ready", flush=True)
    sys.stdin.readline()
    found = _starting(settings, given) if given["scorers"] else _working(settings)
    print(json.dumps(found), flush=True)


def _starting(settings: RedisSettings, given: dict[str, Any]) -> dict[str, Any]:
    """Open the scorers, then have the first scores of all at once; how long it took, seconds."""
    n_scorers, n_threads = given["scorers"], given["scorers"] * given["threads"]
    begun_s = time.perf_counter()
    with ThreadPoolExecutor(n_threads) as pool:
        opened = [*pool.map(lambda number: _opened(settings, number), range(n_scorers))]
        together = threading.Barrier(n_threads)

        def first(number: int) -> None:
            with opened[number % n_scorers].lines() as lines:
                together.wait()
                lines.exchange([_READS], [3])
                # So that no connection is used twice.
                together.wait()

        for done in [pool.submit(first, number) for number in range(n_threads)]:
            done.result()
    took_s = time.perf_counter() - begun_s
    for nodes in opened:
        nodes.close()
    return {"took_s": took_s}


def _opened(settings: RedisSettings, number: int) -> Nodes:
    nodes = Nodes.open(settings)
    Control(nodes, "fs").renew(f"{number}", 5_000, -1)
    return nodes


def _working(settings: RedisSettings) -> dict[str, Any]:
    """Read as a score does until the next line; when each began, and how long it took, seconds."""
    is_over = threading.Event()

    def wait() -> None:
        sys.stdin.readline()
        is_over.set()

    threading.Thread(target=wait, daemon=True).start()
    found, pause = [], threading.Event()
    nodes = Nodes.open(settings)
    with nodes.lines() as lines:
        while not is_over.is_set():
            begun_s = time.perf_counter()
            lines.exchange([_READS], [3])
            found.append((begun_s, time.perf_counter() - begun_s))
            pause.wait(0.001)
    nodes.close()
    return {"found": found}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
