"""The label index: its keys say of which entities its records are."""

from __future__ import annotations

import pytest

from freshscore.features.program import compiled
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.redis_labels import LabelIndex
from freshscore.features.specification import FeatureSpecification

NOW_MS = 1_700_000_000_000


def _key(entities: str) -> bytes:
    text = f"""
    name = "small"
    currency = "EUR"
    features = [{{ name = "amount", function = "amount" }}]
    {entities}
    """
    program = compiled(FeatureSpecification.from_toml(text))
    return LabelIndex(RedisKeys("fs"), program, 4).key(bytes(range(32)), NOW_MS)


def _named(*names: str) -> str:
    return "".join(f'[[entities]]\nname = "{name}"\n' for name in names)


@pytest.mark.parametrize(
    "other",
    [
        _named("card", "device"),
        _named("merchant", "card"),
        _named("card"),
        '[[entities]]\nname = "card"\n[[entities]]\nname = "merchant"\nof = ["card", "shop"]\n',
    ],
)
def test_an_index_of_other_entities_is_another_one(other: str) -> None:
    """As many tokens in a record do not make them those of the same entities."""
    assert _key(_named("card", "merchant")) == _key(_named("card", "merchant"))
    assert _key(_named("card", "merchant")) != _key(other)
