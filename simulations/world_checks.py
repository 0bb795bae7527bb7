"""Every score of a simulated world, checked on the set that it reports.

What a request read is known (simulations/world_truth.py): so is what it must have counted, and its
features follow by the vectorised oracle, for thousands of scores at once; of one in a thousand also
by the plain one. States that several requests read are given to the oracle once: each is an entity
of its own there, whatever it was before or after.
Rule: the oracles are asked about contents, facts and instants, never about a state or a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freshscore.features.packing import Keys
from freshscore.features.specification import FeatureSpecification
from freshscore.scoring.serving import ServableModel
from freshscore.simulations.oracle import PlainOracle
from freshscore.simulations.oracle_columns import (
    ALWAYS,
    NEVER,
    OracleFacts,
    OracleRequests,
    OracleRows,
    rows_of,
)
from freshscore.simulations.oracle_vectorised import VectorisedOracle
from freshscore.simulations.world_truth import BrokenLaw, Content, Snapshot, Truth

# What lies so long before a request no feature reads: the longest window, and a step of its grid.
_MARGIN_MS: Final = 120_000
_ABSENT: Final = -1
_COLUMNS: Final = "identity time_ms amount_minor kind latitude longitude conditions flags".split()


class Checked(NamedTuple):
    """One score that is to be checked. states: what was read for each entity, None where absent."""

    step: int
    content: Content
    as_of_ms: int
    score: float
    states: tuple[Snapshot | None, ...]


class Checks:
    """Collects scores, and has the oracles look at many of them at once.

    at_once: so many. plain_every: of so many one is given to the plain oracle too. n_distinct: of
    the checked ones, without those of which another one that was checked at once has the same
    content, instant and states: it says nothing new of features (though it does of a memo).
    """

    def __init__(
        self,
        specification: FeatureSpecification,
        keys: Keys,
        truth: Truth,
        model: ServableModel,
        *,
        at_once: int = 8_000,
        plain_every: int = 1_000,
    ) -> None:
        self._spec = specification
        self._keys = keys
        self._truth = truth
        self._model = model
        self._at_once = at_once
        self._plain_every = plain_every
        self._parts = [_part_of(specification, number) for number in range(_n_parts(specification))]
        self._columns = _Columns(specification, keys.record)
        self._waiting: list[Checked] = []
        self.n_checked = 0
        self.n_distinct = 0
        self.n_plain = 0

    def add(self, one: Checked) -> None:
        """Check a score, sooner or later. Raises BrokenLaw."""
        self._waiting.append(one)
        if len(self._waiting) >= self._at_once:
            self.settle()

    def settle(self) -> None:
        """Check all that waits. Raises BrokenLaw."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        self._columns.extend(self._truth)
        features = self.features(waiting)
        scores = self._model.predict(features)
        said = np.array([one.score for one in waiting])
        wrong = np.flatnonzero(scores.view(np.int64) != said.view(np.int64))
        if len(wrong):
            at = int(wrong[0])
            one = waiting[at]
            raise BrokenLaw(
                f"step {one.step}: a score of content {one.content.number} at {one.as_of_ms} is"
                f" {one.score!r}, and {scores[at]!r} on the set that it reports"
                f" ({len(wrong)} of {len(waiting)} differ)"
            )
        for at in range(-self.n_checked % self._plain_every, len(waiting), self._plain_every):
            self._check_plainly(waiting[at], features[at])
        self.n_checked += len(waiting)
        asked = {(one.content.number, one.as_of_ms, *map(id, one.states)) for one in waiting}
        self.n_distinct += len(asked)

    def features(self, waiting: Sequence[Checked]) -> NDArray[np.float64]:
        """float64[n, features] by the vectorised oracle."""
        found = np.full((len(waiting), len(self._spec.feature_names)), np.nan)
        asked = np.array([one.content.number for one in waiting], np.int64)
        as_of_ms = np.array([one.as_of_ms for one in waiting], np.int64)
        for number, part in enumerate(self._parts):
            places, columns = self._of_part(number, part, waiting, asked, as_of_ms)
            found[:, places] = columns
        return found

    def _of_part(
        self,
        entity: int,
        part: FeatureSpecification,
        waiting: Sequence[Checked],
        asked: NDArray[np.int64],
        as_of_ms: NDArray[np.int64],
    ) -> tuple[list[int], NDArray[np.float64]]:
        """Of one entity: the places of its features in a vector, and their columns."""
        numbers: dict[int, int] = {}
        snapshots: list[Snapshot] = []
        owner = np.full(len(waiting), _ABSENT, np.int64)
        for at, one in enumerate(waiting):
            state = one.states[entity]
            if state is not None:
                number = numbers.get(id(state))
                if number is None:
                    number = numbers[id(state)] = len(snapshots)
                    snapshots.append(state)
                owner[at] = number
        columns = self._columns
        time_ms = columns.of["time_ms"]
        oldest_ms = int(min(as_of_ms.min(), time_ms[asked].min())) - part.held_ms - _MARGIN_MS
        events, of = _joined([one.events for one in snapshots])
        near = time_ms[events] >= oldest_ms
        events, of = events[near], of[near]
        contents = np.concatenate([events, asked])
        lineages = np.concatenate([of, owner])
        # A payment in one state is another than in the next: each is a world of its own there.
        payment = (lineages + 1) * (len(columns.payment) + 1) + columns.payment[contents]
        known, codes = np.unique(payment, return_inverse=True)
        applied = np.zeros(len(contents), np.int64)
        applied[len(events) :] = NEVER
        rows = columns.rows(part, entity, contents, lineages, codes, applied)
        facts = self._facts(snapshots, known)
        place = np.arange(len(events), len(contents))
        requests = OracleRequests(place, as_of_ms, np.full(len(asked), NEVER, np.int64))
        names = self._spec.feature_names
        places = [names.index(name) for name in part.feature_names]
        return places, VectorisedOracle(part, rows, facts).features(requests)

    def _facts(self, snapshots: Sequence[Snapshot], known: NDArray[np.int64]) -> OracleFacts:
        """The facts of all states, where their payments are there too."""
        numbers, of = _joined([one.facts for one in snapshots])
        if not len(numbers):
            return OracleFacts.none()
        told = self._columns.facts[numbers]
        payments = self._columns.payment
        wanted = (of + 1) * (len(payments) + 1) + payments[told[:, 0]]
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        some = known[place] == wanted
        told, place = told[some], place[some]
        return OracleFacts(
            transaction=place,
            name=told[:, 1],
            value=told[:, 2].astype(np.bool_),
            sender_ms=told[:, 3],
            known_at_ms=told[:, 4],
            time_ms=self._columns.of["time_ms"][told[:, 0]],
            applied=np.full(len(told), ALWAYS, np.int64),
        )

    def _check_plainly(self, one: Checked, expected: NDArray[np.float64]) -> None:
        """Compare the vectorised oracle with the plain one, state by state."""
        truth = self._truth
        for entity, part in enumerate(self._parts):
            oracle = PlainOracle(
                self._spec,
                horizon_ms=truth.horizon_ms,
                skew_ms=truth.skew_ms,
                record_key=self._keys.record,
            )
            state = one.states[entity]
            paid = one.content.transaction
            oldest_ms = min(one.as_of_ms, paid.time) - self._spec.held_ms - _MARGIN_MS
            for number in [] if state is None else state.events.tolist():
                event = truth.contents[number].transaction
                if event.time >= oldest_ms:
                    oracle.observe(event)
            for number in [] if state is None else state.facts.tolist():
                fact = truth.facts[number]
                event = truth.contents[fact.content].transaction
                name = self._spec.facts[fact.name]
                when = (fact.sender_ms, fact.known_at_ms, event.time)
                oracle.label(event.transaction_id, name, fact.value, *when)
            # The whole specification, for features of several columns; only the entity's count.
            vector = oracle.features(one.content.transaction, one.as_of_ms)
            for name in part.feature_names:
                place = self._spec.feature_names.index(name)
                mine, other = vector[place], float(expected[place])
                if mine != other and (mine == mine or other == other):
                    raise BrokenLaw(
                        f"step {one.step}: {name} is {mine!r} by the plain oracle, {other!r} by the"
                        " vectorised one"
                    )
        self.n_plain += 1


