"""Figures of messages: what reading, grouping and writing commands take, beside plain parsers.

No server: the same 5,000 messages of two entities, in chunks by turns.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from freshscore.config.secret import Secret
from freshscore.config.settings import Settings
from freshscore.features.memory import address_of
from freshscore.features.packing import Keys
from freshscore.features.program import Program, compiled
from freshscore.features.specification import FeatureSpecification
from freshscore.invalidation import append_plan as p
from freshscore.invalidation.append_kernels import READ
from freshscore.invalidation.batches import Batcher, Messages
from freshscore.invalidation.message_reading import MessageReader
from freshscore.invalidation.message_rows import read_messages
from freshscore.invalidation.messages import TransactionMessage
from tests.bench.figures import Figure, at_most, seconds

_START_MS = 1_700_000_000_000
_N, _TURNS = 5_000, 40
_N_CARDS, _N_MERCHANTS = 5_000, 10_000


def messages() -> list[Figure]:
    """Microseconds a message, by step."""
    program = _program("handbook")
    values = _values({"card": _N_CARDS, "merchant": _N_MERCHANTS})
    batcher = _batcher(program)
    every, none = Messages.of(values, [_START_MS] * _N), Messages.of([], [])
    typed = msgspec.json.Decoder(TransactionMessage)
    careful = MessageReader(program, _keys(program))
    five = _program("payments")
    wide = _values(
        {"card": 5_000, "merchant": 10_000, "device": 2_500, "ip": 1_700, "email": 5_000}
    )
    of_five = _batcher(five)
    indexed = _batcher(program, label_index_days=120)
    found = _by_turns(
        {
            "json": lambda: [json.loads(value) for value in values],
            "msgspec": lambda: [typed.decode(value) for value in values],
            "read": _reading(batcher, every),
            "build": lambda: batcher.build(every, none, _START_MS),
            "whole": lambda: batcher.build(Messages.of(values, [_START_MS] * _N), none, _START_MS),
            "careful": lambda: [careful.transaction(value) for value in values[:500]],
            "indexed": lambda: indexed.build(
                Messages.of(values, [_START_MS] * _N), none, _START_MS
            ),
            "five": lambda: of_five.build(Messages.of(wide, [_START_MS] * _N), none, _START_MS),
        }
    )
    grouping = found["build"] - found["read"]
    beside: dict[str, Any] = {"reference": "json.loads", "reference_value": found["json"]}
    typed_beside: dict[str, Any] = {
        "reference": "msgspec, typed",
        "reference_value": found["msgspec"],
    }
    return [
        at_most("message, read, checked and hashed", found["read"], "us", 0.4, **beside),
        Figure("message, the same", found["read"], "us", **typed_beside),
        at_most("message, grouped and written as commands", grouping, "us", 0.2),
        Figure("message to commands", found["whole"], "us", **beside),
        Figure("message to commands, with the label index", found["indexed"], "us", **beside),
        Figure("message to commands, five entities", found["five"], "us", **beside),
        Figure("message read carefully", found["careful"] * _N / 500, "us", **beside),
    ]


def _reading(batcher: Batcher, every: Messages) -> Callable[[], object]:
    """Reading alone, as the first step of building."""
    said = np.zeros((0, p.LABEL // 8), np.int64)
    words = batcher._words(_N, every.inputs, said, _START_MS)
    tables = batcher._tables
    assert tables is not None  # messages are of our own format

    def read() -> None:
        read_messages(tables.address, address_of(words), _N)

    read()
    assert (batcher._statuses[:_N] == READ).all()
    return read


def _by_turns(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median microseconds a message of each step."""
    elapsed: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()  # compiled, and buffers grown
    for _ in range(_TURNS):
        for name, step in steps.items():
            elapsed[name].append(1e6 * seconds(step) / _N)
    return {name: float(np.median(some)) for name, some in elapsed.items()}


def _program(name: str) -> Program:
    return compiled(FeatureSpecification.shipped(name))


def _keys(program: Program) -> Keys:
    return Keys(program, Secret(b"\x07" * 32, "the benchmark"))


def _batcher(program: Program, label_index_days: int = 0) -> Batcher:
    settings = Settings.model_validate({"redis": {"label_index_days": label_index_days}})
    return Batcher.of(settings, program, _keys(program), np.zeros(p.N_SLOTS, np.uint16))


def _values(sizes: dict[str, int]) -> list[bytes]:
    """Messages as another system writes them: raw identifiers, blanks behind commas and colons."""
    rng = np.random.default_rng(7)
    return [
        json.dumps(
            {
                "transaction_id": f"payment-{i:09d}",
                "time": _START_MS + i,
                "amount_minor": int(rng.integers(100, 50_000)),
                "currency": "EUR",
                "entities": {
                    name: f"{name}-{rng.integers(size):012d}" for name, size in sizes.items()
                },
            }
        ).encode()
        for i in range(_N)
    ]
