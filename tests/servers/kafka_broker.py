"""A real Kafka broker: one node in KRaft mode, of the jars that `make servers` fetches.

The raw client is used here on purpose: tests look at the product from outside of its own door.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import string
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from tests.servers.child import Child, ServerFailed
from tests.servers.ports import LOOPBACK
from tests.servers.server import Server, address

_JARS = Path(__file__).resolve().parents[2] / ".servers" / "kafka" / "libs"
_TEMPLATE = Path(__file__).parent / "kafka" / "server.properties"
# The first compiler alone starts the broker sooner, and the serial collector leaves the cores to
# the tests.
_JAVA = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


class KafkaBroker(Server):
    """One broker that is its own controller.

    `settings`: keys of server.properties that are added, or replace those of the template.
    `heap_mb`: the largest heap of its Java machine.
    """

    name = "the Kafka broker"
    # For its Java machine, beside those that all have.
    java_options: Sequence[str] = ()
    # 3.4 s on a quiet machine, 5 to 8.4 s after kill -9.
    start_limit_s = 90.0

    def __init__(
        self, *, settings: Mapping[str, str] | None = None, heap_mb: int = 512, n_ports: int = 2
    ) -> None:
        if not _JARS.is_dir():
            raise ServerFailed("the Kafka broker is not installed; run: make servers")
        super().__init__(n_ports)
        self._settings = dict(settings or {})
        self._heap_mb = heap_mb

    @property
    def bootstrap(self) -> str:
        """What a client is given as `bootstrap_servers`."""
        return address(self)

    @property
    def version(self) -> str:
        """What the broker's log says that it is, such as 4.1.1."""
        said = re.findall(r"Kafka version: (\S+)", self.log.read_text("utf-8", errors="replace"))
        if not said:
            raise ServerFailed("the Kafka broker did not tell its version in its log")
        return str(said[-1])

    @contextlib.contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        """A client that makes and describes topics and groups; closed at the end."""
        client = KafkaAdminClient(bootstrap_servers=self.bootstrap, reconnect_backoff_max_ms=200)
        try:
            yield client
        finally:
            client.close()

    def create_topic(
        self, name: str, *, partitions: int = 1, settings: Mapping[str, str] | None = None
    ) -> None:
        """Make a topic, and wait until each partition has its leader."""
        topic: dict[str, Any] = {"num_partitions": partitions, "configs": dict(settings or {})}
        with self.admin() as admin:
            admin.create_topics({name: topic}, wait_for_metadata=True)

    def _prepare(self) -> None:
        properties = self._folder / "server.properties"
        if properties.exists():
            return
        broker, controller, *_ = (port.number for port in self._ports)
        text = string.Template(_TEMPLATE.read_text("utf-8")).substitute(
            port=broker, controller_port=controller, data=self._folder / "data"
        )
        # Where a key is there twice, Java takes the last.
        added = "".join(f"{key}={value}\n" for key, value in self._settings.items())
        properties.write_text(f"{text}\n{added}", encoding="utf-8")
        # One that began with a dash would be taken for an option.
        cluster = base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        command = self._java(
            "kafka.tools.StorageTool", "format", "-t", cluster, *self._format_options()
        )
        Child("formatting the Kafka broker's storage", command, self.log).finish(self.start_limit_s)

    def _format_options(self) -> Sequence[str]:
        """What its storage is to begin with, beside nothing."""
        return ()

    def _command(self) -> Sequence[str]:
        return self._java("kafka.Kafka")

    def _java(self, program: str, *arguments: str) -> list[str]:
        heap = f"-Xmx{self._heap_mb}m"
        properties = str(self._folder / "server.properties")
        options = [*arguments, "-c", properties] if arguments else [properties]
        return ["java", heap, *_JAVA, *self.java_options, "-cp", f"{_JARS}/*", program, *options]

    def _answers(self) -> bool:
        """Whether it serves, and is not fenced: until then no partition finds a leader."""
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, self.port)) != 0:
                return False
        try:
            client = KafkaAdminClient(
                bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=1000, request_timeout_ms=2000
            )
        except KafkaError:
            return False
        try:
            brokers = client.describe_cluster()["brokers"]
        except KafkaError:
            return False
        finally:
            client.close()
        return bool(brokers) and not any(broker["is_fenced"] for broker in brokers)
