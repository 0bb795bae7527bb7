"""Real Redis servers: one by itself, and a cluster of them, in temporary folders.

The raw client is used here on purpose: tests look at the product from outside of its own door.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry

from tests.servers.ports import LOOPBACK
from tests.servers.server import Server, address

_SLOTS = 16_384
# A cluster agrees in 1 to 2 s, a replica copies its primary in the next second.
_CLUSTER_LIMIT_S = 60.0


class Tls(NamedTuple):
    """That a server speaks TLS alone.

    `ca_file`: whom it and its clients trust; `pem_file`: its key and certificate; `asks_clients`:
    whether clients must show a certificate, as `client_file` has one.
    """

    ca_file: Path
    pem_file: Path
    asks_clients: bool = False
    client_file: Path | None = None

    @property
    def query(self) -> str:
        """What a URL says of it behind its question mark."""
        own = f"&ssl_certfile={self.client_file}&ssl_keyfile={self.client_file}"
        return f"ssl_ca_certs={self.ca_file}{own if self.client_file else ''}"

    def lines(self, port: int) -> list[str]:
        """Of redis.conf."""
        return [
            "port 0",
            f"tls-port {port}",
            f"tls-cert-file {self.pem_file}",
            f"tls-key-file {self.pem_file}",
            f"tls-ca-cert-file {self.ca_file}",
            f"tls-auth-clients {'yes' if self.asks_clients else 'no'}",
            "tls-replication yes",
            "tls-cluster yes",
        ]


class RedisServer(Server):
    """One server; it keeps nothing on disk unless `appendonly`.

    `settings`: further lines of redis.conf, such as "maxmemory 64mb". `tls`: it speaks TLS alone.
    """

    name = "the Redis server"
    # 0.05 s on a quiet machine; reading a large append-only file takes longer.
    start_limit_s = 60.0

    def __init__(
        self,
        *,
        appendonly: bool = False,
        password: str | None = None,
        settings: Sequence[str] = (),
        tls: Tls | None = None,
        n_ports: int = 1,
    ) -> None:
        super().__init__(n_ports)
        self._password = password
        self._tls = tls
        self._settings = [f"appendonly {'yes' if appendonly else 'no'}"]
        if password is not None:
            # A replica shows its primary the password that clients show, unless told otherwise.
            self._settings += [f"requirepass {password}", f"masterauth {password}"]
        self._settings += settings

    @property
    def url(self) -> str:
        """What a client is given; with the password, if there is one."""
        return self.url_of("", self._password)

    def url_of(self, user: str, password: str | None = None) -> str:
        """What a client of that user is given."""
        who = f"{user}{f':{password}' if password else ''}"
        place = f"{who}@{address(self)}" if who else address(self)
        if self._tls is None:
            return f"redis://{place}/0"
        return f"rediss://{place}/0?{self._tls.query}"

    @property
    def version(self) -> str:
        with self.client() as client:
            return str(_info(client, "server")["redis_version"])

    def client(self) -> redis.Redis:
        """A new client of this server alone, which tries once; whoever asks closes it."""
        return redis.Redis.from_url(self.url, socket_timeout=5.0, retry=Retry(NoBackoff(), 0))

    def flush(self) -> None:
        """Forget everything that is stored: keys and loaded scripts."""
        with self.client() as client:
            client.flushall()
            client.script_flush()

    def _prepare(self) -> None:
        lines = [
            f"bind {LOOPBACK}",
            *(self._tls.lines(self.port) if self._tls else [f"port {self.port}"]),
            f"dir {self._folder}",
            'save ""',
            # By default a primary waits 5 s for further replicas before it copies itself.
            "repl-diskless-sync-delay 0",
            *self._settings,
        ]
        (self._folder / "redis.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _command(self) -> Sequence[str]:
        return ["redis-server", str(self._folder / "redis.conf")]

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        # Not listening yet, or still reading its append-only file.
        except (redis.ConnectionError, redis.TimeoutError):
            return False


class RedisCluster:
    """Redis Cluster on loopback: `nodes` are the primaries, then each primary's replica.

    A primary that dies is replaced by its replica after `node_timeout_ms` and about a second.
    """

    def __init__(
        self,
        primaries: int = 3,
        replicas: int = 0,
        *,
        appendonly: bool = False,
        password: str | None = None,
        node_timeout_ms: int = 1000,
        settings: Sequence[str] = (),
        tls: Tls | None = None,
    ) -> None:
        if primaries < 3 or replicas not in (0, 1):
            raise ValueError(f"3 primaries or more, with 0 or 1 replica: {primaries}, {replicas}")
        self._primaries = primaries
        clustered = ["cluster-enabled yes", f"cluster-node-timeout {node_timeout_ms}", *settings]
        self.nodes = [
            _ClusterNode(
                appendonly=appendonly, password=password, settings=clustered, tls=tls, n_ports=2
            )
            for _ in range(primaries * (1 + replicas))
        ]

    def __enter__(self) -> RedisCluster:
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
        """What freshscore is given: all nodes, for any of them may be the one that is away."""
        return self._of_all(self.nodes[0].url)

    @property
    def primaries(self) -> list[RedisServer]:
        """Those that were primaries when the cluster was made; each has an equal run of slots."""
        return [*self.nodes[: self._primaries]]

    @property
    def version(self) -> str:
        return self.nodes[0].version

    def url_of(self, user: str) -> str:
        """What a client of that user is given."""
        return self._of_all(self.nodes[0].url_of(user))

    def client(self) -> redis.RedisCluster:
        """A new client of the whole cluster; whoever asks closes it."""
        running = [node for node in self.nodes if node.is_running]
        others = cluster_nodes((LOOPBACK, node.port) for node in running[1:])
        return redis.RedisCluster.from_url(running[0].url, startup_nodes=others)

    def start(self) -> None:
        """Start all nodes and make them one cluster that serves all slots; or ServerFailed."""
        for node in self.nodes:
            node.start()
        self._give_slots()
        self._meet()
        self._attach_replicas()

    def wait_until_ok(self, limit_s: float = _CLUSTER_LIMIT_S) -> None:
        """Until every node that runs sees all slots served; ServerFailed after `limit_s`."""
        for node in self.nodes:
            if node.is_running:
                node.wait_until(node.sees_all_slots, limit_s)

    def flush(self) -> None:
        """Forget everything that is stored, on every node that is a primary now."""
        for node in self.nodes:
            if node.is_running and node.is_primary():
                node.flush()

    def close(self) -> None:
        """End all nodes and delete their data; again does no harm."""
        for node in self.nodes:
            node.close()

    def _of_all(self, url: str) -> str:
        """The URL of the first node as one of all nodes."""
        return url.replace(address(self.nodes[0]), ",".join(map(address, self.nodes)))

    def _give_slots(self) -> None:
        n = self._primaries
        for i, node in enumerate(self.nodes[:n]):
            node.ask("CLUSTER ADDSLOTSRANGE", _SLOTS * i // n, _SLOTS * (i + 1) // n - 1)
        for epoch, node in enumerate(self.nodes, start=1):
            # Nodes that meet with the same epoch would first have to settle whose counts.
            node.ask("CLUSTER SET-CONFIG-EPOCH", epoch)

    def _meet(self) -> None:
        first = self.nodes[0]
        for node in self.nodes[1:]:
            first.ask("CLUSTER MEET", LOOPBACK, node.port, node.bus_port)
        for node in self.nodes:
            node.wait_until(partial(node.knows, len(self.nodes)), _CLUSTER_LIMIT_S)
        self.wait_until_ok()

    def _attach_replicas(self) -> None:
        replicas = self.nodes[self._primaries :]
        for primary, replica in zip(self.nodes, replicas, strict=False):
            replica.ask("CLUSTER REPLICATE", primary.ask("CLUSTER MYID").decode())
        for replica in replicas:
            replica.wait_until(replica.follows, _CLUSTER_LIMIT_S)


class ReplicatedRedis(RedisServer):
    """A server that is a primary or a replica, and may change from one to the other."""

    name = "a Redis server of several"

    def ask(self, command: str, *arguments: object) -> Any:
        """The reply to a command of this server alone, as the client parses it."""
        with self.client() as client:
            return client.execute_command(command, *arguments)

    def is_primary(self) -> bool:
        return self._replication().get("role") == "master"

    def follows(self) -> bool:
        """Whether it is a replica that has copied its primary."""
        return self._replication().get("master_link_status") == "up"

    def _replication(self) -> dict[str, Any]:
        """What it says of that; nothing while it changes, which ends its connections."""
        try:
            with self.client() as client:
                return _info(client, "replication")
        except redis.ConnectionError:
            return {}


class _ClusterNode(ReplicatedRedis):
    """A server of a cluster; its second port is the one that nodes talk to each other on."""

    name = "a node of the Redis Cluster"

    @property
    def bus_port(self) -> int:
        return self._ports[1].number

    def knows(self, n_nodes: int) -> bool:
        return int(self.ask("CLUSTER INFO")["cluster_known_nodes"]) == n_nodes

    def sees_all_slots(self) -> bool:
        return bool(self.ask("CLUSTER INFO")["cluster_state"] == "ok")

    def _prepare(self) -> None:
        super()._prepare()
        with (self._folder / "redis.conf").open("a", encoding="utf-8") as file:
            file.write(f"cluster-port {self.bus_port}\n")


def cluster_nodes(places: Iterable[tuple[str, int]]) -> list[ClusterNode]:
    """Where a client of the library may ask for a cluster."""
    return [ClusterNode(*at) for at in places]  # type: ignore[no-untyped-call]  # the library's


def _info(client: redis.Redis, section: str) -> dict[str, Any]:
    found: Any = client.info(section)
    return dict(found)
