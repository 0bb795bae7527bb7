"""Shares of cards: where each lies between 0 and 1, for a change that begins with a few of them.

Rule: it follows from a keyed hash that does not rotate, so every process says the same, for good;
nothing is stored, and no identifier follows from it.
"""

from __future__ import annotations

import struct
from typing import Final

from freshscore.features.row import TOKENS

# Of 64 bits the last, for which a float64 has no room.
_TOO_FINE: Final = 11


def share_of_row(row: bytes, n_entities: int) -> float:
    """Of a packed row's first entity, from 0 to below 1; 1.0 where it has none."""
    # Members: tokens are of the identifier key, and would move when that is rotated.
    members = struct.unpack_from(f"<{n_entities}Q", row, TOKENS + 16 * n_entities)
    member = next((one for one in members if one), None)
    return 1.0 if member is None else float(member >> _TOO_FINE) * 2.0**-53