class _Columns:
    """All contents of a truth as the vectorised oracle's columns, extended as they come."""

    def __init__(self, specification: FeatureSpecification, record_key: bytes) -> None:
        self._spec = specification
        self._record_key = record_key
        self._n = self._n_facts = 0
        self._payments: dict[str, int] = {}
        self._keys: dict[tuple[int, bytes | None], int] = {}
        self.of: dict[str, NDArray[Any]] = {}
        self._members: dict[str, NDArray[np.uint64]] = {}
        self._codes = np.zeros((0, len(specification.entities)), np.int64)
        self.payment = np.zeros(0, np.int64)
        self.facts = np.zeros((0, 5), np.int64)

    def extend(self, truth: Truth) -> None:
        """Take in what is new."""
        new = truth.contents[self._n :]
        if new:
            self._add(new)
        told = [[*one] for one in truth.facts[self._n_facts :]]
        if told:
            self.facts = np.concatenate([self.facts, np.array(told, np.int64)])
        self._n, self._n_facts = len(truth.contents), len(truth.facts)

    def _add(self, new: Sequence[Content]) -> None:
        paid = [one.transaction for one in new]
        applied = np.zeros(len(new), np.int64)
        rows = rows_of(self._spec, paid, applied, record_key=self._record_key)
        for name in _COLUMNS:
            column = getattr(rows, name)
            held = self.of.get(name)
            self.of[name] = column if held is None else np.concatenate([held, column])
        for name, members in rows.members.items():
            before = self._members.get(name)
            self._members[name] = members if before is None else np.concatenate([before, members])
        names = self._payments
        payments = [names.setdefault(tx.transaction_id, len(names)) for tx in paid]
        self.payment = np.concatenate([self.payment, np.array(payments, np.int64)])
        codes = [[self._code(e, key) for e, key in enumerate(one.states)] for one in new]
        self._codes = np.concatenate([self._codes, np.array(codes, np.int64)])

    def _code(self, entity: int, key: bytes | None) -> int:
        if key is None:
            return _ABSENT
        return self._keys.setdefault((entity, key), len(self._keys))

    def rows(
        self,
        part: FeatureSpecification,
        entity: int,
        contents: NDArray[np.int64],
        lineages: NDArray[np.int64],
        transaction: NDArray[np.int64],
        applied: NDArray[np.int64],
    ) -> OracleRows:
        """The rows of these contents, in which `entity` is whose they are in `lineages`."""
        entities = {}
        for number, one in enumerate(self._spec.entities):
            codes = self._codes[contents, number]
            entities[one.name] = _small(codes)
        entities[self._spec.entities[entity].name] = lineages
        conditions = [self._spec.conditions.index(one) for one in part.conditions]
        of = {name: column[contents] for name, column in self.of.items()}
        of["conditions"] = of["conditions"][:, conditions]
        return OracleRows(
            transaction=transaction.reshape(-1),
            entities=entities,
            members={name: column[contents] for name, column in self._members.items()},
            numbers={},
            categories={},
            applied=applied,
            **of,
        )


