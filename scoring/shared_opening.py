"""Putting a shared scorer together from the settings, with its servers and its lease.

Rule: what would make answers wrong later (a secret that nobody else has, a Redis that evicts, a
model of other features) is refused before the first score; so is a journal that takes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from freshscore.config.clock import SystemClock
from freshscore.config.errors import SettingsError, WrongSecret
from freshscore.config.secret import random_seed, shared_secret
from freshscore.config.settings import Settings
from freshscore.features.near_states import NearStates
from freshscore.features.packing import Keys
from freshscore.features.program import compiled
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.specification import FeatureSpecification
from freshscore.features.state_layout import state_fingerprints
from freshscore.invalidation.control import Control, ListeningControl
from freshscore.invalidation.deployment import check_key, check_note
from freshscore.invalidation.following import Follower
from freshscore.invalidation.identifier_keys import IdentifierKeys
from freshscore.invalidation.journal_limits import JournalLimits
from freshscore.invalidation.journalled_topics import JournalledTopics
from freshscore.invalidation.kafka_writing import LogWriter
from freshscore.scoring.leases import LeaseKeeper
from freshscore.scoring.near_reading import NearReading
from freshscore.scoring.scorer import chosen_model
from freshscore.scoring.serving import ServableModel
from freshscore.scoring.shared_scorer import SharedScorer


def open_shared(
    settings: Settings,
    model: ServableModel | Callable[..., Any] | None,
    *,
    shadow: Callable[[bytes], None] | None = None,
) -> SharedScorer:
    """The scorer that the settings name.

    shadow: takes the records of its decisions; then it writes nothing anywhere, and nobody waits
    for its lease. Raises SettingsError, Unavailable, WrongSecret, NoModel, ModelMismatch.
    """
    specification = FeatureSpecification.named(settings.store.specification)
    secret = shared_secret(settings.store.path)
    chosen = chosen_model(settings, specification, model)
    nodes = Nodes.open(settings.redis)
    program = compiled(specification)
    keys = Keys(program, secret)
    try:
        names = RedisKeys(settings.redis.namespace, state_fingerprints(program))
        own = IdentifierKeys.of(settings, program, keys)
        check_key(nodes, names, own, SystemClock().now_ms())
        # While Kafka is away scores go on; a shadow's decisions go their own way.
        writer, journal = (None, None) if shadow else _log(settings, keys)
    except BaseException:
        nodes.close()
        raise
    scorer = SharedScorer(
        settings,
        nodes,
        chosen,
        program,
        keys,
        writer=writer,
        journal=journal,
        # A bare callable has no version of its own, under which others could know its scores.
        shares_scores=shadow is None and (chosen is model or model is None),
    )
    if shadow is not None:
        scorer.take_decide(shadow)
    # A near state is of one token: during a rotation each score asks Redis for both.
    if settings.redis.near and not scorer.asks_for_scores and keys.former is None:
        near = NearStates(scorer.layouts, settings.redis.near_max_bytes)
        heartbeat_s = settings.redis.heartbeat_s
        follower = Follower(nodes, names, scorer.layouts, near, heartbeat_s)
        scorer.take_near(NearReading(near, follower, SystemClock()))
        follower.start()
    keeper = LeaseKeeper(
        (Control if shadow is None else ListeningControl)(nodes, settings.redis.namespace),
        f"{random_seed():016x}",
        settings.redis.lease_s,
        settings.redis.heartbeat_s,
        scorer.carry_out,
        watch=lambda: _watch(scorer, nodes, names, own),
    )
    keeper.start()
    scorer.take_lease(keeper)
    return scorer


def _watch(scorer: SharedScorer, nodes: Nodes, names: RedisKeys, own: IdentifierKeys) -> None:
    """Have a scorer answer nothing more once its keys are not those of the states."""
    try:
        check_note(nodes, names, own, SystemClock().now_ms())
    except WrongSecret as problem:
        scorer.refuse(problem)


def _log(settings: Settings, keys: Keys) -> tuple[LogWriter, JournalledTopics | None]:
    """What takes decisions to Kafka, whether it is there or not, and what takes events."""
    writer, folder = LogWriter(settings.kafka, wait=False), settings.journal_path
    if folder is None:
        return writer, None
    limits = JournalLimits.of(settings)
    try:
        # Of a process before this one, which did not know of the rotation.
        others = frozenset() if keys.former is None else frozenset((keys.former.key_id,))
        return writer, JournalledTopics.open(
            folder, keys.key_id, limits, writer, settings.kafka, key_ids=others
        )
    except SettingsError:
        writer.close(0.0)
        raise
