"""What an operator's command opens of a shared deployment: its states in Redis, under its secret.

Rule: states of another secret are refused before anything is looked up, for under it every entity
would seem to be new.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import WrongSecret
from freshscore.config.secret import Secret, shared_secret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys
from freshscore.features.program import Program, compiled
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.redis_store import RedisStore
from freshscore.features.specification import FeatureSpecification
from freshscore.features.state_layout import state_fingerprints
from freshscore.features.store import StoreLimits
from freshscore.invalidation.node_reports import node_reports


@dataclass(frozen=True, slots=True)
class Deployment:
    """The states of the settings' specification, and what they are read with."""

    settings: Settings
    program: Program
    secret: Secret
    keys: Keys
    nodes: Nodes
    redis_keys: RedisKeys
    store: RedisStore
    clock: Clock


@contextmanager
def opened(settings: Settings, clock: Clock | None = None) -> Iterator[Deployment]:
    """The deployment that the settings name.

    Raises SettingsError without a secret that all processes have, WrongSecret for states of another
    one, BadSpecification, Unavailable.
    """
    clock = clock or SystemClock()
    program = compiled(FeatureSpecification.named(settings.store.specification))
    secret = shared_secret(settings.store.path)
    keys = Keys(program, secret)
    nodes = Nodes.open(settings.redis, clock)
    try:
        names = RedisKeys(settings.redis.namespace, state_fingerprints(program))
        check_key(nodes, names, keys.key_id)
        store = RedisStore(program, keys, StoreLimits.of(settings.store), nodes, clock)
        yield Deployment(settings, program, secret, keys, nodes, names, store, clock)
    finally:
        nodes.close()


def check_key(nodes: Nodes, names: RedisKeys, key_id: str) -> None:
    """Raise WrongSecret where a node was begun under another secret; Unavailable."""
    for report in node_reports(nodes, names):
        if report.key_id not in (None, key_id):
            raise WrongSecret(
                f"Redis holds states under identifier key {report.key_id}; the secret here has key"
                f" {key_id}"
            )
