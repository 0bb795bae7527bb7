"""The door to chance: the identifier secret, and seeds for whoever needs one.

Entity identifiers leave the process only as keyed hashes; the keys are derived from one secret.
Rule: the secret itself is never shown; only its short id may appear in files, logs and reports.
In memory a random secret of the process will do. What is written to disk must be found again, so
a store on disk takes the secret from FRESHSCORE_SECRET, or from a file beside it that is made once,
when the store is written for the first time.
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
from dataclasses import dataclass, field
from pathlib import Path

from freshscore.config import environment
from freshscore.config.errors import SettingsError

VARIABLE = "FRESHSCORE_SECRET"
FILE_NAME = "secret"
_MIN_BYTES, _MAX_BYTES = 16, 64  # BLAKE2b takes keys of at most 64 bytes.
_MADE_BYTES = 32
_PROCESS = "this process"


@dataclass(frozen=True, slots=True)
class Secret:
    """The identifier secret. `origin` says where it came from."""

    _material: bytes = field(repr=False)
    origin: str

    def key(self, purpose: str, length_bytes: int = 16) -> bytes:
        """The key for one purpose (at most 16 bytes of ASCII); 16 bytes are a SipHash key."""
        return hashlib.blake2b(
            key=self._material, person=purpose.encode("ascii"), digest_size=length_bytes
        ).digest()

    @property
    def key_id(self) -> str:
        """Eight hexadecimal digits that tell secrets apart and reveal nothing of them."""
        return self.key("key id", 4).hex()


def load_secret(folder: Path | None, env: Mapping[str, str] | None = None) -> Secret:
    """The secret for a store in `folder`, or for one in memory where that is None.

    Where there is none yet, a random one; `keep_secret` writes it. Raises `SettingsError` for a
    secret that is malformed, too short, or readable by others, and where it cannot be read.
    """
    variables = environment.variables() if env is None else env
    text = variables.get(VARIABLE)
    if text:
        return Secret(_decoded(text, VARIABLE), VARIABLE)
    if folder is not None:
        path = folder / FILE_NAME
        try:
            return Secret(_read_file(path), str(path))
        except FileNotFoundError:
            pass
        except OSError as problem:
            raise SettingsError(f"identifier secret {path}: {problem.strerror}") from problem
    return Secret(os.urandom(_MADE_BYTES), _PROCESS)


def shared_secret(folder: Path | None, env: Mapping[str, str] | None = None) -> Secret:
    """The secret that all processes have, never one of this process. Raises `SettingsError`."""
    secret = load_secret(folder, env)
    if secret.origin == _PROCESS:
        raise SettingsError(
            f"states that processes share need one identifier secret: give all of them {VARIABLE},"
            " 16 to 64 random bytes in hexadecimal digits, or the file secret in store.path"
        )
    return secret


def keep_secret(secret: Secret, folder: Path) -> Path | None:
    """Write a secret of this process to `folder`, mode 0600; its path, None if it is kept already.

    Raises `SettingsError` where it cannot be written, or another is there by now.
    """
    if secret.origin != _PROCESS:
        return None
    path = folder / FILE_NAME
    try:
        _make_file(path, secret._material)
        if _read_file(path) == secret._material:
            return path
    except OSError as problem:
        raise SettingsError(f"identifier secret {path}: {problem.strerror}") from problem
    raise SettingsError(f"identifier secret {path}: another process made one; open the store again")


def random_seed() -> int:
    """A seed of 63 bits that nobody chose; whoever uses it prints it first."""
    return int.from_bytes(os.urandom(8), "little") >> 1


def _make_file(path: Path, material: bytes) -> None:
    """Write a secret unless there is one by then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".secret-")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(material.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: it fails where another process was first, whose secret then counts.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(draft)


def _read_file(path: Path) -> bytes:
    mode = path.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        raise SettingsError(f"identifier secret {path} has mode {mode:04o}; it must be 0600")
    return _decoded(path.read_text("utf-8", errors="replace"), str(path))


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
