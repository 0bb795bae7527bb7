"""What an operator's command opens of a shared deployment: its states in Redis, under its secret.

The identifier keys are noted with each node's epoch, and once for the whole deployment by whoever
writes states first: states of another specification have epochs of their own, under one secret.
What the notes mean is in invalidation/identifier_keys.py.
Rule: states of another secret are refused before anything is looked up, for under it every entity
would seem to be new.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from freshscore.config.clock import Clock, SystemClock
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
from freshscore.invalidation.identifier_keys import IdentifierKeys, KeyNote
from freshscore.invalidation.node_reports import node_reports

# Of the identifier keys: a field of a node's markers, and what the whole deployment shares.
KEY_ID: Final = "key_id"

# KEYS the note; ARGV what it was, empty for nothing, and what it is to be.
_REPLACE: Final = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
# Others may note something first; then their note is judged.
_MOST_NOTES: Final = 3


@dataclass(frozen=True, slots=True)
class Deployment:
    """The states of the settings' specification, and what they are read with."""

    settings: Settings
    program: Program
    secret: Secret
    keys: Keys
    identifier_keys: IdentifierKeys
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
        own = IdentifierKeys.of(settings, program, keys)
        check_key(nodes, names, own, clock.now_ms())
        store = RedisStore(program, keys, StoreLimits.of(settings.store), nodes, clock)
        yield Deployment(settings, program, secret, keys, own, nodes, names, store, clock)
    finally:
        nodes.close()


def claim_key(nodes: Nodes, names: RedisKeys, own: IdentifierKeys, now_ms: int) -> None:
    """Note under which identifier keys states are written from now on, whatever they are of.

    Raises WrongSecret where states are under others, Unavailable.
    """
    for _ in range(_MOST_NOTES):
        note = check_key(nodes, names, own, now_ms)
        wanted = own.judged(note, now_ms)
        if wanted == note:
            return
        key, said = names.control(KEY_ID), b"" if note is None else note.text
        replace = command(b"EVAL", _REPLACE.encode(), b"1", key, said, wanted.text)
        if note is None:
            replace = command(b"SET", key, wanted.text, b"NX")
        replies_to(nodes, [(CONTROL.encode(), replace)])


def check_key(nodes: Nodes, names: RedisKeys, own: IdentifierKeys, now_ms: int) -> KeyNote | None:
    """The note, if what is noted allows a process with these keys. Raises WrongSecret, Unavailable.

    now_ms: the clock of the process.
    """
    for report in node_reports(nodes, names):
        own.check_node(report.key_id)
    return check_note(nodes, names, own, now_ms)


def check_note(nodes: Nodes, names: RedisKeys, own: IdentifierKeys, at_ms: int) -> KeyNote | None:
    """The same by the note of the whole deployment alone, as of `at_ms`: one exchange."""
    note = _noted(nodes, names)
    own.judged(note, at_ms)
    return note


def _noted(nodes: Nodes, names: RedisKeys) -> KeyNote | None:
    asked = command(b"GET", names.control(KEY_ID))
    (found,) = replies_to(nodes, [(CONTROL.encode(), asked)])
    return KeyNote.of(found)
