"""A Kafka broker that asks who its clients are: by password over TLS, and by certificate.

Its plain listener stays, for the tests' own clients; `scram` and `mutual` are for the product.
Users with a password may do nothing until they are given rights; the others may do everything.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from tests.servers.certificates import Authority
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.ports import LOOPBACK

# DescribeConfigs is DESCRIBE_CONFIGS to the client.
_WORD_ENDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


class Rule(NamedTuple):
    """That a user may do something with a topic or a group; words as Kafka's own tool has them."""

    user: str
    operation: str
    kind: str
    name: str

    def for_kafka(self) -> ACL:
        """The same for the client."""
        return ACL(
            f"User:{self.user}",
            "*",
            ACLOperation[_WORD_ENDS.sub("_", self.operation).upper()],
            ACLPermissionType.ALLOW,
            ResourcePattern(ResourceType[self.kind.upper()], self.name),
        )


class SecuredKafka(KafkaBroker):
    """One broker with three listeners.

    scram: SASL_SSL with SCRAM-SHA-512, for each of `users`, and `password`. mutual: SSL with the
    client certificate that `authority` has issued for "client".
    """

    # Which rule has allowed what is told at this level alone.
    java_options = ("-Dorg.slf4j.simpleLogger.log.kafka.authorizer.logger=debug",)
    users = (
        *("freshscore-scorer", "freshscore-shadow"),
        *("freshscore-consumer", "freshscore-operator"),
    )

    def __init__(self, authority: Authority) -> None:
        super().__init__(n_ports=4)
        self.authority = authority
        self.password = secrets.token_hex(16)
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
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS;User:CN=client",
        }

    def allow(self, rules: Sequence[Rule]) -> None:
        """Give users rights."""
        with self.admin() as admin:
            admin.create_acls([one.for_kafka() for one in rules])

    def decisions(self) -> list[str]:
        """What the authorizer has said of users with a password, since the broker began."""
        lines = self.log.read_text("utf-8", errors="replace").splitlines()
        return [line for line in lines if "Principal = User:freshscore-" in line]

    def _format_options(self) -> Sequence[str]:
        told = [f"SCRAM-SHA-512=[name={user},password={self.password}]" for user in self.users]
        return [word for one in told for word in ("--add-scram", one)]


def _pem_stores(own: Path, trusted: Path) -> dict[str, str]:
    """Key and certificates as PEM files: no tool of Java is needed."""
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(own),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(trusted),
    }
