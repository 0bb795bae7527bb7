"""A replay as commands run it: the stream, the model, the check, the tables and the report.

Rule: a model that is trained here sees nothing of what is then replayed, and where the model came
from is said in any case.
LightGBM has one thread here: its threads wait by spinning, so that on two cores that do anything
else two of them took ten times as long as one (7 s and 112 s for the demo's model).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from freshscore.config.clock import Clock
from freshscore.config.errors import BadFile, ModelMismatch, NoModel
from freshscore.config.secret import Secret
from freshscore.config.settings import Settings
from freshscore.features.specification import FeatureSpecification, duration_ms
from freshscore.output import print_table, progress
from freshscore.scoring.model import Model
from freshscore.scoring.registry import Registry
from freshscore.scoring.training_sets import TrainingScope, trained
from freshscore.simulations.equality import OracleName, checked
from freshscore.simulations.outcome import Outcome, outcome_of
from freshscore.simulations.outcome_tables import composition_line, tables_of
from freshscore.simulations.records import Records
from freshscore.simulations.replay import replay
from freshscore.simulations.shared_outcome import SharedOutcome
from freshscore.simulations.streams import Stream

OracleChoice = Literal["sample", "all", "none"]


@dataclass(frozen=True)
class ChosenModel:
    """A model and a sentence about where it came from."""

    model: Model
    said: str


def say_composition(stream: Stream, seed: int) -> None:
    """Print which touches were in the file and which are simulated; the first line of a replay."""
    print(composition_line(stream.composition(), stream.shape.name, seed), flush=True)


def chosen_model(
    stream: Stream, settings: Settings, clock: Clock, version: str | None
) -> ChosenModel:
    """The model asked for; else the champion if it fits; else one trained on what came before.

    Raises NoModel or ModelMismatch for a version that is not there or does not fit, DamagedModel,
    BadFile or BadModel where there is too little to train on.
    """
    specification = stream.table.specification
    registry = Registry.of(settings.store.path)
    if version is not None:
        model = registry.load(version)
        model.check_fits(specification)
        return ChosenModel(model, _said_of(model, "Model", stream))
    try:
        model = registry.champion()
        model.check_fits(specification)
    except NoModel:
        return trained_before(stream, settings, clock, "no champion yet")
    except ModelMismatch:
        return trained_before(
            stream, settings, clock, f"the champion does not fit specification {specification.name}"
        )
    return ChosenModel(model, _said_of(model, "The champion", stream))


def trained_before(stream: Stream, settings: Settings, clock: Clock, why: str) -> ChosenModel:
    """A model of the stream's history, by what was known of it when the stream began.

    Raises BadFile where no label was known by then.
    """
    scope = TrainingScope(before_ms=stream.start_ms, known_by_ms=stream.start_ms)
    _need_known_labels(stream, scope.label, why)
    line_s = settings.output.progress_line_s
    with progress("trees", settings.model.num_trees, clock, line_s) as advance:
        model = trained(
            stream.table.take(stream.history),
            scope,
            settings,
            made_at_ms=clock.now_ms(),
            after_trees=advance,
        )
    facts = model.facts
    rows = (facts.rows or 0) + (facts.validation_rows or 0)
    return ChosenModel(
        model,
        f"Model {model.version}, trained now ({why}) on {rows:,} payments before"
        f" {_instant(stream.start_ms)}; it has seen nothing of what is replayed.",
    )


def run_replay(
    stream: Stream,
    model: Model,
    settings: Settings,
    rng: np.random.Generator,
    clock: Clock,
    *,
    oracle: OracleChoice = "sample",
    incumbent: str | None = None,
    secret: Secret | None = None,
) -> tuple[Outcome, Records]:
    """Replay, check and count; the records too, for whoever compares another run with them.

    secret: of the keys; None: one of `rng`. Raises BadFile for an incumbent's column without
    decisions.
    """
    line_s = settings.output.progress_line_s
    share = {"sample": None, "all": 1.0, "none": 0.0}[oracle]
    with progress("touches", len(stream), clock, line_s) as advance:
        played = replay(
            stream,
            model,
            settings,
            rng,
            clock,
            oracle_share=share,
            secret=secret,
            advance=advance,
        )
    oracles: dict[OracleChoice, tuple[OracleName, ...]] = {
        "sample": ("plain",),
        "all": ("vectorised",),
        "none": (),
    }
    followed = len(played.sampled)
    with progress("touches followed by the oracle", followed, clock, line_s) as advance:
        equality = checked(played, oracles[oracle], advance=advance)
    window_ms = 1000 * settings.replay.foresight_window_s
    return outcome_of(played, equality, window_ms, incumbent), played.records


def print_outcome(outcome: Outcome) -> None:
    """Print the tables, and what the equality check says."""
    for table in tables_of(outcome):
        print()
        print_table(table.columns, table.rows, title=table.title)
        if table.note:
            print(table.note)
    verdict = "holds" if outcome.equality.holds else "FAILED"
    print(f"\nequality check {verdict}: {outcome.equality.statement}")
    print(f"{outcome.touches_per_s:,.0f} touches a second, fresh scores included")


class ReportWriter(Protocol):
    """Makes the report's page of a replay (simulations/report.py)."""

    def __call__(
        self,
        outcome: Outcome,
        seed: int,
        title: str,
        model_said: str,
        shared: SharedOutcome | None = None,
    ) -> str:
        """The page."""


def report_writer() -> ReportWriter | None:
    """What makes the report's page; None where its pictures cannot be drawn."""
    try:
        from freshscore.simulations.report import report_of
    except ModuleNotFoundError as problem:
        if problem.name != "matplotlib":
            raise
        return None
    return report_of


def write_report(path: Path, page: str) -> None:
    """Write the page whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def specification_of(settings: Settings) -> FeatureSpecification:
    """The specification that the settings name. Raises BadSpecification."""
    return FeatureSpecification.named(settings.store.specification)


def _need_known_labels(stream: Stream, label: str, why: str) -> None:
    """Raise BadFile where no payment before the stream has a label that was known by its start."""
    before_ms = stream.table.time_ms[stream.history]
    delay = stream.table.specification.label_delay.get(label, "0s")
    mature_ms = stream.start_ms - duration_ms(delay)
    if np.any(before_ms <= mature_ms):
        return
    said = (
        f"{why}, and none can be trained: {len(before_ms):,} payments before"
        f" {_instant(stream.start_ms)}, where the replay begins"
    )
    if len(before_ms):
        first_ms = int(before_ms.min())
        said += (
            f", from {_instant(first_ms)} on, and the label {label!r} of none of them was known by"
            f" then: it takes {delay}, so none is before"
            f" {_instant(first_ms + duration_ms(delay))}"
        )
    raise BadFile(f"{said}; begin the replay later (--from), or train a model on other payments")


def _said_of(model: Model, what: str, stream: Stream) -> str:
    last_ms = model.facts.last_ms
    said = f"{what} {model.version}"
    if last_ms is None:
        return f"{said}; what it was trained on is not recorded."
    if last_ms < stream.start_ms:
        return f"{said}, trained on payments up to {_instant(last_ms)}, before what is replayed."
    return (
        f"{said}, trained on payments up to {_instant(last_ms)}: it may have seen what is replayed,"
        " so how well it tells frauds here is flattering."
    )


def _instant(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
