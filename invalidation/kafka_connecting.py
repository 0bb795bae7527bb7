"""Connecting to Kafka: what every client is told, and what kafka-python's errors become.

What is known to go wrong there is handled here: waits of half a minute after an outage, and one
vague error for every wrong credential (invalidation/kafka_refusals.py).
Rule: nothing of kafka-python leaves the modules that are its door: not its classes, not its errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import kafka.errors
from kafka.net.compat import KafkaNetClient

from freshscore.config.errors import SettingsError, Unavailable
from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.kafka_refusals import checked_credentials, tls_context, watched
from freshscore.invalidation.partitions import Partition

# The default, 30 s, is how long clients stay away after an outage of any length.
_RECONNECT_MS: Final = 500


def connection(settings: KafkaSettings) -> dict[str, Any]:
    """What every client is told about the connection. Raises SettingsError for wrong files."""
    told: dict[str, Any] = {
        "bootstrap_servers": [one.strip() for one in settings.bootstrap_servers.split(",")],
        "client_id": "freshscore",
        "security_protocol": settings.security_protocol,
        "reconnect_backoff_max_ms": _RECONNECT_MS,
        "request_timeout_ms": round(1000 * settings.request_timeout_s),
        "bootstrap_timeout_ms": round(1000 * settings.request_timeout_s),
        "ssl_context": tls_context(settings),
        "kafka_client": watched(KafkaNetClient, settings),
    }
    credentials = checked_credentials(settings)
    if credentials is not None:
        told["sasl_mechanism"] = settings.sasl_mechanism
        told["sasl_plain_username"], told["sasl_plain_password"] = credentials
    return told


@contextmanager
def translated(settings: KafkaSettings | None = None) -> Iterator[None]:
    """kafka-python's errors become freshscore's; with `settings`, while connecting."""
    try:
        yield
    except kafka.errors.AuthorizationError as problem:
        raise SettingsError(f"Kafka refuses this user: {problem}") from problem
    except kafka.errors.KafkaError as problem:
        if settings is None:
            raise Unavailable(f"Kafka: {type(problem).__name__}: {problem}") from problem
        raise Unavailable(
            f"Kafka at {settings.bootstrap_servers} (kafka.bootstrap_servers) does not answer"
            f" within {settings.request_timeout_s} s over {settings.security_protocol}: it is down,"
            " or the password, the certificate authority or the client certificate is not what it"
            f" wants, which all look the same from here ({type(problem).__name__})"
        ) from problem


def named(partition: Partition) -> str:
    return f"topic {partition[0]} partition {partition[1]}"
