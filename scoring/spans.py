"""Arrays over raw addresses, and the lowest set bit of a word, for the kernels of this room.

A load at a computed address (features/memory.py) hides from the compiler that neighbours in a loop
are neighbours in memory; an array over the same address lets it use vector instructions.
Rule: as there, nothing here checks; the caller keeps the memory alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from freshscore.features.compiled import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def _pointer(typing: Any, address: Any, kind: Any) -> Any:
    """`address` as a pointer to the elements of the numpy type `kind`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(types.int64, kind), generate


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def lowest_bit(typing: Any, word: Any) -> Any:
    """The place, from 0, of the lowest bit that is set in a uint64 other than 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate


@kernel(inline="always")
def words_at(address: int | np.int64, n: int) -> NDArray[np.uint64]:
    """The `n` uint64 at `address`."""
    words: NDArray[np.uint64] = carray(_pointer(address, np.uint64), (n,))
    return words


@kernel(inline="always")
def halves_at(address: int | np.int64, n: int) -> NDArray[np.uint16]:
    """The `n` uint16 at `address`."""
    halves: NDArray[np.uint16] = carray(_pointer(address, np.uint16), (n,))
    return halves
