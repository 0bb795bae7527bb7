"""Keys of Redis: injective, of one slot for one entity, and without a brace or an identifier."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from freshscore.features.redis_keys import (
    CONTROL,
    LABEL_BUCKETS,
    RedisKeys,
    bucket_of,
    fingerprint_name,
    index_name,
    slot_of,
    tag_of,
)

Named = tuple[Any, ...]
tokens = st.binary(min_size=16, max_size=16)
fingerprints = st.integers(0, 2**64 - 1)
numbers = st.integers(0, 20_000)
layouts = st.lists(fingerprints, min_size=1, max_size=3).map(tuple)
entities = st.lists(st.lists(st.text(max_size=3), min_size=1, max_size=3), max_size=4)
index_names = entities.map(index_name)
# What a key names, and the key.
named = st.one_of(
    st.tuples(st.just("state"), tokens, fingerprints),
    st.tuples(st.just("past"), tokens, fingerprints, st.integers(0, 2**18 - 1)),
    st.tuples(st.just("scores"), tokens, st.text(max_size=5)),
    st.tuples(st.just("markers"), numbers.map(str)),
    st.tuples(st.just("progress"), numbers.map(str)),
    st.tuples(st.just("control"), st.sampled_from(("stream", "log", "leases"))),
    st.tuples(st.just("labels"), st.integers(0, LABEL_BUCKETS - 1), index_names, numbers),
)


@given(one=named, other=named, spaces=st.lists(st.sampled_from(("fs", "fs.1", "f")), min_size=2))
def test_two_things_never_have_one_key(one: Named, other: Named, spaces: list[str]) -> None:
    keys = [
        getattr(RedisKeys(space, (1, 2)), what[0])(*what[1:])
        for space, what in zip(spaces, (one, other), strict=False)
    ]
    assert (keys[0] == keys[1]) == ((spaces[0], one) == (spaces[1], other))


@given(token=tokens, fingerprint=fingerprints)
def test_what_is_of_one_entity_has_one_slot(token: bytes, fingerprint: int) -> None:
    keys = RedisKeys("fs")
    all_of_it = (
        keys.state(token, fingerprint),
        keys.past(token, fingerprint, 77),
        keys.scores(token, "v1"),
    )
    assert {key_slot(key) for key in all_of_it} == {slot_of(tag_of(token))}


@given(token=tokens, fingerprint=fingerprints)
def test_tags_are_22_characters_that_no_brace_can_be(token: bytes, fingerprint: int) -> None:
    assert re.fullmatch(rb"[A-Za-z0-9_-]{22}", tag_of(token))
    assert re.fullmatch(rb"[A-Za-z0-9_-]{11}", fingerprint_name(fingerprint))


@given(identity=fingerprints, generation=numbers)
def test_a_bucket_of_the_label_index_has_one_slot(identity: int, generation: int) -> None:
    bucket = bucket_of(identity)
    key = RedisKeys("fs").labels(bucket, b"an-index-11", generation)
    assert key_slot(key) == slot_of(b"i%d" % bucket)


def test_what_is_shared_lies_on_one_node() -> None:
    slots = {key_slot(RedisKeys("fs").control(name)) for name in ("stream", "log", "leases")}
    assert slots == {slot_of(CONTROL.encode())}


def test_the_form_of_keys_is_fixed() -> None:
    """Written down: another form would be a rebuild of every state."""
    keys = RedisKeys("fs", (1, 2))
    token = bytes(range(16))
    assert keys.state(token, 1) == b"fs:{AAECAwQFBgcICQoLDA0ODw}:AQAAAAAAAAA"
    assert keys.past(token, 1, 66) == b"fs:{AAECAwQFBgcICQoLDA0ODw}:AQAAAAAAAAA:pABC"
    assert keys.scores(token, "v").startswith(b"fs:{AAECAwQFBgcICQoLDA0ODw}:s:")
    assert keys.markers("7") == b"fs:{7}:markers:B47aDkg0VC4"
    assert keys.progress("7") == b"fs:{7}:progress:B47aDkg0VC4"
    name = index_name([("card", "card"), ("pair", "card", "merchant")])
    assert keys.labels(17, name, 3) == b"fs:{i17}:fy1HKQzN05w:3"
    assert keys.control("stream") == b"fs:{control}:stream"


@given(one=layouts, other=layouts)
def test_how_far_a_node_has_got_is_told_for_each_set_of_layouts(
    one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    for name in ("markers", "progress"):
        keys = [getattr(RedisKeys("fs", each), name)("7") for each in (one, other)]
        assert (keys[0] == keys[1]) == (one == other)
        assert {key_slot(key) for key in keys} == {slot_of(b"7")}


def test_without_layouts_nobody_asks_how_far_a_node_has_got() -> None:
    for name in ("markers", "progress"):
        with pytest.raises(ValueError, match="fingerprints"):
            getattr(RedisKeys("fs"), name)("7")
