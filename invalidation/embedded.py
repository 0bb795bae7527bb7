"""The state of an embedded deployment: its store, its keys, and where both are kept.

Rule: nothing is written unless the settings name a folder; then the store's file is replaced whole,
and the identifier secret lies beside it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from freshscore.config.secret import load_secret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys
from freshscore.features.program import compiled
from freshscore.features.saving import open_store, save_store
from freshscore.features.specification import FeatureSpecification
from freshscore.features.store import MemoryStore, StoreLimits
from freshscore.invalidation.feed import Acceptance

STATE_FILE: Final = "state"


@dataclass(frozen=True, slots=True)
class EmbeddedState:
    """A store and what decides on its events; `folder` is where it is kept, or None."""

    store: MemoryStore
    acceptance: Acceptance
    folder: Path | None

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The store that the settings name: opened if it was saved there, else new.

        Raises BadSpecification, SettingsError, DamagedState, WrongSecret, StoreFull.
        """
        own = settings.store
        program = compiled(FeatureSpecification.named(own.specification))
        secret = load_secret(own.path)
        if secret.made:
            logging.getLogger("freshscore").warning(
                "made an identifier secret at %s; keep it, the store cannot be read without it",
                secret.origin,
            )
        keys = Keys(program, secret)
        limits = StoreLimits(
            max_entities=own.max_entities,
            max_payments=own.max_payments,
            max_events_per_entity=own.max_events_per_entity,
            horizon_ms=1000 * own.horizon_s,
            arena_bytes=own.arena_bytes,
        )
        path = None if own.path is None else own.path / STATE_FILE
        if path is not None and path.exists():
            store = open_store(path, program, keys, limits)
        else:
            store = MemoryStore(program, keys, limits)
        return cls(store, Acceptance(1000 * own.horizon_s, 1000 * own.skew_s), own.path)

    def save(self) -> None:
        """Replace the saved store, if there is a folder for it."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_store(self.store, self.folder / STATE_FILE)
