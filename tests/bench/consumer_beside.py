"""quixstreams beside us: the number and mean of a card in one sliding window, over the same topic.

It is installed into build/quixstreams when it is first needed: it wants an older pydantic than the
one that freshscore is tested with, so the two cannot share an environment.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

import numpy as np

from tests.bench.consumer_bench import ConsumerBench
from tests.bench.consumer_runs import consumed
from tests.bench.figures import Figure

_VERSION: Final = "quixstreams==3.28.1"
_FOLDER: Final = Path("build/quixstreams")
_LOOP: Final = Path(__file__).with_name("quixstreams_loop.py")
_N_READ: Final = 50_000
_TURNS: Final = 3
_LIMIT_S: Final = 300.0


def quixstreams(bench: ConsumerBench) -> list[Figure]:
    """Thousands of messages a second, ours in place beside theirs, by turns."""
    python = _environment()
    log = bench.handbook
    ours, theirs = [], []
    for turn in range(_TURNS):
        folder = bench.folder / f"quixstreams-{turn}"
        words = [bench.broker.bootstrap, log.name, str(_N_READ), str(folder)]
        theirs.append(float(_said([str(python), str(_LOOP), *words])))
        ours.append(consumed(bench.settings(log, bench.redis), 6 * _N_READ))
    name = "consumer, handbook, two entities of three windows"
    beside = "quixstreams, one entity, one sliding window"
    value, reference = float(np.median(ours)) / 1_000, float(np.median(theirs)) / 1_000
    return [Figure(name, value, "k/s", beside, reference)]


def _environment() -> Path:
    """The Python of an environment with quixstreams. RuntimeError where it cannot be installed."""
    python = _FOLDER / "bin" / "python"
    installed = _FOLDER / ".installed"
    if not installed.exists():
        print(f"installing {_VERSION} into {_FOLDER}, once", file=sys.stderr, flush=True)
        venv.create(_FOLDER, clear=True, with_pip=True)
        _said([str(python), "-m", "pip", "install", "--quiet", _VERSION])
        installed.touch()
    return python


def _said(command: list[str]) -> str:
    """What a command prints. RuntimeError with its errors where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{_VERSION} beside us failed: {done.stderr[-2_000:]}")
    return done.stdout
