"""Ways to break what the laws rest on, for canaries: in memory, since the kernels are compiled.

Each is a fault that code could have: a box that is too wide, a version that does not move, a window
that is a millisecond off, a fact that counts before it is known, a hash that is too short.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from freshscore.features import layout as rec
from freshscore.features import row as r
from freshscore.features import tables as t
from freshscore.features.packing import Packer
from freshscore.features.transaction import Transaction
from freshscore.scoring import cache_layout as c
from tests.laws.worlds import World, entity_rows, records_of

Words = NDArray[np.int64]


def widen_boxes(world: World) -> None:
    """Every cached score holds for every vector."""
    n = world.store.program.n_columns
    boxes = cached(world).view(np.uint16)[:, c.BOX // 2 : c.BOX // 2 + 2 * n]
    boxes[:, :n] = 0
    boxes[:, n:] = 2**16 - 1


def prolong_memos(world: World, by_ms: int = 1) -> None:
    """Every memo is valid for longer than it is."""
    cached(world)[:, c.VALID_UNTIL // 8] += by_ms


def freeze_versions() -> Callable[[World], None]:
    """No version of a state moves from the second call on."""
    frozen: dict[tuple[int, bytes], bytes] = {}

    def freeze(world: World) -> None:
        for entity in range(len(world.store.program.entities)):
            for row in entity_rows(world.store, entity):
                held = frozen.setdefault((entity, row[:2].tobytes()), row[2:4].tobytes())
                row[2:4] = np.frombuffer(held, np.int64)

    return freeze


def shift_events(world: World) -> None:
    """Every event happened a millisecond earlier."""
    for words in records_of(world.store):
        words[:, rec.TIME // 8] -= 1 << 16


def know_facts_at_once(world: World) -> None:
    """Every fact was known with its event."""
    for words in records_of(world.store):
        facts = words[(words[:, rec.TIME // 8] >> 14) & 3 == rec.FACT]
        content = facts[:, rec.CONTENT // 8]
        facts[:, rec.CONTENT // 8] = (facts[:, rec.TIME // 8] >> 16 << 16) | (content & 0xFFFF)
        words[(words[:, rec.TIME // 8] >> 14) & 3 == rec.FACT] = facts


def forget_losses(world: World) -> None:
    """No state says that it lost events at its limit."""
    for entity in range(len(world.store.program.entities)):
        entity_rows(world.store, entity)[:, t.LOST // 8] = 0


class ShortHashes(Packer):
    """Tokens of entities of three bits."""

    def row(self, transaction: Transaction) -> bytes:
        """The row, with what collides."""
        words = np.frombuffer(super().row(transaction), np.uint64).copy()
        n = 2 * len(self.program.entities)
        tokens = words[r.TOKENS // 8 : r.TOKENS // 8 + n]
        tokens[::2] &= np.uint64(7)
        tokens[1::2] = np.where(tokens[1::2] > 0, 1, 0)
        return words.tobytes()


def cached(world: World) -> Words:
    """The entries of the score cache, int64 (n, words of an entry): a view."""
    tier = world.serving.tier
    return tier._entries.reshape(tier.max_entries, tier.entry_bytes // 8)
