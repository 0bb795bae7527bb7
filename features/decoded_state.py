"""A stored state once it was read: sorted records, tiles, and what its header said.

Rule: it is a view of bytes that never change, and every byte of it was checked.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshscore.features.memory import BYTES_AT
from freshscore.features.state_layout import StateLayout


class Stretch(msgspec.Struct, frozen=True, eq=False):
    """`n` items of `width` bytes, from byte `offset` of bytes that nobody changes."""

    width: int
    held: bytes = b""
    offset: int = 0
    n: int = 0

    @property
    def address(self) -> int:
        """Where they begin in memory, while the stretch is alive."""
        # An array would tell it too, and take thirty times as long.
        return id(self.held) + BYTES_AT + self.offset

    @property
    def words(self) -> NDArray[np.int64]:
        """The items as int64[n, width / 8], not to be written to."""
        words = self.width // 8
        flat = np.frombuffer(self.held, np.int64, self.n * words, self.offset)
        return flat.reshape(self.n, words)

    @property
    def raw(self) -> bytes:
        """Their bytes."""
        return self.held[self.offset : self.offset + self.n * self.width]

    def without(self, n: int) -> Stretch:
        """All but the first `n`."""
        return Stretch(self.width, self.held, self.offset + n * self.width, self.n - n)


class DecodedState(msgspec.Struct, frozen=True, eq=False):
    """A state as it was read: a set, whatever the order and number of what was appended.

    records: sorted and distinct. tiles: sums of what was folded. version: 128 bits.
    generation, nonce: of the header, 0 without one. folded_below_ms: F; a request with an earlier
    own time cannot be answered. forgotten_below_ms: history is complete from there on. is_erased:
    whether an order made it forget, neither time nor a limit.
    n_compacted, n_appended: records that were read behind the header, and behind those.
    summarised_below_ms: S, 0 where nothing from F on is folded: a request with an earlier `as_of`
    cannot be answered.
    n_without_event: payments with facts whose event lies in a tile, so that the facts do not count
    until they are decoded with what was folded. deferred: appended events from F on and below S,
    as they were appended: each is a repetition, or counts once what was folded was asked.
    """

    layout: StateLayout
    records: Stretch
    tiles: Stretch
    version: int = 0
    generation: int = 0
    nonce: int = 0
    folded_below_ms: int = 0
    summarised_below_ms: int = 0
    forgotten_below_ms: int = 0
    n_compacted: int = 0
    n_appended: int = 0
    n_without_event: int = 0
    is_erased: bool = False
    deferred: bytes = b""

    @property
    def closed_below_ms(self) -> int:
        """Events below this instant are in tiles, or beside their facts."""
        return max(self.folded_below_ms, self.summarised_below_ms)
