"""The decisions of whoever decided before, from a column of the file, beside freshscore's.

A decision is a truth (declined or not), 0 or 1, or one of the words below. A column of anything
else is refused: a score says nothing without its threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from freshscore.config.errors import BadFile
from freshscore.features.table import Bools, Int64s
from freshscore.scoring.result import DECISIONS

_WORDS: Final = {
    "approve": 0,
    "approved": 0,
    "accept": 0,
    "accepted": 0,
    "review": 1,
    "reviewed": 1,
    "decline": 2,
    "declined": 2,
    "reject": 2,
    "rejected": 2,
}
_UNKNOWN: Final = -1
_SHOWN: Final = 5


@dataclass(frozen=True)
class Difference:
    """Payments that the incumbent decided one way and freshscore another.

    incumbent, freshscore: names of decisions. amount_minor and fraud_minor: sums; frauds and
    fraud_minor are None where nothing is known of frauds.
    """

    incumbent: str
    freshscore: str
    payments: int
    amount_minor: int
    frauds: int | None
    fraud_minor: int | None


@dataclass(frozen=True)
class IncumbentComparison:
    """First decisions beside an incumbent's. unknown: payments without one."""

    column: str
    compared: int
    amount_minor: int
    unknown: int
    differences: tuple[Difference, ...]


def incumbent_decisions(column: pa.Array | pa.ChunkedArray, name: str) -> NDArray[np.int8]:
    """Places in DECISIONS of each row of column `name`, -1 where there is none; raises BadFile."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return _of_numbers(values, name)
    if pa.types.is_dictionary(values.type):
        values = values.cast(pa.string())
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise BadFile(f"column {name!r} is {values.type}; a decision is a truth, 0 or 1, or a word")
    return _of_words(values, name)


def compared_decisions(
    column: str,
    incumbent: NDArray[np.int8],
    own: NDArray[np.uint8],
    amount_minor: Int64s,
    fraud: Bools | None,
) -> IncumbentComparison:
    """Both decisions on each payment (n,): the pairs that differ."""
    known = incumbent != _UNKNOWN
    differences = []
    for theirs, their_name in enumerate(DECISIONS):
        for ours, our_name in enumerate(DECISIONS):
            these = (incumbent == theirs) & (own == ours)
            if theirs == ours or not these.any():
                continue
            frauds = None if fraud is None else these & fraud
            differences.append(
                Difference(
                    their_name,
                    our_name,
                    int(np.count_nonzero(these)),
                    int(amount_minor[these].sum()),
                    None if frauds is None else int(np.count_nonzero(frauds)),
                    None if frauds is None else int(amount_minor[frauds].sum()),
                )
            )
    return IncumbentComparison(
        column=column,
        compared=int(np.count_nonzero(known)),
        amount_minor=int(amount_minor[known].sum()),
        unknown=int(np.count_nonzero(~known)),
        differences=tuple(differences),
    )


def _of_numbers(values: pa.Array, name: str) -> NDArray[np.int8]:
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    known = ~np.isnan(numbers)
    others = np.unique(numbers[known & (numbers != 0) & (numbers != 1)])
    if len(others):
        raise BadFile(
            f"column {name!r} holds {', '.join(map(str, others[:_SHOWN]))}; a decision is 0 or 1"
            " (declined) or a word; a score says nothing without its threshold"
        )
    decline = DECISIONS.index("decline")
    return np.where(known, np.where(numbers == 1, decline, 0), _UNKNOWN).astype(np.int8)


def _of_words(values: pa.Array, name: str) -> NDArray[np.int8]:
    coded = pc.utf8_lower(pc.utf8_trim_whitespace(values)).dictionary_encode()
    words = coded.dictionary.to_pylist()
    unknown = [word for word in words if word and word not in _WORDS]
    if unknown:
        raise BadFile(
            f"column {name!r} holds {', '.join(map(repr, unknown[:_SHOWN]))};"
            f" decisions are {', '.join(_WORDS)}"
        )
    places = np.array([*(_WORDS.get(word, _UNKNOWN) for word in words), _UNKNOWN], np.int8)
    decisions: NDArray[np.int8] = places[
        coded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    ]
    return decisions
