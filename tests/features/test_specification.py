"""Specifications: what is refused when one is made, and what its fingerprint covers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshscore.config.errors import BadSpecification
from freshscore.features.program import compiled
from freshscore.features.specification import (
    MAX_DURATION_DAYS,
    Aggregate,
    Condition,
    Entity,
    Feature,
    FeatureSpecification,
    WindowGroup,
    duration_ms,
)

BASE = FeatureSpecification(
    name="base",
    currency="EUR",
    entities=(
        Entity("card"),
        Entity("merchant"),
        Entity("shop", of=("merchant",), mode="grid", resolution=0.1),
        Entity("pair", of=("card", "merchant")),
    ),
    windows=(
        WindowGroup(
            "card",
            ("1h", "1d"),
            (
                Aggregate("count", where=Condition(field="channel", value="web")),
                Aggregate("mean", empty=0.0),
                Aggregate("std"),
            ),
        ),
        WindowGroup("shop", ("1h",), (Aggregate("share", of="fraud"), Aggregate("count"))),
    ),
    features=(
        Feature("risk", "field", of="risk"),
        Feature("channel", "category", of="channel"),
        Feature("first", "first_pair", entity="card", of="merchant"),
        Feature("z", "zscore", to="card_amount_mean_1h", spread="card_amount_std_1d", of="risk"),
    ),
    facts=("fraud", "declined"),
)


def changed(**fields: Any) -> FeatureSpecification:
    """BASE with some of its parts replaced, checked anew."""
    return msgspec.structs.replace(BASE, **fields)


def with_feature(*features: Feature) -> FeatureSpecification:
    return changed(features=(*BASE.features, *features))


def with_aggregate(*aggregates: Aggregate) -> FeatureSpecification:
    first, *others = BASE.windows
    more = msgspec.structs.replace(first, aggregates=(*first.aggregates, *aggregates))
    return changed(windows=(more, *others))


def with_lengths(*lengths: str, delay: str = "0s") -> FeatureSpecification:
    group = WindowGroup("merchant", lengths, (Aggregate("count"),), delay=delay)
    return changed(windows=(*BASE.windows, group))


def with_entity(entity: Entity) -> FeatureSpecification:
    return changed(entities=(*BASE.entities, entity))


# What cannot mean anything, and what the error says of it: which, the limit, the value.
REFUSED = [
    (lambda: with_aggregate(Aggregate("sum", empty=math.inf)), ["sum", "finite", "inf"]),
    (lambda: with_aggregate(Aggregate("max", empty=-math.inf)), ["max", "finite", "-inf"]),
    (
        lambda: with_aggregate(Aggregate("count", where=Condition(field="risk", value="3"))),
        ["'risk'", "read as a number", "string"],
    ),
    (
        lambda: with_aggregate(Aggregate("sum", where=Condition(field="channel", value="x" * 257))),
        ["257 bytes", "256"],
    ),
    (
        lambda: with_aggregate(Aggregate("sum", where=Condition(field="", value="x"))),
        ["field has 0 bytes", "1 to 256"],
    ),
    (
        lambda: with_feature(Feature("pairs", "first_pair", entity="card", of="card")),
        ["'pairs'", "'card'", "same identity"],
    ),
    (
        lambda: changed(
            entities=(*BASE.entities, Entity("holder", of=("card",))),
            features=(Feature("pairs", "first_pair", entity="card", of="holder"),),
        ),
        ["'pairs'", "'holder'", "same identity"],
    ),
    (
        lambda: with_feature(
            Feature("odd", "zscore", to="card_amount_std_1h", spread="card_amount_std_1h")
        ),
        ["'odd'", "needs a mean", "'card_amount_std_1h' is a std"],
    ),
    (
        lambda: with_feature(
            Feature("odd", "zscore", to="card_amount_mean_1h", spread="shop_count_1h")
        ),
        ["'odd'", "needs a std", "'shop_count_1h' is a count"],
    ),
    (
        lambda: changed(
            windows=(*BASE.windows, WindowGroup("merchant", ("1h",), (Aggregate("std"),))),
            features=(
                Feature("z", "zscore", to="card_amount_mean_1h", spread="merchant_amount_std_1h"),
            ),
        ),
        ["'z'", "other amounts", "entities or conditions"],
    ),
    (lambda: with_entity(Entity("twice", of=("card", "card"))), ["'twice'", "'card'"]),
    (lambda: with_entity(Entity("empty", of=("", ""))), ["'empty'", "0 bytes", "1 to 256"]),
    (lambda: with_entity(Entity("long", of=("é" * 129,))), ["'long'", "258 bytes", "1 to 256"]),
    (lambda: with_entity(Entity("broken", of=("\ud800",))), ["not valid Unicode"]),
    (lambda: with_feature(Feature("plain", "field", of="")), ["field has 0 bytes", "1 to 256"]),
    (lambda: with_feature(Feature("kind", "category", of="")), ["field has 0 bytes", "1 to 256"]),
    (lambda: with_feature(Feature("Größe", "amount")), ["small letter", "'Größe'"]),
    (lambda: with_feature(Feature("a b", "amount")), ["small letter", "'a b'"]),
    (lambda: with_feature(Feature("a\n", "amount")), ["small letter", "'a\\n'"]),
    (lambda: with_lengths("\u0661h"), ["'merchant'", "such as 30d", "'\u0661h'"]),
    (lambda: with_lengths("0s"), ["'merchant'", "above 0"]),
    (lambda: with_lengths("3654d"), ["'merchant'", "3653d", "ten years", "'3654d'"]),
    (lambda: with_lengths("1h", delay="999999999d"), ["'merchant'", "3653d", "'999999999d'"]),
    (lambda: changed(label_delay={"fraud": "100000h"}), ["'fraud'", "3653d", "'100000h'"]),
    (
        lambda: changed(windows=(*BASE.windows, WindowGroup("merchant", ("30d",), ()))),
        ["'merchant'", "no aggregates"],
    ),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_what_can_mean_nothing_is_refused_with_what_which_and_the_limit(
    make: Any, said: list[str]
) -> None:
    with pytest.raises(BadSpecification) as caught:
        make()
    assert [word for word in said if word not in str(caught.value)] == []


def test_what_lies_just_within_the_limits_is_taken() -> None:
    taken = with_lengths(f"{MAX_DURATION_DAYS}d", delay=f"{MAX_DURATION_DAYS}d")
    assert taken.reach_ms == 2 * duration_ms("3653d")
    assert compiled(with_entity(Entity("long", of=("é" * 128,)))).n_columns
    long = Condition(field="channel", value="x" * 256)
    assert compiled(with_aggregate(Aggregate("sum", where=long, name="long"))).n_columns


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "name = 'é'".encode("latin-1"), b"name ="])
def test_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    with pytest.raises(BadSpecification, match=r"mine\.toml"):
        FeatureSpecification.named(str(file))


@pytest.mark.parametrize("name", ["absent.toml", "nul\0.toml", "none such"])
def test_what_is_no_specification_is_refused_by_name(name: str) -> None:
    with pytest.raises(BadSpecification, match=r"absent\.toml|nul.*\.toml|none such"):
        FeatureSpecification.named(name)


@pytest.mark.parametrize("name", ["handbook", "payments", "sparkov"])
def test_shipped_fingerprints_never_change(name: str) -> None:
    """Trained models carry them: a change here refuses every one of them."""
    known = {
        "handbook": "b0c54cdc5cd762af2abcef74a722eb4f",
        "payments": "727c0d665b0bffe04043ccc7666e877f",
        "sparkov": "47875372a843c3d70f9c9a40e6b1d982",
    }
    assert FeatureSpecification.shipped(name).fingerprint.hex() == known[name]


def test_value_of_an_empty_window_is_in_the_fingerprint() -> None:
    declared = [None, math.nan, 0.0, -0.0, 5e-324, 1.0, math.nextafter(1.0, 2.0)]
    made = [with_aggregate(Aggregate("max", empty=empty)) for empty in declared]
    assert len({one.fingerprint for one in made}) == len(declared)


def test_reasons_sentences_and_the_own_name_are_not() -> None:
    first, *others = BASE.features
    told = msgspec.structs.replace(first, reason="R1", sentence="A sentence.")
    renamed = changed(name="other", features=(told, *others), label_delay={"fraud": "7d"})
    assert renamed.fingerprint == BASE.fingerprint


# Everything that a specification says, one value each: two that differ in one part are the pairs
# which a fingerprint could take for each other.
PARTS: dict[str, list[Any]] = {
    "currency": ["EUR", "USD", "JPY"],
    "facts": [("fraud", "declined"), ("declined", "fraud"), ("declined", "fraud", "won")],
    "parts": [(), ("device",), ("ip",), ("ip", "device"), ("device", "ip")],
    "grid": [None, 1.0, 0.5, math.nextafter(0.5, 1.0), 1e-300],
    "feature": [
        Feature("x", "amount"),
        Feature("x", "field", of="risk"),
        Feature("x", "field", of="score"),
        Feature("x", "category", of="channel"),
        Feature("x", "since_last", entity="card"),
        Feature("x", "first_pair", entity="card", of="device"),
    ],
    "windows_of": ["card", "device"],
    "lengths": [("1s",), ("60s",), ("1m",), ("1h",), ("1h", "1m"), ("1m", "1h"), ("60m",)],
    "delay": ["0s", "60s", "1m", "1h"],
    "current": [True, False],
    "function": ["count", "mean", "std", "max", "share", "sum"],
    "of": ["fraud", "declined"],
    "where": [
        None,
        Condition(kind="refund"),
        Condition(fact="fraud"),
        Condition(field="channel", value="web"),
        Condition(field="channel", value="fraud"),
        Condition(field="fraud", value="web"),
    ],
    "empty": [None, math.nan, 0.0, -0.0, 1.0, math.nextafter(1.0, 2.0)],
    "name": [None, "a", "b"],
}


def built(parts: dict[str, Any]) -> FeatureSpecification:
    """The specification that says these parts, and little else."""
    mode: Any = "exact" if parts["grid"] is None else "grid"
    # Grids have no max.
    function: Any = parts["function"]
    if mode == "grid" and function == "max":
        function = "count"
    aggregate = Aggregate(
        function,
        of=parts["of"] if function == "share" else None,
        where=parts["where"],
        empty=parts["empty"],
        name=parts["name"],
    )
    return FeatureSpecification(
        name="built",
        currency=parts["currency"],
        entities=(Entity("card"), Entity("device", parts["parts"], mode, parts["grid"])),
        windows=(
            WindowGroup(
                parts["windows_of"],
                parts["lengths"],
                (aggregate,),
                delay=parts["delay"],
                current=parts["current"],
            ),
        ),
        features=(parts["feature"],),
        facts=parts["facts"],
    )


@st.composite
def pairs(draw: st.DrawFn) -> tuple[FeatureSpecification, FeatureSpecification]:
    """Two specifications that differ in one part at most."""
    parts = {part: draw(st.sampled_from(values)) for part, values in PARTS.items()}
    part = draw(st.sampled_from(sorted(PARTS)))
    other = parts | {part: draw(st.sampled_from(PARTS[part]))}
    return built(parts), built(other)


def meaning(specification: FeatureSpecification) -> object:
    """All that evaluation reads of a specification: its program, and the names in it."""
    program = compiled(specification)
    named = (specification.feature_names, specification.plain_fields, specification.categories)
    return (
        program.code.tobytes(),
        program.entities,
        specification.currency,
        specification.facts,
        specification.conditions,
        named,
    )


@settings(max_examples=500)
@given(pairs())
def test_specifications_of_different_meaning_never_share_a_fingerprint(
    pair: tuple[FeatureSpecification, FeatureSpecification],
) -> None:
    one, two = pair
    if meaning(one) != meaning(two):
        assert one.fingerprint != two.fingerprint


def test_canary_a_fingerprint_of_plain_json_is_caught() -> None:
    """JSON has no NaN: the defect that the property above is there for."""
    one, two = (with_aggregate(Aggregate("max", empty=empty)) for empty in (None, math.nan))
    assert meaning(one) != meaning(two)
    plain = [msgspec.json.encode(specification.windows) for specification in (one, two)]
    assert plain[0] == plain[1]
