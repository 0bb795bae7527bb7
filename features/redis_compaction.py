"""Compaction of states in Redis: sorted, without repetitions, folded, and swapped in.

A state is read, compacted here, and swapped in by a script that compares length and SHA-1 of the
whole prefix that was read; what was appended meanwhile stays behind it. Of two compactors one
loses, which costs its work and nothing else. What was folded goes to its buckets before that
(features/past_events.py), unless the state was compacted or erased meanwhile: what was erased does
not come back by a compactor that had read it before.

How a state stays bounded (law 9). An exact one with more records than store.max_events_per_entity
forgets its oldest sixteenth, as in memory. A grid with more than redis.grid_records is folded
early, but for the newest half of so many. Folded events are kept up to redis.past_max_bytes; beyond
that no more are folded, and a grid holds up to 2^19 records; beyond that it forgets too. The header
says below which instant nothing is left, so readers know what their windows miss and say "too many
events", also where time is all that went by.
A late appender cannot undo that: readers ignore what lies below that instant.
Rejected: refusing the append (it reads nothing first), and cutting in the middle (never sorted).
Rule: compaction at any moment changes no value that is not said to be missing, and no version, but
for late events that count from then on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from freshscore.config.errors import DamagedState
from freshscore.config.secret import random_seed
from freshscore.features import layout as rec
from freshscore.features.checksums import HEADER_BYTES
from freshscore.features.codec import Compaction, buckets_of_state, compacted, decode
from freshscore.features.decoded_state import DecodedState
from freshscore.features.past_events import BUCKETS, Past, by_bucket
from freshscore.features.redis_commands import Tagged, replies_to
from freshscore.features.redis_door import command
from freshscore.features.redis_keys import tag_of
from freshscore.features.redis_reading import Wanted
from freshscore.features.redis_scripts import KEEP, SWAP
from freshscore.features.redis_store import RedisStore

# States of one exchange: a state at its limit has half a megabyte.
_AT_ONCE: Final = 16
_GRID_RECORDS: Final = 1 << 19
# Buckets that one script appends to, 0.1 ms, and that one exchange asks for.
_KEPT_AT_ONCE: Final = 64
_READ_AT_ONCE: Final = 1_024

# What KEEP answers where it is about another state by now.
_OTHER_STATE: Final = -1

# What came of a candidate.
SWAPPED: Final = "swapped"
NOT_DUE: Final = "not due"
OVERTAKEN: Final = "overtaken"
ABSENT: Final = "absent"
DAMAGED: Final = "damaged"
FULL: Final = "full"


def crossed(before_bytes: int, after_bytes: int, width: int, compact_records: int) -> bool:
    """Whether an append from one length to another makes a state a candidate.

    It does where the length reached `compact_records` times a power of two, so that a writer asks
    for nothing but the length that every append answers; `is_due` then says whether it has doubled.
    """
    unit = compact_records * width
    return (after_bytes // unit).bit_length() > (before_bytes // unit).bit_length()


def is_due(state: DecodedState, compact_records: int, grid_records: int) -> bool:
    """Whether a state has doubled, or waits for what was folded; a grid not that long."""
    settled = max(compact_records, state.n_compacted + state.tiles.n)
    if state.layout.is_grid:
        settled = min(settled, max(compact_records, grid_records // 2))
    return bool(state.n_appended >= settled or state.n_without_event or state.deferred)


class _Work(msgspec.Struct, frozen=True):
    """One state to be replaced. past: the buckets that it asks for. early_ms: S, 0 for none."""

    entity: int
    token: bytes
    blob: bytes
    past: Past
    early_ms: int


class _Lines(msgspec.Struct, frozen=True):
    """Of one call of `compact`, ms."""

    forget_ms: int
    fold_ms: int


class _Bucket(msgspec.Struct, frozen=True):
    """One bucket of a state's folded events, of which those before `line_ms` may be forgotten."""

    entity: int
    token: bytes
    number: int
    line_ms: int


class _Kept(msgspec.Struct, frozen=True):
    """The buckets that may have doubled by what was kept, and the last of all with its length."""

    grown: tuple[_Bucket, ...] = ()
    last: tuple[_Bucket, int] | None = None


