"""Records of the journal are found whole, in pieces, and around damage."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from freshscore.invalidation.journal_records import (
    HEADER_BYTES,
    MAGIC,
    Header,
    Placed,
    found_in,
    header,
    mark_bytes,
    read_header,
    record,
    record_bytes,
)
from tests.invalidation.journal_worlds import KEY_ID, some_message


def _file(chance: random.Random, n: int) -> tuple[bytes, list[Placed]]:
    data, placed = header(KEY_ID), []
    for _ in range(n):
        one = some_message(chance)
        told = record(one.topic.encode(), one.key, one.value, one.event_ms, len(data))
        assert len(told) == record_bytes(one.topic.encode(), one.key, one.value)
        placed.append(Placed(len(data), len(data) + len(told), one))
        data += told
    return data, placed


def _read(data: bytes, chance: random.Random, most: int) -> list[Placed]:
    """The messages of a file, in stretches of any length."""
    at, found = HEADER_BYTES, []
    wanted = 0
    while at < len(data):
        n = max(wanted, chance.randint(1, most))
        placed, at, wanted = found_in(data[at : at + n], at, len(data))
        found += placed
    return found


@given(st.integers(0, 2**32), st.integers(0, 12), st.sampled_from([1, 30, 5_000]))
def test_what_was_written_is_read_in_any_stretches(seed: int, n: int, most: int) -> None:
    chance = random.Random(seed)
    data, placed = _file(chance, n)
    assert found_in(data[HEADER_BYTES:], HEADER_BYTES, len(data)).placed == placed
    assert _read(data, chance, most) == placed


@given(st.integers(0, 2**32), st.integers(1, 12), st.data())
def test_damage_costs_the_records_that_it_touches_and_no_other(
    seed: int, n: int, draw: st.DataObject
) -> None:
    chance = random.Random(seed)
    data, placed = _file(chance, n)
    begin = draw.draw(st.integers(HEADER_BYTES, len(data) - 1))
    end = draw.draw(st.integers(begin + 1, min(len(data), begin + 600)))
    other = chance.randbytes(end - begin)
    damaged = data[:begin] + other + data[end:]
    touched = [at for at in range(begin, end) if data[at] != damaged[at]]
    expected = [one for one in placed if not any(one.at <= at < one.end for at in touched)]
    assert _read(damaged, chance, 5_000) == expected
    assert _read(damaged, chance, 17) == expected


@given(st.integers(0, 2**32), st.integers(1, 8), st.data())
def test_a_torn_end_costs_the_last_record_alone(seed: int, n: int, draw: st.DataObject) -> None:
    chance = random.Random(seed)
    data, placed = _file(chance, n)
    size = draw.draw(st.integers(HEADER_BYTES, len(data)))
    rest = draw.draw(st.sampled_from([b"", b"\0" * 50, b"\xff\xf5f"]))
    assert _read(data[:size] + rest, chance, 99) == [one for one in placed if one.end <= size]


def test_a_record_at_another_place_is_none() -> None:
    """What was copied, or is left of an earlier file, is not sent."""
    data = record(b"transactions", None, b"value", None, 40)
    assert len(found_in(data, 40, 40 + len(data)).placed) == 1
    assert found_in(data, 41, 41 + len(data)).placed == []


def test_a_header_tells_its_key_and_mark_and_what_of_it_is_damaged() -> None:
    whole = header(KEY_ID)
    assert read_header(whole) == Header(KEY_ID, HEADER_BYTES)
    marked = whole[:24] + mark_bytes(1_234)
    assert read_header(marked) == Header(KEY_ID, 1_234)
    for at in range(24, HEADER_BYTES):
        # Sent again from its beginning.
        torn = marked[:at] + bytes([marked[at] ^ 1]) + marked[at + 1 :]
        assert read_header(torn) == Header(KEY_ID, HEADER_BYTES)
    assert read_header(marked[:9] + b"x" + marked[10:]) == Header(None, 1_234)
    assert read_header(b"fsjrnl\x00\x02" + whole[8:]) is None
    assert read_header(bytes(80)) == read_header(MAGIC) == Header(None, HEADER_BYTES)
