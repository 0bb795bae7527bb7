"""The report: one file that opens without a network, well formed, and free of identifiers."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from html.parser import HTMLParser

import numpy as np

from freshscore.config.clock import SystemClock
from freshscore.scoring.callable_model import CallableModel
from freshscore.scoring.model_file import CohortThresholds
from freshscore.simulations.equality import Equality, checked
from freshscore.simulations.outcome import Outcome, outcome_of
from freshscore.simulations.outcome_tables import composition_line, figures_of, tables_of
from freshscore.simulations.replay import replay
from freshscore.simulations.report import report_of
from freshscore.simulations.shared_outcome import SharedOutcome
from freshscore.simulations.shared_replay import SharedAnswers, SharedEquality
from freshscore.simulations.streams import Composition
from tests.simulations import replayed

VOID = {"meta", "br", "hr", "img", "link"}


@functools.cache
def outcome() -> Outcome:
    run = replayed.reused()
    return outcome_of(run, checked(run, ()), 1_800_000)


@functools.cache
def page() -> str:
    return report_of(outcome(), 7, "Replay of <b>file</b> & more", "Model x.")


class Nesting(HTMLParser):
    """Checks that every element is closed where it should be, and keeps ids and references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._keep(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._keep(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _keep(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.references.append(value or "")


def test_it_is_well_formed_and_every_reference_points_into_it() -> None:
    parser = Nesting()
    parser.feed(page())
    parser.close()
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids)) > 0
    assert {f"#{name}" for name in parser.ids} >= set(parser.references)
    targets = re.findall(r"url\(#?([^)]+)\)", page())
    assert set(targets) <= set(parser.ids)


def test_nothing_in_it_leads_outside() -> None:
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<iframe|<img", page(), re.I)
    assert page().count("<svg") == 4


def test_text_is_escaped() -> None:
    assert "<b>file" not in page()
    assert "Replay of &lt;b&gt;file&lt;/b&gt; &amp; more" in page()


def test_it_names_no_card_merchant_or_payment() -> None:
    table = replayed.table()
    identifiers = {*table.transaction_id.to_pylist()}
    for column in table.entities.values():
        identifiers.update(column.values.to_pylist())
    assert len(identifiers) > 5_000
    words = set(re.split(r"[^\w~.-]+", page()))
    assert not words & identifiers
    assert "simulated-" not in page()


def test_the_first_line_says_what_was_simulated_and_the_tables_are_there() -> None:
    line = composition_line(outcome().composition, "reuse", 7)
    assert page().index(line) < page().index("<h1>")
    assert line.startswith("seed 7; in the file: ")
    for table in tables_of(outcome()):
        assert table.title in page()
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_first_line_counts_nothing_that_is_not_in_the_stream() -> None:
    """An added payment whose event came after the last score has a score and no event."""
    one = Composition(5, 5, 0, 2, 3, 1, 0)
    line = composition_line(one, "reuse", 7)
    assert "2 added payments (a first score each), 1 scores again" in line
    assert "1 events (theirs, and repeated ones), how long events" in line
    assert "-" not in line


def test_a_broken_law_is_said_where_nobody_can_miss_it() -> None:
    broken = dataclasses.replace(outcome(), equality=Equality(5, 1, 5, 0, ()))
    told = report_of(broken, 7, "Replay", "Model x.")
    assert "Served scores differ from fresh ones" in told
    assert "1 DIFFER" in told
    assert "class=broken" in told
    assert "Every served score is the fresh one" in page()


def test_an_outcome_without_any_re_use_has_a_report_too() -> None:
    # A model that is keyed on raw values and reads the amount, of which no two payments share one.
    model = CallableModel(lambda matrix: matrix[:, 0], "raw", [CohortThresholds("all", 50, 90)])
    stream = replayed.stream("payments", "none")
    rng = np.random.default_rng(1)
    run = replay(stream, model, replayed.SMALL, rng, SystemClock(), oracle_share=0.0)
    plain = outcome_of(run, checked(run, ()), 1_800_000)
    assert plain.saved == 0
    told = report_of(plain, 7, "Replay", "Model x.")
    assert "Answers by source" in told
    assert told.count("<svg") == 2


def test_the_figures_are_json_and_say_whether_the_law_held() -> None:
    figures = json.loads(json.dumps(figures_of(outcome())))
    assert figures["equality"]["holds"] is True
    assert figures["answers"] == sum(one["answers"] for one in figures["sources"])
    assert figures["inference_saved"] == outcome().saved


def shared_run(
    n: int = 400, *, wrong: int = 0, elsewhere: tuple[int, int] = (0, 0)
) -> SharedOutcome:
    """A shared run of some answers, of which `wrong` on the same states are not equal.

    elsewhere: of so many answers the states had other versions, and of so many the same bits.
    """
    start_ms = 1_525_000_000_000
    answers = SharedAnswers(
        touch=np.arange(n),
        score=np.full(n, 0.5),
        states=np.arange(n, dtype=np.uint64),
        source=np.arange(n) % 3,
        pending=np.arange(n) % 2,
        degraded=np.zeros(n, np.int64),
        watermark_ms=np.full(n, start_ms),
        asked_s=np.linspace(0.0, 0.4, n),
        unanswered=np.zeros(0, np.int64),
        unanswered_s=np.zeros(0),
        latency_us=np.linspace(40.0, 900.0, n),
        behind=np.array([0, 1_234, 77]),
        behind_at_ms=start_ms + 3_600_000 * np.arange(3),
        refused=2,
        elapsed_s=0.5,
    )
    other, equal = elsewhere
    same = n - other
    return SharedOutcome(answers, SharedEquality(n, same, same - wrong, equal, 0), 9_000, 1.5)


def test_a_shared_run_is_told_with_its_lag_latency_and_throughput() -> None:
    shared = shared_run()
    told = report_of(outcome(), 7, "Replay", "Model x.", shared)
    assert told.count("<svg") == 6
    assert "Through Kafka and Redis every answer on the same versions is the embedded one" in told
    assert "on other versions may differ" not in told + shared.verdict
    assert shared.statement[1:] in told
    assert "800 answers a second; 6,000 messages of history a second." in told
    for table in shared.tables():
        assert table.title in told
        assert all(len(row) == len(table.columns) for row in table.rows)
    lag = re.search(r"<tr><td>messages behind</td>(.*?)</tr>", told)
    assert lag is not None
    assert re.findall(r">([\d.,]+)<", lag[1]) == ["77", "1,002.6", "1,210.9", "1,234"]
    assert "of one from memo, us" in told
    assert "of one from computed, us" not in told
    # What the console shows is there too, under the same names.
    for name, value in shared.rows():
        if "," not in name:
            assert f"<td>{name}</td><td class=n>{value:,}</td>" in told
    parser = Nesting()
    parser.feed(told)
    parser.close()
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert {f"#{name}" for name in parser.ids} >= set(parser.references)


def test_a_shared_run_that_differs_is_said_where_nobody_can_miss_it() -> None:
    told = report_of(outcome(), 7, "Replay", "Model x.", shared_run(wrong=1))
    assert "Answers through Kafka and Redis differ from the embedded ones" in told
    assert "class=broken" in told
    assert shared_run(wrong=1).verdict.startswith("shared equality check FAILED")


def test_answers_on_other_versions_are_counted_and_explained_in_all_places() -> None:
    shared = shared_run(elsewhere=(10, 3))
    rows = dict(shared.rows())
    assert rows["on other versions, and equal"] == 3
    assert rows["on other versions, and different"] == 7
    told = report_of(outcome(), 7, "Replay", "Model x.", shared)
    assert "<td>on other versions, and different</td><td class=n>7</td>" in told
    for said in (told, shared.verdict):
        assert "10 stood on other versions, and 7 of these are different" in said
        assert shared.why_different in said


def test_a_shared_run_without_answers_has_a_report_too() -> None:
    told = report_of(outcome(), 7, "Replay", "Model x.", shared_run(0))
    assert "Lag behind the log" in told
    assert "Latency by source through" not in told


def test_the_same_figures_give_the_same_page() -> None:
    assert report_of(outcome(), 7, "Replay of <b>file</b> & more", "Model x.") == page()
