"""A server's process: it cannot outlive the tests, says why it failed, and waits have limits."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# How often a server that starts is asked whether it answers.
_STEP_S = 0.02
_TAIL_LINES = 40


class ServerFailed(RuntimeError):
    """A server that was promised is not there; never a reason to skip a test."""


class Child:
    """One process, with its output appended to `log`.

    The system kills it when the thread that made it ends, however that happens: a test run that is
    killed with -9 cannot clean up. `setpriv` asks for that (PR_SET_PDEATHSIG) in the new process,
    just before it becomes the server, which so keeps the process id. The same call from Python
    would run code between fork and exec, which can deadlock beside the threads of numba.
    Make it in a thread that lives as long as the server is wanted.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self._name = name
        self._log = log
        with log.open("ab") as output:
            try:
                self._process = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "--", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            except FileNotFoundError as error:
                raise ServerFailed(f"{name} cannot start: {error}; run: make servers") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def finish(self, limit_s: float) -> None:
        """Wait until it is done; ServerFailed if it says that it failed, or after `limit_s`."""
        if not self._has_ended(limit_s):
            self.kill()
        if self._process.returncode:
            raise self._failed(f"failed with code {self._process.returncode}")

    def wait_until(self, holds: Callable[[], bool], limit_s: float) -> None:
        """Return once it holds; ServerFailed if the process ends before, or after `limit_s`.

        `holds` must itself return in about two seconds.
        """
        end_s = time.monotonic() + limit_s
        while not holds():
            if self._has_ended(_STEP_S):
                raise self._failed(f"ended by itself with code {self._process.returncode}")
            if time.monotonic() > end_s:
                raise self._failed(f"is not ready after {limit_s} s")

    def stop(self, limit_s: float) -> None:
        """Ask it to end, and wait; ServerFailed, and killed, where it takes longer."""
        self._process.terminate()
        if not self._has_ended(limit_s):
            self.kill()
            raise self._failed(f"did not stop within {limit_s} s")

    def kill(self) -> None:
        """What kill -9 does. Returns when the process is gone; harmless where it is already."""
        self._process.kill()
        self._process.wait()

    def _failed(self, what: str) -> ServerFailed:
        lines = self._log.read_text("utf-8", errors="replace").splitlines()
        return ServerFailed(
            "\n".join([f"{self._name} {what}; its log ends:", *lines[-_TAIL_LINES:]])
        )

    def _has_ended(self, limit_s: float) -> bool:
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        return True
