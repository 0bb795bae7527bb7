"""What a shared run was in trouble for, and what its answers' watermarks are held against."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from freshscore.scoring import cache_layout as c
from freshscore.simulations.spells import NOT_ANSWERED, troubles
from freshscore.simulations.stream_changes import NEVER_MS, changed_ms
from tests.simulations import replayed
from tests.simulations.test_report import shared_run


def test_spells_last_until_the_next_call_that_was_well() -> None:
    answers = shared_run(8).answers
    touch = np.array([0, 1, 2, 5, 6, 7, 8, 9])
    degraded = np.zeros(8, np.int64)
    degraded[[1, 2, 6]] = c.STATE_LOST
    run = replace(
        answers,
        touch=touch,
        degraded=degraded,
        asked_s=touch / 10,
        unanswered=np.array([3, 4]),
        unanswered_s=np.array([0.3, 0.4]),
        elapsed_s=1.0,
    )
    lost, away = troubles(run)
    assert (lost.cause, lost.calls, lost.spells) == ("state lost", 3, 2)
    assert (lost.first_touch, lost.last_touch) == (1, 8)
    assert lost.total_s == pytest.approx(0.3)
    assert lost.longest_s == pytest.approx(0.2)
    assert (away.cause, away.calls, away.spells) == (NOT_ANSWERED, 2, 1)
    assert away.total_s == pytest.approx(0.2)
    assert troubles(answers) == []


def test_when_the_states_of_a_touch_had_changed_last() -> None:
    """Beside a plain walk through the stream."""
    stream = replayed.stream("payments", "none")
    tables = (stream.table, stream.added)
    last: dict[tuple[str, ...], int] = {}
    expected = []
    entities = stream.table.specification.entities
    named = {
        part: np.concatenate([table.entities[part].codes for table in tables])
        for entity in entities
        for part in entity.parts
    }
    for touch in range(len(stream)):
        payment = int(stream.payment[touch])
        keys = []
        for entity in entities:
            codes = [int(named[part][payment]) for part in entity.parts]
            if min(codes) >= 0:
                keys.append((entity.name, *map(str, codes)))
        expected.append(max([NEVER_MS, *(last.get(key, NEVER_MS) for key in keys)]))
        if not stream.scored[touch]:
            last |= dict.fromkeys(keys, int(stream.at_ms[touch]))
    assert changed_ms(stream).tolist() == expected
    assert len({*expected}) > 100
