"""What a replay through real servers came to: figures, tables for terminal and report, a verdict.

Rule: how far the shared run was behind, and how fast it was, is told beside whether it was right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from freshscore.scoring.result import SOURCES
from freshscore.simulations.outcome_tables import FigureTable
from freshscore.simulations.spells import Trouble, troubles

# It brings the clients of the servers, which an embedded replay does without.
if TYPE_CHECKING:
    from freshscore.simulations.shared_replay import SharedAnswers, SharedEquality

_PERCENTILES: Final = (50, 90, 99, 100)
_PERCENTILE_NAMES: Final = ("p50", "p90", "p99", "most")
_LAG: Final = "messages behind"
_WHY_DIFFERENT: Final = (
    "Answers on other versions may differ, for instance where Kafka had not brought a label yet: a"
    " fact counts only once the log has taken it, and no answer waits for that. Each of them is"
    " held against its own watermark, which must not claim what it did not count."
)


@dataclass(frozen=True, eq=False)
class SharedOutcome:
    """What the shared run gave: answers, their comparison, and how long history took to apply.

    history_messages, history_s: sent, and until all nodes of Redis held them.
    """

    answers: SharedAnswers
    equality: SharedEquality
    history_messages: int
    history_s: float

    @property
    def verdict(self) -> str:
        """Whether answers on the same versions are the embedded ones, and why others may differ."""
        verdict = "holds" if self.equality.holds else "FAILED"
        why = f". {self.why_different}" if self.why_different else ""
        return f"shared equality check {verdict}: {self.statement}{why}"

    @property
    def statement(self) -> str:
        """What was compared, how much of it was equal, and how much nothing is promised of."""
        equality = self.equality
        said = (
            f"of {equality.compared:,} answers {equality.same_states:,} stood on the same versions"
            f" of all states, and {equality.equal:,} of these are equal to the bit"
        )
        if not self.on_other_versions:
            return said
        said += (
            f"; {self.on_other_versions:,} stood on other versions, and"
            f" {self.different_elsewhere:,} of these are different"
        )
        if equality.unsaid:
            return f"{said}; {equality.unsaid:,} of these claimed to count everything"
        return f"{said}, all said so by their watermark or as degraded"

    @property
    def on_other_versions(self) -> int:
        """Answers of which some state had another version than in the embedded replay."""
        return self.equality.compared - self.equality.same_states

    @property
    def different_elsewhere(self) -> int:
        """Of those the ones with other bits."""
        return self.on_other_versions - self.equality.equal_elsewhere

    @property
    def why_different(self) -> str:
        """Why answers on other versions may differ, as a sentence; empty where there are none."""
        return _WHY_DIFFERENT if self.on_other_versions else ""

    @property
    def answers_per_s(self) -> int:
        """Answers a second of real time, events and facts in between included."""
        return round(len(self.answers.touch) / self.answers.elapsed_s)

    @property
    def history_per_s(self) -> int:
        """Messages of history a second, from the first that was sent to the last that was held."""
        return round(self.history_messages / self.history_s)

    @property
    def troubles(self) -> list[Trouble]:
        """What was degraded or not answered, and for how long."""
        return troubles(self.answers)

    def rows(self) -> list[tuple[str, object]]:
        """Name and value of each figure."""
        named = zip(_PERCENTILE_NAMES, percentiles(self.answers.latency_us), strict=True)
        behind = zip(_PERCENTILE_NAMES, percentiles(self.answers.behind), strict=True)
        return [
            *self._counts,
            *((f"latency, us, {name}", value) for name, value in named),
            *((f"{_LAG}, {name}", value) for name, value in behind),
            *self._throughput,
        ]

    def tables(self) -> list[FigureTable]:
        """The tables of the report."""
        return [self._lag_table(), self._throughput_table(), self._troubles_table()]

    def latencies_us(self) -> dict[str, tuple[float, float, float]]:
        """The 50th, 90th and 99th percentile of the latency of each source that answered."""
        found = {}
        for number, name in enumerate(SOURCES):
            mine = self.answers.latency_us[self.answers.source == number]
            if len(mine):
                p50, p90, p99, _ = percentiles(mine)
                found[name] = (p50, p90, p99)
        return found

    @property
    def _counts(self) -> list[tuple[str, int]]:
        answers, equality = self.answers, self.equality
        return [
            ("answers beside the embedded ones", equality.compared),
            ("on the same versions of all states", equality.same_states),
            ("of these, equal to the bit", equality.equal),
            ("on other versions, and equal", equality.equal_elsewhere),
            ("on other versions, and different", self.different_elsewhere),
            ("on other versions, although they claim to count everything", equality.unsaid),
            ("degraded", int(np.count_nonzero(answers.degraded))),
            ("not answered: Redis was away", len(answers.unanswered)),
            ("refused: too old", answers.refused),
            (
                "answers that count events which Redis did not hold yet",
                int(np.count_nonzero(answers.pending)),
            ),
        ]

    @property
    def _throughput(self) -> list[tuple[str, int]]:
        return [
            ("answers a second", self.answers_per_s),
            ("messages of history", self.history_messages),
            ("messages of history a second", self.history_per_s),
        ]

    def _lag_table(self) -> FigureTable:
        of_source = self.answers.source
        rows: list[tuple[str, int | float, int | float, int | float, int | float]] = []
        for what, values in (
            (_LAG, self.answers.behind.astype(np.float64)),
            ("latency of an answer, us", self.answers.latency_us),
            *(
                (f"of one from {name}, us", self.answers.latency_us[of_source == number])
                for number, name in enumerate(SOURCES)
            ),
        ):
            if len(values):
                p50, p90, p99, most = (round(value, 1) for value in percentiles(values))
                rows.append((what, p50, p90, p99, most))
        return FigureTable(
            "Lag and latency through Kafka and Redis",
            ("what", *_PERCENTILE_NAMES),
            tuple(rows),
            "Messages behind: what the log held and not every node of Redis yet, looked at again"
            " and again. Latency: of the whole call, its exchange with Redis included.",
        )

    def _troubles_table(self) -> FigureTable:
        rows = tuple(
            (one.cause, one.calls, one.spells, round(one.total_s, 2), round(one.longest_s, 2))
            for one in self.troubles
        )
        return FigureTable(
            "What was degraded or not answered, and for how long",
            ("what", "calls", "spells", "together, s", "longest, s"),
            rows or (("nothing", 0, 0, 0.0, 0.0),),
            "A spell lasts, in real time, from its first call to the next one that was well.",
        )

    def _throughput_table(self) -> FigureTable:
        return FigureTable(
            "Throughput through Kafka and Redis",
            ("what", "count"),
            (*self._throughput, *self._counts),
            f"The stream took {self.answers.elapsed_s:,.1f} s, its history {self.history_s:,.1f} s"
            " from the first message sent to the last one held by all nodes.",
        )


def percentiles(values: Sequence[float] | NDArray[Any]) -> list[float]:
    """The 50th, 90th, 99th and 100th percentile; zeros where there is no value."""
    held = np.asarray(values, np.float64)
    found: list[float] = np.percentile(held if len(held) else [0.0], _PERCENTILES).tolist()
    return found
