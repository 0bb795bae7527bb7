"""A random set of messages, events and facts of few payments, and ways to apply it.

For law 3: whatever the order and however often, the states must come out the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from freshscore.features.transaction import Transaction
from tests.laws.law_specifications import Scaled
from tests.laws.traffic import Traffic, changed
from tests.laws.worlds import World


@dataclass(frozen=True)
class Event:
    """An observed payment."""

    payment: Transaction


@dataclass(frozen=True)
class Fact:
    """What became known of a payment, with its entities and time."""

    payment: Transaction
    name: str
    value: bool
    sender_ms: int
    known_at_ms: int


Message = Event | Fact


def random_messages(
    scaled: Scaled, seed: int, n_payments: int = 120, *, in_conflict: bool = True
) -> list[Message]:
    """Events, some `in_conflict`, and facts of them, in no order that means anything.

    All lie within the horizon of each other, so that nothing is refused and nothing forgotten.
    """
    traffic = Traffic(scaled, random.Random(seed))
    chance = traffic.chance
    start_ms = traffic.newest_ms
    messages: list[Message] = []
    for _ in range(n_payments):
        payment = traffic.new().first
        time_ms = start_ms + chance.randrange(0, scaled.horizon_ms // 2, scaled.lattice_ms)
        contents = [changed(payment, time=time_ms)]
        traffic.recent[-1].contents[:] = contents
        if in_conflict and chance.random() < 0.2:
            contents.append(traffic.other_content(traffic.recent[-1]))
        if in_conflict and chance.random() < 0.1:
            contents.append(_elsewhere(contents[0], chance))
        messages += [Event(content) for content in contents]
        for _ in range(chance.choice((0, 0, 1, 2, 4))):
            name, value = traffic.fact()
            sender_ms = time_ms + chance.choice((0, 0, 1_000, 7_000))
            known_at_ms = sender_ms + chance.choice((0, 500))
            messages += [Fact(content, name, value, sender_ms, known_at_ms) for content in contents]
    chance.shuffle(messages)
    return messages


def _elsewhere(payment: Transaction, chance: random.Random) -> Transaction:
    """A content that differs in nothing but where it happened, on any side of the globe."""
    place = (chance.choice((-45.5, 0.0, 45.5)), chance.choice((-120.25, 0.0, 120.25)))
    return changed(payment, location=place)


def apply(world: World, messages: Iterable[Message]) -> None:
    """Apply the messages in this order."""
    for message in messages:
        row = world.row(message.payment)
        if isinstance(message, Event):
            world.store.observe(row)
        else:
            fact = world.specification.facts.index(message.name)
            known_at_ms, sender_ms = message.known_at_ms, message.sender_ms
            world.store.label(row, fact, message.value, known_at_ms, sender_ms, False)


def shuffled(
    messages: Sequence[Message], chance: random.Random, repeated: float = 0.3
) -> list[Message]:
    """The same messages in another order, some of them several times."""
    again = [message for message in messages if chance.random() < repeated]
    mixed = [*messages, *again, *again[::3]]
    chance.shuffle(mixed)
    return mixed
