"""Policies of re-use, each beside the scorer on the same touches.

A policy is `record / finished / stats`: it is told of every scored touch in order, what the fresh
score was included, and counts what it would have served. It sees the future no more than a cache
does, perfect foresight apart, which is the upper bound.
Source of the form: Caffeine's simulator.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

MINUTE_MS: Final = 60_000
TTL_MS: Final = 5 * MINUTE_MS
_APPROVE, _REVIEW, _DECLINE = 0, 1, 2


class Touch(NamedTuple):
    """One scored touch.

    payment, card: numbers. again: whether the payment was scored before. raw, cell: hashes of the
    feature vector and of its cell. score: the fresh one; bits: its 64 bits. review, decline:
    thresholds. served: what the scorer's cache served, None where it computed.
    """

    at_ms: int
    payment: int
    card: int
    again: bool
    raw: int
    cell: int
    score: float
    bits: int
    review: float
    decline: float
    served: float | None


@dataclass(frozen=True)
class PolicyStats:
    """What a policy served; counts of touches.

    again, hits_again: of payments that had been scored before. stale: served scores that were not
    the fresh one; flipped: those of them with another decision. in_bound, in_bound_again: hits that
    perfect foresight has too.
    """

    name: str
    touches: int
    again: int
    hits: int
    hits_again: int
    in_bound: int
    in_bound_again: int
    stale: int
    flipped: int


class Policy(Protocol):
    """A way to re-use scores."""

    name: str

    def record(self, touch: Touch) -> float | None:
        """What it serves for `touch`, None if nothing; it learns the fresh score if nothing."""
        ...

    def finished(self) -> None:
        """There are no more touches."""
        ...


class NoCache:
    """Computes every score."""

    name = "no cache"

    def record(self, touch: Touch) -> float | None:
        """Nothing."""
        return None

    def finished(self) -> None:
        """Nothing to end."""


class AsServed:
    """The scorer itself, as it answered in this replay."""

    name = "freshscore"

    def record(self, touch: Touch) -> float | None:
        """What it served."""
        return touch.served

    def finished(self) -> None:
        """Nothing to end."""


class Keyed:
    """Serves the score last known under a key, for `lifetime_ms`.

    renewed: whether being served makes a score known anew. A TTL counts from the computation.
    """

    def __init__(
        self, name: str, key: Callable[[Touch], Hashable], lifetime_ms: int, *, renewed: bool
    ) -> None:
        self.name = name
        self._key = key
        self._lifetime_ms = lifetime_ms
        self._renewed = renewed
        self._known: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def record(self, touch: Touch) -> float | None:
        """The score under the touch's key, unless it is too old."""
        self._forget(touch.at_ms - self._lifetime_ms)
        key = self._key(touch)
        known = self._known.get(key)
        if known is None:
            self._known[key] = touch.score, touch.at_ms
            return None
        if self._renewed:
            self._known[key] = known[0], touch.at_ms
            self._known.move_to_end(key)
        return known[0]

    def finished(self) -> None:
        """Forget all."""
        self._known.clear()

    def _forget(self, before_ms: int) -> None:
        # Oldest first: what is renewed moves to the end.
        while self._known:
            key, (_, since_ms) = next(iter(self._known.items()))
            if since_ms >= before_ms:
                return
            del self._known[key]


def foresight(window_ms: int) -> Policy:
    """Re-uses exactly where the fresh score is one known for that card in the last `window_ms`."""
    return Keyed("perfect foresight", lambda t: (t.card, t.bits), window_ms, renewed=True)


def compared(window_ms: int) -> list[Policy]:
    """All policies that a replay compares, the scorer first."""
    return [
        AsServed(),
        Keyed("cells alone", lambda t: t.cell, window_ms, renewed=True),
        Keyed("raw values", lambda t: t.raw, window_ms, renewed=True),
        Keyed("TTL 5 min by payment", lambda t: t.payment, TTL_MS, renewed=False),
        NoCache(),
    ]


class Comparison:
    """Policies beside the bound. in_bound: whether the bound served each touch, one byte each."""

    def __init__(self, bound: Policy, policies: Iterable[Policy]) -> None:
        self._bound = bound
        self._policies = list(policies)
        self._counts = [_Counts(policy.name) for policy in (bound, *self._policies)]
        self.in_bound = bytearray()

    def record(self, touch: Touch) -> None:
        """Let every policy answer `touch`."""
        best = self._bound.record(touch)
        in_bound = best is not None
        self.in_bound.append(in_bound)
        self._counts[0].add(touch, best, in_bound)
        for policy, counts in zip(self._policies, self._counts[1:], strict=True):
            counts.add(touch, policy.record(touch), in_bound)

    def finished(self) -> None:
        """There are no more touches."""
        for policy in (self._bound, *self._policies):
            policy.finished()

    def stats(self) -> list[PolicyStats]:
        """Of every policy, the bound first."""
        return [counts.stats() for counts in self._counts]


class _Counts:
    def __init__(self, name: str) -> None:
        self._name = name
        self._touches = self._again = self._hits = self._hits_again = 0
        self._in_bound = self._in_bound_again = self._stale = self._flipped = 0

    def add(self, touch: Touch, served: float | None, in_bound: bool) -> None:
        self._touches += 1
        self._again += touch.again
        if served is None:
            return
        self._hits += 1
        self._hits_again += touch.again
        self._in_bound += in_bound
        self._in_bound_again += in_bound and touch.again
        if served != touch.score:
            self._stale += 1
            self._flipped += _decision(served, touch) != _decision(touch.score, touch)

    def stats(self) -> PolicyStats:
        return PolicyStats(
            name=self._name,
            touches=self._touches,
            again=self._again,
            hits=self._hits,
            hits_again=self._hits_again,
            in_bound=self._in_bound,
            in_bound_again=self._in_bound_again,
            stale=self._stale,
            flipped=self._flipped,
        )


def _decision(score: float, touch: Touch) -> int:
    if score >= touch.decline:
        return _DECLINE
    return _REVIEW if score >= touch.review else _APPROVE
