"""What is installed only where it is asked for, and the error of those who need it and have it not.

Rule: nothing is imported here to find out; whoever imports what an extra brings does so inside of
`clients_of_servers`, and what is missing for another reason stays the bug that it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from freshscore.config.errors import SettingsError

# What the extra `shared` of pyproject.toml brings, by the names of import.
_OF_SHARED: Final = ("crc32c", "hiredis", "kafka", "redis")


@contextmanager
def clients_of_servers() -> Iterator[None]:
    """Raise SettingsError where a client of Kafka or Redis is imported inside and is missing."""
    try:
        yield
    except ModuleNotFoundError as problem:
        name = (problem.name or "").partition(".")[0]
        if name not in _OF_SHARED:
            raise
        raise SettingsError(
            f"Kafka and Redis need their clients, and {name} is not installed:"
            " pip install 'freshscore[shared]'"
        ) from problem
