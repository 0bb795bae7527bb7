"""One entity's shared state as an operator sees it: how much there is, since when, up to when.

Rule: an entity is known by its token and payments by their keyed hashes; an identifier that is
given becomes a token here and goes no further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from freshscore.config.errors import BadTransaction, DamagedState, SettingsError, Unavailable
from freshscore.features import layout as rec
from freshscore.features import row as r
from freshscore.features.codec import decode
from freshscore.features.decoded_state import DecodedState
from freshscore.features.layout import NO_PLACE
from freshscore.features.packing import Packer
from freshscore.features.program import Program, compiled
from freshscore.features.reading_decoded import DecodedReader
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_erasing import DAMAGED_AND_ERASED
from freshscore.features.redis_keys import tag_of
from freshscore.features.redis_lines import command
from freshscore.features.redis_progress import Progress, progress_of
from freshscore.features.redis_reading import STATE_DAMAGED, STATE_LOST
from freshscore.features.row import row_words
from freshscore.features.transaction import Transaction
from freshscore.invalidation.deployment import Deployment

# An instant and an id that a payment needs, and that a token does not depend on.
_ANY_TIME_MS: Final = 946_684_800_000
_ANY_ID: Final = "-"
# How often a state is read while slots move.
_MOST_MOVES: Final = 3


class RecordView(msgspec.Struct, frozen=True):
    """One record: identity as 16 hexadecimal digits of a keyed hash. amount_minor: of an event."""

    identity: str
    time_ms: int
    is_event: bool
    amount_minor: int | None


class EntityView(msgspec.Struct, frozen=True):
    """The state of one entity; the numbers are 0, and the version None, where there is none.

    problem: "state lost" or "state damaged"; then nothing else is known of it but its bytes, and
    whether it is damaged because nothing was left of a damaged one (is_erased).
    n_bytes, n_past_bytes: of the state, and of what was folded of it. life_s: until it ends, None
    where there is none. complete_since_ms: 0 for unknown. fold_ms: F. early_ms: S, 0 for none.
    forgotten_below_ms: nothing before it is left; is_erased: by an order. n_appended: records since
    the last compaction.
    """

    entity: str
    token: str
    problem: str | None
    n_bytes: int
    n_past_bytes: int
    life_s: int | None
    n_events: int = 0
    n_facts: int = 0
    n_tiles: int = 0
    n_appended: int = 0
    version: str | None = None
    generation: int = 0
    oldest_ms: int | None = None
    newest_ms: int | None = None
    complete_since_ms: int = 0
    watermark_ms: int = 0
    fold_ms: int = 0
    early_ms: int = 0
    forgotten_below_ms: int = 0
    is_erased: bool = False

    @property
    def is_known(self) -> bool:
        """Whether there is a state."""
        return self.n_bytes > 0


def entity_number(program: Program, name: str) -> int:
    """The number of an entity in its specification. Raises SettingsError."""
    names = [layout.name for layout in program.entities]
    if name not in names:
        raise SettingsError(
            f"specification {program.specification.name} has no entity {name!r};"
            f" it has {', '.join(names)}"
        )
    return names.index(name)


def tokens_of(deployment: Deployment, entity: int, identifiers: Sequence[str]) -> list[bytes]:
    """The token of an entity by the identifiers of its parts; during a rotation the former too.

    Raises BadTransaction.
    """
    layout = deployment.program.entities[entity]
    given = dict(zip(layout.parts, identifiers, strict=True))
    currency = deployment.program.specification.currency
    try:
        payment = Transaction(_ANY_ID, _ANY_TIME_MS, 0, currency, given)
    except BadTransaction:
        # What it says shows the identifier.
        raise BadTransaction("an identifier needs 1 to 256 bytes of text") from None
    packer = Packer(deployment.program, deployment.keys)
    # That of its own time, which is before any rotation, and the other.
    places = (packer.others_at, r.TOKENS) if packer.others_at else (r.TOKENS,)
    return [packer.row(payment)[at + 16 * entity :][:16] for at in places]


def read_entity(
    deployment: Deployment, entity: int, token: bytes
) -> tuple[EntityView, DecodedState | None]:
    """What Redis holds of an entity; the state itself where it is whole. Raises Unavailable."""
    summary, blob, life_s = _replies(deployment, entity, token)
    layout, reading = deployment.store.maker.layouts[entity], deployment.store.reading
    view = EntityView(
        entity=deployment.program.entities[entity].name,
        token=token.hex(),
        problem=None,
        n_bytes=len(blob or b""),
        n_past_bytes=reading.past_bytes(entity, token) if layout.is_grid and blob else 0,
        life_s=None if life_s < 0 else life_s,
    )
    try:
        progress = None if summary is None else progress_of(summary)
        state = None
        if blob is not None:
            blob, past = reading.whole(entity, token)
            state = decode(blob, layout, past) if blob else None
    except DamagedState:
        is_erased = blob == DAMAGED_AND_ERASED
        return msgspec.structs.replace(view, problem=STATE_DAMAGED, is_erased=is_erased), None
    if progress is None:
        return msgspec.structs.replace(view, problem=STATE_LOST), None
    return _described(view, progress, state), state


def _replies(deployment: Deployment, entity: int, token: bytes) -> list[Any]:
    """What Redis says of a node's progress, of a state, and how long it lives, s.

    Where slots moved meanwhile all is read again: a node's progress says nothing of a state that
    another node gave.
    """
    reading, tag, nodes = deployment.store.reading, tag_of(token), deployment.nodes
    key = reading.state_key(entity, token)
    for _ in range(_MOST_MOVES):
        topology = nodes.topology
        node = topology.tags[topology.node_of(tag)]
        asked = [
            (node.encode(), command(b"GET", deployment.redis_keys.progress(node))),
            (tag, command(b"GET", key)),
            (tag, command(b"TTL", key)),
        ]
        replies = replies_to(nodes, asked)
        if nodes.topology is topology:
            return replies
    raise Unavailable("the nodes of Redis keep moving")


def newest_records(state: DecodedState, most: int) -> list[RecordView]:
    """The last records of a state, the newest first."""
    words = state.records.words[-most:][::-1] if most else state.records.words[:0]
    return [_viewed(record) for record in words.view(np.uint64).tolist()]


class Aggregates:
    """The aggregates of single entities, without any payment of a request's own."""

    def __init__(self, program: Program) -> None:
        spec = program.specification
        windows = [msgspec.structs.replace(group, current=False) for group in spec.windows]
        self._program = compiled(msgspec.structs.replace(spec, windows=windows))
        self._entity_of = [group.entity for group in windows]
        self._reader = DecodedReader(self._program)

    def at(
        self, entity: int, token: bytes, state: DecodedState | None, as_of_ms: int
    ) -> dict[str, float]:
        """Those of one entity at `as_of_ms`, by the names of their columns."""
        entities = self._program.entities
        states = [state if e == entity else None for e in range(len(entities))]
        row = _asking(self._program, entity, token, as_of_ms)
        values, _ = self._reader.features(states, row, as_of_ms)
        return {
            column.name: float(value)
            for column, value in zip(self._program.specification.columns, values, strict=True)
            if column.aggregate is not None
            and self._entity_of[column.group] == entities[entity].name
        }


