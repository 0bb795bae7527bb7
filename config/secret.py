"""The door to chance: the identifier secret, and seeds for whoever needs one.

Entity identifiers leave the process only as keyed hashes; the keys are derived from one secret.
Rule: the secret itself is never shown; only its short id may appear in files, logs and reports.
In memory a random secret of the process will do. What is written to disk must be found again, so
a store on disk takes the secret from FRESHSCORE_SECRET, or from a file beside it that is made once,
when the store is written for the first time.

Rotation. A successor is a secret of its own for tokens, and carries two things: the instant from
which it holds (tokens of payments that are older stay those of the former secret), and the keys
that never rotate, by which two tokens of one entity have one set of records. From these keys the
former secret cannot be found, so that it can be forgotten. As text:

    SECRET.SINCE.KEPT     hexadecimal digits, ms UTC, hexadecimal digits

Hash: BLAKE2b (RFC 7693), keyed by the secret and personalised by the purpose.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from freshscore.config import environment
from freshscore.config.clock import readable
from freshscore.config.errors import SettingsError

VARIABLE = "FRESHSCORE_SECRET"
FILE_NAME = "secret"
FORMER_VARIABLE = "FRESHSCORE_FORMER_SECRET"
FORMER_FILE_NAME = "former-secret"
_MIN_BYTES, _MAX_BYTES = 16, 64  # BLAKE2b takes keys of at most 64 bytes.
_MADE_BYTES = 32
_PROCESS = "this process"


# What a successor takes over: 4 bytes of the first secret's id, 16 bytes for each purpose. Records
# in Redis hold hashes under the first two, dead letters in Kafka under the third; under the last,
# contents are digested alike in rows of either secret.
_KEPT: Final = ("record", "digest", "dead letter", "content")
_ID_BYTES, _KEY_BYTES = 4, 16
_KEPT_BYTES: Final = _ID_BYTES + _KEY_BYTES * len(_KEPT)
# Instants of freshscore: 1990 to 2100, ms.
_EARLIEST_MS, _LATEST_MS = 631_152_000_000, 4_102_444_800_000


@dataclass(frozen=True, slots=True)
class Secret:
    """The identifier secret. `origin` says where it came from.

    since_ms: from which event time on tokens are its own; None for a first secret, which has always
    been valid. former: the one before it, while both are valid.
    """

    _material: bytes = field(repr=False)
    origin: str
    since_ms: int | None = None
    _kept: bytes = field(default=b"", repr=False)
    former: Secret | None = None

    def key(self, purpose: str, length_bytes: int = _KEY_BYTES) -> bytes:
        """The key for one purpose (at most 16 bytes of ASCII); 16 bytes are a SipHash key."""
        if self._kept and purpose in _KEPT:
            at = _ID_BYTES + _KEY_BYTES * _KEPT.index(purpose)
            return self._kept[at : at + _KEY_BYTES]
        return self._hashed(b"", purpose, length_bytes)

    @property
    def key_id(self) -> str:
        """Eight hexadecimal digits that tell secrets apart and reveal nothing of them."""
        # All of a successor's text: a digit that was lost anywhere makes another secret.
        said = b"" if self.since_ms is None else b"%d" % self.since_ms + self._kept
        return self._hashed(said, "key id", _ID_BYTES).hex()

    @property
    def record_id(self) -> str:
        """The same of the keys that never rotate: the key id of the first secret."""
        return self._kept[:_ID_BYTES].hex() if self._kept else self.key_id

    def successor(self, since_ms: int) -> Secret:
        """A random secret for payments from `since_ms` on, with this one as its former.

        Raises SettingsError for an instant that no payment has.
        """
        if not _EARLIEST_MS <= since_ms < _LATEST_MS:
            raise SettingsError(f"no secret begins at {readable(since_ms)}: from 1990 to 2100")
        keys = (self.key(purpose) for purpose in _KEPT)
        kept = b"".join((bytes.fromhex(self.record_id), *keys))
        return Secret(os.urandom(_MADE_BYTES), _PROCESS, since_ms, kept, self)

    def _hashed(self, said: bytes, purpose: str, length_bytes: int) -> bytes:
        return hashlib.blake2b(
            said, key=self._material, person=purpose.encode("ascii"), digest_size=length_bytes
        ).digest()

    def _text(self) -> str:
        """What variables and files hold: of all that is here, this alone shows the secret."""
        if self.since_ms is None:
            return self._material.hex()
        return f"{self._material.hex()}.{self.since_ms}.{self._kept.hex()}"


def load_secret(folder: Path | None, env: Mapping[str, str] | None = None) -> Secret:
    """The secret for a store in `folder`, or for one in memory where that is None.

    Where there is none yet, a random one; `keep_secret` writes it. Raises `SettingsError` for a
    secret that is malformed, too short, or readable by others, and where it cannot be read.
    """
    found = _given(folder, env, VARIABLE, FILE_NAME)
    return Secret(os.urandom(_MADE_BYTES), _PROCESS) if found is None else found


def shared_secret(folder: Path | None, env: Mapping[str, str] | None = None) -> Secret:
    """The secret that all processes have, never one of this process; with its former, if given.

    Raises `SettingsError`, also for two secrets of which one is not the other's successor.
    """
    secret = load_secret(folder, env)
    if secret.origin == _PROCESS:
        raise SettingsError(
            f"states that processes share need one identifier secret: give all of them {VARIABLE},"
            " 16 to 64 random bytes in hexadecimal digits, or the file secret in store.path"
        )
    former = _given(folder, env, FORMER_VARIABLE, FORMER_FILE_NAME)
    if former is None:
        return secret
    if secret.since_ms is None or any(secret.key(one) != former.key(one) for one in _KEPT):
        raise SettingsError(
            f"{secret.origin} (key {secret.key_id}) is no successor of {former.origin} (key"
            f" {former.key_id}): `freshscore secret next` makes one; without a rotation"
            f" {FORMER_VARIABLE} is not set"
        )
    if former.key_id == secret.key_id:
        raise SettingsError(f"{secret.origin} and {former.origin} are the same secret")
    return replace(secret, former=former)


def _given(
    folder: Path | None, env: Mapping[str, str] | None, variable: str, file_name: str
) -> Secret | None:
    """The secret in a variable, or in a file of the folder. Raises `SettingsError`."""
    variables = environment.variables() if env is None else env
    text = variables.get(variable)
    if text:
        return _read(text, variable)
    if folder is None:
        return None
    path = folder / file_name
    try:
        return _read_file(path)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise SettingsError(f"identifier secret {path}: {problem.strerror}") from problem


def keep_secret(secret: Secret, folder: Path) -> Path | None:
    """Write a secret of this process to `folder`, mode 0600; its path, None if it is kept already.

    Raises `SettingsError` where it cannot be written, or another is there by now.
    """
    if secret.origin != _PROCESS:
        return None
    path = folder / FILE_NAME
    try:
        _make_file(path, secret)
        if _read_file(path)._text() == secret._text():
            return path
    except OSError as problem:
        raise SettingsError(f"identifier secret {path}: {problem.strerror}") from problem
    raise SettingsError(f"identifier secret {path}: another process made one; open the store again")


def write_secret(secret: Secret, path: Path) -> None:
    """Write a secret to a file that is not there yet, mode 0600. Raises `SettingsError`."""
    try:
        _make_file(path, secret)
        written = _read_file(path)._text() == secret._text()
    except OSError as problem:
        raise SettingsError(f"identifier secret {path}: {problem.strerror}") from problem
    if not written:
        raise SettingsError(f"identifier secret {path}: there is one already; it stays")


def random_seed() -> int:
    """A seed of 63 bits that nobody chose; whoever uses it prints it first."""
    return int.from_bytes(os.urandom(8), "little") >> 1


def _make_file(path: Path, secret: Secret) -> None:
    """Write a secret unless there is one by then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".secret-")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secret._text() + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: it fails where another process was first, whose secret then counts.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(draft)


