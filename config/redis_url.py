"""The URL of Redis: one server, any node of a cluster, or the Sentinels that know a primary.

    redis://USER@HOST:6379/DATABASE
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
_MOST_SENTINELS: Final = 32
_SENTINEL: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
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
_HOST_AND_PORT: Final = f"must have a host, and a port from 1 to {_MOST_PORT}"


class RedisUrl(NamedTuple):
    """What a URL names.

    servers: host and port of the server or node, or of the Sentinels. primary: the name that the
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
    if "+sentinel://" in text:
        return _of_sentinels(text)
    parts = _split(text)
    host, port = _host_and_port(parts)
    if not _DATABASE_PATH.fullmatch(parts.path) or parts.fragment:
        raise ValueError("must name the database by its number, or none: redis://HOST:6379/0")
    _refuse_options(parts)
    return RedisUrl(((host, port or _PORT),), None, text)


def _of_sentinels(text: str) -> RedisUrl:
    scheme, _, rest = text.partition("+sentinel://")
    place, slash, path = rest.partition("/")
    user, at, listed = place.rpartition("@")
    names = listed.split(",")
    servers = tuple(_sentinel(one) for one in names)
    if len(servers) > _MOST_SENTINELS:
        raise ValueError(f"names {len(servers)} Sentinels, and at most {_MOST_SENTINELS} are asked")
    parts = _split(f"{scheme}://{user}{at}{names[0]}{slash}{path}")
    named = _PRIMARY_PATH.fullmatch(parts.path)
    if named is None or parts.fragment:
        raise ValueError(
            "must name the primary as the Sentinels do, and its database by a number or not at all:"
            " redis+sentinel://SENTINEL:26379,SENTINEL:26379/PRIMARY/0"
        )
    _refuse_options(parts)
    plain = parts._replace(path=named[2] or "").geturl()
    return RedisUrl(servers, named[1], plain)


def _sentinel(text: str) -> tuple[str, int]:
    found = _SENTINEL.fullmatch(text.strip())
    port = _SENTINEL_PORT if found is None or found[2] is None else int(found[2])
    if found is None or not 1 <= port <= _MOST_PORT:
        raise ValueError(
            f"must name each Sentinel by its host, and a port from 1 to {_MOST_PORT} or none,"
            " with commas between them"
        )
    return found[1].strip("[]"), port


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:
        raise ValueError(_HOST_AND_PORT) from None


def _host_and_port(parts: SplitResult) -> tuple[str, int | None]:
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(_HOST_AND_PORT) from None
    if not host or port == 0:
        raise ValueError(_HOST_AND_PORT)
    return host, port


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
