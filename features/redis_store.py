"""The Redis store: states that many processes share, a log of records for each entity.

A writer only appends, so it cannot tell what its event came to: "accepted" says that the log has
it, also where it was there before (a repetition, or a conflict, in which the smaller content counts
for every reader). Aggregates and versions are those of a memory store that applied the same set.
Which events are too late is decided by what this store knows of the newest one.
Rule: nothing is read before a write; a state that cannot be read whole is never used (`problems`),
and a node without its epoch answers for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import DamagedState, WrongSecret
from freshscore.features.decoded_state import DecodedState
from freshscore.features.packing import Keys
from freshscore.features.program import Program
from freshscore.features.reading_decoded import DecodedReader
from freshscore.features.record_making import RecordMaker, identity_of, time_of
from freshscore.features.redis_commands import Tagged, replies_to
from freshscore.features.redis_door import Nodes, command
from freshscore.features.redis_keys import RedisKeys, bucket_of, tag_of
from freshscore.features.redis_labels import Indexed, LabelIndex
from freshscore.features.redis_reading import StateReading, StoredStates
from freshscore.features.redis_scripts import BEGIN
from freshscore.features.state_layout import state_fingerprints
from freshscore.features.store import StoreLimits

_DAY_S: Final = 86_400
# Rows of one exchange: a third of a megabyte, about ten milliseconds of a server.
_ROWS_AT_ONCE: Final = 1_024


class RedisStore:
    """The states of one program under one set of keys, on the nodes of one server or cluster.

    limits: of these `horizon_ms` and `max_events_per_entity` count here; the rest is the server's
    memory. namespace: else that of the settings.
    """

    def __init__(
        self,
        program: Program,
        keys: Keys,
        limits: StoreLimits,
        nodes: Nodes,
        clock: Clock | None = None,
        *,
        namespace: str | None = None,
    ) -> None:
        self.program = program
        self.keys = keys
        self.limits = limits
        self.nodes = nodes
        self._clock = clock or SystemClock()
        self.maker = RecordMaker(program, keys)
        self.names = RedisKeys(namespace or nodes.settings.namespace, state_fingerprints(program))
        self.reading = StateReading(self.maker, self.names, nodes)
        self.index = LabelIndex(self.names, program, nodes.settings.label_index_days)
        self.held_ms = program.specification.held_ms
        kept_ms = self.held_ms + limits.horizon_ms
        self.ttl_s = -(-kept_ms // 1_000) + nodes.settings.idle_margin_days * _DAY_S
        self._newest_ms = 0
        # Readers have scratch of their own: one for each thread.
        self._of_thread = threading.local()

    def begin(self, epoch: bytes, complete_since_ms: int = 0) -> None:
        """Give every node that has none its epoch (8 random bytes): it holds all there is to hold.

        complete_since_ms: since when it was offered all that happened; 0 for unknown.
        Raises WrongSecret where a node was begun under another identifier secret.
        """
        since = b"%d" % complete_since_ms
        given = [epoch.hex().encode(), self.keys.record_id.encode(), since, b"0", b""]
        tags = [tag.encode() for tag in self.nodes.tags]
        replies_to(self.nodes, [(tag, self._begin(tag.decode(), given)) for tag in tags])
        asked = [(t, command(b"HGET", self.names.markers(t.decode()), b"key_id")) for t in tags]
        for held in replies_to(self.nodes, asked):
            if held != self.keys.record_id.encode():
                raise WrongSecret(
                    f"the states in Redis are under key {str(held, 'ascii', 'replace')!r}; the"
                    f" identifier secret at hand has {self.keys.record_id}"
                )

    def _begin(self, tag: str, given: list[bytes]) -> bytes:
        keys = [self.names.markers(tag), self.names.progress(tag)]
        return command(b"EVALSHA", BEGIN.digest, b"2", *keys, *given)

    def observe(self, row: bytes) -> str:
        """Append the event in `row`: "accepted" or "beyond reach".

        Raises Unavailable, and StoreFull where a server's memory is full; then the event may be in
        some of its states, and appending it again is right.
        """
        return next(iter(self._observed([row])))

    def observe_all(self, rows: NDArray[np.uint64]) -> dict[str, int]:
        """Append the events in `rows` (n, words of a row), in order; outcome -> how many."""
        outcomes: dict[str, int] = {}
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            for outcome in self._observed([r.tobytes() for r in rows[first:][:_ROWS_AT_ONCE]]):
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
        return outcomes

    def _observed(self, rows: Sequence[bytes]) -> list[str]:
        outcomes: list[str] = []
        commands: list[Tagged] = []
        for row in rows:
            taken = time_of(row) >= self.reaches_to_ms
            outcomes.append("accepted" if taken else "beyond reach")
            if taken:
                self._newest_ms = max(self._newest_ms, time_of(row))
                commands += self._event_commands(row)
        replies_to(self.nodes, commands)
        return outcomes

    def _event_commands(self, row: bytes) -> Iterator[Tagged]:
        for entity, token in enumerate(self.maker.tokens(row)):
            if token is not None:
                yield from self._append(entity, token, self.maker.event(row, entity))
        if self.index.is_kept:
            tag = b"i%d" % bucket_of(identity_of(row))
            key = self.index.key(row, self._clock.now_ms())
            yield tag, command(b"APPEND", key, self.index.record(row))
            yield tag, command(b"EXPIRE", key, b"%d" % self.index.ttl_s)

    def _append(self, entity: int, token: bytes, records: bytes) -> Iterator[Tagged]:
        tag, key = tag_of(token), self.reading.state_key(entity, token)
        yield tag, command(b"APPEND", key, records)
        # An append extends no life.
        yield tag, command(b"EXPIRE", key, b"%d" % self.ttl_s)

    def label(
        self, row: bytes, fact: int, value: bool, known_at_ms: int, sender_ms: int, looked_up: bool
    ) -> str:
        """Append a fact of the payment in `row`: "accepted", "unknown" or "beyond reach".

        looked_up: time and entities are found in the label index, `row` has the identity only.
        Raises what `observe` raises, and DamagedState for a damaged index.
        """
        found = self._indexed(row) if looked_up else None
        if looked_up and found is None:
            return "unknown"
        about = found or Indexed(time_of(row), self.maker.tokens(row))
        if about.time_ms < self.reaches_to_ms:
            return "beyond reach"
        commands: list[Tagged] = []
        for entity, token in enumerate(about.tokens):
            if token is not None:
                record = self.maker.fact(
                    row,
                    entity,
                    time_ms=about.time_ms,
                    fact=fact,
                    value=value,
                    known_at_ms=known_at_ms,
                    sender_ms=sender_ms,
                )
                commands += self._append(entity, token, record)
        replies_to(self.nodes, commands)
        return "accepted"

    def _indexed(self, row: bytes) -> Indexed | None:
        if not self.index.is_kept:
            return None
        tag = b"i%d" % bucket_of(identity_of(row))
        keys = self.index.keys_of(row, self._clock.now_ms())
        strings = replies_to(self.nodes, [(tag, command(b"GET", key)) for key in keys])
        return self.index.found(identity_of(row), strings)

    def features(self, row: bytes, as_of_ms: int) -> NDArray[np.float64]:
        """The feature vector of the transaction in `row` at `as_of_ms`: float64[n_columns].

        Raises DamagedState for a state that is damaged or lost, AsOfTooOld, and Unavailable.
        """
        states = self._whole(row)
        reader = getattr(self._of_thread, "reader", None)
        if reader is None:
            reader = self._of_thread.reader = DecodedReader(self.program)
        values: NDArray[np.float64] = reader.features(states, row, as_of_ms)[0]
        return values

    def versions(self, row: bytes) -> tuple[int | None, ...]:
        """The version of the state of each of the transaction's entities; None where none is.

        Raises DamagedState for a state that is damaged or lost, and Unavailable.
        """
        return tuple(None if state is None else state.version for state in self._whole(row))

    def _whole(self, row: bytes) -> tuple[DecodedState | None, ...]:
        read = self.read_states([row])[0]
        for layout, problem in zip(self.maker.layouts, read.problems, strict=True):
            if problem is not None:
                raise DamagedState(f"a state of entity {layout.name!r} cannot be read: {problem}")
        return read.states

    def read_states(self, rows: Sequence[bytes]) -> list[StoredStates]:
        """The states of the entities of each row, in one exchange with each node concerned.

        Raises Unavailable.
        """
        read = self.reading.read(rows)
        self._newest_ms = max([self._newest_ms, *(one.watermark_ms for one in read)])
        return read

    @property
    def newest_ms(self) -> int:
        """The newest event time applied by this object, or the newest watermark it read, ms."""
        return self._newest_ms

    @property
    def reaches_to_ms(self) -> int:
        """Events before this are beyond reach, ms."""
        return self._newest_ms - self.held_ms - self.limits.horizon_ms

    def too_many_events(
        self, state: DecodedState, looks_from_ms: int, watermark_ms: int = 0
    ) -> bool:
        """Whether features that look back from `looks_from_ms` miss what the limit on events took.

        watermark_ms: of the nodes when the state was read, 0 for unknown. What time alone may have
        made a state forget is not counted: a request for that is too old.
        """
        if state.is_erased:
            return False
        forgotten_ms = state.forgotten_below_ms
        by_time_ms = watermark_ms - self.limits.horizon_ms - self.held_ms
        return forgotten_ms > by_time_ms and looks_from_ms - self.held_ms < forgotten_ms
