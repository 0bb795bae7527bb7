"""Law 5: keys are typed, length-prefixed and injective; no hit crosses a model version; a state's
key and version never hang on the model."""

from __future__ import annotations

import itertools
import random
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshscore.config.errors import BadTransaction
from freshscore.config.secret import Secret
from freshscore.features import row as r
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import compiled
from freshscore.features.specification import (
    Aggregate,
    Entity,
    Feature,
    FeatureSpecification,
    WindowGroup,
)
from freshscore.features.transaction import Transaction
from freshscore.scoring.serving import ServableModel
from tests.laws.campaigns import LawBroken, Plan, campaign
from tests.laws.damage import ShortHashes
from tests.laws.law_models import booster_model, callable_model
from tests.laws.law_specifications import Scaled, mixed, shipped
from tests.laws.traffic import Traffic, changed
from tests.laws.worlds import MONDAY_MS, SECRET, Limits, World, versions

SPECIFICATION = FeatureSpecification(
    name="keys",
    currency="EUR",
    entities=(
        Entity("card"),
        Entity("merchant"),
        Entity("pair", of=("card", "merchant")),
        Entity("three", of=("card", "merchant", "device")),
    ),
    features=(Feature("channel", "category", of="channel"), Feature("risk", "field", of="risk")),
    windows=(
        WindowGroup(
            "pair", ("1h",), (Aggregate("count"), Aggregate("distinct", of="card")), current=False
        ),
    ),
)
PROGRAM = compiled(SPECIFICATION)
PACKER = Packer(PROGRAM, Keys(PROGRAM, SECRET), {"channel": {"1": 0, "web": 1}})
identifiers = st.text(min_size=1, max_size=6) | st.sampled_from(
    ["a", "b", "a/b", "b/c", "ab", "a\0", "\0", "1", "01", "1.0", "é", "x" * 255]
)


def pay(entities: dict[str, str], name: str = "t", **more: object) -> Transaction:
    """A payment of these."""
    return Transaction(name, MONDAY_MS, 100, "EUR", entities, **more)  # type: ignore[arg-type]  # as there


def token(entity: str, entities: dict[str, str]) -> bytes:
    """The token of one of a payment's entities, 16 bytes; zeros if it is absent."""
    number = [layout.name for layout in PROGRAM.entities].index(entity)
    at = r.TOKENS + 16 * number
    return PACKER.row(pay(entities))[at : at + 16]


def member(entity: str, entities: dict[str, str]) -> bytes:
    """Its identity inside other entities' records, 8 bytes."""
    number = [layout.name for layout in PROGRAM.entities].index(entity)
    at = r.TOKENS + 16 * len(PROGRAM.entities) + 8 * number
    return PACKER.row(pay(entities))[at : at + 8]


def valid(*texts: str) -> bool:
    """Whether these are identifiers at all."""
    try:
        pay(dict(zip("abc", texts, strict=False)))
    except BadTransaction:
        return False
    return True


