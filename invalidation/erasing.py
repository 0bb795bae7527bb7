"""Erasing an entity everywhere: the order in the log, and waiting until it is carried out.

The order is a message in the topic of labels, so that whoever reads the log again, to rebuild a
node or for another specification, erases again; it arrives after all that it erases, and so is kept
for longer. Consumers carry it out (features/redis_erasing.py); cached scores end as with any
invalidation.
What other entities count stays: a payment of an erased card is still a payment of its merchant.
Rule: what is said to be erased was seen to be erased.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from freshscore.config.errors import Unavailable
from freshscore.features.redis_reading import Wanted
from freshscore.invalidation.control import ENTITY, Control, Invalidation
from freshscore.invalidation.delivery import Delivered
from freshscore.invalidation.deployment import Deployment
from freshscore.invalidation.entity_reading import read_entity
from freshscore.invalidation.kafka_writing import LogWriter
from freshscore.invalidation.messages import encode_erasure
from freshscore.invalidation.taking_effect import Effect, drop_scores, invalidated

_BETWEEN_LOOKS_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Erased:
    """What came of an order.

    below_ms: everything before it is erased. is_carried_out: whether it was seen to be. scores: how
    its cached scores ended. n_scores: models whose scores were deleted in Redis.
    """

    below_ms: int
    is_carried_out: bool
    scores: Effect
    n_scores: int


def erased_everywhere(deployment: Deployment, state: Wanted) -> Erased:
    """Order that an entity is erased, and wait for kafka.request_timeout_s at most.

    Raises Unavailable where the log does not take the order, or Redis does not answer.
    """
    below_ms = _ordered(deployment, state) + 1
    is_carried_out = _is_seen(deployment, state, below_ms)
    settings, nodes = deployment.settings, deployment.nodes
    told = Invalidation(ENTITY, state[1].hex())
    control = Control(nodes, settings.redis.namespace)
    effect = invalidated(control, told, settings.redis.lease_s, deployment.clock)
    n_scores = drop_scores(nodes, deployment.redis_keys, state[1])
    return Erased(below_ms, is_carried_out, effect, n_scores)


def _ordered(deployment: Deployment, state: Wanted) -> int:
    """Send the order; its arrival, ms."""
    kafka, (entity, token) = deployment.settings.kafka, state
    order = encode_erasure(deployment.keys.key_id, deployment.program.entities[entity].name, token)
    now_ms = deployment.clock.now_ms()
    delivered: list[Delivered | None] = []
    writer = LogWriter(kafka)
    try:
        writer.send(
            kafka.labels_topic,
            token,
            order,
            stamp_ms=now_ms if kafka.historical else None,
            done=delivered.append,
        )
        writer.flush(kafka.request_timeout_s)
    finally:
        writer.close(0.0)
    if not delivered or delivered[0] is None:
        raise Unavailable(f"the order did not reach the log at {kafka.bootstrap_servers}")
    return delivered[0].arrival_ms if delivered[0].arrival_ms >= 0 else now_ms


def _is_seen(deployment: Deployment, state: Wanted, below_ms: int) -> bool:
    """Whether the state says that it is erased, before the wait is over."""
    clock, waiting = deployment.clock, threading.Event()
    ends_s = clock.monotonic_s() + deployment.settings.kafka.request_timeout_s
    while True:
        view, _ = read_entity(deployment, *state)
        # One that was damaged before cannot say up to when, but that there is nothing left.
        if view.forgotten_below_ms >= below_ms or (view.problem and view.is_erased):
            return True
        if clock.monotonic_s() > ends_s:
            return False
        waiting.wait(_BETWEEN_LOOKS_S)
