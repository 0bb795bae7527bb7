"""What every store of states can do: what scoring and feeding ask of one, wherever it keeps them.

Rule: states are sets (law 3): an event or fact that is there changes nothing, whoever applies it.
The memory store meets it (features/store.py), and is saved and opened by features/saving.py.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from freshscore.features.packing import Keys
from freshscore.features.program import Program


@runtime_checkable
class Store(Protocol):
    """The states of the entities of one program, under one set of keys."""

    program: Program
    keys: Keys

    def observe(self, row: bytes) -> str:
        """Apply the event in `row`; what came of it."""
        ...

    def label(
        self, row: bytes, fact: int, value: bool, known_at_ms: int, sender_ms: int, looked_up: bool
    ) -> str:
        """Apply a fact of the payment in `row`; what came of it."""
        ...

    def features(self, row: bytes, as_of_ms: int) -> NDArray[np.float64]:
        """The feature vector of the transaction in `row` at `as_of_ms`: float64[n_columns]."""
        ...

    def versions(self, row: bytes) -> tuple[int | None, ...]:
        """The version of the state of each of the transaction's entities; None where none is."""
        ...

    @property
    def newest_ms(self) -> int:
        """The newest event time applied, ms; 0 before the first."""
        ...
