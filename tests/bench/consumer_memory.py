"""A rebuild of all the Handbook's payments into an empty Redis: its time, its exactness, its bytes.

Appended is what the consumer leaves; compacted what the same states take with each record once, in
order, and nothing forgotten; in operation what compaction leaves when it folds what no event can
touch and forgets what no window reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import redis
from numpy.typing import NDArray

from freshscore.config.settings import Settings
from freshscore.features import row as r
from freshscore.features.packing import Packer
from freshscore.features.reading import read_payments
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_store import RedisStore
from freshscore.features.store import MemoryStore, StoreLimits
from freshscore.features.table_rows import rows_of
from freshscore.simulations.generator import Parameters, generate_tables
from tests.bench.consumer_bench import ConsumerBench, used_bytes
from tests.bench.consumer_runs import opened, seconds_for
from tests.bench.figures import Figure, at_most

_DAY_MS: Final = 86_400_000
_GOAL_S: Final = 5.0
_APPENDED_BYTES, _COMPACTED_BYTES = 105.0, 70.0
# A horizon of all the data: nothing is forgotten by the store that is compared with.
_LIMITS: Final = StoreLimits(10**6, 10**7, 32_768, 366 * _DAY_MS, 1 << 31)
_ROWS_AT_ONCE: Final = 500
_TURNS: Final = 3

_TOKEN: Final = np.dtype([("low", np.uint64), ("high", np.uint64)])

Rows = NDArray[np.uint64]
# Entity number and token.
State = tuple[int, bytes]


def rebuild(bench: ConsumerBench) -> list[Figure]:
    """Seconds, differing states, and bytes an event."""
    log, server = bench.handbook, bench.redis
    elapsed_s = []
    with server.client() as client:
        for _ in range(_TURNS):
            settings = bench.settings(log, server)
            before = used_bytes(client)
            with opened(settings) as consumer:
                elapsed_s.append(seconds_for(consumer, log.n)[0])
                while not consumer.is_caught_up:
                    consumer.turn(wait_ms=50)
                # It would begin to compact.
                consumer._under_way.candidates.clear()
        rows = _rows(bench)
        states = _states(rows)
        store = _store(bench, settings)
        figures = [
            at_most(f"rebuild of {log.n:,} events", float(np.median(elapsed_s)), "s", _GOAL_S),
            at_most("rebuild, states that differ", _differing(store, rows, states), "states", 0),
            *_bytes(client, store, [*states], log.n, before, int(rows[-1, r.TIME // 8])),
        ]
        store.nodes.close()
    return figures


def _bytes(
    client: redis.Redis,
    store: RedisStore,
    states: Sequence[State],
    n: int,
    before: int,
    newest_ms: int,
) -> list[Figure]:
    """Bytes an event by the server's account and by that of each key, in three conditions."""
    compactor = Compactor(store)
    forget_ms = newest_ms - store.held_ms - _DAY_MS
    fold_ms = newest_ms - _DAY_MS
    figures = []
    for said, goal in (
        ("appended", _APPENDED_BYTES),
        ("compacted", _COMPACTED_BYTES),
        ("compacted, folded and forgotten", _COMPACTED_BYTES),
    ):
        if said == "compacted":
            counted = compactor.compact(states, only_due=False)
            assert counted["swapped"] == len(states), counted
        elif said != "appended":
            lines = {"forget_below_ms": forget_ms, "fold_below_ms": fold_ms}
            counted = compactor.compact(states, only_due=False, **lines)
            assert counted["swapped"] == len(states), counted
        used = (used_bytes(client) - before) / n
        of_keys, of_values = _usage(client, store, states)
        figures += [
            at_most(f"Redis, handbook, {said}", used, "B/event", goal),
            Figure(f"Redis, handbook, {said}, by MEMORY USAGE", of_keys / n, "B/event"),
            Figure(f"Redis, handbook, {said}, the values alone", of_values / n, "B/event"),
        ]
    return figures


def _usage(client: redis.Redis, store: RedisStore, states: Sequence[State]) -> tuple[int, int]:
    """Bytes of the states with their keys as the server accounts for them, and of the values."""
    of_keys = of_values = 0
    for first in range(0, len(states), _ROWS_AT_ONCE):
        pipeline = client.pipeline(transaction=False)
        for entity, token in states[first : first + _ROWS_AT_ONCE]:
            key = store.reading.state_key(entity, token)
            pipeline.memory_usage(key, samples=0)
            pipeline.strlen(key)
        found = [int(one or 0) for one in pipeline.execute()]
        of_keys += sum(found[::2])
        of_values += sum(found[1::2])
    return of_keys, of_values


def _rows(bench: ConsumerBench) -> Rows:
    """The same payments as rows, read from a table instead of from messages."""
    program = bench.program()
    table = pa.concat_tables(generate_tables(Parameters(), np.random.default_rng(1)))
    payments = read_payments(table, program.specification)
    return rows_of(payments, Packer(program, bench.keys(program)))


def _states(rows: Rows) -> dict[State, int]:
    """Each state, and a row that it is of."""
    found: dict[State, int] = {}
    for entity in range(2):
        at = r.TOKENS // 8 + 2 * entity
        tokens = np.ascontiguousarray(rows[:, at : at + 2])
        _, first = np.unique(tokens.view(_TOKEN).ravel(), return_index=True)
        found |= {(entity, tokens[i].tobytes()): int(i) for i in first}
    return found


def _store(bench: ConsumerBench, settings: Settings) -> RedisStore:
    program = bench.program()
    nodes = Nodes.open(settings.redis)
    return RedisStore(program, bench.keys(program), _LIMITS, nodes)


def _differing(store: RedisStore, rows: Rows, states: dict[State, int]) -> int:
    """How many states have another version than a store in memory that was given all rows."""
    memory = MemoryStore(store.program, store.keys, _LIMITS)
    memory.observe_all(rows)
    wanted = sorted(set(states.values()))
    n_differing = 0
    for first in range(0, len(wanted), _ROWS_AT_ONCE):
        some = [rows[i].tobytes() for i in wanted[first : first + _ROWS_AT_ONCE]]
        for row, read in zip(some, store.read_states(some), strict=True):
            found = [None if state is None else state.version for state in read.states]
            expected = memory.versions(row)
            assert None not in expected
            n_differing += sum(a != b for a, b in zip(found, expected, strict=True))
    return n_differing
