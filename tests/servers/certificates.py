"""Certificates for servers and clients of the tests, made by the openssl command.

Rule: an authority and what it signs live for two days, in a folder of the test's own.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from tests.servers.child import ServerFailed
from tests.servers.ports import LOOPBACK

_DAYS: Final = "2"
_LIMIT_S: Final = 60.0
# A curve, for an RSA key takes up to a second to find.
_NEW_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """One that signs certificates; `ca_file` is what those who trust it are given (PEM)."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = folder / f"{name}.key"
        self.ca_file = folder / f"{name}.pem"
        _made(
            *("-keyout", str(self._key), "-out", str(self.ca_file), "-subj", f"/CN={name}"),
            *("-addext", "basicConstraints=critical,CA:TRUE"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )

    def issued(self, name: str) -> Path:
        """A PEM file with a new key (PKCS 8), its certificate for this machine, and ours."""
        key, certificate = self._folder / f"{name}.key", self._folder / f"{name}.crt"
        _made(
            *("-keyout", str(key), "-out", str(certificate), "-subj", f"/CN={name}"),
            *("-CA", str(self.ca_file), "-CAkey", str(self._key)),
            *("-addext", f"subjectAltName=IP:{LOOPBACK},DNS:localhost"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
        whole = self._folder / f"{name}.pem"
        parts = (key, certificate, self.ca_file)
        whole.write_text("".join(part.read_text("ascii") for part in parts), "ascii")
        return whole


def _made(*options: str) -> None:
    command = ["openssl", "req", "-x509", *_NEW_KEY, "-days", _DAYS, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
    except FileNotFoundError as error:
        raise ServerFailed(f"certificates cannot be made: {error}; run: make servers") from error
    if done.returncode:
        raise ServerFailed(f"openssl failed with code {done.returncode}:\n{done.stderr}")
