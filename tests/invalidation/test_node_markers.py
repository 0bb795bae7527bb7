"""What refused writes mean to a consumer: to try again, or that somebody has to act."""

from __future__ import annotations

import pytest

from freshscore.config.errors import FreshscoreError, SettingsError, StoreFull, Unavailable
from freshscore.features.redis_lines import ReplyError
from freshscore.invalidation.node_markers import refusal_of


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (["LOADING Redis is loading"], Unavailable),
        (["OOM command not allowed"], StoreFull),
        (["LOADING Redis is loading", "NOPERM this user has no permissions"], SettingsError),
        (["WRONGTYPE of a key"], Unavailable),
    ],
)
def test_refused_writes_are_tried_again_unless_that_is_in_vain(
    said: list[str], error: type[FreshscoreError]
) -> None:
    found = refusal_of([ReplyError(one) for one in said])
    assert type(found) is error


def test_an_unknown_error_is_named_without_what_it_says() -> None:
    """Redis repeats arguments in some."""
    assert "card" not in str(refusal_of([ReplyError("ERR unknown command 'X' with 'card-17'")]))