@given(st.tuples(identifiers, identifiers), st.tuples(identifiers, identifiers))
def test_tokens_of_composite_entities_are_equal_only_where_every_part_is(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    if not valid(*one, *other):
        return
    left, right = (dict(zip(("card", "merchant"), parts, strict=True)) for parts in (one, other))
    assert (token("pair", left) == token("pair", right)) == (one == other)
    assert (member("pair", left) == member("pair", right)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a/b", "c"), ("a", "b/c")),
        (("ab", "c"), ("a", "bc")),
        (("a", "bb"), ("ab", "b")),
        (("\x01\0a", "b"), ("a", "\x01\0b")),
        (("a\0", "b"), ("a", "\0b")),
        (("x" * 255, "y"), ("x" * 254, "xy")),
    ],
)
def test_parts_that_join_to_one_text_are_different_entities(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    """By token, by member, and in what the features count."""
    left, right = (dict(zip(("card", "merchant"), parts, strict=True)) for parts in (one, other))
    for entity in ("pair", "three"):
        with_device = [{**entities, "device": "d"} for entities in (left, right)]
        assert token(entity, with_device[0]) != token(entity, with_device[1])
    world = World(SPECIFICATION, callable_model(Scaled(SPECIFICATION, 1, 1, 1)))
    world.scorer.observe(pay(left))
    place = SPECIFICATION.feature_names.index("pair_count_1h")
    counts = [
        world.features(pay(entities, "request"), MONDAY_MS)[place] for entities in (left, right)
    ]
    assert counts == [1, 0]


def test_one_identifier_is_another_token_for_every_kind_of_entity() -> None:
    same = {"card": "x", "merchant": "x", "device": "x"}
    tokens = [token(layout.name, same) for layout in PROGRAM.entities]
    assert len({*tokens, bytes(16)}) == len(tokens) + 1


def test_an_absent_part_makes_the_entity_absent_and_an_empty_one_is_refused() -> None:
    assert token("pair", {"card": "x"}) == bytes(16)
    with pytest.raises(BadTransaction):
        pay({"card": "x", "merchant": ""})


def test_numbers_and_texts_are_not_confused() -> None:
    """1 is no identifier, and no category; "1" is, and is no number."""
    with pytest.raises(BadTransaction):
        pay({"card": 1})  # type: ignore[dict-item]  # what is refused
    with pytest.raises(BadTransaction):
        PACKER.row(pay({}, fields={"channel": 1}))
    with pytest.raises(BadTransaction):
        PACKER.row(pay({}, fields={"risk": "1"}))
    assert contents(pay({}, fields={"channel": "1"})) != contents(pay({}))
    assert contents(pay({}, fields={"risk": 1})) != contents(pay({}, fields={"channel": "1"}))
    assert token("card", {"card": "1"}) != token("card", {"card": "01"})


def contents(payment: Transaction) -> bytes:
    """The digest of all that is read of a payment but its id."""
    return PACKER.row(payment)[r.CONTENT_LOW : r.CONTENT_LOW + 16]


def test_contents_that_differ_in_anything_that_is_read_have_other_digests() -> None:
    payment = pay(
        {"card": "c", "merchant": "m"}, fields={"channel": "web", "risk": 1.0}, location=(1.0, 2.0)
    )
    other = [
        changed(payment, time=payment.time + 1),
        changed(payment, amount_minor=101),
        changed(payment, kind="refund"),
        changed(payment, location=(2.0, 1.0)),
        changed(payment, location=None),
        changed(payment, fields={"channel": "web", "risk": 2.0}),
        changed(payment, fields={"channel": "web", "risk": -1.0}),
        changed(payment, fields={"channel": "web"}),
        changed(payment, fields={"channel": "1", "risk": 1.0}),
        changed(payment, entities={"card": "m", "merchant": "c"}),
        changed(payment, entities={"card": "c"}),
        changed(payment, entities={"merchant": "c", "device": "m"}),
    ]
    digests = [contents(one) for one in [payment, *other]]
    assert len(set(digests)) == len(digests)
    assert contents(changed(payment, transaction_id="another")) == contents(payment)


@given(identifiers, identifiers)
def test_identities_of_payments_are_equal_only_where_the_ids_are(one: str, other: str) -> None:
    if not valid(one, other):
        return
    rows = [PACKER.row(pay({}, name)) for name in (one, other)]
    assert (rows[0][:16] == rows[1][:16]) == (one == other)


def test_no_hit_crosses_a_model_version(seed: int) -> None:
    """Two models on one store: each computes its own first score, and remembers that one."""
    scaled = mixed(np.random.default_rng(seed))
    models: list[ServableModel] = [
        booster_model(scaled, seed),
        booster_model(scaled, seed + 1),
        callable_model(scaled, "one"),
        callable_model(scaled, "other"),
    ]
    first = World(scaled.specification, models[0])
    worlds = [first, *(World(scaled.specification, m, store=first.store) for m in models[1:])]
    traffic = Traffic(scaled, random.Random(seed))
    payments = [traffic.new().first for _ in range(30)]
    for payment in payments:
        first.scorer.observe(payment)
    as_of = first.store.newest_ms
    for payment in payments:
        for world in worlds:
            result = world.scorer.score(payment, as_of=as_of)
            assert result.source in ("computed", "cell")
            assert result.model_version == world.model.version
            assert result.score == world.fresh_score(payment, as_of)
        for world in worlds:
            result = world.scorer.score(payment, as_of=as_of)
            assert (result.source, result.score) == ("memo", world.fresh_score(payment, as_of))
    assert len({model.version for model in models}) == len(models)
    # The first payment found nothing in any of them.
    assert all(world.scorer.stats()["answers"]["computed"] > 0 for world in worlds)


def test_the_feature_hash_carries_the_fingerprint_of_the_specification() -> None:
    """Same features, same cells, another meaning: another hash."""
    hashes = []
    for current in (True, False):
        group = WindowGroup("card", ("1h",), (Aggregate("sum", name="x"),), current=current)
        specification = FeatureSpecification(
            name="x", currency="EUR", entities=(Entity("card"),), windows=(group,)
        )
        world = World(specification, callable_model(Scaled(specification, 1, 1, 1)))
        # A payment of nothing: the sum is 0 with it and without.
        nothing = Transaction("t", MONDAY_MS, 0, "EUR", {"card": "c"})
        assert world.features(nothing, MONDAY_MS).tolist() == [0.0]
        hashes.append(world.scorer.score(nothing).feature_hash)
    assert hashes[0] != hashes[1]


def test_versions_of_states_depend_on_the_secret_and_never_on_the_model(seed: int) -> None:
    scaled = shipped("sparkov")
    models: tuple[ServableModel, ...] = (booster_model(scaled, seed), callable_model(scaled))
    traffic = Traffic(scaled, random.Random(seed))
    payments = [traffic.new().first for _ in range(50)]
    found = []
    for model, secret in itertools.product(models, (SECRET, Secret(b"other" * 8, "test"))):
        world = World(scaled.specification, model, secret=secret)
        for payment in payments:
            # Packed for this world alone.
            world.scorer.observe(changed(payment))
        found.append(versions(world.store))
    of_booster, of_booster_otherwise, of_callable, of_callable_otherwise = found
    assert of_booster == of_callable
    assert of_booster_otherwise == of_callable_otherwise
    assert not set(of_booster.values()) & set(of_booster_otherwise.values())


def test_a_new_model_finds_its_states_warm(seed: int) -> None:
    scaled = shipped("payments")
    limits = Limits(horizon_ms=scaled.horizon_ms)
    old = World(scaled.specification, booster_model(scaled, seed), limits)
    traffic = Traffic(scaled, random.Random(seed))
    for _ in range(50):
        old.scorer.observe(traffic.new().first)
    new = World(scaled.specification, booster_model(scaled, seed + 1), limits, store=old.store)
    request = traffic.new().first
    as_of = max(request.time, old.store.newest_ms)
    assert new.scorer.score(request, as_of=as_of).score == new.fresh_score(request, as_of)
    both = [world.scorer.score(request, as_of=as_of).state_versions for world in (old, new)]
    assert both[0] == both[1]


def test_a_members_identity_is_what_distinct_counts() -> None:
    """64 bits of the identifier's hash, the same whatever the entity's token is keyed with."""
    assert len({member("card", {"card": f"c{i}"}) for i in range(2_000)}) == 2_000
    assert struct.unpack("<Q", member("card", {"card": "x"}))[0] != 0


def test_canary_tokens_of_a_few_bits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freshscore.scoring.serving.Packer", ShortHashes)
    with pytest.raises(LawBroken):
        campaign(Plan(5, "payments", "walked", 1_500))
