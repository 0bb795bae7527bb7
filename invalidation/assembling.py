"""Putting a consumer together from the settings, after checking what it will rely on.

Rule: what would make states wrong later (a log that forgets too early, a secret that nobody else
has, a Redis that evicts) is refused before the first message is read.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import SettingsError
from freshscore.config.secret import random_seed, shared_secret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys
from freshscore.features.program import Program, compiled
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_erasing import Eraser
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.redis_store import RedisStore
from freshscore.features.specification import FeatureSpecification
from freshscore.features.state_layout import state_fingerprints
from freshscore.features.store import StoreLimits
from freshscore.invalidation.batches import Batcher
from freshscore.invalidation.consumer import Consumer, ConsumerParts
from freshscore.invalidation.dead_letters import DeadLetters
from freshscore.invalidation.deployment import check_note, claim_key
from freshscore.invalidation.folding_lines import FoldingLines
from freshscore.invalidation.identifier_keys import IdentifierKeys
from freshscore.invalidation.kafka_admin import LogAdmin, Topic
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.kafka_writing import LogWriter
from freshscore.invalidation.label_lookups import LabelLookups
from freshscore.invalidation.message_columns import MessageColumns
from freshscore.invalidation.node_markers import NodeMarkers
from freshscore.invalidation.publishing import Publisher
from freshscore.invalidation.topics import check_topics, topic_names


def open_consumer(settings: Settings, clock: Clock | None = None) -> Consumer:
    """A consumer of the settings' group, ready to run.

    Raises SettingsError for what it cannot rely on, WrongSecret, BadSpecification, Unavailable.
    """
    clock = clock or SystemClock()
    specification = FeatureSpecification.named(settings.store.specification)
    program = compiled(specification)
    secret = shared_secret(settings.store.path)
    keys = Keys(program, secret)
    topics = checked_topics(settings, specification)
    nodes = Nodes.open(settings.redis, clock)
    redis_keys = RedisKeys(settings.redis.namespace, state_fingerprints(program))
    own = IdentifierKeys.of(settings, program, keys)
    claim_key(nodes, redis_keys, own, clock.now_ms())
    store = RedisStore(program, keys, StoreLimits.of(settings.store), nodes, clock)
    topic_ids = {name: topic.topic_id for name, topic in topics.items()}
    markers = NodeMarkers(
        nodes,
        redis_keys,
        keys.record_id,
        topic_ids,
        n_partitions=sum(topic.n_partitions for topic in topics.values()),
        draw=random_seed,
        skew_ms=1_000 * settings.store.skew_s,
    )
    batcher = Batcher.of(
        settings,
        program,
        keys,
        nodes.node_of_slot,
        columns=message_columns(settings, program),
        decode=decoder(settings),
    )
    writer = LogWriter(settings.kafka)
    letters = DeadLetters(
        writer, settings.kafka.dead_letters_topic, settings.kafka.request_timeout_s
    )
    parts = ConsumerParts(
        reader=LogReader(settings.kafka, [*topics], group=settings.kafka.group),
        nodes=nodes,
        batcher=batcher,
        letters=letters,
        markers=markers,
        publisher=Publisher(
            settings.redis, store.maker.layouts, topic_ids, random_seed().to_bytes(8, "little")
        ),
        lookups=LabelLookups(nodes, store.index, settings.kafka.clock_error_ms),
        compactor=Compactor(store),
        eraser=Eraser(store),
        folding=FoldingLines(settings, nodes, redis_keys, specification.held_ms),
        topic_ids=topic_ids,
        digest_key=secret.key("dead letter"),
        clock=clock,
        check_keys=lambda at_ms: _check_keys(nodes, redis_keys, own, at_ms, clock),
    )
    return Consumer(settings, parts)


def _check_keys(
    nodes: Nodes, redis_keys: RedisKeys, own: IdentifierKeys, at_ms: int, clock: Clock
) -> None:
    """Check the note, and note the keys again where a server has lost it."""
    if check_note(nodes, redis_keys, own, at_ms) is None:
        claim_key(nodes, redis_keys, own, clock.now_ms())


def checked_topics(settings: Settings, specification: FeatureSpecification) -> dict[str, Topic]:
    """Transactions and labels, if all topics are what they must be. Raises SettingsError."""
    with LogAdmin(settings.kafka) as admin:
        found = check_topics(admin, settings, specification)
        problems = [f"topic {one.topic} {one.problem}" for one in found if one.problem]
        if problems:
            raise SettingsError("; ".join(problems) + "; see: freshscore topics check")
        sources = topic_names(settings)[:2]
        topics = admin.topics(sources)
    return {name: topics[name] for name in sources}


def message_columns(settings: Settings, program: Program) -> MessageColumns | None:
    """The column map that the settings name, or None. Raises BadFile."""
    if settings.kafka.columns is None:
        return None
    return MessageColumns.named(settings.kafka.columns, program)


def decoder(settings: Settings) -> Callable[[bytes], Any] | None:
    """The function that `kafka.decode` names, or None. Raises SettingsError."""
    if settings.kafka.decode is None:
        return None
    module, _, name = settings.kafka.decode.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as problem:
        raise SettingsError(f"kafka.decode = {settings.kafka.decode!r}: {problem}") from problem
    if not callable(found):
        raise SettingsError(f"kafka.decode = {settings.kafka.decode!r} is no function")
    return found  # type: ignore[no-any-return]  # whatever it gives is checked as it comes
