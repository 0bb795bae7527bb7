"""Numbers among replies: as the library reads them, whole, in pieces, up to what is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import hiredis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshscore.features.memory import address_of
from freshscore.features.redis_door import Lines, Nodes, ReplyError, command
from freshscore.features.redis_numbers import FOUND, SCAN, USED, scan_numbers
from tests.features.stores import SERVERS, opened_nodes

_NUMBERS = st.integers(-(2**63) + 1, 2**63 - 1)
_OTHERS = st.sampled_from(
    [b"$2\r\n:1\r\n", b"-ERR no\r\n", b"+OK\r\n", b"$-1\r\n", b"*1\r\n:1\r\n"]
)


def _scanned(data: bytes, n: int) -> tuple[list[int], int]:
    """The numbers at the beginning of `data`, `n` at most, and the bytes that they take."""
    buffer, out = np.frombuffer(data or b"\0", np.uint8), np.zeros(n + 1, np.int64)
    scan = np.zeros(SCAN, np.int64)
    found = scan_numbers(address_of(buffer), len(data), address_of(out), n, address_of(scan))
    assert found == scan[FOUND] <= n
    assert out[found] == 0
    return out[:found].tolist(), int(scan[USED])


@given(st.lists(_NUMBERS, max_size=8), st.lists(_OTHERS, max_size=2), st.data())
def test_it_finds_what_the_library_reads_before_the_first_other_reply_or_cut(
    numbers: list[int], others: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(b":%d\r\n" % number for number in numbers) + b"".join(others)
    cut = data.draw(st.integers(0, len(whole)))
    reader = hiredis.Reader(replyError=ReplyError, notEnoughData=None)
    reader.feed(whole[:cut])
    expected = []
    while type(reply := reader.gets()) is int:
        expected.append(reply)
    found, used = _scanned(whole[:cut], len(numbers) + 1)
    assert found == expected
    assert used == sum(len(b":%d\r\n" % number) for number in expected)
    assert _scanned(whole[:cut], 1)[0] == expected[:1]


@given(st.binary(max_size=64))
def test_any_bytes_are_scanned_within_their_bounds(data: bytes) -> None:
    _, used = _scanned(data, 16)
    assert 0 <= used <= len(data)


@pytest.fixture(params=SERVERS)
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield opened_nodes(request, stack, request.param)


def _sent(nodes: Nodes, lines: Lines, *commands: bytes) -> None:
    """Send all of them to the first node."""
    lines.send([b"".join(commands), *[None] * (nodes.n - 1)])


def _read(nodes: Nodes, lines: Lines, n: int, n_others: int) -> tuple[list[int], object, object]:
    none = [0] * (nodes.n - 1)
    first, *rest = lines.read_numbers([n, *none], [n_others, *none])
    assert all(not len(one.numbers) and not one.odd and not one.others for one in rest)
    return first.numbers.tolist(), first.odd, first.others


def test_thousands_of_numbers_are_read_from_a_server_and_the_replies_behind_them(
    nodes: Nodes, namespace: str
) -> None:
    key = f"{namespace}:{{{nodes.tags[0]}}}".encode()
    append, n = command(b"APPEND", key, b"x"), 50_000
    with nodes.lines() as lines:
        _sent(nodes, lines, append * n, command(b"GET", key), command(b"STRLEN", key))
        assert _read(nodes, lines, n, 2) == ([*range(1, n + 1)], [], [b"x" * n, n])
        _sent(nodes, lines, append)
        assert _read(nodes, lines, 1, 0) == ([n + 1], [], [])
        assert lines.ask(0, b"STRLEN", key) == n + 1


def test_a_reply_that_is_no_number_is_told_apart_and_hides_no_other(
    nodes: Nodes, namespace: str
) -> None:
    key, other = (f"{namespace}:{{{nodes.tags[0]}}}:{name}".encode() for name in "ab")
    append = command(b"APPEND", key, b"x")
    with nodes.lines() as lines:
        assert lines.ask(0, b"RPUSH", other, b"a") == 1
        _sent(nodes, lines, append * 2, command(b"APPEND", other, b"x"), append, append)
        numbers, odd, others = _read(nodes, lines, 4, 1)
        assert numbers == [1, 2, -1, 3]
        assert isinstance(odd, list)
        assert [type(one) for one in odd] == [ReplyError]
        assert others == [4]


def test_replies_of_two_sendings_are_kept_apart(nodes: Nodes, namespace: str) -> None:
    key = f"{namespace}:{{{nodes.tags[0]}}}".encode()
    append = command(b"APPEND", key, b"x")
    with nodes.lines() as lines:
        _sent(nodes, lines, append, append, command(b"GET", key))
        _sent(nodes, lines, append, append)
        assert _read(nodes, lines, 2, 1) == ([1, 2], [], [b"xx"])
        assert _read(nodes, lines, 2, 0) == ([3, 4], [], [])
