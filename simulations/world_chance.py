"""What a simulated world draws from: whoever makes one passes it in, seeded.

Rule: nothing is drawn from anything else, so one seed is one world. `random.Random` is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Chance(Protocol):
    """Draws numbers and choices; the methods are those of the standard library's generator."""

    def random(self) -> float:
        """From 0 to below 1."""
        ...

    def randrange(self, start: int, stop: int | None = None) -> int:
        """A number of a range."""
        ...

    def randint(self, a: int, b: int) -> int:
        """A number from `a` to `b`, both included."""
        ...

    def getrandbits(self, k: int, /) -> int:
        """A number of so many bits."""
        ...

    def randbytes(self, n: int) -> bytes:
        """So many bytes."""
        ...

    def expovariate(self, lambd: float) -> float:
        """From the exponential distribution of this rate."""
        ...

    def choice(self, seq: Sequence[T]) -> T:
        """One of them."""
        ...

    def choices(self, population: Sequence[T], weights: Sequence[float]) -> list[T]:
        """One of them, some more often."""
        ...

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """So many of them, none twice."""
        ...

    def shuffle(self, x: list[Any]) -> None:
        """Put them into another order."""
        ...
