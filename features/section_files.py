"""Files of checked sections: written whole or not at all, and read no further than they are right.

    magic     7 letters and the version of the layout, 1 byte
    sections  kind (u32), entity (u32), bytes (u64); content; BLAKE2b-128 of the digest before it,
              its own head and its content

Each digest covers the one before, so that no section can be lost, doubled or moved.
Rule: a content is handed out only after its check; whoever reads asks for the sections by kind, and
for the end, so that a file that is cut or goes on is found.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from freshscore.config.errors import BadFile, DamagedState

# Kind, entity, content.
Section = tuple[int, int, "bytes | memoryview"]

_HEAD: Final = struct.Struct("<2IQ")
_DIGEST_BYTES: Final = 16


def write_sections(path: Path, magic: bytes, sections: Iterable[Section]) -> None:
    """Write a file of these sections, replacing what is there once all of it is on the disk.

    Raises BadFile where it cannot be written; what was there before then still is.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            # Nobody else's to read: tokens are hashes, but the payments are somebody's.
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                _write(file, magic, sections)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as problem:
        raise BadFile(f"cannot write {path.name}: {problem.strerror or problem}") from problem


def _write(file: BinaryIO, magic: bytes, sections: Iterable[Section]) -> None:
    file.write(magic)
    digest = b""
    for kind, entity, content in sections:
        head = _HEAD.pack(kind, entity, len(content))
        digest = _digest(digest, head, content)
        for part in (head, content, digest):
            file.write(part)


def _digest(before: bytes, head: bytes, content: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(before, digest_size=_DIGEST_BYTES, person=b"saved state")
    digest.update(head)
    digest.update(content)
    return digest.digest()


def _sync_folder(folder: Path) -> None:
    """See that the new name is on the disk, too."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class SectionReader:
    """Reads the sections of one file, in order; raises DamagedState for what is not right."""

    def __init__(self, file: BinaryIO, name: str, magic: bytes, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._before = b""
        self.name = name
        if file.read(len(magic)) != magic:
            raise self.damaged("it does not begin as a saved store of this version")

    def next(self, kind: int, entity: int = 0) -> bytes:
        """The content of the next section, which must be of this kind and entity."""
        head = self._read(_HEAD.size)
        found, of, n_bytes = _HEAD.unpack(head)
        if (found, of) != (kind, entity) or n_bytes > self._max_bytes:
            raise self.damaged(
                f"there is a section of kind {found}, entity {of} and {n_bytes} bytes, where one of"
                f" kind {kind}, entity {entity} and at most {self._max_bytes} bytes should be"
            )
        content = self._read(n_bytes)
        digest = _digest(self._before, head, content)
        if self._read(_DIGEST_BYTES) != digest:
            raise self.damaged(f"a section of kind {found} and entity {of} fails its check")
        self._before = digest
        return content

    def end(self) -> None:
        """See that nothing is left."""
        if self._file.read(1):
            raise self.damaged("it goes on behind its end")

    def damaged(self, what: str) -> DamagedState:
        """The error that says so."""
        return DamagedState(f"{self.name} is damaged: {what}")

    def _read(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes)
        if len(data) < n_bytes:
            raise self.damaged("it ends too early")
        return data
