"""Messages of the invalidation stream: what is written is read, and damage is never half read."""

from __future__ import annotations

import json
import random

import pytest

from freshscore.config.errors import DamagedState
from freshscore.features.packing import Keys
from freshscore.features.program import compiled
from freshscore.features.specification import FeatureSpecification
from freshscore.features.state_layout import StateLayout, state_layout
from freshscore.invalidation.stream_messages import Covered, decode, encode
from tests.invalidation.message_forms import (
    NOW_MS,
    SECRET,
    batcher_for,
    everything,
    messages,
    random_payment,
)

COVERED = [Covered(b"topic-id", 3, 10, 25, NOW_MS), Covered(b"labels--", 0, 0, 2**40, -1)]


def layouts_of(program_name: str = "messages") -> list[StateLayout]:
    """The layouts of a program."""
    program = everything()
    if program_name != "messages":
        program = compiled(FeatureSpecification.shipped(program_name))
    keys = Keys(program, SECRET)
    return [state_layout(program, keys, e) for e in range(len(program.entities))]


def a_message(n_payments: int = 30) -> bytes:
    """The message of a random batch."""
    chance = random.Random(n_payments)
    values = [json.dumps(random_payment(chance, i)).encode() for i in range(n_payments)]
    batch = batcher_for(everything()).build(messages(values), messages([]), NOW_MS)
    return encode(layouts_of(), b"sender-1", 7, NOW_MS, COVERED, batch.n_groups, batch.body)


def test_what_is_written_is_read() -> None:
    """Sender, number, instant, offsets; the groups fill the rest."""
    message = decode(a_message(), layouts_of())
    assert (message.sender, message.sequence, message.sent_at_ms) == (b"sender-1", 7, NOW_MS)
    assert [*message.covered] == COVERED
    widths = [layout.width for layout in layouts_of()]
    *_, (entity, _, _, n, at) = message.groups.tolist()
    assert at + n * widths[entity] == len(message.data)
    assert message.groups[:, 3].min() > 0


def test_a_heartbeat_has_no_groups() -> None:
    """And a batch that changed nothing neither."""
    message = decode(encode(layouts_of(), b"sender-1", 0, NOW_MS, COVERED), layouts_of())
    assert message.groups.shape == (0, 5)
    assert decode(a_message(0), layouts_of()).groups.shape == (0, 5)


@pytest.mark.parametrize("seed", range(3))
def test_damage_is_refused(seed: int) -> None:
    """Any flipped bit, and any message that is cut, longer, or joined of two."""
    chance, whole = random.Random(seed), a_message()
    layouts = layouts_of()
    for _ in range(400):
        at = chance.randrange(len(whole))
        flipped = whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :]
        for data in (flipped, whole[:at], whole + whole[:at] if at else b""):
            with pytest.raises(DamagedState):
                decode(data, layouts)


def test_other_layouts_are_refused() -> None:
    """Records of another specification are never taken for ours."""
    with pytest.raises(DamagedState, match="another layout"):
        decode(a_message(), layouts_of("payments"))
