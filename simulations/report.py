"""The report of a replay: one HTML file with pictures, which opens without a network.

Rule: everything is in the file, all text is escaped, and no identifier of a card, merchant or
payment is in it, for none is in an Outcome.
"""

from __future__ import annotations

import html
from typing import Final

import numpy as np

from freshscore.scoring.result import SOURCES
from freshscore.simulations.drawing import (
    Bar,
    ages_picture,
    bars_picture,
    lag_picture,
    latencies_picture,
    spans_picture,
)
from freshscore.simulations.outcome import Outcome
from freshscore.simulations.outcome_tables import (
    Cell,
    FigureTable,
    composition_line,
    period,
    tables_of,
)
from freshscore.simulations.shared_outcome import SharedOutcome

# Spans with less than this share of the usual number of answers are not drawn.
_FEW: Final = 0.05
_CSS: Final = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
color:#1d2939;background:#f9fafb;margin:0}
main{max-width:860px;margin:0 auto;padding:28px 24px 56px}
h1{font-size:26px;line-height:1.2;margin:14px 0 4px}
h2{font-size:17px;margin:0 0 10px}
.first{font-size:13px;color:#475467;margin:0}
.about{color:#475467;margin:0 0 20px}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:12px;margin:0 0 14px}
.tile,section{background:#fff;border:1px solid #eaecf0;border-radius:10px}
.tile{padding:12px 14px}
.tile b{display:block;font-size:24px;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{font-size:13px;color:#475467}
section{padding:18px 20px;margin:0 0 14px;overflow-x:auto}
section.holds{border-left:5px solid #12b76a}
section.broken{border-left:5px solid #d92d20}
.note{font-size:13px;color:#475467;margin:10px 0 0}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;color:#475467;border-bottom:1px solid #d0d5dd}
th,td{padding:5px 10px 5px 0;vertical-align:top}
td{border-bottom:1px solid #f2f4f7}
tr:last-child td{border-bottom:0}
.n{text-align:right;white-space:nowrap}
svg{width:100%;height:auto;display:block}
svg text{font-family:inherit}
@media(max-width:640px){.tiles{grid-template-columns:repeat(2,1fr)}}
"""


def report_of(
    outcome: Outcome,
    seed: int,
    title: str,
    model_said: str,
    shared: SharedOutcome | None = None,
) -> str:
    """The page. model_said: a sentence about where the model came from.

    shared: the same stream through Kafka and Redis, where it was played there too.
    """
    first = composition_line(outcome.composition, outcome.shape, seed)
    about = (
        f"{outcome.answers:,} answers, {period(outcome)}, after {outcome.history:,} payments of"
        f" history. Specification {outcome.specification}. {model_said}"
    )
    parts = [
        f"<p class=first>{_text(first)}</p>",
        f"<h1>{_text(title)}</h1>",
        f"<p class=about>{_text(about)}</p>",
        _tiles(outcome),
        _equality(outcome),
        *([] if shared is None else [_shared_equality(shared)]),
        _pictures(outcome),
        *([] if shared is None else [_shared_pictures(shared)]),
        *(_section(table.title, _table(table), table.note) for table in tables_of(outcome)),
        _section("What reached the aggregates", _feed(outcome), ""),
    ]
    return (
        "<!DOCTYPE html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _tiles(outcome: Outcome) -> str:
    bound, own = outcome.policies[0], outcome.policies[1]
    memo = next(one for one in outcome.sources if one.source == "memo")
    tiles = (
        (_percent(outcome.saved, outcome.answers), "of answers without running the model"),
        (_percent(own.hits_again, own.again), "of re-scores served from the cache"),
        (_percent(own.in_bound_again, bound.hits_again), "of the re-scores of perfect foresight"),
        (
            "-" if memo.latency_us is None else f"{memo.latency_us[0]:.1f} µs",
            "median of a memo answer in this run",
        ),
    )
    inside = "".join(
        f"<div class=tile><b>{_text(value)}</b><span>{_text(what)}</span></div>"
        for value, what in tiles
    )
    return f"<div class=tiles>{inside}</div>"


def _equality(outcome: Outcome) -> str:
    holds = outcome.equality.holds
    verdict = (
        "Every served score is the fresh one" if holds else "Served scores differ from fresh ones"
    )
    return (
        f"<section class={'holds' if holds else 'broken'}><h2>{_text(verdict)}</h2>"
        f"<p class=note>{_text(outcome.equality.statement)}</p></section>"
    )


def _shared_equality(shared: SharedOutcome) -> str:
    holds = shared.equality.holds
    verdict = (
        "Through Kafka and Redis every answer on the same versions is the embedded one"
        if holds
        else "Answers through Kafka and Redis differ from the embedded ones"
    )
    sentences = [
        f"{shared.statement[0].upper()}{shared.statement[1:]}.",
        *([shared.why_different] if shared.why_different else []),
        f"{shared.answers_per_s:,} answers a second;"
        f" {shared.history_per_s:,} messages of history a second.",
    ]
    note = " ".join(sentences)
    return (
        f"<section class={'holds' if holds else 'broken'}><h2>{_text(verdict)}</h2>"
        f"<p class=note>{_text(note)}</p></section>"
    )


def _shared_pictures(shared: SharedOutcome) -> str:
    answers = shared.answers
    parts = []
    if len(answers.behind):
        note = "What the log held and not every node of Redis yet; times are of the stream, UTC."
        picture = lag_picture(answers.behind_at_ms, answers.behind)
        parts.append(_section("Lag behind the log", picture, note))
    latencies = shared.latencies_us()
    if latencies:
        note = "Of whole calls, their exchange with Redis included."
        picture = latencies_picture(latencies, "shared-latencies")
        parts.append(_section("Latency by source through Kafka and Redis", picture, note))
    parts += [_section(one.title, _table(one), one.note) for one in shared.tables()]
    return "\n".join(parts)


def _pictures(outcome: Outcome) -> str:
    line = outcome.timeline
    answers = line.answers.sum(axis=1)
    # The share of a handful of answers, at the end of a file, says nothing.
    total = np.where(answers < _FEW * np.median(answers), np.nan, answers)
    shares = {name: 100 * line.answers[:, number] / total for number, name in enumerate(SOURCES)}
    foresight = 100 * line.foresight / total
    pictures = [
        _section(
            "Answers by source over time",
            spans_picture(line.start_ms, line.span_ms, shares, foresight, "perfect foresight"),
            f"Each bar is {_duration(line.span_ms)}; times are UTC.",
        )
    ]
    if len(outcome.ages_s):
        note = "Age: from the computation of a score to its use."
        pictures.append(_section("Age at use", ages_picture(outcome.ages_s), note))
    latencies = {one.source: one.latency_us for one in outcome.sources if one.latency_us}
    pictures.append(
        _section(
            "Latency by source",
            latencies_picture(latencies),
            "Of whole calls in this process, on this machine, whatever else it did.",
        )
    )
    bars = [
        Bar(one.cause, {"confirmed": one.confirmed, "computed anew": one.computed})
        for one in outcome.causes
        if one.cause != "new" and one.confirmed + one.computed
    ]
    if bars:
        picture = bars_picture(bars, "scores looked at again")
        note = "Confirmed: something moved, and the score that was known still holds."
        pictures.append(_section("What invalidated entries", picture, note))
    return "\n".join(pictures)


def _feed(outcome: Outcome) -> str:
    rows = [
        *outcome.feed.items(),
        *([("requests refused", outcome.refused)] * bool(outcome.refused)),
    ]
    return _table(FigureTable("", ("what", "count"), tuple(rows)))


def _section(title: str, body: str, note: str) -> str:
    said = f"<p class=note>{_text(note)}</p>" if note else ""
    return f"<section><h2>{_text(title)}</h2>{body}{said}</section>"


def _table(table: FigureTable) -> str:
    numeric = [
        any(isinstance(row[i], int | float) for row in table.rows)
        for i in range(len(table.columns))
    ]
    head = "".join(
        f"<th{' class=n' if right else ''}>{_text(name)}</th>"
        for name, right in zip(table.columns, numeric, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if right else ''}>{_text(_shown(cell))}</td>"
            for cell, right in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.6g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _duration(span_ms: int) -> str:
    for unit_ms, name in ((86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute")):
        if span_ms % unit_ms == 0:
            count = span_ms // unit_ms
            return f"a {name}" if count == 1 else f"{count} {name}s"
    return f"{span_ms:,} ms"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _text(text: str) -> str:
    return html.escape(text)
