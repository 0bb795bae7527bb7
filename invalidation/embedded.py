"""The state of an embedded deployment: its store, its keys, and where both are kept.

Rule: nothing is written unless the settings name a folder and something was observed. Then the
folder is this state's alone until it is closed, the identifier secret lies beside the store, and
the store's file is replaced whole: what another has saved is never overwritten.
"""

from __future__ import annotations

import fcntl
import logging
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from freshscore.config.errors import SettingsError, StoreInUse
from freshscore.config.secret import Secret, keep_secret, load_secret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys
from freshscore.features.program import compiled
from freshscore.features.saving import open_store, save_store
from freshscore.features.specification import FeatureSpecification
from freshscore.features.store import MemoryStore, StoreLimits
from freshscore.invalidation.feed import Acceptance

STATE_FILE: Final = "state"


class EmbeddedState:
    """A store and what decides on its events; `folder` is where it is kept, or None.

    secret: that its keys are of; it goes into the folder with the first change. opened_from: what
    told the saved file from any other before it was read.
    """

    def __init__(
        self,
        store: MemoryStore,
        acceptance: Acceptance,
        folder: Path | None = None,
        secret: Secret | None = None,
        opened_from: tuple[int, int] | None = None,
    ) -> None:
        self.store = store
        self.acceptance = acceptance
        self.folder = folder
        self._secret = secret
        self._opened_from = opened_from
        # Gives the folder back, at the latest when the state is forgotten.
        self._release: Callable[[], object] | None = None

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The store that the settings name: opened if it was saved there, else new.

        Raises BadSpecification, SettingsError, DamagedState, WrongSecret, StoreFull.
        """
        own = settings.store
        program = compiled(FeatureSpecification.named(own.specification))
        secret = load_secret(own.path)
        keys = Keys(program, secret)
        limits = StoreLimits.of(own)
        opened_from = _saved(own.path)
        path = None if own.path is None else own.path / STATE_FILE
        if path is not None and path.exists():
            store = open_store(path, program, keys, limits)
        else:
            store = MemoryStore(program, keys, limits)
        acceptance = Acceptance.of(own)
        return cls(store, acceptance, own.path, secret, opened_from)

    def begin_writing(self) -> None:
        """Before the first change: make the folder this state's alone.

        Raises StoreInUse if another writes there, or has saved since this state was opened;
        SettingsError where the folder cannot be made.
        """
        if self.folder is None or self._secret is None or self._release is not None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder, os.O_RDONLY)
        except OSError as problem:
            raise SettingsError(f"store.path {self.folder}: {problem.strerror}") from problem
        if not os.access(self.folder, os.W_OK | os.X_OK):
            os.close(lock)
            raise SettingsError(f"store.path {self.folder} cannot be written, so nothing is kept")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_unchanged()
            made = keep_secret(self._secret, self.folder)
        except BlockingIOError:
            os.close(lock)
            raise StoreInUse(
                f"another scorer or command writes to the store in {self.folder}; one at a time"
                " observes, any number may score what was saved"
            ) from None
        except BaseException:
            os.close(lock)
            raise
        self._release = weakref.finalize(self, os.close, lock)
        if made is not None:
            logging.getLogger("freshscore").warning(
                "made an identifier secret at %s; keep it, the store cannot be read without it",
                made,
            )

    def close(self) -> None:
        """Save what was observed, if there is a folder for it, and leave the folder to others.

        From then on nothing is applied, in any thread. Raises StoreInUse if another has saved there
        meanwhile, and BadFile where the file cannot be written: then closing again tries again.
        """
        self.store.seal()
        if self.folder is None or self._release is None:
            return
        self._check_unchanged()
        save_store(self.store, self.folder / STATE_FILE)
        self.abandon()

    def abandon(self) -> None:
        """Leave the folder to others without saving."""
        if self._release is not None:
            self._release()
            self._release = None

    def _check_unchanged(self) -> None:
        if _saved(self.folder) != self._opened_from:
            raise StoreInUse(
                f"the store in {self.folder} was saved or removed by another since it was opened"
                " here; open it again"
            )


def _saved(folder: Path | None) -> tuple[int, int] | None:
    """What tells one saved file from another; None without one."""
    if folder is None:
        return None
    try:
        found = (folder / STATE_FILE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
