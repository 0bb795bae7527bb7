"""What every test stands on: a named seed, and no settings from the machine it runs on."""

from __future__ import annotations

import os
import zlib

import hypothesis
import numpy as np
import pytest

# Real servers, for the tests that ask for them.
pytest_plugins = ["tests.servers.fixtures"]

# Any fixed number: a plain run is repeatable, and `--seed` explores.
_DEFAULT_SEED = 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=_DEFAULT_SEED, help="seed of every random test that takes one"
    )
    parser.addoption(
        "--minutes", type=float, default=1.0, help="how long a soak of simulated worlds lasts"
    )


def pytest_configure(config: pytest.Config) -> None:
    # No deadline: the first call of a kernel compiles it.
    hypothesis.settings.register_profile("local", deadline=None, print_blob=True)
    # A submission must not fail by luck on what it did not touch; local runs keep exploring.
    hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')} (--seed N for another)"


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FRESHSCORE_")]:
        if name != "FRESHSCORE_CACHE_DIR":
            monkeypatch.delenv(name)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of this test's own, whatever runs before it."""
    run: int = request.config.getoption("--seed")
    return zlib.crc32(f"{run} {request.node.nodeid}".encode())


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A generator on this test's own seed."""
    return np.random.default_rng(seed)
