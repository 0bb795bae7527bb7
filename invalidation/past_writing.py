"""Putting together what brings in the past while the stream runs: a resend, or a backfill.

Rule: whoever writes past events holds the folding of states from before its first look at them
until after its last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from freshscore.config.errors import SettingsError, Unavailable
from freshscore.config.secret import random_seed
from freshscore.features.packing import Packer
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_reading import Wanted
from freshscore.invalidation.assembling import decoder, message_columns
from freshscore.invalidation.batch_sending import BatchSender
from freshscore.invalidation.batches import Batcher
from freshscore.invalidation.completeness import Completeness
from freshscore.invalidation.dead_letters import DeadLetters
from freshscore.invalidation.deployment import Deployment
from freshscore.invalidation.folding_lines import FoldingLines
from freshscore.invalidation.holding import Hold
from freshscore.invalidation.kafka_admin import LogAdmin
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.kafka_writing import LogWriter
from freshscore.invalidation.label_lookups import LabelLookups
from freshscore.invalidation.message_reading import MessageReader
from freshscore.invalidation.originals import Originals
from freshscore.invalidation.publishing import Publisher
from freshscore.invalidation.resending import Resending, ResendParts
from freshscore.invalidation.row_batches import RowBatcher
from freshscore.invalidation.shared_backfill import BackfillParts, SharedBackfill
from freshscore.invalidation.topics import topic_names

_BETWEEN_LOOKS_S: Final = 0.1


@contextmanager
def opened_resending(deployment: Deployment) -> Iterator[Resending]:
    """What sends dead letters again.

    Raises SettingsError where a topic is not there, StoreInUse while another brings in the past,
    Unavailable.
    """
    settings, program, keys = deployment.settings, deployment.program, deployment.keys
    kafka, nodes, clock = settings.kafka, deployment.nodes, deployment.clock
    columns, decode = message_columns(settings, program), decoder(settings)
    ids = topic_ids(deployment)
    batcher = Batcher.of(
        settings, program, keys, nodes.node_of_slot, columns=columns, decode=decode
    )
    with ExitStack() as stack:
        reader = LogReader(kafka, [*ids], group=None)
        stack.callback(reader.close)
        writer = LogWriter(kafka)
        stack.callback(writer.close, kafka.request_timeout_s)
        yield Resending(
            ResendParts(
                originals=Originals(reader, ids, kafka.request_timeout_s, clock),
                batcher=batcher,
                reader=MessageReader(program, keys, columns, decode),
                sender=stack.enter_context(sender_of(deployment, batcher)),
                store=deployment.store,
                lookups=LabelLookups(nodes, deployment.store.index, kafka.clock_error_ms),
                letters=DeadLetters(writer, kafka.dead_letters_topic, kafka.request_timeout_s),
                hold=stack.enter_context(hold_of(deployment)),
                topic_ids=ids,
                labels_topic=kafka.labels_topic,
                digest_key=deployment.secret.key("dead letter"),
                clock=clock,
            )
        )


@contextmanager
def opened_backfill(deployment: Deployment, wait_s: float = 0.0) -> Iterator[SharedBackfill]:
    """What brings files into the states, under a hold; then states that doubled are compacted.

    wait_s: how long consumers may take to begin, so that a hold can be there before they fold.
    Raises StoreInUse while another brings in the past, Unavailable.
    """
    settings, program, keys = deployment.settings, deployment.program, deployment.keys
    batcher = RowBatcher.of(settings, program, keys, deployment.nodes.node_of_slot)
    with sender_of(deployment, batcher) as sender:
        with hold_of(deployment) as hold:
            completeness = _completeness(deployment, hold, wait_s)
            completeness.note_cut_over()
            newest_ms = completeness.watermark_ms
            if not settings.kafka.historical:
                newest_ms = deployment.clock.now_ms()
            kept_ms = program.specification.held_ms + 1_000 * settings.store.horizon_s
            yield SharedBackfill(
                BackfillParts(
                    store=deployment.store,
                    packer=Packer(program, keys),
                    batcher=batcher,
                    sender=sender,
                    completeness=completeness,
                    hold=hold,
                    reaches_to_ms=newest_ms - kept_ms,
                    clock=deployment.clock,
                )
            )
        compact(deployment, [*sender.candidates])


def _completeness(deployment: Deployment, hold: Hold, wait_s: float) -> Completeness:
    """Since when the nodes are complete, as soon as they know."""
    ends_s = deployment.clock.monotonic_s() + wait_s
    while deployment.clock.monotonic_s() < ends_s:
        try:
            return Completeness(deployment.nodes, deployment.redis_keys)
        except Unavailable:
            hold.renew()
            threading.Event().wait(_BETWEEN_LOOKS_S)
    return Completeness(deployment.nodes, deployment.redis_keys)


def compact(deployment: Deployment, candidates: Sequence[Wanted]) -> None:
    """Compact what is due of these states, folded up to where they may be. Raises Unavailable."""
    held_ms = deployment.program.specification.held_ms
    lines = FoldingLines(
        deployment.settings, deployment.nodes, deployment.redis_keys, held_ms
    ).lines()
    Compactor(deployment.store).compact(
        candidates,
        forget_below_ms=lines.forget_below_ms,
        fold_below_ms=lines.fold_below_ms,
        now_ms=lines.now_ms,
    )


def topic_ids(deployment: Deployment) -> dict[str, str]:
    """Name -> id of transactions and labels. Raises SettingsError, Unavailable."""
    names = topic_names(deployment.settings)[:2]
    with LogAdmin(deployment.settings.kafka) as admin:
        topics = admin.topics(names)
    missing = [name for name in names if name not in topics]
    if missing:
        raise SettingsError(
            f"no topic {', '.join(missing)} at {deployment.settings.kafka.bootstrap_servers};"
            " make them with: freshscore topics check --create"
        )
    return {name: topics[name].topic_id for name in names}


def sender_of(deployment: Deployment, batcher: Batcher) -> BatchSender:
    """What sends the batches of a batcher."""
    publisher = Publisher(
        deployment.settings.redis,
        deployment.store.maker.layouts,
        {},
        random_seed().to_bytes(8, "little"),
    )
    return BatchSender(deployment.nodes, batcher, publisher, deployment.clock)


def hold_of(deployment: Deployment) -> Hold:
    """A hold of this process' own."""
    return Hold(
        deployment.nodes,
        deployment.redis_keys,
        f"{random_seed():016x}",
        deployment.settings.redis.hold_s,
        deployment.clock,
    )
