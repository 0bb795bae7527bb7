"""The URL of Redis: one server, some nodes of a cluster, or the Sentinels that know a primary.

    redis://USER@HOST:6379/DATABASE
    redis://USER@HOST:6379,HOST:6379
    rediss://USER@HOST:6379/DATABASE?ssl_ca_certs=ca.pem
    redis+sentinel://USER@SENTINEL:26379,SENTINEL:26379/PRIMARY/DATABASE

The last is what clients with Sentinels in a URL have in common; USER is that of the server behind
them, and rediss+sentinel means TLS to the Sentinels and to the server, with the same options.
User, port and database may be left out.
Rule: pure, and no message quotes a part of what may be a password.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qs, urlsplit

SCHEMES: Final = r"^rediss?(\+sentinel)?://"
_MOST_PORT: Final = 65_535
_PORT: Final = 6_379
_SENTINEL_PORT: Final = 26_379
_MOST_SERVERS: Final = 32
_SERVER: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_AFTER_SERVERS: Final = re.compile(r"[/?#]|$")
# What Sentinel takes as a name.
_PRIMARY_PATH: Final = re.compile(r"/([A-Za-z0-9._-]{1,255})(/[0-9]{1,5})?")
_DATABASE_PATH: Final = re.compile(r"/?|/[0-9]{1,5}")
# Behind the "?". Those that ask an OCSP responder, or hold a certificate themselves, are left out:
# they have no form as text that the client reads rightly.
_TLS_OPTIONS: Final = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_keyfile",
    "ssl_min_version",
    "ssl_password",
)
_PASSWORD_IN_URL: Final = "holds a password, which belongs into FRESHSCORE_REDIS__PASSWORD"


class RedisUrl(NamedTuple):
    """What a URL names.

    servers: host and port of the server, of nodes, or of the Sentinels. primary: the name that the
    Sentinels know it by; None without Sentinels. plain: the URL of the first server as if it were
    the Redis itself, which has the user, the database and the options of TLS.
    """

    servers: tuple[tuple[str, int], ...]
    primary: str | None
    plain: str


def redis_url(text: str) -> RedisUrl:
    """What `text` names. Raises ValueError for what is none."""
    # First of all: no other message may quote a part of what is a password.
    if ":" in text.partition("://")[2].rpartition("@")[0]:
        raise ValueError(_PASSWORD_IN_URL)
    scheme, _, rest = text.partition("://")
    scheme, _, kind = scheme.partition("+")
    ends = _AFTER_SERVERS.search(rest)
    at = len(rest) if ends is None else ends.start()
    user, with_user, listed = rest[:at].rpartition("@")
    names = listed.split(",")
    if len(names) > _MOST_SERVERS:
        raise ValueError(f"names {len(names)} servers, and at most {_MOST_SERVERS} are asked")
    servers = tuple(_server(one, _SENTINEL_PORT if kind else _PORT) for one in names)
    parts = _split(f"{scheme}://{user}{with_user}{names[0]}{rest[at:]}")
    primary, database = _primary_in(parts) if kind else (None, _database_in(parts))
    _refuse_options(parts)
    return RedisUrl(servers, primary, parts._replace(path=database).geturl())


def _server(text: str, port_without: int) -> tuple[str, int]:
    found = _SERVER.fullmatch(text.strip())
    port = port_without if found is None or found[2] is None else int(found[2])
    if found is None or not 1 <= port <= _MOST_PORT:
        raise ValueError(
            f"must name each server by its host, and a port from 1 to {_MOST_PORT} or none,"
            " with commas between them"
        )
    return found[1].strip("[]"), port


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:
        # Of the user: the servers were looked at.
        raise ValueError("has a user with characters that must be written as %XX") from None


def _database_in(parts: SplitResult) -> str:
    """The path that names the database, or none."""
    if not _DATABASE_PATH.fullmatch(parts.path) or parts.fragment:
        raise ValueError("must name the database by its number, or none: redis://HOST:6379/0")
    return parts.path


def _primary_in(parts: SplitResult) -> tuple[str, str]:
    """The name of the primary, and the path behind it."""
    named = _PRIMARY_PATH.fullmatch(parts.path)
    if named is None or parts.fragment:
        raise ValueError(
            "must name the primary as the Sentinels do, and its database by a number or not at all:"
            " redis+sentinel://SENTINEL:26379,SENTINEL:26379/PRIMARY/0"
        )
    return named[1], named[2] or ""


def _refuse_options(parts: SplitResult) -> None:
    """Raise ValueError for what stands behind the "?" and is no option of TLS."""
    given = parse_qs(parts.query, keep_blank_values=True)
    if "password" in given:
        raise ValueError(_PASSWORD_IN_URL)
    strange = sorted(given.keys() - _TLS_OPTIONS)
    if strange:
        raise ValueError(
            f"has unknown options: {', '.join(strange)}; those that there are:"
            f" {', '.join(_TLS_OPTIONS)}"
        )
    if given and parts.scheme != "rediss":
        raise ValueError(f"has options of TLS ({', '.join(given)}), which needs rediss://")
    empty = [name for name, values in given.items() if "" in values]
    if empty:
        raise ValueError(f"gives no value to {', '.join(empty)}")