def _asking(program: Program, entity: int, token: bytes, now_ms: int) -> bytes:
    """A row that names one entity and nothing else."""
    spec, n = program.specification, len(program.entities)
    words = np.zeros(row_words(n, len(spec.plain_fields), len(spec.categories)), np.int64)
    words[r.TIME // 8] = now_ms
    words[r.PLACE // 8] = NO_PLACE
    at = r.TOKENS // 8 + 2 * entity
    words[at : at + 2] = np.frombuffer(token, np.int64)
    return words.tobytes()


def _described(view: EntityView, progress: Progress, state: DecodedState | None) -> EntityView:
    view = msgspec.structs.replace(
        view,
        complete_since_ms=progress.complete_since_ms,
        watermark_ms=progress.watermark_ms,
    )
    if state is None:
        return view
    records = state.records.words
    times = records[:, rec.TIME // 8] >> 16
    n_events = int(np.count_nonzero((records[:, rec.TIME // 8] >> 14) & 3 == rec.EVENT))
    oldest = [int(times[0])] if len(times) else []
    newest = [int(times[-1])] if len(times) else []
    if state.tiles.n:
        tiles = state.tiles.words
        # A tile is named by the line that it ends at: its events are not later.
        oldest.append(int(tiles[0, 0]))
        newest.append(int(tiles[-1, 0]))
    since_ms = progress.complete_since_ms
    return msgspec.structs.replace(
        view,
        n_events=n_events,
        n_facts=state.records.n - n_events,
        n_tiles=state.tiles.n,
        n_appended=state.n_appended,
        version=state.version.to_bytes(16, "little").hex(),
        generation=state.generation,
        oldest_ms=min(oldest, default=None),
        newest_ms=max(newest, default=None),
        complete_since_ms=max(since_ms, state.forgotten_below_ms) if since_ms else 0,
        fold_ms=state.folded_below_ms,
        early_ms=state.summarised_below_ms,
        forgotten_below_ms=state.forgotten_below_ms,
        is_erased=state.is_erased,
    )


def _viewed(record: list[int]) -> RecordView:
    time, content = record[rec.TIME // 8], record[rec.CONTENT // 8]
    is_event = time >> 14 & 3 == rec.EVENT
    return RecordView(
        identity=record[0].to_bytes(8, "little").hex(),
        time_ms=time >> 16,
        is_event=is_event,
        amount_minor=content >> 16 if is_event else None,
    )
