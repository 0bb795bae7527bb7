"""A memory store in a file: written whole or not at all, and opened whole or not at all.

Sections (features/section_files.py), in this order, each of at most SECTION_BYTES: META (JSON: what
was saved, for which specification, under which secret); for each entity its ROWS (token, version,
counts, what it has forgotten) and RECORDS (those of the rows, one behind the other, as
features/layout.py says); PAYMENTS; END.
Cost: one pass over the store in bounded pieces, little more than that of the digest.

Rule: a section is checked before it is used, and a store is handed out only when the file was
right to its end. Nobody changes the store while it is saved; that is checked, and an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from freshscore.config.decoding import as_type
from freshscore.config.errors import BadFile, BadSpecification, StoreFull, WrongSecret
from freshscore.features import saving_kernels as k
from freshscore.features import tables
from freshscore.features.memory import BYTES_AT, address_of
from freshscore.features.packing import Keys
from freshscore.features.program import Program
from freshscore.features.section_files import Section, SectionReader, write_sections
from freshscore.features.state_layout import record_fingerprint
from freshscore.features.store import MemoryStore, StoreLimits

SECTION_BYTES: Final = 1 << 22
_MAGIC: Final = b"fsstore\x01"
META: Final = 1
ROWS: Final = 2
RECORDS: Final = 3
PAYMENTS: Final = 4
END: Final = 5

# Words of the head that are saved as they are.
_COUNTERS: Final = {
    "newest_ms": tables.NEWEST,
    "complete_since_ms": tables.COMPLETE_SINCE,
    "conflicts": tables.CONFLICTS,
    "sweep_entity": tables.SWEEP_ENTITY,
    "sweep_number": tables.SWEEP_NUMBER,
}


class _SavedEntity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of entity: its name, what its records mean, and how much there is of it."""

    name: str
    record_layout: str
    width: int
    n_rows: int
    n_records: int


