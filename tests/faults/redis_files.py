"""What a Redis that dies may have lost: the end of its append-only file, cut by hand.

With appendfsync everysec a crash of the machine loses about the last second. Killing the process
alone loses nothing, since the system still has what was written; so the file is cut as the machine
would have left it, at the border of a command, and never inside a transaction.
"""

from __future__ import annotations

from pathlib import Path

from tests.servers.redis_servers import RedisServer


def file_of(server: RedisServer) -> Path:
    """The file that commands are appended to."""
    folder = server.log.parent / "appendonlydir"
    (found,) = folder.glob("*.incr.aof")
    return found


def size_of(server: RedisServer) -> int:
    """How many bytes of commands there are by now."""
    return file_of(server).stat().st_size


def borders_of(data: bytes) -> list[int]:
    """The places behind each command that is not inside a transaction."""
    borders, at, is_inside = [], 0, False
    while at < len(data):
        at, name = _behind(data, at)
        if name == b"MULTI":
            is_inside = True
        elif name == b"EXEC":
            is_inside = False
        if not is_inside:
            borders.append(at)
    return borders


def cut(server: RedisServer, border: int) -> int:
    """Cut the file of a server that is dead; the commands that are lost with that."""
    path = file_of(server)
    data = path.read_bytes()
    lost = sum(1 for one in borders_of(data) if one > border)
    with path.open("r+b") as file:
        file.truncate(border)
    return lost


def _behind(data: bytes, at: int) -> tuple[int, bytes]:
    """The place behind the command at `at`, and its name."""
    n, at = _number(data, at, b"*")
    name = b""
    for part in range(n):
        length, at = _number(data, at, b"$")
        if part == 0:
            name = data[at : at + length].upper()
        at += length + 2
    return at, name


def _number(data: bytes, at: int, mark: bytes) -> tuple[int, int]:
    assert data[at : at + 1] == mark, f"no command at {at}"
    end = data.index(b"\r\n", at)
    return int(data[at + 1 : end]), end + 2
