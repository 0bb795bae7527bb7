"""Compaction of states in Redis: sorted, without repetitions, folded, and swapped in.

A state is read, compacted here, and swapped in by a script that compares length and SHA-1 of the
whole prefix that was read; what was appended meanwhile stays behind it. Of two compactors one
loses, which costs its work and nothing else. What was folded goes to its own key in the same step.

How a state stays bounded (law 9). An exact one with more records than store.max_events_per_entity
forgets its oldest sixteenth, as in memory. A grid holds in records only what its tiles cannot take
yet, up to 2^19; beyond that it forgets too. Where facts are read, what was folded is kept, up to
2^28 bytes (a string of Redis ends at 2^29); beyond that nothing more is folded, so that the records
forget. The header says below which instant nothing is left, so readers know what their windows miss
and say "too many events", also where time is all that went by.
A late appender cannot undo that: readers ignore what lies below that instant.
Rejected: refusing the append (it reads nothing first), and cutting in the middle (never sorted).
Rule: compaction at any moment changes no value that is not said to be missing, and no version.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from freshscore.config.errors import DamagedState
from freshscore.config.secret import random_seed
from freshscore.features import layout as rec
from freshscore.features.codec import Compaction, compacted, decode
from freshscore.features.decoded_state import DecodedState
from freshscore.features.redis_commands import Tagged, replies_to
from freshscore.features.redis_door import command
from freshscore.features.redis_keys import tag_of
from freshscore.features.redis_reading import Wanted
from freshscore.features.redis_scripts import SWAP
from freshscore.features.redis_store import RedisStore

# States of one exchange: a state at its limit has half a megabyte.
_AT_ONCE: Final = 16
_GRID_RECORDS: Final = 1 << 19
_PAST_BYTES: Final = 1 << 28

# What came of a candidate.
SWAPPED: Final = "swapped"
NOT_DUE: Final = "not due"
OVERTAKEN: Final = "overtaken"
ABSENT: Final = "absent"
DAMAGED: Final = "damaged"
FULL: Final = "full"

# What the script answers where what was folded cannot be kept.
_FULL: Final = -1


def crossed(before_bytes: int, after_bytes: int, width: int, compact_records: int) -> bool:
    """Whether an append from one length to another makes a state a candidate.

    It does where the length reached `compact_records` times a power of two, so that a writer asks
    for nothing but the length that every append answers; `is_due` then says whether it has doubled.
    """
    unit = compact_records * width
    return (after_bytes // unit).bit_length() > (before_bytes // unit).bit_length()


def is_due(state: DecodedState, compact_records: int) -> bool:
    """Whether a state has doubled, or has facts of events that were folded."""
    settled = max(compact_records, state.n_compacted + state.tiles.n)
    return state.n_appended >= settled or state.n_without_event > 0


class _Work(msgspec.Struct, frozen=True):
    """One string to be replaced."""

    key: bytes
    entity: int
    token: bytes
    blob: bytes
    past: bytes = b""


class Compactor:
    """Compacts the states of one store; any number may work beside each other and beside writers.

    nonce: draws 64 random bits for a header.
    """

    def __init__(self, store: RedisStore, nonce: Callable[[], int] = random_seed) -> None:
        self._store = store
        self._nonce = nonce
        self._compact_records = store.nodes.settings.compact_records

    def compact(
        self,
        candidates: Sequence[Wanted],
        *,
        forget_below_ms: int = 0,
        fold_below_ms: int = 0,
        only_due: bool = True,
    ) -> Counter[str]:
        """Compact the states of those candidates (entity number, token) that are due.

        forget_below_ms: no window of a request yet to come begins before it. fold_below_ms: F, no
        event before it is still to come. Counts what came of each. Raises Unavailable; what was
        swapped until then stays so.
        """
        counted: Counter[str] = Counter()
        for first in range(0, len(candidates), _AT_ONCE):
            some = candidates[first : first + _AT_ONCE]
            work = self._read(some, counted, only_due)
            grown = self._swap(work, counted, forget_below_ms, fold_below_ms)
            self._compact_past(grown, forget_below_ms)
        return counted

    def _read(
        self, candidates: Sequence[Wanted], counted: Counter[str], only_due: bool
    ) -> list[_Work]:
        reading, nodes = self._store.reading, self._store.nodes
        asked = [(tag_of(t), command(b"GET", reading.state_key(e, t))) for e, t in candidates]
        work: list[_Work] = []
        needs_past: list[_Work] = []
        for (entity, token), blob in zip(candidates, replies_to(nodes, asked), strict=True):
            if blob is None:
                counted[ABSENT] += 1
                continue
            try:
                state = decode(blob, self._store.maker.layouts[entity])
            except DamagedState:
                counted[DAMAGED] += 1
                continue
            if only_due and not is_due(state, self._compact_records):
                counted[NOT_DUE] += 1
                continue
            one = _Work(reading.state_key(entity, token), entity, token, blob)
            (needs_past if state.n_without_event else work).append(one)
        pasts = self._pasts([(one.entity, one.token) for one in needs_past])
        with_past = zip(needs_past, pasts, strict=True)
        return work + [msgspec.structs.replace(one, past=past) for one, past in with_past]

    def _pasts(self, wanted: Sequence[Wanted]) -> list[bytes]:
        asked = [
            (tag_of(t), command(b"GET", self._store.reading.past_key(e, t))) for e, t in wanted
        ]
        return [past or b"" for past in replies_to(self._store.nodes, asked)]

    def _swap(
        self, work: Sequence[_Work], counted: Counter[str], forget_ms: int, fold_ms: int
    ) -> list[Wanted]:
        """Swap in what is compacted; those whose folded events have become many.

        Where no more of them can be kept, nothing more is folded, until some are out of reach.
        """
        swaps: list[Tagged] = []
        folded: list[tuple[_Work, int]] = []
        for one in work:
            try:
                made = self._compacted(one, forget_ms, fold_ms)
            except DamagedState:
                counted[DAMAGED] += 1
                continue
            swaps.append(self._swap_command(one, made.state, made.folded))
            folded.append((one, len(made.folded)))
        grown: list[Wanted] = []
        full: list[_Work] = []
        for (one, n_bytes), reply in zip(folded, replies_to(self._store.nodes, swaps), strict=True):
            if reply == _FULL:
                full.append(one)
                continue
            counted[SWAPPED if reply else OVERTAKEN] += 1
            width = self._store.maker.layouts[one.entity].width
            if reply and crossed(reply[1] - n_bytes, reply[1], width, self._compact_records):
                grown.append((one.entity, one.token))
        if full:
            counted[FULL] += len(full)
            if fold_ms:
                names = [(one.entity, one.token) for one in full]
                self._compact_past(names, forget_ms, only_due=False)
                self._swap(full, counted, forget_ms, 0)
        return grown

    def _swap_command(self, one: _Work, state: bytes, folded: bytes) -> Tagged:
        digest = hashlib.sha1(one.blob, usedforsecurity=False).hexdigest().encode()
        past_key = self._store.reading.past_key(one.entity, one.token)
        given = [b"%d" % len(one.blob), digest, state, folded]
        given += [b"%d" % self._store.ttl_s, b"%d" % _PAST_BYTES]
        return tag_of(one.token), command(b"EVALSHA", SWAP.digest, b"2", one.key, past_key, *given)

    def _compact_past(
        self, wanted: Sequence[Wanted], forget_ms: int, *, only_due: bool = True
    ) -> None:
        """Sort and forget what was folded, where it has doubled; a state by itself."""
        swaps = []
        for (entity, token), past in zip(wanted, self._pasts(wanted), strict=True):
            layout = self._store.maker.layouts[entity]
            try:
                if not past:
                    continue
                if only_due and not is_due(decode(past, layout), self._compact_records):
                    continue
                made = compacted(past, layout, nonce=self._nonce(), forget_below_ms=forget_ms)
            except DamagedState:
                continue  # found, and said, by the first fact that asks for it
            key = self._store.reading.past_key(entity, token)
            swaps.append(self._swap_command(_Work(key, entity, token, past), made.state, b""))
        replies_to(self._store.nodes, swaps)

    def _compacted(self, one: _Work, forget_ms: int, fold_ms: int) -> Compaction:
        """The state to be swapped in, within its limit."""
        layout = self._store.maker.layouts[one.entity]
        most = _GRID_RECORDS if layout.is_grid else self._store.limits.max_events_per_entity
        made = compacted(
            one.blob,
            layout,
            nonce=self._nonce(),
            forget_below_ms=forget_ms,
            fold_below_ms=fold_ms,
            past=one.past,
        )
        if len(made.state) <= most * layout.width:
            return made
        records = decode(made.state, layout).records
        if records.n <= most:
            return made
        last_gone = records.n - (most - max(1, most >> 4)) - 1
        line_ms = (int(records.words[last_gone, rec.TIME // 8]) >> 16) + 1
        less = compacted(made.state, layout, nonce=self._nonce(), forget_below_ms=line_ms)
        return msgspec.structs.replace(less, folded=made.folded)