class Compactor:
    """Compacts the states of one store; any number may work beside each other and beside writers.

    nonce: draws 64 random bits for a header.
    """

    def __init__(self, store: RedisStore, nonce: Callable[[], int] = random_seed) -> None:
        self._store = store
        self._nonce = nonce
        settings = store.nodes.settings
        self._compact_records = settings.compact_records
        self._grid_records = settings.grid_records
        self._most_of_bucket = settings.past_max_bytes // BUCKETS

    def compact(
        self,
        candidates: Sequence[Wanted],
        *,
        forget_below_ms: int = 0,
        fold_below_ms: int = 0,
        now_ms: int = 0,
        only_due: bool = True,
    ) -> Counter[str]:
        """Compact the states of those candidates (entity number, token) that are due.

        forget_below_ms: no window of a request yet to come begins before it. fold_below_ms: F, no
        event before it is still to come. now_ms: by the clock of Redis; what happened before may be
        folded early; 0: nothing is. Counts what came of each. Raises Unavailable; what was swapped
        until then stays so.
        """
        counted: Counter[str] = Counter()
        for first in range(0, len(candidates), _AT_ONCE):
            some = candidates[first : first + _AT_ONCE]
            work = self._read(some, counted, only_due, now_ms)
            self._replace(work, counted, _Lines(forget_below_ms, fold_below_ms))
        return counted

    def _read(
        self, candidates: Sequence[Wanted], counted: Counter[str], only_due: bool, now_ms: int
    ) -> list[_Work]:
        reading, nodes = self._store.reading, self._store.nodes
        asked = [(tag_of(t), command(b"GET", reading.state_key(e, t))) for e, t in candidates]
        work: list[_Work] = []
        for (entity, token), blob in zip(candidates, replies_to(nodes, asked), strict=True):
            if blob is None:
                counted[ABSENT] += 1
                continue
            try:
                state = decode(blob, self._store.maker.layouts[entity])
            except DamagedState:
                counted[DAMAGED] += 1
                continue
            if only_due and not is_due(state, self._compact_records, self._grid_records):
                counted[NOT_DUE] += 1
                continue
            # Later than the state: what is a repetition by then makes the swap fail.
            numbers = sorted(buckets_of_state(state))
            held = self._buckets([_Bucket(entity, token, number, 0) for number in numbers])
            past = dict(zip(numbers, held, strict=True))
            work.append(_Work(entity, token, blob, past, self._early_ms(state, now_ms)))
        return work

    def _early_ms(self, state: DecodedState, now_ms: int) -> int:
        """S for a grid with many records: the time of the one that leaves half of the limit."""
        records = state.records
        if not state.layout.is_grid or records.n <= self._grid_records:
            return 0
        oldest_kept = records.n - max(1, self._grid_records // 2)
        return min(now_ms, int(records.words[oldest_kept, rec.TIME // 8]) >> 16)

    def _buckets(self, wanted: Sequence[_Bucket]) -> list[bytes]:
        asked = [(tag_of(one.token), command(b"GET", self._key_of(one))) for one in wanted]
        held: list[bytes] = []
        for first in range(0, len(asked), _READ_AT_ONCE):
            replies = replies_to(self._store.nodes, asked[first : first + _READ_AT_ONCE])
            held += [one or b"" for one in replies]
        return held

    def _key_of(self, one: _Bucket) -> bytes:
        return self._store.reading.past_key(one.entity, one.token, one.number)

    def _replace(self, work: Sequence[_Work], counted: Counter[str], lines: _Lines) -> None:
        """Keep what is folded of these states, and swap in what is left of them.

        Where no more can be kept, nothing more is folded that would have to be, until some is out
        of reach.
        """
        made: list[tuple[_Work, Compaction]] = []
        for one in work:
            try:
                made.append((one, self._compacted(one, lines)))
            except DamagedState:
                counted[DAMAGED] += 1
        full: list[_Work] = []
        swaps: list[Tagged] = []
        several: list[_Kept] = []
        for one, done in made:
            kept, problem = self._keep(one, done, lines)
            if problem == OVERTAKEN:
                counted[OVERTAKEN] += 1
                continue
            if problem == FULL:
                full.append(one)
                self._compact_buckets(kept.grown, only_due=False)
                continue
            key = self._store.reading.state_key(one.entity, one.token)
            swaps.append(self._swap_command(one.token, key, one.blob, done.state, kept.last))
            several.append(kept)
        for kept, reply in zip(several, replies_to(self._store.nodes, swaps), strict=True):
            counted[SWAPPED if reply else OVERTAKEN] += 1
            if reply:
                self._compact_buckets(kept.grown)
        counted += Counter({FULL: len(full)})
        for one in full:
            kept_ms = 0 if self._store.maker.layouts[one.entity].reads_facts else lines.fold_ms
            plain = msgspec.structs.replace(one, early_ms=0)
            self._replace([plain], counted, _Lines(lines.forget_ms, kept_ms))

    def _keep(self, one: _Work, done: Compaction, lines: _Lines) -> tuple[_Kept, str | None]:
        """Append folded events to their buckets.

        FULL where that would be too much, with all buckets concerned; OVERTAKEN where the state was
        compacted or erased meanwhile.
        """
        layout = self._store.maker.layouts[one.entity]
        line_ms = lines.forget_ms if layout.reads_facts else done.folded_below_ms
        added = by_bucket(done.folded, layout)
        buckets = [_Bucket(one.entity, one.token, number, line_ms) for number in added]
        asked = [*self._keep_commands(one, buckets, [*added.values()])]
        replies = replies_to(self._store.nodes, asked)
        if _OTHER_STATE in replies:
            return _Kept(), OVERTAKEN
        if not all(replies):
            return _Kept(tuple(buckets)), FULL
        lengths = [length for reply in replies for length in reply]
        grown = [
            bucket
            for bucket, records, length in zip(buckets, added.values(), lengths, strict=True)
            if crossed(length - len(records), length, layout.width, self._compact_records)
        ]
        last = (buckets[-1], int(lengths[-1])) if buckets else None
        return _Kept(tuple(grown), last), None

    def _keep_commands(
        self, one: _Work, buckets: Sequence[_Bucket], records: Sequence[bytes]
    ) -> Iterator[Tagged]:
        state = self._store.reading.state_key(one.entity, one.token)
        # A header has a nonce, so that no compaction or erasure leaves it as it was.
        beginning = one.blob[:HEADER_BYTES]
        limits = [beginning, b"%d" % self._store.ttl_s, b"%d" % self._most_of_bucket]
        for first in range(0, len(buckets), _KEPT_AT_ONCE):
            some = buckets[first : first + _KEPT_AT_ONCE]
            keys = [state, *(self._key_of(bucket) for bucket in some)]
            given = [*limits, *records[first : first + _KEPT_AT_ONCE]]
            asked = command(b"EVALSHA", KEEP.digest, b"%d" % len(keys), *keys, *given)
            yield tag_of(one.token), asked

    def _swap_command(
        self,
        token: bytes,
        key: bytes,
        held: bytes,
        state: bytes,
        last: tuple[_Bucket, int] | None = None,
    ) -> Tagged:
        digest = hashlib.sha1(held, usedforsecurity=False).hexdigest().encode()
        keys, given = [key], [b"%d" % len(held), digest, state, b"%d" % self._store.ttl_s]
        if last is not None:
            # A failover may have lost what was kept, and not the state. What was written is lost
            # from its end on, so where the last of it is, all is.
            keys.append(self._key_of(last[0]))
            given.append(b"%d" % last[1])
        return tag_of(token), command(b"EVALSHA", SWAP.digest, b"%d" % len(keys), *keys, *given)

    def _compact_buckets(self, buckets: Sequence[_Bucket], *, only_due: bool = True) -> None:
        """Sort and forget what was folded, where it has doubled; a state by itself."""
        swaps = []
        for one, held in zip(buckets, self._buckets(buckets), strict=True):
            layout = self._store.maker.layouts[one.entity]
            try:
                if not held:
                    continue
                if only_due and not is_due(decode(held, layout), self._compact_records, 1 << 62):
                    continue
                made = compacted(held, layout, nonce=self._nonce(), forget_below_ms=one.line_ms)
            except DamagedState:
                continue  # found, and said, by the first that asks for it
            swaps.append(self._swap_command(one.token, self._key_of(one), held, made.state))
        replies_to(self._store.nodes, swaps)

    def _compacted(self, one: _Work, lines: _Lines) -> Compaction:
        """The state to be swapped in, within its limit."""
        layout = self._store.maker.layouts[one.entity]
        most = _GRID_RECORDS if layout.is_grid else self._store.limits.max_events_per_entity
        made = self._made(one, lines, lines.forget_ms)
        if len(made.state) <= most * layout.width:
            return made
        records = decode(made.state, layout).records
        if records.n <= most:
            return made
        last_gone = records.n - (most - max(1, most >> 4)) - 1
        line_ms = (int(records.words[last_gone, rec.TIME // 8]) >> 16) + 1
        return self._made(one, lines, line_ms)

    def _made(self, one: _Work, lines: _Lines, forget_ms: int) -> Compaction:
        return compacted(
            one.blob,
            self._store.maker.layouts[one.entity],
            nonce=self._nonce(),
            forget_below_ms=forget_ms,
            fold_below_ms=lines.fold_ms,
            summarise_below_ms=one.early_ms,
            past=one.past,
        )
