"""A deployment of real servers as an operator has it: topics, states, and commands run on them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from freshscore import cli
from freshscore.config.clock import SystemClock
from freshscore.config.loading import load_settings
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys, Packer
from freshscore.features.transaction import Transaction
from freshscore.invalidation.deployment import Deployment, opened
from freshscore.invalidation.kafka_writing import LogWriter
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisCluster, RedisServer

SECRET = "5ec7e7" * 8
CARDS = [f"card-number-{n}" for n in range(6)]
MERCHANTS = [f"shop-{n}" for n in range(2)]
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SPECIFICATION = """
name = "small"
currency = "EUR"
facts = ["fraud"]
features = [{ name = "amount", function = "amount" }]
[[entities]]
name = "card"
[[entities]]
name = "merchant"
mode = "grid"
resolution = 0.25
[[windows]]
entity = "card"
lengths = ["1h", "2d"]
aggregates = [{ function = "count" }, { function = "sum" }]
[[windows]]
entity = "merchant"
lengths = ["1h", "2d"]
aggregates = [{ function = "count" }, { function = "share", of = "fraud" }]
"""


@dataclass
class SharedDeployment:
    """Settings of its own on servers that others use too."""

    folder: Path
    given: dict[str, Any]

    @property
    def settings(self) -> Settings:
        """As the commands get them."""
        return load_settings("shared", settings=self.given)

    def run(self, *words: object, **further: Any) -> int:
        """The exit code of one command line on this deployment; further: settings, dots as __."""
        given = self.given | {name.replace("__", "."): value for name, value in further.items()}
        pairs = [f"{name}={json.dumps(value)}" for name, value in given.items()]
        options = [word for pair in pairs for word in ("--settings", pair)]
        return cli.main([*map(str, words), "--profile", "shared", *options])

    def figures(self, *words: object, code: int = 0, **further: Any) -> Any:
        """The figures of one command line that ends with `code`."""
        path = self.folder / "figures.json"
        path.unlink(missing_ok=True)
        assert self.run(*words, "--json", path, **further) == code
        return json.loads(path.read_text("utf-8"))

    def send(
        self, payments: list[dict[str, Any]], labels: list[dict[str, Any]] | None = None
    ) -> None:
        """Messages of a producer of its own: identifiers raw."""
        kafka = self.settings.kafka
        self.send_bytes(kafka.transactions_topic, [json.dumps(one).encode() for one in payments])
        self.send_bytes(kafka.labels_topic, [json.dumps(one).encode() for one in labels or ()])

    def send_bytes(self, topic: str, values: list[bytes]) -> None:
        """Any messages."""
        writer = LogWriter(self.settings.kafka)
        for value in values:
            writer.send(topic, None, value)
        writer.flush(30.0)
        writer.close(30.0)

    def consume(self) -> dict[str, int]:
        """Apply what the log holds; outcome -> messages."""
        found: dict[str, int] = self.figures("consume", "--until-caught-up")["outcomes"]
        return found

    def opened(self) -> Any:
        """What commands open: a context manager."""
        return opened(self.settings)

    def token(self, deployment: Deployment, entity: str, identifier: str) -> bytes:
        """The token of an identifier."""
        packer = Packer(deployment.program, Keys(deployment.program, deployment.secret))
        row = packer.row(Transaction("?", now_ms(), 0, "EUR", {entity: identifier}))
        names = [layout.name for layout in deployment.program.entities]
        found = deployment.store.maker.tokens(row)[names.index(entity)]
        assert found is not None
        return found


def now_ms() -> int:
    """The wall clock: brokers stamp with it."""
    return SystemClock().now_ms()


def payment(number: int, time_ms: int, **other: Any) -> dict[str, Any]:
    """One payment of a card and a merchant that follow from its number."""
    return {
        "transaction_id": f"payment-{number}",
        "time": time_ms,
        "amount_minor": 100 + number,
        "currency": "EUR",
        "entities": {"card": CARDS[number % 6], "merchant": MERCHANTS[number % 2]},
    } | other


def recent(n: int, first: int = 0, until_ms: int | None = None) -> list[dict[str, Any]]:
    """Payments a second apart, the last of them a second ago."""
    last_ms = (now_ms() if until_ms is None else until_ms) - 1_000
    return [payment(first + i, last_ms - 1_000 * (n - 1 - i)) for i in range(n)]


def label(of: Mapping[str, Any], fraud: bool = True, *, looked_up: bool = True) -> dict[str, Any]:
    """That a payment was a fraud; looked_up: without its entities and time."""
    found = {"transaction_id": of["transaction_id"], "flags": {"fraud": fraud}}
    found["sent_at"] = now_ms()
    return found if looked_up else found | {"entities": of["entities"], "time": of["time"]}


def shared_deployment(
    kafka: KafkaBroker,
    redis: RedisServer | RedisCluster,
    namespace: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SharedDeployment]:
    """A deployment whose topics are there, and whose states are not."""
    monkeypatch.setenv("FRESHSCORE_SECRET", SECRET)
    specification = folder / "small.toml"
    specification.write_text(SPECIFICATION, "utf-8")
    given = {
        "store.specification": str(specification),
        "store.horizon_s": 3_600,
        "kafka.bootstrap_servers": kafka.bootstrap,
        "kafka.group": namespace,
        "kafka.partitions": 2,
        "kafka.session_s": 6.0,
        "redis.url": redis.url,
        "redis.cluster": isinstance(redis, RedisCluster),
        "redis.namespace": namespace,
        "redis.heartbeat_s": 0.05,
        "redis.lease_s": 2.0,
    }
    for name in ("transactions", "labels", "decisions", "dead_letters"):
        given[f"kafka.{name}_topic"] = f"{namespace}-{name}"
    found = SharedDeployment(folder, given)
    assert found.run("topics", "check", "--create") == 0
    yield found
