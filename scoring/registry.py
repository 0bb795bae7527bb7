"""The registry of models: artefacts that never change, and the history of who became champion.

One folder: `<version>.model` for each model (scoring/model_file.py), and `history.jsonl`, one line
of JSON for each event, which carries the digest of the entry that it follows, and its own.
Rule: an entry is valid only if it follows the last valid one, so that all readers decide alike,
whatever two writers did at once: the one that was second reads again and writes again.
A line that is damaged, cut, or follows one that is not there is refused, never passed over. (Whole
lines taken from the end leave a shorter history that is as good as any.)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from freshscore.config.decoding import as_type
from freshscore.config.errors import BadModel, DamagedModel, NoModel, Unavailable
from freshscore.scoring import model_file
from freshscore.scoring.model import Model

# Where the command line keeps a store, and its models, unless the settings name a folder.
DEFAULT_STORE: Final = "freshscore-data"
MODELS: Final = "models"
HISTORY: Final = "history.jsonl"
_SUFFIX: Final = ".model"
_NOTHING: Final = "0" * 32
# Each attempt fails only if another writer came in between: models are made minutes apart.
_MAX_ATTEMPTS: Final = 8


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event: `version` became `role` at `at_ms` (UTC).

    model: checksum of its artefact. follows: digest of the entry before; digest: its own.
    """

    version: str
    role: Literal["champion"]
    why: str
    at_ms: int
    model: str
    follows: str
    digest: str = ""

    def sealed(self) -> Entry:
        """The same entry with its digest."""
        content = msgspec.json.encode(msgspec.structs.replace(self, digest=""))
        digest = hashlib.blake2b(content, digest_size=16, person=b"model-history").hexdigest()
        return msgspec.structs.replace(self, digest=digest)


class Registry:
    """The models in `folder`; nothing is read, made or kept open before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of(cls, store: Path | None) -> Registry:
        """The registry of the store in folder `store`; None: of the command line's default."""
        return cls((Path(DEFAULT_STORE) if store is None else store) / MODELS)

    def entries(self) -> tuple[Entry, ...]:
        """Valid entries, oldest first; empty where there is no history.

        Raises DamagedModel for a history with a line that is not as it was written.
        """
        return tuple(self._read())

    def champion(self) -> Model:
        """The version last trained or imported.

        Raises NoModel, DamagedModel, ModelMismatch, and BadModel for a kind that is not served.
        """
        entries = self.entries()
        if not entries:
            raise self._no_model("no model has been trained or imported yet")
        return self._load(entries[-1])

    def load(self, version: str) -> Model:
        """The model of a version, or of the beginning of it or of its hash, if only one has it.

        Raises NoModel, DamagedModel, ModelMismatch, BadModel.
        """
        return self._load(self.entry(version))

    def entry(self, version: str) -> Entry:
        """The latest entry of a version; see `load`."""
        found = {one.version: one for one in self.entries() if _is_named(one.version, version)}
        if version in found:
            return found[version]
        if not found:
            raise self._no_model(f"no model has version {version!r}")
        if len(found) > 1 or not version:
            raise NoModel(f"version {version!r} could be any of {', '.join(found)}")
        return next(iter(found.values()))

    def add(self, model: Model, why: str, at_ms: int) -> str:
        """Keep `model` and make it champion; its version.

        Raises OSError, DamagedModel for a file of this version that is not this model.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._keep(model)
        digest = model_file.content_hash(model.file)
        for _ in range(_MAX_ATTEMPTS):
            entries = self.entries()
            follows = entries[-1].digest if entries else _NOTHING
            entry = Entry(model.version, "champion", why, at_ms, digest, follows).sealed()
            _append(self._folder / HISTORY, msgspec.json.encode(entry) + b"\n")
            if entry in self.entries():
                return model.version
        raise Unavailable(f"{HISTORY}: others wrote {_MAX_ATTEMPTS} times in between; try again")

    def _read(self) -> Iterator[Entry]:
        try:
            data = (self._folder / HISTORY).read_bytes()
        except FileNotFoundError:
            return
        *lines, rest = data.split(b"\n")
        seen = {_NOTHING}
        last = _NOTHING
        for number, line in enumerate([*lines, rest] if rest else lines, start=1):
            entry = _decoded(line, number)
            if entry.follows == last:
                yield entry
                last = entry.digest
                seen.add(last)
            elif entry.follows not in seen:
                raise _damaged(number, "follows a line that is not there")
        if rest:
            raise _damaged(len(lines) + 1, "has no end")

    def _load(self, entry: Entry) -> Model:
        path = self._path(entry.version)
        try:
            file = path.read_bytes()
        except FileNotFoundError:
            raise DamagedModel(
                f"{path.name} is in the history of models, but its file is gone; restore it from a"
                " backup, or train or import a model"
            ) from None
        try:
            model = Model.load(file)
        except (BadModel, DamagedModel) as problem:
            raise type(problem)(f"{path.name}: {problem}") from problem
        if model_file.content_hash(file) != entry.model:
            raise DamagedModel(f"{path.name} is another model than the one that the history names")
        return model

    def _keep(self, model: Model) -> None:
        path = self._path(model.version)
        if path.exists():
            if path.read_bytes() != model.file:
                raise DamagedModel(f"{path.name} is there already, with other bytes")
            return
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                file.write(model.file)
                file.flush()
                os.fsync(file.fileno())
            partial.chmod(0o444)
            # Whoever comes first with this version has the same bytes: the name carries their hash.
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _sync(self._folder)

    def _path(self, version: str) -> Path:
        return self._folder / f"{version}{_SUFFIX}"

    def _no_model(self, what: str) -> NoModel:
        return NoModel(
            f"{what} (registry {self._folder}): `freshscore train --data FILE` trains one,"
            " `freshscore models import FILE` imports a LightGBM model,"
            " `freshscore models list` shows what there is"
        )


def _is_named(version: str, beginning: str) -> bool:
    return version.startswith(beginning) or version.partition("-")[2].startswith(beginning)


def _decoded(line: bytes, number: int) -> Entry:
    try:
        entry = as_type(msgspec.json.decode, line, Entry)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _damaged(number, "is no entry, or was cut") from None
    if msgspec.json.encode(entry.sealed()) != line:
        raise _damaged(number, "is not as it was written")
    return entry


def _damaged(number: int, how: str) -> DamagedModel:
    return DamagedModel(
        f"line {number} of {HISTORY} {how}, so nobody can say which model is the champion;"
        " restore the file from a backup, or move the registry away and import the model again"
    )


def _append(path: Path, line: bytes) -> None:
    is_new = not path.exists()
    # One write at the end of the file: writers may come in any order, but never into one another.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make a new name in `folder` as durable as its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
