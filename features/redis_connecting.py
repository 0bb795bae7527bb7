"""Connections to Redis and to its Sentinels, made by the library, which enters here alone.

A connection is handed on as a socket on which the user is known, the database chosen and, on Redis
itself, the scripts are loaded. The library is asked to say and to want nothing beside that: what a
user with the least rights may not do is never tried.
Rule: errors of the library end here: `Unavailable` where trying again makes sense, SettingsError
where somebody has to change something.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import redis
from pydantic import SecretStr
from redis.connection import Connection, parse_url

from freshscore.config.clock import Clock
from freshscore.config.errors import FreshscoreError, SettingsError, Unavailable
from freshscore.config.redis_url import RedisUrl
from freshscore.config.settings import RedisSettings
from freshscore.config.tls import tls_problem_of
from freshscore.features.redis_lines import Address
from freshscore.features.redis_scripts import SCRIPTS

# Whose password it is that was refused.
_OF_SERVER: Final = "redis.url with redis.password (FRESHSCORE_REDIS__PASSWORD)"
_OF_SENTINEL: Final = (
    "redis.sentinel_username with redis.sentinel_password (FRESHSCORE_REDIS__SENTINEL_PASSWORD)"
)


@dataclass(frozen=True)
class Connecting:
    """Makes connections as the settings say."""

    settings: RedisSettings
    _url: RedisUrl = field(init=False, repr=False)
    _given: Mapping[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        url = self.settings.parsed_url
        with _at_fault():
            given = parse_url(url.plain)  # type: ignore[no-untyped-call]  # the library's
        object.__setattr__(self, "_url", url)
        object.__setattr__(self, "_given", given)

    @property
    def servers(self) -> tuple[Address, ...]:
        """What the URL names: a server, a node of a cluster, or Sentinels."""
        return self._url.servers

    @property
    def primary(self) -> str | None:
        """The name that Sentinels know the server by; None without Sentinels."""
        return self._url.primary

    def connected(self, address: Address, limit_s: float, clock: Clock) -> socket.socket:
        """A socket on which the user is known and the scripts are loaded, within `limit_s`."""
        ends_s = clock.monotonic_s() + limit_s
        given = dict(self._given) | {"password": _shown(self.settings.password)}
        with _translated(_OF_SERVER, address, limit_s):
            connection = self._made(given, address, limit_s, partial(_shake_hands, ends_s, clock))
            try:
                for script in SCRIPTS:
                    connection.send_command("SCRIPT", "LOAD", script.text)
                for _ in SCRIPTS:
                    _bound(connection, ends_s, clock)
                    connection.read_response()
            except BaseException:
                connection.disconnect()
                raise
        return _socket_of(connection)

    def sentinel_connected(self, address: Address, limit_s: float, clock: Clock) -> socket.socket:
        """A socket to a Sentinel, within `limit_s`: it has users of its own, and no database."""
        ends_s = clock.monotonic_s() + limit_s
        settings = self.settings
        given = dict(self._given) | {
            "username": settings.sentinel_username,
            "password": _shown(settings.sentinel_password),
            "db": 0,
        }
        with _translated(_OF_SENTINEL, address, limit_s):
            shake_hands = partial(_shake_hands, ends_s, clock)
            return _socket_of(self._made(given, address, limit_s, shake_hands))

    def _made(
        self,
        given: dict[str, Any],
        address: Address,
        limit_s: float,
        shake_hands: Callable[[Connection], None],
    ) -> Any:
        """The library's connection, on which hands were shaken."""
        made_by = given.pop("connection_class", Connection)
        options = given | {
            "host": address[0],
            "port": address[1],
            "socket_timeout": limit_s,
            "socket_connect_timeout": limit_s,
            "socket_keepalive": True,
            # RESP 2: nothing comes unasked.
            "protocol": 2,
            "redis_connect_func": shake_hands,
        }
        with _at_fault((TypeError, ValueError, redis.RedisError)):
            connection = made_by(**options)
        try:
            with _at_fault():
                connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        return connection


@contextmanager
def _translated(whose: str, address: Address, limit_s: float) -> Iterator[None]:
    """Raise errors of the library as Unavailable or SettingsError."""
    try:
        yield
    except (redis.AuthenticationError, redis.exceptions.AuthorizationError) as problem:
        raise SettingsError(
            f"Redis refuses the user or password: that of {whose}: {problem}"
        ) from problem
    except redis.exceptions.NoPermissionError as problem:
        raise SettingsError(f"Redis refuses a command to this user: {problem}") from problem
    except redis.ResponseError as problem:
        if "unknown command 'SCRIPT'" in str(problem):
            raise SettingsError(
                "what redis.url names is a Sentinel: redis+sentinel://SENTINEL:26379/PRIMARY"
            ) from problem
        raise _of_trouble(problem, address, limit_s) from problem
    except (redis.RedisError, OSError) as problem:
        raise _of_trouble(problem, address, limit_s) from problem


def _of_trouble(problem: BaseException, address: Address, limit_s: float) -> FreshscoreError:
    """What the library's error is for a user; the one of TLS behind it, where there is one."""
    tls = tls_problem_of(problem)
    if isinstance(tls, ssl.SSLCertVerificationError):
        return SettingsError(
            f"Redis shows a certificate that is not accepted: {tls.verify_message};"
            " ssl_ca_certs in redis.url says whom to trust"
        )
    if tls is not None:
        return Unavailable(
            f"Redis ends TLS: {tls}; if it wants to see a certificate:"
            " ssl_certfile and ssl_keyfile in redis.url"
        )
    if isinstance(problem, (redis.TimeoutError, TimeoutError)):
        (host, port), limit_ms = address, max(0.0, 1_000.0 * limit_s)
        return Unavailable(f"Redis at {host}:{port}: no connection within {limit_ms:.0f} ms")
    return Unavailable(f"Redis: {problem}")


def _shown(password: SecretStr | None) -> str | None:
    return None if password is None else password.get_secret_value()


def _socket_of(connection: Any) -> socket.socket:
    """Taken from it, so that it does not close it; the library has no public way to its socket."""
    made: socket.socket = connection._sock
    connection._sock = None
    return made


@contextmanager
def _at_fault(kinds: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """Raise as SettingsError what the library says of values in redis.url, in errors of `kinds`."""
    try:
        yield
    except kinds as problem:
        if isinstance(problem, OSError):
            # A certificate that is not accepted is both.
            raise
        raise SettingsError(f"redis.url: {problem}") from problem


def _shake_hands(ends_s: float, clock: Clock, connection: Connection) -> None:
    """Do what the library does on a new connection, in what is left of the time."""
    _bound(connection, ends_s, clock)
    # By one of these names it would tell what it is called (CLIENT SETINFO), which the documented
    # user may not: each try would be a line of ACL LOG.
    for name in ("driver_info", "lib_name", "lib_version"):
        setattr(connection, name, None)
    connection.on_connect()  # type: ignore[no-untyped-call]  # the library's


def _bound(connection: Connection, ends_s: float, clock: Clock) -> None:
    """Let the next wait of a connection end at `ends_s`, on the monotonic clock."""
    left_s = ends_s - clock.monotonic_s()
    if left_s <= 0.0:
        raise TimeoutError("connecting took too long")
    # The library puts the first on its parser; the second is what a read waits by.
    connection.socket_timeout = left_s
    made: socket.socket = connection._sock  # type: ignore[assignment]  # connected by now
    made.settimeout(left_s)
