"""Why Kafka refuses a client, said at once and with the setting that is wrong.

kafka-python tries again whatever the reason, and when its time is over says only that it could not
connect. Here each connection that fails while a client begins is looked at: a password, mechanism
or certificate that every server refuses ends the trying with a SettingsError.
A refusal counts once each server that was tried has given one: one of several may be in the middle
of a change of certificates. What may be weather, such as a closed connection, is no refusal.
Rule: kafka-python itself stays behind its door, which hands its client class in; messages name
settings and files, never a password.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from freshscore.config.errors import SettingsError
from freshscore.config.settings import KafkaSettings
from freshscore.config.tls import tls_problem_of

# What kafka-python calls them; a name, for its classes stay behind the door.
_WRONG_CREDENTIALS: Final = "SaslAuthenticationFailedError"
_WRONG_MECHANISM: Final = "UnsupportedSaslMechanismError"
# Parts of what OpenSSL calls the alerts of a server that wants another certificate, or any.
_ALERTS: Final = ("ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE_", "ALERT_UNKNOWN_CA")


def checked_credentials(settings: KafkaSettings) -> tuple[str, str] | None:
    """Username and password, None without SASL. Raises SettingsError where one is missing."""
    if not settings.security_protocol.startswith("SASL"):
        return None
    if settings.username is None or settings.password is None:
        missing = "username" if settings.username is None else "password"
        raise SettingsError(
            f"kafka.security_protocol = {settings.security_protocol} needs kafka.username and"
            f" kafka.password; kafka.{missing} is not set"
        )
    return settings.username, settings.password.get_secret_value()


def tls_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """What TLS is spoken with, None without TLS. Raises SettingsError for a file that is none."""
    if settings.security_protocol not in ("SSL", "SASL_SSL"):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.ca_file is None:
        context.load_default_certs()
    else:
        _load("kafka.ca_file", settings.ca_file, context.load_verify_locations)
    if settings.certificate_file is not None:
        # With an empty password, or a key that has one would be asked for on the terminal.
        load = partial(context.load_cert_chain, password="")
        _load("kafka.certificate_file", settings.certificate_file, load)
    return context


def _load(name: str, path: Path, load: Callable[[str], None]) -> None:
    try:
        load(str(path))
    except ssl.SSLError as problem:
        raise SettingsError(f"{name} = {path} is no such PEM file: {problem.reason}") from problem
    except OSError as problem:
        raise SettingsError(f"{name} = {path}: {problem.strerror}") from problem


def watched(client_of: Callable[..., Any], settings: KafkaSettings) -> Callable[..., Any]:
    """What makes kafka-python's inner client (its option `kafka_client`), and watches it begin."""

    def made(*given: Any, **options: Any) -> Any:
        client = client_of(*given, **options)
        _watch(client._manager, settings)
        return client

    return made


def _watch(manager: Any, settings: KafkaSettings) -> None:
    """Let a connection manager raise a refusal in place of its next try, until it has begun."""
    connected = manager.get_connection
    refusals: dict[str, SettingsError | None] = {}
    n_servers = len(settings.bootstrap_servers.split(","))

    def get_connection(node: str, *given: Any, **options: Any) -> Any:
        if manager.bootstrapped:
            return connected(node, *given, **options)
        known = [one for one in refusals.values() if one is not None]
        if len(known) >= n_servers:
            raise known[-1]
        connection = connected(node, *given, **options)

        def note(problem: BaseException) -> None:
            found = refusal(settings, problem)
            if found is not None:
                refusals[node] = found

        connection.close_future.add_errback(note)
        return connection

    manager.get_connection = get_connection


def refusal(settings: KafkaSettings, problem: BaseException) -> SettingsError | None:
    """What a failed connection says about the settings; None where it may be weather."""
    said = _refused(settings, problem)
    if said is None:
        return None
    found = SettingsError(f"Kafka at {settings.bootstrap_servers} {said}")
    found.__cause__ = problem
    return found


def _refused(settings: KafkaSettings, problem: BaseException) -> str | None:
    name = type(problem).__name__
    if name == _WRONG_CREDENTIALS:
        return (
            f"refuses kafka.username = {settings.username} or kafka.password"
            f" ({settings.sasl_mechanism})"
        )
    if name == _WRONG_MECHANISM:
        return f"does not offer kafka.sasl_mechanism = {settings.sasl_mechanism}"
    found = tls_problem_of(problem)
    if isinstance(found, ssl.SSLCertVerificationError):
        trusted = settings.ca_file or "unset: what the system trusts"
        return (
            f"shows a certificate that is not accepted: {found.verify_message};"
            f" kafka.ca_file = {trusted}"
        )
    reason = getattr(found, "reason", None) or ""
    if any(alert in reason for alert in _ALERTS):
        if settings.certificate_file is None:
            return "asks for a client certificate, and kafka.certificate_file is not set"
        return f"refuses kafka.certificate_file = {settings.certificate_file} ({reason})"
    return None