def _read_file(path: Path) -> Secret:
    mode = path.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        raise SettingsError(f"identifier secret {path} has mode {mode:04o}; it must be 0600")
    return _read(path.read_text("utf-8", errors="replace"), str(path))


def _read(text: str, origin: str) -> Secret:
    """The secret that a text is. Raises `SettingsError`, which shows nothing of it."""
    if "." not in text:
        return Secret(_decoded(text, origin), origin)
    material, _, rest = text.strip().partition(".")
    since, _, kept = rest.partition(".")
    try:
        since_ms, of_former = int(since), bytes.fromhex(kept)
    except ValueError:
        since_ms, of_former = 0, b""
    if not _EARLIEST_MS <= since_ms < _LATEST_MS or len(of_former) != _KEPT_BYTES:
        raise SettingsError(
            f"{origin} is no whole successor of a secret: `freshscore secret next` writes one as"
            " three parts with dots between them"
        )
    return Secret(_decoded(material, origin), origin, since_ms, of_former)


def _decoded(text: str, origin: str) -> bytes:
    material = _from_hex_or_base64(text.strip())
    if material is None:
        raise SettingsError(f"{origin} is neither hexadecimal nor base64")
    if not _MIN_BYTES <= len(material) <= _MAX_BYTES:
        raise SettingsError(
            f"{origin} holds {len(material)} bytes; {_MIN_BYTES} to {_MAX_BYTES} are needed"
        )
    return material


def _from_hex_or_base64(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text)
    except ValueError:
        pass
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def jitter(seed: int) -> Callable[[], float]:
    """Draws numbers from 0 up to 1, the same for the same seed; for what is no secret."""
    return random.Random(seed).random
