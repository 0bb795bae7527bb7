"""A primary, its replica and the Sentinels that look after them, on loopback.

The raw client is used here on purpose: tests look at the product from outside of its own door.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import TracebackType

import redis

from tests.servers.ports import LOOPBACK
from tests.servers.redis_servers import RedisServer, ReplicatedRedis, Tls
from tests.servers.server import address

PRIMARY = "the-states"
# Two of three agree.
_QUORUM = 2
# Three Sentinels know of each other, and of the replica, within about two seconds.
_LIMIT_S = 60.0


class SentinelServer(RedisServer):
    """One Sentinel; it keeps what it learns in its folder."""

    name = "a Sentinel"

    def __init__(
        self, *, password: str | None, settings: Sequence[str], tls: Tls | None, watched: list[str]
    ) -> None:
        super().__init__(tls=tls)
        self._password = password
        own = [f"requirepass {password}", f"sentinel sentinel-pass {password}"] if password else []
        self._settings = [*own, *settings, *watched]

    def knows(self, n_sentinels: int) -> bool:
        """Whether it knows the other Sentinels, and the replica."""
        with self.client() as client:
            found = client.sentinel_master(PRIMARY)
        return (found["num-other-sentinels"], found["num-slaves"]) == (n_sentinels - 1, 1)

    def hands_over(self) -> bool:
        """Let the replica take the primary's place, once it is known well enough for that."""
        with self.client() as client:
            try:
                client.execute_command("SENTINEL", "FAILOVER", PRIMARY)
            except redis.ResponseError as problem:
                if "NOGOODSLAVE" not in str(problem):
                    raise
                return False
        return True

    def named(self) -> int:
        """The port of the primary, as this Sentinel names it."""
        with self.client() as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY)[1])

    def names(self, server: RedisServer) -> bool:
        """Whether that is the primary that it names."""
        return self.named() == server.port

    def _prepare(self) -> None:
        file = self._folder / "sentinel.conf"
        if file.exists():
            # It has written there what it has learnt.
            return
        lines = [
            f"bind {LOOPBACK}",
            *(self._tls.lines(self.port) if self._tls else [f"port {self.port}"]),
            f"dir {self._folder}",
            *self._settings,
        ]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _command(self) -> Sequence[str]:
        return ["redis-server", str(self._folder / "sentinel.conf"), "--sentinel"]


class RedisSentinels:
    """`nodes`: the primary, then its replica, as they were in the beginning; and `sentinels`.

    settings: further lines of both servers' redis.conf; of_sentinels: of the Sentinels' own.
    password: of the servers; sentinel_password: of the Sentinels. auth_user: who Sentinels are on
    the servers, and masters' replicas too, where the servers have users.
    """

    def __init__(
        self,
        *,
        n_sentinels: int = 3,
        appendonly: bool = False,
        password: str | None = None,
        sentinel_password: str | None = None,
        down_after_ms: int = 1_000,
        settings: Sequence[str] = (),
        of_sentinels: Sequence[str] = (),
        watched_with: Sequence[str] = (),
        tls: Tls | None = None,
    ) -> None:
        self._tls = tls
        self.nodes = [
            ReplicatedRedis(appendonly=appendonly, password=password, settings=settings, tls=tls)
            for _ in range(2)
        ]
        quorum = min(_QUORUM, n_sentinels)
        watched = [
            f"sentinel monitor {PRIMARY} {LOOPBACK} {self.nodes[0].port} {quorum}",
            f"sentinel down-after-milliseconds {PRIMARY} {down_after_ms}",
            f"sentinel failover-timeout {PRIMARY} 10000",
            *(f"sentinel {one.replace('PRIMARY', PRIMARY)}" for one in watched_with),
        ]
        if password is not None and not watched_with:
            watched.append(f"sentinel auth-pass {PRIMARY} {password}")
        self.sentinels = [
            SentinelServer(
                password=sentinel_password, settings=of_sentinels, tls=tls, watched=watched
            )
            for _ in range(n_sentinels)
        ]

    def __enter__(self) -> RedisSentinels:
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
    def url(self) -> str:
        """What the product is given."""
        return self.url_of("")

    def url_of(self, user: str) -> str:
        """What a client of that user of the servers is given."""
        listed = ",".join(address(one) for one in self.sentinels)
        scheme, query = ("rediss", f"?{self._tls.query}") if self._tls else ("redis", "")
        return f"{scheme}+sentinel://{user}{'@' if user else ''}{listed}/{PRIMARY}/0{query}"

    @property
    def version(self) -> str:
        return self.nodes[0].version

    @property
    def primary(self) -> ReplicatedRedis:
        """The server that the Sentinels name now."""
        port = next(one for one in self.sentinels if one.is_running).named()
        return next(one for one in self.nodes if one.port == port)

    def client(self) -> redis.Redis:
        """A new client of the server that the Sentinels name now; whoever asks closes it."""
        return self.primary.client()

    def start(self) -> None:
        """Start all, and wait until the replica follows and the Sentinels know each other."""
        primary, replica = self.nodes
        primary.start()
        replica.start()
        replica.ask("REPLICAOF", LOOPBACK, primary.port)
        replica.wait_until(replica.follows, _LIMIT_S)
        for sentinel in self.sentinels:
            sentinel.start()
        self.wait_until_known()

    def wait_until_known(self) -> None:
        """Until each Sentinel knows the others and the replica; ServerFailed if it takes long."""
        for one in self.sentinels:
            one.wait_until(partial(one.knows, len(self.sentinels)), _LIMIT_S)

    def fail_over(self, limit_s: float = _LIMIT_S) -> ReplicatedRedis:
        """Kill the primary, and wait until its replica has taken its place; the new primary."""
        gone = self.primary
        gone.kill()
        (other,) = (one for one in self.nodes if one is not gone)
        other.wait_until(other.is_primary, limit_s)
        for one in self.sentinels:
            one.wait_until(partial(one.names, other), limit_s)
        return other

    def flush(self) -> None:
        """Forget everything that is stored."""
        self.primary.flush()

    def close(self) -> None:
        """End all and delete their data; again does no harm."""
        for one in (*self.sentinels, *self.nodes):
            one.close()
