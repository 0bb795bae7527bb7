"""A Kafka broker that asks who its clients are: by password over TLS, and by certificate.

Its plain listener stays, for the tests' own clients; `scram` and `mutual` are for the product.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from tests.servers.certificates import Authority
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.ports import LOOPBACK

_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


class SecuredKafka(KafkaBroker):
    """One broker with three listeners.

    scram: SASL_SSL with SCRAM-SHA-512, for `username` and `password`. mutual: SSL with a client
    certificate that `authority` has signed.
    """

    def __init__(self, authority: Authority) -> None:
        super().__init__(n_ports=4)
        self.authority = authority
        self.username, self.password = "freshscore", secrets.token_hex(16)
        own, controller, scram, mutual = (f"{LOOPBACK}:{port.number}" for port in self._ports)
        self.scram, self.mutual = scram, mutual
        listeners = f"PLAINTEXT://{own},SCRAM://{scram},MUTUAL://{mutual}"
        names = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
        names |= {"SCRAM": "SASL_SSL", "MUTUAL": "SSL"}
        self._settings |= {
            "listeners": f"{listeners},CONTROLLER://{controller}",
            "advertised.listeners": listeners,
            "listener.security.protocol.map": ",".join(f"{k}:{v}" for k, v in names.items()),
            **_pem_stores(authority.issued("broker"), authority.ca_file),
            "listener.name.mutual.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.scram.scram-sha-512.sasl.jaas.config": _LOGIN,
        }

    def _format_options(self) -> Sequence[str]:
        who = f"name={self.username},password={self.password}"
        return ("--add-scram", f"SCRAM-SHA-512=[{who}]")


def _pem_stores(own: Path, trusted: Path) -> dict[str, str]:
    """Key and certificates as PEM files: no tool of Java is needed."""
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(own),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(trusted),
    }
