"""What an operator's command opens of a shared deployment: its states in Redis, under its secret.

The identifier key is noted with each node's epoch, and once for the whole deployment by whoever
writes states first: states of another specification have epochs of their own, under one secret.
Rule: states of another secret are refused before anything is looked up, for under it every entity
would seem to be new.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import WrongSecret
from freshscore.config.secret import Secret, shared_secret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys
from freshscore.features.program import Program, compiled
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes, command
from freshscore.features.redis_keys import CONTROL, RedisKeys
from freshscore.features.redis_store import RedisStore
from freshscore.features.specification import FeatureSpecification
from freshscore.features.state_layout import state_fingerprints
from freshscore.features.store import StoreLimits
from freshscore.invalidation.node_reports import node_reports

# Of the identifier key: a field of a node's markers, and what the whole deployment shares.
KEY_ID: Final = "key_id"


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


def claim_key(nodes: Nodes, names: RedisKeys, key_id: str) -> None:
    """Note under which identifier key states are written from now on, whatever they are of.

    Raises WrongSecret where another key was noted first, Unavailable.
    """
    if _noted(nodes, names) is None:
        noted = command(b"SET", names.control(KEY_ID), key_id.encode(), b"NX")
        replies_to(nodes, [(CONTROL.encode(), noted)])
    check_key(nodes, names, key_id)


def check_key(nodes: Nodes, names: RedisKeys, key_id: str) -> None:
    """Raise WrongSecret where states, or a node's, were begun under another secret; Unavailable."""
    of_nodes = [report.key_id for report in node_reports(nodes, names)]
    for found in [_noted(nodes, names), *of_nodes]:
        if found not in (None, key_id):
            raise wrong_secret(found, key_id)


def wrong_secret(found: str, here: str) -> WrongSecret:
    """The error for states under identifier key `found` where the secret has key `here`."""
    return WrongSecret(
        f"Redis holds states under identifier key {found}; the secret here has key {here}"
    )


def _noted(nodes: Nodes, names: RedisKeys) -> str | None:
    asked = command(b"GET", names.control(KEY_ID))
    (found,) = replies_to(nodes, [(CONTROL.encode(), asked)])
    return None if found is None else found.decode()
