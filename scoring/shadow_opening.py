"""Putting a shadow together from the settings.

Rule: what would refuse a consumer or a scorer refuses a shadow too, before the first message.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from freshscore.config.clock import SystemClock
from freshscore.config.secret import shared_secret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys
from freshscore.features.program import compiled
from freshscore.features.specification import FeatureSpecification
from freshscore.invalidation.assembling import checked_topics, decoder, message_columns
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.kafka_writing import LogWriter
from freshscore.invalidation.message_reading import MessageReader
from freshscore.scoring.shadowing import SentDecisions, Shadow, ShadowParts
from freshscore.scoring.shared_opening import open_shared

# Behind the consumers' group, so that each deployment has one of its own.
GROUP_SUFFIX: Final = "-shadow"


def open_shadow(settings: Settings) -> Shadow:
    """A shadow of the scorer that the settings name, ready to work.

    Raises SettingsError, WrongSecret, BadSpecification, BadFile, NoModel, ModelMismatch,
    Unavailable.
    """
    kafka = settings.kafka
    specification = FeatureSpecification.named(settings.store.specification)
    program = compiled(specification)
    checked_topics(settings, specification)
    messages = MessageReader(
        program,
        Keys(program, shared_secret(settings.store.path)),
        message_columns(settings, program),
        decoder(settings),
    )
    records: deque[bytes] = deque()
    scorer = open_shared(settings, None, shadow=records.append)
    try:
        reader = LogReader(kafka, [kafka.transactions_topic], group=kafka.group + GROUP_SUFFIX)
        sent = SentDecisions(LogWriter(kafka), kafka.decisions_topic)
    except BaseException:
        scorer.close()
        raise
    return Shadow(kafka, ShadowParts(reader, messages, scorer, records, sent, SystemClock()))
