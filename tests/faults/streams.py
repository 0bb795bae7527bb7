"""Seeded streams of messages, with everything that producers do: repeat, reorder, contradict.

Payments are few cards' at few merchants, so that states grow, are compacted and shared by all
partitions. Each identifier holds a mark that is in nothing else, for it is searched for later.
Rule: a label that brings no entities is of a payment that was acknowledged before it is sent, and
that no other content contradicts: then whether it finds its payment follows from the log.
"""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from kafka import KafkaProducer

from freshscore.config.clock import SystemClock
from freshscore.features.transaction import Transaction
from freshscore.invalidation.messages import encode_label, encode_transaction
from tests.faults.deployment import Deployment, Ground

_KINDS: Final = ("authorisation",) * 6 + ("refund", "verification", "reversal", "payout")
_ACKNOWLEDGED_S: Final = 60.0

Message = tuple[str, bytes | None]


@dataclass
class _Paid:
    """A payment that was drawn: its contents so far, and whether a fact of it was."""

    contents: list[dict[str, Any]]
    has_facts: bool = False
    is_in_time: bool = True


@dataclass
class Stream:
    """Draws messages of one ground; `chance` is seeded by its maker.

    span_ms: how far before now event times lie. meant: what hashed messages are of, for whoever
    reads them back, by the whole message, or by the hashed identity as messages write it: nobody
    else could tell.
    """

    ground: Ground
    chance: random.Random
    span_ms: int = 2_000
    n_cards: int = 12
    n_merchants: int = 5
    mark: str = ""
    n_drawn: int = 0
    meant: dict[bytes, Transaction] = field(default_factory=dict)
    _settled: deque[_Paid] = field(default_factory=lambda: deque(maxlen=400))
    _fresh: list[_Paid] = field(default_factory=list)
    _behind: deque[tuple[int, Message]] = field(default_factory=deque)
    _sent: deque[Message] = field(default_factory=lambda: deque(maxlen=300))

    def __post_init__(self) -> None:
        self.mark = self.mark or "".join(self.chance.choices("BCDFGHJKLMNPQRSTVWXZ", k=12))

    def messages(self, n: int, now_ms: int) -> list[Message]:
        """About `n` messages to be sent now: topic and value."""
        drawn: list[Message] = []
        for _ in range(n):
            self.n_drawn += 1
            draw = self.chance.choices(_STEPS, _WEIGHTS)[0]
            drawn += draw(self, now_ms)
            while self._behind and self._behind[0][0] <= self.n_drawn:
                drawn.append(self._behind.popleft()[1])
        self._sent.extend(drawn)
        return drawn

    def acknowledged(self) -> None:
        """What was drawn until now is in the log."""
        self._settled.extend(self._fresh)
        self._fresh.clear()

    def valid(self, n: int, now_ms: int) -> list[tuple[str, bytes]]:
        """`n` messages that are as they should be: payments, and labels with entities and time."""
        found = []
        for _ in range(n):
            self.n_drawn += 1
            payment = self._payment(now_ms - self.chance.randrange(self.span_ms))
            payment["entities"].setdefault("card", f"{self.mark}-card-0")
            whole = {name: payment[name] for name in ("transaction_id", "entities", "time")}
            if self.chance.random() < 0.7:
                found.append((self.ground.transactions, _json(payment)))
            else:
                found.append((self.ground.labels, _json(whole | self._said(now_ms))))
        return found

    def new(self, now_ms: int) -> list[Message]:
        """A payment; one in ten comes later, behind others."""
        paid = self._paid(now_ms - self.chance.randrange(self.span_ms))
        message = self._message(paid.contents[0])
        if self.chance.random() < 0.1:
            self._behind.append((self.n_drawn + self.chance.randrange(2, 20), message))
            return []
        self._fresh.append(paid)
        return [message]

    def again(self, now_ms: int) -> list[Message]:
        """A producer's duplicate."""
        return [self.chance.choice(self._sent)] if self._sent else self.new(now_ms)

    def hashed(self, now_ms: int) -> list[Message]:
        """What a scorer would have sent of a payment."""
        paid = self._any()
        if paid is None:
            return self.new(now_ms)
        content = self.chance.choice(paid.contents)
        return [(self.ground.transactions, self._hashed(Transaction.of(content)))]

    def late(self, now_ms: int) -> list[Message]:
        """A payment from before the horizon."""
        ago_ms = self.ground.horizon_ms + self.chance.randrange(500, 90_000)
        return [self._message(self._paid(now_ms - ago_ms, in_time=False).contents[0])]

    def early(self, now_ms: int) -> list[Message]:
        """A payment of a clock that is far ahead."""
        ahead_ms = self.ground.skew_ms + self.chance.randrange(600_000, 90_000_000)
        return [self._message(self._paid(now_ms + ahead_ms, in_time=False).contents[0])]

    def conflict(self, now_ms: int) -> list[Message]:
        """Another content of a payment's id; once it has facts only the amount differs."""
        paid = self._any()
        if paid is None:
            return self.new(now_ms)
        other = {**paid.contents[0], "kind": "authorisation"}
        other["amount_minor"] = (other["amount_minor"] + self.chance.randrange(1, 900)) % 2**40
        if not paid.has_facts and self.chance.random() < 0.5:
            other["entities"] = self._entities()
        if not paid.has_facts and self.chance.random() < 0.3:
            other["time"] -= self.chance.choice((1, 250))
        paid.contents.append(other)
        return [self._message(other)]

    def label(self, now_ms: int) -> list[Message]:
        """A fact with the payment's entities and time, for each content of the payment."""
        paid = self._any()
        if paid is None:
            return self.new(now_ms)
        paid.has_facts = True
        said = self._said(now_ms)
        if self.chance.random() < 0.3:
            return [(self.ground.labels, self._hashed_label(c, said)) for c in paid.contents]
        messages: list[Message] = []
        for content in paid.contents:
            whole = {name: content[name] for name in ("transaction_id", "entities", "time")}
            messages.append((self.ground.labels, _json(whole | said)))
        return messages

    def short_label(self, now_ms: int) -> list[Message]:
        """A fact with nothing but the id."""
        plain = [p for p in self._settled if p.is_in_time and len(p.contents) == 1]
        if not plain:
            return self.new(now_ms)
        paid = self.chance.choice(plain[-60:])
        paid.has_facts = True
        whole = {"transaction_id": paid.contents[0]["transaction_id"]}
        return [(self.ground.labels, _json(whole | self._said(now_ms)))]

    def stray_label(self, now_ms: int) -> list[Message]:
        """A fact of a payment that never comes."""
        whole = {"transaction_id": f"{self.mark}-never-{self.chance.randrange(10**9)}"}
        return [(self.ground.labels, _json(whole | self._said(now_ms)))]

    def wrong_key(self, now_ms: int) -> list[Message]:
        """A message hashed under a key that is not ours."""
        row = bytes(self.chance.randbytes(16)).hex()
        return [(self.ground.transactions, _json({**self._payment(now_ms), "ids": row[:8]}))]

    def malformed(self, now_ms: int) -> list[Message]:
        """What no reader takes."""
        payment = self._payment(now_ms)
        whole = _json(payment)
        broken: bytes | None = self.chance.choice(
            (
                None,
                b"",
                b"\x00\xff" + self.mark.encode(),
                whole[: self.chance.randrange(1, len(whole))],
                whole[:-1] + b',"time":5}',
                whole[:-1] + f',"{self.mark}":1}}'.encode(),
                _json({**payment, "amount_minor": 10**30}),
                _json({**payment, "amount_minor": self.mark}),
                _json({**payment, "entities": {"card": self.mark * 30}}),
                _json({**payment, "transaction_id": [self.mark]}),
                _json({**payment, "currency": self.mark}),
                b"[" * 900 + b"]" * 900,
                _json({**payment, "fields": {"note": self.mark * 300}}),
            )
        )
        return [(self.chance.choice(self.ground.sources), broken)]

    def request(self, number: int, time_ms: int) -> Transaction:
        """A payment to be scored, never sent; of entities of the stream, or new ones."""
        return Transaction.of(self.content(number, time_ms))

    def content(self, number: int, time_ms: int) -> dict[str, Any]:
        """The same, as its names and values."""
        return {**self._payment(time_ms), "transaction_id": f"{self.mark}-request-{number}"}

    def _paid(self, time_ms: int, *, in_time: bool = True) -> _Paid:
        return _Paid([self._payment(time_ms)], is_in_time=in_time)

    def _any(self) -> _Paid | None:
        return self.chance.choice([*self._settled][-80:]) if self._settled else None

    def _payment(self, time_ms: int) -> dict[str, Any]:
        chance = self.chance
        kind = chance.choice(_KINDS)
        payment: dict[str, Any] = {
            "transaction_id": f"{self.mark}-payment-{self.n_drawn}-{chance.randrange(10**6)}",
            "time": time_ms,
            "amount_minor": 0 if kind == "verification" else chance.choice((1, 99, 2_500, 2**40)),
            "currency": "EUR",
            "entities": self._entities(),
        }
        if kind not in ("authorisation", "verification") or chance.random() < 0.2:
            payment["kind"] = kind
        if kind not in ("verification",):
            payment["amount_minor"] += (
                0 if payment["amount_minor"] == 2**40 else chance.randrange(9_000)
            )
        else:
            payment["kind"] = kind
        if chance.random() < 0.1:
            payment["flags"] = {chance.choice(("fraud", "declined")): chance.random() < 0.7}
        return payment

    def _entities(self) -> dict[str, str]:
        chance = self.chance
        card = min(chance.randrange(self.n_cards), chance.randrange(self.n_cards))
        named = {
            "card": f"{self.mark}-card-{card}",
            "merchant": f"{self.mark}-shop-{chance.randrange(self.n_merchants)}",
            "device": f"{self.mark}-device-{card}",
        }
        return {name: which for name, which in named.items() if chance.random() < 0.95}

    def _said(self, now_ms: int) -> dict[str, Any]:
        chance = self.chance
        flags = {chance.choice(("fraud", "declined")): chance.random() < 0.7}
        said: dict[str, Any] = {"flags": flags, "sent_at": now_ms - chance.randrange(3)}
        if chance.random() < 0.2:
            said["known_at"] = said["sent_at"] + chance.randrange(2_000)
        return said

    def _message(self, content: dict[str, Any]) -> Message:
        return self.ground.transactions, _json(content)

    def _hashed(self, payment: Transaction) -> bytes:
        own = self.ground
        row = own.packer.row(payment)
        value = encode_transaction(own.program, own.keys.key_id, payment, row)
        self.meant[value] = payment
        return value

    def _hashed_label(self, content: dict[str, Any], said: dict[str, Any]) -> bytes:
        own, payment = self.ground, Transaction.of(content)
        row = own.packer.row(payment)
        told = (said["flags"], said["sent_at"], said.get("known_at"))
        value = encode_label(own.program, own.keys.key_id, row, *told)
        self.meant[value] = payment
        return value


