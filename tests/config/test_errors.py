"""The family of errors: what each can be caught as, and whether to try again."""

from __future__ import annotations

import pickle

import pytest

from freshscore.config import errors
from freshscore.config.errors import FreshscoreError

FAMILY = sorted(
    (one for one in vars(errors).values() if isinstance(one, type)), key=lambda one: one.__name__
)
RETRYABLE = {"Backpressure", "DeadlineExceeded", "Unavailable"}


@pytest.mark.parametrize("error", FAMILY, ids=lambda error: error.__name__)
def test_each_is_also_a_built_in_error_and_survives_pickling(error: type[FreshscoreError]) -> None:
    assert issubclass(error, FreshscoreError)
    if error is not FreshscoreError:
        built_in = [base for base in error.__mro__ if base.__module__ == "builtins"]
        assert built_in[0] is not Exception
    assert error.retryable is (error.__name__ in RETRYABLE)
    again = pickle.loads(pickle.dumps(error("what went wrong")))
    assert (type(again), str(again)) == (error, "what went wrong")
