"""SipHash-2-4 with 128 bits of output, as kernels that any other kernel can call.

Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), and its 128-bit variant.
Layout: four 64-bit lanes; each 8-byte little-endian word of input costs two rounds (about 1.7 ns),
the ends cost ten rounds more. The last word carries the rest of the bytes and, in its top byte, the
length modulo 256.

Rule: for one input and one key every function here gives the same 128 bits, on every machine,
as a pair (low, high) whose little-endian bytes in that order are the published 16 bytes.
Never use it as a plain hash of chosen inputs: without a secret or a typed, length-prefixed input it
promises nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from freshscore.features.compiled import kernel

if TYPE_CHECKING:
    Lanes = tuple[np.uint64, np.uint64, np.uint64, np.uint64]

# "somepseudorandomlygeneratedbytes" in ASCII, big-endian, as the paper sets the lanes.
_LANE_0 = np.uint64(0x736F6D6570736575)
_LANE_1 = np.uint64(0x646F72616E646F6D)
_LANE_2 = np.uint64(0x6C7967656E657261)
_LANE_3 = np.uint64(0x7465646279746573)
# Separates the 128-bit variant from the 64-bit one: at the start, before and within the end.
_WIDE_START = np.uint64(0xEE)
_WIDE_FINISH = np.uint64(0xEE)
_WIDE_SECOND_HALF = np.uint64(0xDD)

_S13, _S16, _S17, _S21, _S32 = (np.uint64(bits) for bits in (13, 16, 17, 21, 32))
_S51, _S48, _S47, _S43 = (np.uint64(64 - bits) for bits in (13, 16, 17, 21))
_S56 = np.uint64(56)


@kernel(inline="always")
def _mixed(v0: np.uint64, v1: np.uint64, v2: np.uint64, v3: np.uint64) -> Lanes:
    """One round over the four lanes."""
    v0 += v1
    v2 += v3
    v1 = ((v1 << _S13) | (v1 >> _S51)) ^ v0
    v3 = ((v3 << _S16) | (v3 >> _S48)) ^ v2
    v0 = (v0 << _S32) | (v0 >> _S32)
    v2 += v1
    v0 += v3
    v1 = ((v1 << _S17) | (v1 >> _S47)) ^ v2
    v3 = ((v3 << _S21) | (v3 >> _S43)) ^ v0
    v2 = (v2 << _S32) | (v2 >> _S32)
    return v0, v1, v2, v3


@kernel
def sip_started(k0: np.uint64, k1: np.uint64) -> Lanes:
    """The lanes before any input, under the key whose little-endian halves are k0 and k1."""
    return k0 ^ _LANE_0, k1 ^ _LANE_1 ^ _WIDE_START, k0 ^ _LANE_2, k1 ^ _LANE_3


@kernel
def sip_absorbed(lanes: Lanes, word: np.uint64) -> Lanes:
    """The lanes after one more whole word of input."""
    v0, v1, v2, v3 = lanes
    v3 ^= word
    v0, v1, v2, v3 = _mixed(v0, v1, v2, v3)
    v0, v1, v2, v3 = _mixed(v0, v1, v2, v3)
    return v0 ^ word, v1, v2, v3


@kernel
def sip_finished(lanes: Lanes, rest: np.uint64, n_bytes: int) -> tuple[np.uint64, np.uint64]:
    """The digest of an input of `n_bytes`, whose last `n_bytes % 8` bytes are `rest`."""
    length = np.uint64(n_bytes) << _S56
    v0, v1, v2, v3 = sip_absorbed(lanes, rest | length)
    v2 ^= _WIDE_FINISH
    for _ in range(4):
        v0, v1, v2, v3 = _mixed(v0, v1, v2, v3)
    low = v0 ^ v1 ^ v2 ^ v3
    v1 ^= _WIDE_SECOND_HALF
    for _ in range(4):
        v0, v1, v2, v3 = _mixed(v0, v1, v2, v3)
    return low, v0 ^ v1 ^ v2 ^ v3
