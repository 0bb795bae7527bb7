"""Free ports for servers, which two test processes never take at once.

Rule: a port is below those that the system gives to outgoing connections. Otherwise a client that
knocks at a server which is just being restarted can be given the server's own port, and then talks
to itself while the server finds its port taken.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
# Debian and most others begin outgoing connections at 32768.
_LOWEST, _HIGHEST = 20_000, 32_767


@dataclass(frozen=True)
class Port:
    """A port of the loopback address, ours until it is released or this process ends."""

    number: int
    # A name in the system's abstract namespace: bound by one process at a time, and gone with it.
    _claim: socket.socket

    def release(self) -> None:
        """Let others have it; again does no harm."""
        self._claim.close()


def free_port() -> Port:
    """A port on which nothing listens, claimed; OSError where there is none left."""
    span = _HIGHEST - _LOWEST + 1
    # Somewhere else each time: late clients of a server that has gone do not meet the next one.
    first = (time.monotonic_ns() // 1000 + os.getpid() * 4099) % span
    for step in range(span):
        claimed = _claimed(_LOWEST + (first + step) % span)
        if claimed is not None:
            return claimed
    raise OSError(f"no free port between {_LOWEST} and {_HIGHEST}")


def _claimed(number: int) -> Port | None:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with contextlib.suppress(OSError):
        claim.bind(f"\0freshscore-tests-port-{number}")
        with socket.socket() as probe:
            probe.bind((LOOPBACK, number))
        return Port(number, claim)
    claim.close()
    return None
