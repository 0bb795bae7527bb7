"""The door to matplotlib: pictures as SVG text, to stand inside a page.

Rule: text stays text in the page's own font, nothing refers to anything outside, and the same
figures give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

# Colour-blind safe: Okabe and Ito, "Color Universal Design" (2008).
COLOURS: Final = {
    "memo": "#0072b2",
    "box": "#56b4e9",
    "cell": "#009e73",
    "computed": "#d0d5dd",
    "line": "#d55e00",
    "confirmed": "#009e73",
    "computed anew": "#d55e00",
}
_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "freshscore",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#98a2b3",
    "axes.labelcolor": "#475467",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaecf0",
    "xtick.color": "#475467",
    "ytick.color": "#475467",
    "text.color": "#1d2939",
    "legend.frameon": False,
}
_INCH_WIDTH: Final = 7.6
_AGES_S: Final = {0.001: "1 ms", 1: "1 s", 60: "1 min", 600: "10 min", 3_600: "1 h", 86_400: "1 d"}


@dataclass(frozen=True)
class Bar:
    """One bar of stacked parts: name of the part -> length."""

    label: str
    parts: dict[str, float]


def spans_picture(
    start_ms: NDArray[np.int64],
    span_ms: int,
    shares: dict[str, NDArray[np.float64]],
    line: NDArray[np.float64],
    line_label: str,
) -> str:
    """Stacked shares (%) in spans of time, and a line beside them; NaN where a span has too few."""
    with _styled():
        figure, axes = _figure(2.9)
        axes.grid(visible=False, axis="x")
        below = np.zeros(len(start_ms))
        middle = start_ms + span_ms / 2
        for name, share in shares.items():
            height = np.nan_to_num(share)
            axes.bar(middle, height, 0.94 * span_ms, bottom=below, color=COLOURS[name], label=name)
            below = below + height
        axes.plot(middle, line, color=COLOURS["line"], lw=1.4, marker="o", ms=2.5, label=line_label)
        axes.set_ylim(0, 100)
        axes.set_ylabel("% of answers")
        axes.set_xlim(float(start_ms[0]), float(start_ms[-1] + span_ms))
        _label_times(axes, int(start_ms[0]), int(start_ms[-1]) + span_ms)
        _legend_above(axes)
        return _svg(figure, "spans")


def lag_picture(at_ms: NDArray[np.int64], behind: NDArray[np.int64]) -> str:
    """How many messages the states were behind the log, over the stream's time."""
    with _styled():
        figure, axes = _figure(2.3)
        axes.fill_between(at_ms, behind, color=COLOURS["memo"], alpha=0.15)
        axes.plot(at_ms, behind, color=COLOURS["memo"], lw=1.4, marker="o", ms=2.5)
        axes.set_ylim(0, 1.05 * max(1, int(behind.max())))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_ylabel("messages behind")
        _label_times(axes, int(at_ms[0]), int(at_ms[-1]))
        return _svg(figure, "lag")


def ages_picture(ages_s: NDArray[np.float64]) -> str:
    """How old cached scores were when used: the share of uses up to each age, on a log axis."""
    with _styled():
        figure, axes = _figure(2.3)
        ages = np.sort(np.maximum(ages_s, 0.001))
        places = np.unique(np.linspace(0, len(ages) - 1, 400).astype(np.int64))
        share = 100 * (places + 1) / len(ages)
        axes.fill_between(ages[places], share, step="post", color=COLOURS["memo"], alpha=0.15)
        axes.step(ages[places], share, where="post", color=COLOURS["memo"], lw=1.6)
        axes.set_xscale("log")
        # A few answers within the same millisecond are not worth three empty decades.
        left = 10.0 ** np.floor(np.log10(np.quantile(ages, 0.01)))
        shown = {age: text for age, text in _AGES_S.items() if left <= age <= 2 * ages[-1]}
        axes.set_xticks(list(shown), labels=list(shown.values()))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(left, 1.3 * ages[-1])
        axes.set_ylim(0, 102)
        axes.set_ylabel("% of re-uses\nat most so old")
        return _svg(figure, "ages")


def latencies_picture(latencies_us: Mapping[str, Sequence[float]], name: str = "latencies") -> str:
    """The 50th, 90th and 99th percentile of latency of each source, on a log axis.

    name: of the picture, where a page has several.
    """
    with _styled():
        figure, axes = _figure(0.7 + 0.42 * len(latencies_us))
        for row, (source, values) in enumerate(latencies_us.items()):
            colour = "#667085" if source == "computed" else COLOURS[source]
            axes.plot([values[0], values[-1]], [row, row], color=colour, lw=2, alpha=0.45)
            for value, marker in zip(values, "o|D", strict=True):
                axes.plot(value, row, marker, color=colour, ms=7 if marker == "o" else 6, mew=2)
        axes.set_yticks(range(len(latencies_us)), labels=list(latencies_us))
        axes.set_ylim(len(latencies_us) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _microseconds(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("per answer: median (dot), 90 % (bar), 99 % (diamond)")
        return _svg(figure, name)


def bars_picture(bars: Sequence[Bar], unit: str) -> str:
    """Horizontal bars of stacked parts, the first on top."""
    with _styled():
        figure, axes = _figure(0.9 + 0.36 * len(bars))
        axes.grid(visible=False, axis="y")
        seen: set[str] = set()
        for row, bar in enumerate(bars):
            left = 0.0
            for name, length in bar.parts.items():
                label = None if name in seen else name
                axes.barh(row, length, 0.62, left=left, color=COLOURS[name], label=label)
                seen.add(name)
                left += length
        axes.set_yticks(range(len(bars)), labels=[bar.label for bar in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlabel(unit)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _legend_above(axes)
        return _svg(figure, "bars")


def _styled() -> AbstractContextManager[None]:
    return matplotlib.rc_context(_STYLE)  # type: ignore[arg-type]  # names every key there is


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_INCH_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend_above(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(labels),
        handlelength=1.2,
    )


def _label_times(axes: Axes, first_ms: int, last_ms: int) -> None:
    wanted = 8
    steps_ms = [60_000 * minutes for minutes in (5, 15, 60, 180, 360, 720, 1_440, 10_080, 43_200)]
    step_ms = next((s for s in steps_ms if (last_ms - first_ms) / s <= wanted), steps_ms[-1])
    ticks = range(-(-first_ms // step_ms) * step_ms, last_ms + 1, step_ms)
    form = "%d %b" if step_ms >= 86_400_000 else "%d %b %H:%M"
    labels = [f"{datetime.fromtimestamp(tick / 1000, UTC):{form}}" for tick in ticks]
    axes.set_xticks(list(ticks), labels=labels)


def _microseconds(value: float) -> str:
    return f"{value / 1000:g} ms" if value >= 1000 else f"{value:g} µs"


def _svg(figure: Figure, name: str) -> str:
    """The figure as one <svg> element, its ids its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = {a or b for a, b in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)}
    text = re.sub(r' id="([^"]+)"', lambda one: one[0] if one[1] in used else "", text)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    # In a page the names of the elements' languages are known, and one reference style is enough.
    text = re.sub(r'\sxmlns(?::xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text).strip()
