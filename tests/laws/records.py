"""What happened in a campaign, as columns for the vectorised oracle; and the comparison.

Positions count what was applied and asked, on one scale. A payment that was only scored is a row
that was never applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freshscore.features.transaction import Transaction
from freshscore.scoring.result import Result
from freshscore.simulations.oracle_columns import (
    NEVER,
    OracleFacts,
    OracleRequests,
    OracleRows,
    rows_of,
)
from freshscore.simulations.oracle_vectorised import VectorisedOracle
from tests.laws.worlds import World

Floats = NDArray[np.float64]
_MOST_SHOWN = 4


@dataclass
class _Rows:
    """Payments, each content once, and when it was applied."""

    transactions: list[Transaction] = field(default_factory=list)
    applied: list[int] = field(default_factory=list)
    numbers: dict[Transaction, int] = field(default_factory=dict)

    def number(self, payment: Transaction) -> int:
        """The row of a content."""
        found = self.numbers.get(payment)
        if found is None:
            found = self.numbers[payment] = len(self.transactions)
            self.transactions.append(payment)
            self.applied.append(NEVER)
        return found


class Records:
    """Everything that one campaign writes down."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._spec = world.specification
        self._rows = _Rows()
        self._position = 0
        self._contents: dict[str, list[Transaction]] = {}
        self._facts: list[tuple[Transaction, str, bool, int, int, int]] = []
        self._fresh: list[Transaction] = []
        self._told = 0
        self._requests: list[tuple[int, int, int]] = []
        self._scores: list[float] = []
        self._features: list[Floats] = []
        self._sources: list[str] = []

    def newly_applied(self) -> list[Transaction]:
        """The contents that were applied since the last call, in order."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def newly_labelled(self) -> list[tuple[Transaction, str, bool, int, int, int]]:
        """The facts that were applied since the last call, in order."""
        first, self._told = self._told, len(self._facts)
        return self._facts[first:]

    @property
    def n_requests(self) -> int:
        """How many answers and promises there are to check."""
        return len(self._requests)

    def expected_outcomes(self, payment: Transaction) -> tuple[str, ...]:
        """What observing this content may come to, if it is not refused.

        Of several contents a state keeps the one that counts, so the others conflict again; and a
        content that names no entity is in no state.
        """
        seen = self._contents.get(payment.transaction_id)
        if seen is None:
            return ("accepted",)
        names_none = not any(
            all(part in payment.entities for part in entity.parts) for entity in self._spec.entities
        )
        if len(seen) > 1 or names_none:
            return ("repeated", "conflict")
        return ("repeated",) if payment in seen else ("conflict",)

    def apply(self, payment: Transaction) -> None:
        """An event was applied."""
        self._position += 1
        number = self._rows.number(payment)
        seen = self._contents.setdefault(payment.transaction_id, [])
        if payment not in seen:
            seen.append(payment)
            self._fresh.append(payment)
            self._rows.applied[number] = self._position

    def label(
        self, payment: Transaction, name: str, value: bool, sender_ms: int, known_at_ms: int
    ) -> None:
        """A fact was applied, of the event with this payment's id and time."""
        self._position += 1
        self._facts.append((payment, name, value, sender_ms, known_at_ms, self._position))

    def answered(self, payment: Transaction, result: Result) -> None:
        """An answer was given."""
        assert result.score is not None  # a served score is a number
        self._ask(payment, result.as_of, result.score, str(result.source))

    def promised(self, payment: Transaction, as_of_ms: int, score: float | None) -> None:
        """The score that `valid_until` promises for a later instant."""
        assert score is not None  # as above
        self._ask(payment, as_of_ms, score, "promised")

    def _ask(self, payment: Transaction, as_of_ms: int, score: float, source: str) -> None:
        self._position += 1
        self._requests.append((self._rows.number(payment), as_of_ms, self._position))
        self._scores.append(score)
        self._features.append(self._world.features(payment, as_of_ms))
        self._sources.append(source)

    def problem(self) -> str | None:
        """The first things that differ from the oracle, or None."""
        if not self._requests:
            return None
        oracle = VectorisedOracle(self._spec, self._oracle_rows(), self._oracle_facts())
        columns = np.array(self._requests, np.int64)
        features = oracle.features(OracleRequests(columns[:, 0], columns[:, 1], columns[:, 2]))
        return self._features_problem(features) or self._scores_problem(features)

    def _features_problem(self, expected: Floats) -> str | None:
        found = np.array(self._features)
        differ = different_bits(found, expected)
        if not differ.any():
            return None
        rows, columns = np.nonzero(differ)
        shown = [
            f"{self._said(row)}: {self._spec.feature_names[column]} is"
            f" {found[row, column]!r}, not {expected[row, column]!r}"
            for row, column in zip(rows[:_MOST_SHOWN], columns, strict=False)
        ]
        return f"{len(rows)} features differ: {'; '.join(shown)}"

    def _scores_problem(self, features: Floats) -> str | None:
        expected = self._world.model.predict(features)
        found = np.array(self._scores)
        rows = np.flatnonzero(found.view(np.uint64) != expected.view(np.uint64))
        if len(rows) == 0:
            return None
        shown = [
            f"{self._said(row)}: the score is {found[row]!r}, not {expected[row]!r}"
            for row in rows[:_MOST_SHOWN]
        ]
        return f"{len(rows)} of {len(found)} scores differ: {'; '.join(shown)}"

    def _said(self, request: int) -> str:
        row, as_of_ms, position = self._requests[request]
        payment = self._rows.transactions[row]
        return f"{self._sources[request]} {payment} as_of {as_of_ms} after {position}"

    def _oracle_rows(self) -> OracleRows:
        return rows_of(
            self._spec,
            self._rows.transactions,
            np.array(self._rows.applied, np.int64),
            record_key=self._world.record_key,
            categories=self._world.model.codes,
        )

    def _oracle_facts(self) -> OracleFacts:
        ids: dict[str, int] = {}
        for payment in self._rows.transactions:
            ids.setdefault(payment.transaction_id, len(ids))
        facts = [one for one in self._facts if one[0].transaction_id in ids]
        columns = np.array(
            [
                (
                    ids[payment.transaction_id],
                    self._spec.facts.index(name),
                    value,
                    sender_ms,
                    known_at_ms,
                    payment.time,
                    position,
                )
                for payment, name, value, sender_ms, known_at_ms, position in facts
            ],
            np.int64,
        ).reshape(len(facts), 7)
        return OracleFacts(
            transaction=columns[:, 0],
            name=columns[:, 1],
            value=columns[:, 2].astype(np.bool_),
            sender_ms=columns[:, 3],
            known_at_ms=columns[:, 4],
            time_ms=columns[:, 5],
            applied=columns[:, 6],
        )


def different_bits(left: Floats, right: Floats) -> NDArray[np.bool_]:
    """Where two matrices differ, bit for bit; a missing value is one value."""
    same: NDArray[np.bool_] = left.view(np.uint64) == right.view(np.uint64)
    return ~(same | (np.isnan(left) & np.isnan(right)))
