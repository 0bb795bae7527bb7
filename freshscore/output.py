"""What commands print: tables, progress, and the same figures as JSON.

Rule: on a terminal a bar that redraws; elsewhere plain lines, a few, so that a log stays readable.
Figures go to standard output, progress to standard error. In JSON what is not finite is null.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from freshscore.config.clock import Clock
from freshscore.config.errors import BadFile

Advance = Callable[[int], None]
# Wide enough for every table; a log has no width of its own.
_WIDTH_ELSEWHERE = 120


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None
) -> None:
    """Print rows under their columns; numbers are aligned to the right, None is a dash."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = any(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console(sys.stdout).print(table)


def write_json(path: Path | None, figures: object) -> None:
    """Write `figures` to `path` as JSON, if there is a path. Raises BadFile."""
    if path is None:
        return
    text = json.dumps(_finite(figures), indent=2, default=str, allow_nan=False)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises BadFile, naming `path`, where what is inside cannot write it."""
    try:
        yield
    except BrokenPipeError:
        # A reader that has gone, of a pipe that was named as a file, is no trouble.
        raise
    except OSError as problem:
        raise BadFile(f"cannot write {path}: {problem.strerror or problem}") from problem


def console(stream: TextIO) -> Console:
    """A console on `stream`: markup and colours off, the width fixed where there is no terminal."""
    width = None if stream.isatty() else _WIDTH_ELSEWHERE
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


@contextmanager
def progress(
    what: str, total: int, clock: Clock, line_s: float, stream: TextIO | None = None
) -> Iterator[Advance]:
    """Show how far `what` is; yields a function that takes how many more of `total` are done.

    `line_s`: seconds between two plain lines (settings: output.progress_line_s).
    """
    target = sys.stderr if stream is None else stream
    if target.isatty():
        with _bar(target) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _plain_lines(what, total, clock, line_s, target)


def _bar(stream: TextIO) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stream),
    )


def _plain_lines(what: str, total: int, clock: Clock, line_s: float, stream: TextIO) -> Advance:
    done, said_at_s = 0, clock.monotonic_s()

    def advance(count: int) -> None:
        nonlocal done, said_at_s
        done += count
        now_s = clock.monotonic_s()
        if done >= total or now_s - said_at_s >= line_s:
            share = f" ({100 * done // total} %)" if total else ""
            print(f"{what}: {done:,} of {total:,}{share}", file=stream, flush=True)
            said_at_s = now_s

    return advance


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