def _small(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The codes as numbers below their count; absent ones as they are."""
    distinct, small = np.unique(codes, return_inverse=True)
    return small.reshape(-1) - int(distinct[0] == _ABSENT)


def _joined(
    arrays: Sequence[NDArray[np.int64]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The arrays one behind the other, and of which of them each element is."""
    if not arrays:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(arrays), np.repeat(np.arange(len(arrays)), [len(one) for one in arrays])


def _n_parts(specification: FeatureSpecification) -> int:
    return len(specification.entities)


def _part_of(specification: FeatureSpecification, entity: int) -> FeatureSpecification:
    """The specification with what looks at one entity; what looks at none is with the first."""
    name = specification.entities[entity].name
    groups = tuple(one for one in specification.windows if one.entity == name)
    names = {column.name for column in specification.columns if column.group >= 0}
    own = {
        column.name
        for column in specification.columns
        if column.aggregate is not None and specification.windows[column.group].entity == name
    }
    features = []
    for one in specification.features:
        looks_at = one.entity == name or one.to in own
        if looks_at or (entity == 0 and one.entity is None and one.to not in names):
            features.append(one)
    return FeatureSpecification(
        name=f"{specification.name}_{name}",
        currency=specification.currency,
        entities=specification.entities,
        windows=groups,
        features=tuple(features),
        facts=specification.facts,
    )
