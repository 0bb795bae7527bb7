"""Shadows on a deployment of real servers: a model for them, their work, what they said."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.letter_reading import values_between
from freshscore.scoring.decisions import Decision, unpacked
from freshscore.scoring.shadow_opening import GROUP_SUFFIX, open_shadow
from freshscore.scoring.shadowing import Shadow
from freshscore.simulations.clock import VirtualClock
from tests.freshscore.shared_deployment import SharedDeployment
from tests.freshscore.stored_models import payments

LIMIT_S = 60.0


def with_model(deployment: SharedDeployment) -> SharedDeployment:
    """The deployment, with a champion in a store of its own."""
    data = deployment.folder / "payments.parquet"
    payments().to_parquet(data)
    deployment.given["store.path"] = str(deployment.folder / "store")
    assert deployment.run("train", "--data", data, model__num_trees=8) == 0
    return deployment


def begun(deployment: SharedDeployment) -> Shadow:
    """A shadow that has both partitions, so that whatever is sent from now on is answered."""
    shadow = open_shadow(deployment.settings)
    turns_until(shadow, lambda: shadow.n_partitions == 2)
    return shadow


def turns_until(shadow: Shadow, is_so: Callable[[], bool]) -> None:
    """Turn after turn, within the limit."""
    waiting = threading.Event()
    for _ in range(round(LIMIT_S / 0.02)):
        shadow.turn()
        if is_so():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not come to be so")


@contextmanager
def working(shadow: Shadow) -> Iterator[None]:
    """The shadow at work, in a thread, closed at the end."""

    def work() -> None:
        while not shadow.is_stopping:
            shadow.turn()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        shadow.stop()
        thread.join(LIMIT_S)
        assert not thread.is_alive()
        shadow.close()


def values_of(deployment: SharedDeployment, topic: str) -> dict[tuple[int, int], bytes]:
    """All messages of a topic, by partition and offset."""
    reader = LogReader(deployment.settings.kafka, [topic], group=None, in_place=False)
    try:
        places = [(topic, number) for number in reader.partitions(topic)]
        ends = reader.ends(places)
        return {
            (at[1], offset): value
            for at in places
            for offset, value in enumerate(
                values_between(reader, at, 0, ends[at], 30.0, VirtualClock(0))
            )
        }
    finally:
        reader.close()


def decisions_of(deployment: SharedDeployment) -> list[Decision]:
    """All decisions in the log."""
    topic = deployment.settings.kafka.decisions_topic
    return [unpacked(value) for value in values_of(deployment, topic).values()]


def committed_of(deployment: SharedDeployment) -> list[int | None]:
    """What shadows have committed, by partition."""
    kafka = deployment.settings.kafka
    reader = LogReader(kafka, [kafka.transactions_topic], group=kafka.group + GROUP_SUFFIX)
    try:
        return [reader.committed((kafka.transactions_topic, number)) for number in range(2)]
    finally:
        reader.close()