class _Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a saved store says of itself. kept_ms: how far back from the newest event it reaches."""

    specification: str
    fingerprint: str
    key_id: str
    kept_ms: int
    counters: dict[str, int]
    entities: tuple[_SavedEntity, ...]
    n_payments: int
    payment_bytes: int


def save_store(store: MemoryStore, path: str | Path) -> None:
    """Write the store to `path`, replacing what is there once all of it is on the disk.

    Raises BadFile where it cannot be written; what was there before then still is.
    """
    write_sections(Path(path), _MAGIC, _sections(store, _meta(store)))


def open_store(path: str | Path, program: Program, keys: Keys, limits: StoreLimits) -> MemoryStore:
    """The store that was saved to `path`, under `limits` of its own.

    Raises BadFile where it cannot be read, DamagedState for any damage, WrongSecret for another
    secret, BadSpecification where its records are not those of `program`'s specification, and
    StoreFull where it holds more than the limits allow.
    """
    name = Path(path).name
    try:
        with Path(path).open("rb") as file:
            reader = SectionReader(file, name, _MAGIC, SECTION_BYTES)
            return _opened(reader, program, keys, limits)
    except OSError as problem:
        raise BadFile(f"cannot read {name}: {problem.strerror or problem}") from problem


def _content(store: MemoryStore) -> tuple[int, ...]:
    """Numbers of which one changes whenever the store does."""
    versions = [
        int(k.versions_sum(tables.entity_head(store.address, e)))
        for e in range(len(store.program.entities))
    ]
    return (store.newest_ms, store.n_payments, store.n_records, *versions)


def _meta(store: MemoryStore) -> _Meta:
    program = store.program
    entities = []
    for e, layout in enumerate(program.entities):
        head = tables.entity_head(store.address, e)
        n_rows, n_records = k.sizes(head)
        fingerprint = f"{record_fingerprint(program, e):016x}"
        entities.append(_SavedEntity(layout.name, fingerprint, 8 * layout.words, n_rows, n_records))
    return _Meta(
        specification=program.specification.name,
        fingerprint=program.specification.fingerprint.hex(),
        key_id=store.keys.key_id,
        kept_ms=_kept_ms(store),
        counters={name: _word(store, at) for name, at in _COUNTERS.items()},
        entities=tuple(entities),
        n_payments=store.n_payments,
        payment_bytes=_word(store, tables.PAYMENT_BYTES),
    )


def _word(store: MemoryStore, at: int) -> int:
    return int(store.head[at // 8])


def _kept_ms(store: MemoryStore) -> int:
    return _word(store, tables.HELD) + _word(store, tables.HORIZON)


def _sections(store: MemoryStore, meta: _Meta) -> Iterator[Section]:
    """The sections; a content lasts until the next one is asked for."""
    before = _content(store)
    yield META, 0, msgspec.json.encode(meta)
    buffer = np.empty(SECTION_BYTES, np.uint8)
    at, view = address_of(buffer), memoryview(buffer.data)
    cursor = np.zeros(2, np.int64)
    rows_at_once = SECTION_BYTES // k.ROW_BYTES
    for e, entity in enumerate(meta.entities):
        head = tables.entity_head(store.address, e)
        for first in range(0, entity.n_rows, rows_at_once):
            n = min(rows_at_once, entity.n_rows - first)
            k.rows_out(head, first, n, at)
            yield ROWS, e, view[: n * k.ROW_BYTES]
        cursor[:] = 0
        while n_bytes := k.move_records(head, address_of(cursor), at, SECTION_BYTES, True):
            yield RECORDS, e, view[:n_bytes]
    cursor[:] = 0
    while n_bytes := k.payments_out(store.address, address_of(cursor), at, SECTION_BYTES):
        yield PAYMENTS, 0, view[:n_bytes]
    if _content(store) != before:
        raise RuntimeError("the store was changed while it was saved")
    yield END, 0, b""


def _opened(
    reader: SectionReader, program: Program, keys: Keys, limits: StoreLimits
) -> MemoryStore:
    """The store in the file, once every section was right."""
    try:
        meta = as_type(msgspec.json.decode, reader.next(META), _Meta)
    except msgspec.MsgspecError as problem:
        raise reader.damaged(f"its description: {problem}") from problem
    _check_fits(meta, program, keys, reader.name)
    _check_room(meta, limits)
    store = MemoryStore(program, keys, limits)
    store.reserve([entity.n_rows for entity in meta.entities], meta.n_payments)
    for e, entity in enumerate(meta.entities):
        _read_rows(reader, store, e, entity)
        _read_records(reader, store, e, entity)
    _read_payments(reader, store, meta)
    reader.next(END)
    reader.end()
    _finish(store, meta)
    return store


def _read_rows(reader: SectionReader, store: MemoryStore, e: int, entity: _SavedEntity) -> None:
    n = 0
    while n < entity.n_rows:
        content = reader.next(ROWS, e)
        n_rows = len(content) // k.ROW_BYTES
        if not 0 < n_rows <= entity.n_rows - n:
            raise reader.damaged(f"it has {n + n_rows} of {entity.n_rows} {entity.name} rows")
        at = id(content) + BYTES_AT
        problem = k.rows_in(store.address, e, at, n_rows)
        if problem == k.NO_ROOM:
            raise StoreFull(
                f"{reader.name} does not fit: store.arena_bytes is {store.limits.arena_bytes},"
                f" and {entity.name} alone has {entity.n_records} records of {entity.width}"
            )
        if problem == k.TOO_MANY:
            raise StoreFull(
                f"{reader.name} has a {entity.name} with more records than"
                f" store.max_events_per_entity, {store.limits.max_events_per_entity}"
            )
        n += n_rows


def _read_records(reader: SectionReader, store: MemoryStore, e: int, entity: _SavedEntity) -> None:
    head = tables.entity_head(store.address, e)
    cursor = np.zeros(2, np.int64)
    left = entity.n_records * entity.width
    while left > 0:
        content = reader.next(RECORDS, e)
        at = id(content) + BYTES_AT
        moved = k.move_records(head, address_of(cursor), at, len(content), False)
        if moved != len(content) or not 0 < moved <= left:
            raise reader.damaged(f"it has other {entity.name} records than rows")
        left -= moved
    if k.sizes(head) != (entity.n_rows, entity.n_records):
        raise reader.damaged(f"it has other {entity.name} rows than it says")


def _read_payments(reader: SectionReader, store: MemoryStore, meta: _Meta) -> None:
    left = meta.n_payments
    while left > 0:
        content = reader.next(PAYMENTS)
        n = len(content) // meta.payment_bytes
        if not 0 < n <= left:
            raise reader.damaged(f"it has more payments than {meta.n_payments}")
        k.payments_in(store.address, id(content) + BYTES_AT, n)
        left -= n


def _check_fits(meta: _Meta, program: Program, keys: Keys, name: str) -> None:
    if meta.key_id != keys.key_id:
        raise WrongSecret(
            f"{name} was written under the identifier secret {meta.key_id};"
            f" this one is {keys.key_id}"
        )
    saved = [(entity.name, entity.record_layout) for entity in meta.entities]
    wanted = [
        (layout.name, f"{record_fingerprint(program, e):016x}")
        for e, layout in enumerate(program.entities)
    ]
    if saved == wanted:
        return
    names = [sorted({name for name, _ in one}) for one in (saved, wanted)]
    differ = sorted({name for name, _ in set(saved) ^ set(wanted)})
    what = (
        f"has the entities {', '.join(names[0])}; the specification has {', '.join(names[1])}"
        if names[0] != names[1]
        else f"holds other records of {', '.join(differ) or 'its entities, in another order'}"
    )
    raise BadSpecification(
        f"{name}, written for specification {meta.specification!r} ({meta.fingerprint}), {what}:"
        f" load the history again for {program.specification.name!r}"
        f" ({program.specification.fingerprint.hex()})"
    )


def _check_room(meta: _Meta, limits: StoreLimits) -> None:
    for entity in meta.entities:
        if entity.n_rows > limits.max_entities:
            raise StoreFull(
                f"{entity.n_rows} of entity {entity.name!r} were saved; store.max_entities is"
                f" {limits.max_entities}"
            )
    if meta.n_payments > limits.max_payments:
        raise StoreFull(
            f"{meta.n_payments} payments were saved; store.max_payments is {limits.max_payments}"
        )


def _finish(store: MemoryStore, meta: _Meta) -> None:
    """Set what is counted for the whole store."""
    for name, at in _COUNTERS.items():
        store.head[at // 8] = meta.counters[name]
    n_records = [entity.n_records for entity in meta.entities]
    store.head[tables.N_RECORDS // 8] = sum(n_records)
    store.head[tables.RECORD_BYTES_LIVE // 8] = sum(
        n * entity.width for n, entity in zip(n_records, meta.entities, strict=True)
    )
    if _kept_ms(store) > meta.kept_ms:
        # Windows or horizon are longer now, and what lies further back was dropped or refused.
        line = meta.counters["newest_ms"] - meta.kept_ms
        since = tables.COMPLETE_SINCE // 8
        store.head[since] = max(int(store.head[since]), line)
        for e in range(len(meta.entities)):
            k.forget_until(tables.entity_head(store.address, e), line)
