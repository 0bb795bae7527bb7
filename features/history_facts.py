"""When facts change what holds of an event: the changes that history makes as it moves on.

Of the facts of one name of one event that are known by an instant the latest holds, by (known-at,
sender's instant, value); a flag is a fact known, and sent, at the event's own time; of copies of a
fact the smallest known-at counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features import history_layout as h
from freshscore.features.history_turns import Copies
from freshscore.features.table import Bytes, FactTable, Int32s, Int64s, PaymentTable

_ALWAYS: Final = -(2**62)


@dataclass(frozen=True, slots=True, eq=False)
class FactChanges:
    """Changes of facts.

    flags: uint8 (n,), bits that hold of each row from the beginning. row, known_at_ms: int64 (m,);
    bit: uint8 (m,), the number of the fact that turns: to true first, then back and forth.
    """

    flags: Bytes
    row: Int64s
    known_at_ms: Int64s
    bit: Bytes


def shared_facts(table: PaymentTable, copies: Copies) -> FactTable:
    """The facts of `table`, given to every copy of their payment with the same event time."""
    facts = table.facts
    which, given = copies.among(facts.row)
    alike = np.stack([copies.payment, table.time_ms[copies.row]], axis=1)
    _, event, sizes = np.unique(alike, axis=0, return_inverse=True, return_counts=True)
    event = event.reshape(-1)
    by_event = np.argsort(event, kind="stable")
    begins = np.cumsum(sizes) - sizes
    times = sizes[event[which]]
    inside = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    receivers = by_event[np.repeat(begins[event[which]], times) + inside]
    others = np.ones(len(facts), np.bool_)
    others[given] = False
    at = np.concatenate([np.flatnonzero(others), np.repeat(given, times)])
    return FactTable(
        np.concatenate([facts.row[others], copies.row[receivers]]),
        facts.name[at],
        facts.value[at],
        facts.sender_ms[at],
        facts.known_at_ms[at],
    )


def fact_changes(table: PaymentTable, facts: FactTable) -> FactChanges:
    """What `facts` and the table's flags come to."""
    flags = table.flags.copy()
    if len(facts) == 0:
        return FactChanges(flags, facts.row, facts.known_at_ms, facts.name)
    bits = np.left_shift(1, facts.name).astype(np.uint8)
    # A flag of which there are facts too is one of them; others hold from the beginning.
    flagged = np.flatnonzero(flags[facts.row] & bits)
    np.bitwise_and.at(flags, facts.row, ~bits)
    row = np.concatenate([facts.row, facts.row[flagged]])
    own_ms = table.time_ms[facts.row[flagged]]
    known_ms = np.concatenate([facts.known_at_ms, own_ms])
    sender_ms = np.concatenate([facts.sender_ms, own_ms])
    name = np.concatenate([facts.name, facts.name[flagged]])
    value = np.concatenate([facts.value, np.ones(len(flagged), np.bool_)])

    copies = np.lexsort((known_ms, sender_ms, value, name, row))
    first = copies[_differs(row[copies], name[copies], value[copies], sender_ms[copies])]
    order = first[
        np.lexsort((value[first], sender_ms[first], known_ms[first], name[first], row[first]))
    ]
    # A flag comes with its event: whatever was known of it before, no window ever sees.
    with_flag = (table.flags[row] >> name) & 1 == 1
    known_ms = np.where(with_flag & (known_ms <= table.time_ms[row]), _ALWAYS, known_ms)
    # Of several facts that became known in one instant the last one counts.
    last = np.append(_differs(row[order], name[order], known_ms[order])[1:], True)
    held = order[last]
    new = _differs(row[held], name[held])
    before = np.zeros(len(held), np.bool_)
    before[1:] = value[held][:-1] & ~new[1:]
    turns = held[value[held] != before]
    return FactChanges(flags, row[turns], known_ms[turns], name[turns])


def _differs(*columns: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Whether each row of sorted columns differs from the row before; the first does."""
    differs = np.ones(len(columns[0]), np.bool_)
    differs[1:] = False
    for column in columns:
        differs[1:] |= column[1:] != column[:-1]
    return differs


def placed(changes: FactChanges, codes: Int32s, positions: Int32s) -> Int64s:
    """int64 (m, 3): the changes as kernels read them, by entity and instant.

    codes, positions: int32 (n,), the entity of each row and the number of its entry.
    """
    named = np.flatnonzero(codes[changes.row] >= 0)
    row = changes.row[named]
    order = np.lexsort((changes.known_at_ms[named], codes[row]))
    result = np.empty((len(order), h.CHANGE_BYTES // 8), np.int64)
    result[:, 0] = positions[row[order]]
    result[:, 1] = changes.known_at_ms[named][order]
    result[:, 2] = np.left_shift(1, h.FACT_BIT + changes.bit[named][order].astype(np.int64))
    return result
