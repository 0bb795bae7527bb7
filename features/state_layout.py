"""How the stored state of one entity looks: its records, its tiles, and what they mean.

One int64 array, reached by address, is what the kernels read of it (positions in words below).
Two fingerprints name it. That of the records covers what a record's bytes mean; that of the state
covers also the tiles into which a grid entity is folded. Neither covers the model or the rest of
the specification, so that a new model finds its states warm.
Rule: whatever changes the meaning of a stored byte changes a fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshscore.features import program as p
from freshscore.features.memory import address_of
from freshscore.features.packing import Keys
from freshscore.features.program import Program
from freshscore.features.transaction import KINDS

# Words of the array.
WIDTH: Final = 0
SEED: Final = 1  # of checksums: the state's fingerprint
DIGEST_KEY: Final = 2  # 16 bytes
IS_GRID: Final = 4
READS_FACTS: Final = 5
TILE_WORDS: Final = 6
CONDITION_WORDS: Final = 7  # sums that a tile keeps for one condition
HAS_SQUARES: Final = 8
N_FACTS: Final = 9  # facts that a tile counts
N_CONDITIONS: Final = 10
N_WINDOWS: Final = 11
CONDITIONS: Final = 12
# Words of one window, behind the conditions: its delay, length and step.
WINDOW: Final = 3

_FORMAT: Final = 1
# Of what stands before the records (features/codec.py).
_STATE_FORMAT: Final = 2


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The layout of one entity's states, for one program and one set of keys.

    name: of the entity. width, tile_width: bytes of a record, and of a tile (0 for an exact one).
    fingerprint: of the state, 64 bits; record_fingerprint: of the records alone.
    words: int64, what the kernels read, and its address; with the digest key, so never shown.
    """

    name: str
    width: int
    tile_width: int
    is_grid: bool
    reads_facts: bool
    fingerprint: int
    record_fingerprint: int
    words: NDArray[np.int64] = field(repr=False, compare=False)
    address: int = field(repr=False, compare=False)


def state_fingerprints(program: Program) -> tuple[int, ...]:
    """The fingerprints of the states of all entities, in order; they are those of the layouts."""
    return tuple(_state_fingerprint(program, entity) for entity in range(len(program.entities)))


def state_layout(program: Program, keys: Keys, entity: int) -> StateLayout:
    """The layout of the states of entity number `entity` of `program`."""
    layout = program.entities[entity]
    is_grid = _is_grid(program, entity)
    wants, conditions, windows = _read_by_windows(program, entity)
    reads_facts = bool(wants & p.WANT_FACTS)
    squares = bool(wants & p.WANT_SQUARES)
    n_facts = _facts_read(program, wants)
    condition_words = 2 + 3 * squares + n_facts
    tile_words = 1 + condition_words * len(conditions) if is_grid else 0
    records = record_fingerprint(program, entity)
    fingerprint = _state_fingerprint(program, entity)
    words = np.zeros(CONDITIONS + len(conditions) + WINDOW * len(windows), np.int64)
    words[WIDTH] = 8 * layout.words
    words.view(np.uint64)[SEED] = fingerprint
    words.view(np.uint64)[DIGEST_KEY : DIGEST_KEY + 2] = keys.digest_keys[2 * entity :][:2]
    words[IS_GRID : N_WINDOWS + 1] = [
        is_grid,
        reads_facts,
        tile_words,
        condition_words,
        squares,
        n_facts,
        len(conditions),
        len(windows),
    ]
    words[CONDITIONS:] = [*conditions, *(word for window in windows for word in window)]
    return StateLayout(
        name=layout.name,
        width=8 * layout.words,
        tile_width=8 * tile_words,
        is_grid=is_grid,
        reads_facts=reads_facts,
        fingerprint=fingerprint,
        record_fingerprint=records,
        words=words,
        address=address_of(words),
    )


def record_fingerprint(program: Program, entity: int) -> int:
    """64 bits that name what the bytes of a record of entity number `entity` mean."""
    spec = program.specification
    layout = program.entities[entity]
    meaning = [
        _FORMAT,
        layout.name,
        layout.parts,
        layout.members,
        [spec.entity(member).parts for member in layout.members],
        layout.place_at,
        layout.words,
        spec.currency,
        spec.facts,
        spec.conditions,
        KINDS,
    ]
    return _digest(b"record-layout", meaning)


def _state_fingerprint(program: Program, entity: int) -> int:
    wants, conditions, windows = _read_by_windows(program, entity)
    squares = bool(wants & p.WANT_SQUARES)
    tiles = [conditions, windows, squares, _facts_read(program, wants)]
    records = record_fingerprint(program, entity)
    meaning = [_STATE_FORMAT, records, tiles if _is_grid(program, entity) else []]
    return _digest(b"state-layout", meaning)


def _is_grid(program: Program, entity: int) -> bool:
    return program.specification.entity(program.entities[entity].name).mode == "grid"


def _facts_read(program: Program, wants: int) -> int:
    """How many facts a tile counts, by what its windows want."""
    return len(program.specification.facts) if wants & p.WANT_FACTS else 0


def _digest(person: bytes, meaning: list[object]) -> int:
    encoded = msgspec.json.encode(meaning)
    digest = hashlib.blake2b(encoded, digest_size=8, person=person).digest()
    return int.from_bytes(digest, "little")


def _read_by_windows(
    program: Program, entity: int
) -> tuple[int, list[int], list[tuple[int, int, int]]]:
    """What the entity's windows want, their conditions, and (delay, length, step) of each."""
    wants = 0
    conditions: set[int] = set()
    windows: set[tuple[int, int, int]] = set()
    for span in _spans(program.code):
        if span[p.SPAN_ENTITY] != entity:
            continue
        wants |= int(span[p.SPAN_WANTS])
        n = int(span[p.SPAN_N_CONDITIONS])
        conditions.update(int(code) for code in span[p.SPAN_FIXED : p.SPAN_FIXED + n])
        for window in span[p.SPAN_FIXED + n :].reshape(-1, 2 + 2 * n):
            windows.add((int(span[p.SPAN_DELAY]), int(window[0]), int(window[1])))
    return wants, sorted(conditions), sorted(windows)


def _spans(code: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    at = int(code[p.SPANS_AT])
    for _ in range(code[p.N_SPANS]):
        length = int(code[at + p.SPAN_NEXT])
        yield code[at : at + length]
        at += length
