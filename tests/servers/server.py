"""What every server of the tests is: a temporary folder, ports, a process, and its end.

Rule: servers end by the process that was started, never by a name, and every wait has a limit.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.child import Child
from tests.servers.folder import Folder
from tests.servers.ports import LOOPBACK, Port, free_port


class Server(abc.ABC):
    """One server, not started yet; `with` starts it, and leaves nothing behind.

    Its ports and its folder are its own from the beginning to `close`, so that it comes back with
    its data, where clients look for it, after `stop` or `kill`.
    """

    name: str
    # The longest that it may take on a busy machine; far above what was seen on a quiet one.
    start_limit_s: float
    stop_limit_s: float = 30.0

    def __init__(self, n_ports: int) -> None:
        self._ports: list[Port] = [free_port() for _ in range(n_ports)]
        self._own_folder = Folder()
        self._child: Child | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port that it serves on, of the loopback address; the same after a restart."""
        return self._ports[0].number

    @property
    def pid(self) -> int:
        """The process id of the server that runs; RuntimeError where none does."""
        return self._running.pid

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.is_running

    @property
    def log(self) -> Path:
        """The file that its output goes to, of all its runs; gone after `close`."""
        return self._folder / "server.log"

    @property
    @abc.abstractmethod
    def version(self) -> str:
        """What the server that runs says of itself."""

    def start(self) -> None:
        """Start it, with its data if it ran before, and wait until it answers; or ServerFailed.

        The calling thread must live as long as the server is wanted (see Child).
        """
        if self.is_running:
            raise RuntimeError(f"{self.name} is running")
        self._prepare()
        self._child = Child(self.name, self._command(), self.log)
        try:
            self._child.wait_until(self._answers, self.start_limit_s)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in order, as SIGTERM does; its data stays."""
        running, self._child = self._running, None
        running.stop(self.stop_limit_s)

    def kill(self) -> None:
        """End it at once, as kill -9 does; its data stays as it is at this moment."""
        running, self._child = self._running, None
        running.kill()

    def restart(self) -> None:
        """Stop it in order and start it."""
        self.stop()
        self.start()

    def wait_until(self, holds: Callable[[], bool], limit_s: float) -> None:
        """Ask every 20 ms until it holds; ServerFailed if the server ends, or after `limit_s`."""
        self._running.wait_until(holds, limit_s)

    def close(self) -> None:
        """End it, and delete its data and its log; again does no harm."""
        if self._child is not None:
            self.kill()
        for port in self._ports:
            port.release()
        self._own_folder.remove()

    @property
    def _folder(self) -> Path:
        return self._own_folder.path

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._child

    @abc.abstractmethod
    def _prepare(self) -> None:
        """What must lie in the folder before a start; called before each."""

    @abc.abstractmethod
    def _command(self) -> Sequence[str]:
        """The program and its arguments."""

    @abc.abstractmethod
    def _answers(self) -> bool:
        """Whether it does its work already; it returns within about two seconds."""


def address(server: Server) -> str:
    """Where a client finds it: host and port."""
    return f"{LOOPBACK}:{server.port}"
