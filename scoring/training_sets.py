"""From payments to a training set: features as serving would have seen them, labels, codes.

Rule: nothing of a row comes from after it: features are those of history in mode `known`, and facts
count in them only once known. What a payment turned out to be is its label, and only that may be
of later; with `known_by_ms` even the labels are those of one instant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from freshscore.config.errors import BadFile, BadSpecification
from freshscore.config.secret import Secret
from freshscore.config.settings import Settings
from freshscore.features.history import Acceptance, history_features
from freshscore.features.packing import COHORT_SHIFT, Cohort, Keys, Packer
from freshscore.features.program import Program, compiled
from freshscore.features.specification import duration_ms
from freshscore.features.table import ABSENT, Bools, Floats, Int64s, PaymentTable
from freshscore.scoring.model import Model
from freshscore.scoring.training import train_model

CategoryCodes = dict[str, dict[str, int]]

# Hashes of training sets stay in this process and order events of one instant only, so their key
# may be known; with a secret one, the same file would give another model on another machine.
_TRAINING_KEY: Final = b"freshscore training"


@dataclass(frozen=True, slots=True)
class TrainingScope:
    """Which payments are trained on, and by which label.

    Event times in [first_ms, before_ms), None for no limit. known_by_ms: train as at that instant:
    labels that became known later are not used, and payments whose label had not had the delay of
    its specification by then are left out; None: labels are what ever became known.
    """

    label: str = "fraud"
    first_ms: int | None = None
    before_ms: int | None = None
    known_by_ms: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSet:
    """n payments in time order.

    matrix: float64 (n, features). labels: bool (n,). time_ms: int64 (n,). codes: category field ->
    value -> code. cohort: int64 (n,), number of the cohort, that of all others being the last.
    """

    matrix: Floats
    labels: Bools
    time_ms: Int64s
    codes: CategoryCodes
    cohort: Int64s

    def __len__(self) -> int:
        """Number of payments."""
        return len(self.labels)


def training_keys(program: Program) -> Keys:
    """Keys for hashes that never leave the process; the same on every machine."""
    return Keys(program, Secret(_TRAINING_KEY, "training"))


def acceptance_of(settings: Settings) -> Acceptance:
    """Which events serving would have accepted under `settings`."""
    return Acceptance(1000 * settings.store.horizon_s, 1000 * settings.store.skew_s)


def training_set(
    table: PaymentTable,
    scope: TrainingScope,
    acceptance: Acceptance,
    cohorts: Sequence[Cohort] = (),
) -> TrainingSet:
    """The training set of `table` within `scope`.

    A payment that stands in several rows is trained on once, by its first. Raises BadFile where no
    payment is in scope, BadSpecification for a label or cohort that the specification has not.
    """
    spec = table.specification
    _check(table, scope, cohorts)
    seen = table if scope.before_ms is None else table.between(-(2**62), scope.before_ms)
    chosen = _chosen(seen, scope)
    if not len(chosen):
        raise BadFile(f"{len(table)} payments, none of them to train on: {_said(scope)}")
    codes = category_codes(seen, chosen)
    program = compiled(spec)
    keys = training_keys(program)
    matrix = history_features(seen, program, keys, acceptance=acceptance, categories=codes)
    bits = Packer(program, keys, cohorts=tuple(cohorts)).cohorts_of(seen)
    return TrainingSet(
        matrix=matrix[chosen],
        labels=labels_of(seen, scope)[chosen],
        time_ms=seen.time_ms[chosen],
        codes=codes,
        cohort=(bits[chosen] >> np.uint64(COHORT_SHIFT)).astype(np.int64),
    )


def trained(
    table: PaymentTable,
    scope: TrainingScope,
    settings: Settings,
    *,
    made_at_ms: int,
    cohorts: Sequence[Cohort] = (),
    num_threads: int = 1,
    after_trees: Callable[[int], None] | None = None,
) -> Model:
    """A model of `table`; the last of its payments calibrate it and set its thresholds.

    after_trees: told how many more of `settings.model.num_trees` there are.

    Raises BadFile, BadSpecification, BadModel (both classes are needed).
    """
    rows = training_set(table, scope, acceptance_of(settings), cohorts)
    return train_model(
        rows.matrix,
        rows.labels,
        specification=table.specification,
        settings=settings.model,
        made_at_ms=made_at_ms,
        codes=rows.codes,
        cohorts=cohorts,
        cohort_of_row=rows.cohort,
        time_ms=rows.time_ms,
        num_threads=num_threads,
        after_trees=after_trees,
    )


def labels_of(table: PaymentTable, scope: TrainingScope) -> Bools:
    """Whether the label of each payment is true, by any of its rows: bool (n,)."""
    known = (
        table.ever(scope.label)
        if scope.known_by_ms is None
        else _known(table, scope.label, scope.known_by_ms)
    )
    payment = _payments(table)
    return np.bincount(payment, weights=known)[payment] > 0


def category_codes(table: PaymentTable, rows: Int64s) -> CategoryCodes:
    """Field -> value -> code, of the values that occur in `rows`; codes follow their order."""
    codes = {}
    for field in table.specification.categories:
        column = table.categories[field]
        used = np.unique(column.codes[rows])
        values = column.values.take(pa.array(used[used != ABSENT])).to_pylist()
        codes[field] = {value: code for code, value in enumerate(sorted(values))}
    return codes


def _chosen(table: PaymentTable, scope: TrainingScope) -> Int64s:
    """Rows to train on, in time order; equal times in arrival order."""
    first = np.zeros(len(table), np.bool_)
    first[np.unique(_payments(table), return_index=True)[1]] = True
    if scope.first_ms is not None:
        first &= table.time_ms >= scope.first_ms
    if scope.known_by_ms is not None:
        delay = table.specification.label_delay.get(scope.label, "0s")
        first &= table.time_ms <= scope.known_by_ms - duration_ms(delay)
    rows = np.flatnonzero(first)
    return rows[np.argsort(table.time_ms[rows], kind="stable")]


def _known(table: PaymentTable, label: str, by_ms: int) -> Bools:
    """Whether `label` holds of each row as known at `by_ms`: the latest known by then."""
    bit = table.specification.facts.index(label)
    known = ((table.flags >> bit) & 1).astype(np.bool_) & (table.time_ms <= by_ms)
    facts = table.facts
    at = np.flatnonzero((facts.name == bit) & (facts.known_at_ms <= by_ms))
    # In this order the last assignment to a row is that of its latest fact.
    at = at[np.lexsort((facts.value[at], facts.sender_ms[at], facts.known_at_ms[at]))]
    known[facts.row[at]] = facts.value[at]
    return known


def _payments(table: PaymentTable) -> NDArray[np.int32]:
    """The number of each row's payment, int32 (n,)."""
    numbers: NDArray[np.int32] = table.transaction_id.dictionary_encode().indices.to_numpy()
    return numbers


def _check(table: PaymentTable, scope: TrainingScope, cohorts: Sequence[Cohort]) -> None:
    spec = table.specification
    if scope.label not in spec.facts:
        raise BadSpecification(
            f"specification {spec.name!r} has no fact {scope.label!r} to train on;"
            f" it has {', '.join(spec.facts) or 'none'}"
        )
    for cohort in cohorts:
        if cohort.field not in table.categories:
            raise BadSpecification(
                f"cohort {cohort.name!r} is of field {cohort.field!r}, which specification"
                f" {spec.name!r} does not read; it reads {', '.join(table.categories) or 'none'}"
            )


def _said(scope: TrainingScope) -> str:
    limits = {
        "from": scope.first_ms,
        "before": scope.before_ms,
        "labels known by": scope.known_by_ms,
    }
    said = [
        f"{name} {datetime.fromtimestamp(limit / 1000, UTC):%Y-%m-%d %H:%M} UTC"
        for name, limit in limits.items()
        if limit is not None
    ]
    return ", ".join(said) or "the file has none"