_STEPS: Final = (
    Stream.new,
    Stream.again,
    Stream.hashed,
    Stream.late,
    Stream.early,
    Stream.conflict,
    Stream.label,
    Stream.short_label,
    Stream.stray_label,
    Stream.wrong_key,
    Stream.malformed,
)
_WEIGHTS: Final = (52, 9, 7, 2, 2, 4, 9, 6, 0.5, 1, 4)


class Sender:
    """A producer of others: sends to a partition that chance names, one message a batch or many."""

    def __init__(self, deployment: Deployment, chance: random.Random) -> None:
        self.deployment = deployment
        self._chance = chance
        self._clock = SystemClock()
        self.n_sent = 0
        self._producer = KafkaProducer(
            bootstrap_servers=deployment.broker.bootstrap,
            acks="all",
            linger_ms=0,
            reconnect_backoff_max_ms=200,
            max_block_ms=60_000,
            delivery_timeout_ms=600_000,
            enable_idempotence=False,
            allow_auto_create_topics=False,
        )

    def send(self, stream: Stream, n: int) -> None:
        """Send about `n` messages, and wait until they are in the log."""
        self.send_all(stream.messages(n, self._clock.now_ms()))
        stream.acknowledged()

    def send_all(self, messages: list[Message]) -> None:
        """Send messages, and wait until they are in the log."""
        for topic, value in messages:
            partition = self._chance.randrange(self.deployment.n_partitions)
            self._producer.send(topic, value, key=b"k", partition=partition)
        self.n_sent += len(messages)
        self._producer.flush(timeout=_ACKNOWLEDGED_S)

    def close(self) -> None:
        """Let go of the connection."""
        self._producer.close(timeout=5)


def _json(said: dict[str, Any]) -> bytes:
    return json.dumps(said, separators=(",", ":")).encode()
