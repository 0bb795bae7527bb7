"""Topics that consumers are measured on: generated payments as JSON, in the order of their times.

They are history: each message is stamped with its own time. The producer is a plain kafka-python
one, with the batches of a busy system.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from kafka import KafkaProducer

from freshscore.simulations.generator import Parameters, generate_tables
from tests.servers.kafka_broker import KafkaBroker

N_PARTITIONS: Final = 8
_START_MS: Final = 1_522_540_800_000
_BATCH_BYTES: Final = 256 * 1024
_LINGER_MS: Final = 20
_HISTORY: Final = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
_LIVE: Final = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}

# A message: key, stamp (ms), value.
Message = tuple[bytes, int, bytes]


@dataclass(frozen=True)
class Log:
    """A topic of payments with its empty topic of labels. n: messages."""

    name: str
    n: int

    @property
    def labels(self) -> str:
        """The topic of labels."""
        return f"{self.name}-labels"


def handbook(n: int | None = None, *, devices: bool = False) -> Iterator[Message]:
    """The Handbook's payments: 5,000 cards, 10,000 terminals, 1.77 M in 183 days; or the first."""
    sent = 0
    names = ("card", "merchant", *(("device", "ip", "email") if devices else ()))
    for table in generate_tables(Parameters(devices=devices), np.random.default_rng(1)):
        columns = [table[name].to_pylist() for name in ("transaction_id", "time_ms")]
        amounts = table["amount_minor"].to_pylist()
        entities = [table[name].to_pylist() for name in names]
        for identity, time_ms, amount, *of in zip(*columns, amounts, *entities, strict=True):
            if sent == n:
                return
            sent += 1
            yield _message(identity, time_ms, amount, dict(zip(names, of, strict=True)))


def uniform(n: int, n_cards: int, n_merchants: int) -> Iterator[Message]:
    """Payments of random cards at random merchants, 20 ms apart."""
    rng = np.random.default_rng(1)
    cards = rng.integers(n_cards, size=n).tolist()
    merchants = rng.integers(n_merchants, size=n).tolist()
    for i, (card, merchant) in enumerate(zip(cards, merchants, strict=True)):
        of = {"card": f"c-{card:08d}", "merchant": f"m-{merchant:08d}"}
        yield _message(f"t-{i:09d}", _START_MS + 20 * i, 4_999, of)


def payment(identity: str, time_ms: int, amount_minor: int, entities: dict[str, str]) -> bytes:
    """One message as another system writes it: raw identifiers, blanks behind commas and colons."""
    said = {"v": 1, "transaction_id": identity, "time": time_ms, "amount_minor": amount_minor}
    return json.dumps({**said, "currency": "EUR", "entities": entities}).encode()


def _message(identity: str, time_ms: int, amount: int, entities: dict[str, str]) -> Message:
    return entities["card"].encode(), time_ms, payment(identity, time_ms, amount, entities)


def filled(broker: KafkaBroker, name: str, messages: Iterable[Message]) -> Log:
    """A new topic with these messages, each in the partition of its key."""
    made(broker, name, _HISTORY)
    producer: Any = KafkaProducer(
        bootstrap_servers=broker.bootstrap,
        acks="all",
        linger_ms=_LINGER_MS,
        batch_size=_BATCH_BYTES,
        metrics_enabled=False,
    )
    n = 0
    for key, stamp_ms, value in messages:
        producer.send(name, value=value, key=key, timestamp_ms=stamp_ms)
        n += 1
    producer.flush(timeout=120)
    producer.close()
    return Log(name, n)


def empty(broker: KafkaBroker, name: str) -> Log:
    """A new topic that the broker stamps, for live traffic."""
    made(broker, name, _LIVE)
    return Log(name, 0)


def made(broker: KafkaBroker, name: str, options: dict[str, str]) -> None:
    """Make a topic of payments and one of labels."""
    for topic in (name, f"{name}-labels"):
        broker.create_topic(topic, partitions=N_PARTITIONS, settings=options)


def made_others(broker: KafkaBroker, names: Sequence[str] = ("decisions", "dead-letters")) -> None:
    """Make the topics that nothing is measured on."""
    for name in names:
        broker.create_topic(name, partitions=N_PARTITIONS)
