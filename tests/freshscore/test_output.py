"""What commands print: readable on a terminal, plain elsewhere."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from freshscore.config.errors import BadFile
from freshscore.output import print_table, progress, write_json, writing


class _Clock:
    """A clock that each question moves by one second."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_ms(self) -> int:
        raise AssertionError("durations are monotonic")

    def monotonic_s(self) -> float:
        self.at_s += 1.0
        return self.at_s


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_table_aligns_numbers_and_marks_what_is_absent(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["source", "count", "share"], [["memo", 1_234_567, 0.25], ["box", None, 1e-7]])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "source      count  share",
        "memo    1,234,567   0.25",
        "box             -  1e-07",
    ]


def test_markup_in_names_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name"], [["[red]x[/red] :smile:"]])
    assert "[red]x[/red] :smile:" in capsys.readouterr().out


def test_progress_elsewhere_is_a_line_now_and_then() -> None:
    stream = io.StringIO()
    with progress("rows", 100, _Clock(), line_s=3.0, stream=stream) as advance:
        for _ in range(10):
            advance(10)
    assert stream.getvalue().splitlines() == [
        "rows: 30 of 100 (30 %)",
        "rows: 60 of 100 (60 %)",
        "rows: 90 of 100 (90 %)",
        "rows: 100 of 100 (100 %)",
    ]


def test_progress_of_nothing_divides_by_nothing() -> None:
    stream = io.StringIO()
    with progress("rows", 0, _Clock(), line_s=1.0, stream=stream) as advance:
        advance(0)
    assert stream.getvalue() == "rows: 0 of 0\n"


def test_progress_on_a_terminal_redraws_a_bar() -> None:
    stream = _Terminal()
    with progress("rows", 10, _Clock(), line_s=1.0, stream=stream) as advance:
        advance(10)
    assert "10/10" in stream.getvalue()
    assert "rows: 10 of 10" not in stream.getvalue()


def test_json_is_written_where_asked(tmp_path: Path) -> None:
    file = tmp_path / "new" / "figures.json"
    write_json(file, [{"value": 1.5, "path": Path("a")}])
    write_json(None, "nothing")
    assert json.loads(file.read_text("utf-8")) == [{"value": 1.5, "path": "a"}]


def test_a_reader_that_goes_away_is_no_failed_write(tmp_path: Path) -> None:
    for problem, seen in ((BrokenPipeError(), BrokenPipeError), (OSError(5, "broken"), BadFile)):
        with pytest.raises(seen), writing(tmp_path / "x.html"):
            raise problem


def test_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    """RFC 8259 has no Infinity and no NaN."""
    file = tmp_path / "figures.json"
    figures = {"a": math.inf, "b": [1.5, -math.inf, (math.nan,)], "c": np.float64("nan")}
    write_json(file, figures)
    assert json.loads(file.read_text("utf-8")) == {"a": None, "b": [1.5, None, [None]], "c": None}
