"""`freshscore shadow`: what the scorer would decide on a team's own payments, until told to stop.

Rule: it reads, scores and publishes decisions that are marked; nobody has to wait for it, and
nothing of it is in a payment's path.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from freshscore.payment_files import (
    add_specification_argument,
    add_store_argument,
    stored_settings_of,
)
from freshscore.stopping import Signals

if TYPE_CHECKING:
    from freshscore.config.settings import Settings
    from freshscore.scoring.shadowing import Shadow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """With which model and specification."""
    add_specification_argument(parser)
    add_store_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score until SIGTERM or SIGINT. Raises FreshscoreError."""
    from freshscore.output import print_table, write_json

    signals: Signals[Shadow] = Signals()
    settings = stored_settings_of(arguments)
    shadow = signals.opened(lambda: _opened(settings))
    if shadow is None:
        print("told to stop before it had begun", file=sys.stderr, flush=True)
        return 0
    print(f"shadowing topic {settings.kafka.transactions_topic}", file=sys.stderr, flush=True)
    work(shadow, settings.output.progress_line_s)
    found = figures(shadow)
    print_table(["what", "value", "share"], rows(found))
    write_json(arguments.json, found)
    return 0


def _opened(settings: Settings) -> Shadow:
    from freshscore.scoring.shadow_opening import open_shadow

    return open_shadow(settings)


def work(shadow: Shadow, progress_line_s: float) -> None:
    """Turn after turn, with a line on standard error now and then, until told to stop."""
    from freshscore.config.clock import SystemClock

    clock = SystemClock()
    said_s, said, n_partitions = clock.monotonic_s(), 0, 0
    try:
        while not shadow.is_stopping:
            shadow.turn()
            if shadow.n_partitions != n_partitions:
                n_partitions = shadow.n_partitions
                print(f"{n_partitions} partitions are read here", file=sys.stderr, flush=True)
            now_s = clock.monotonic_s()
            if now_s - said_s >= progress_line_s:
                total = shadow.counts.n_messages
                rate = (total - said) / (now_s - said_s)
                print(
                    f"{total:,} payments, {rate:,.0f} a second; {shadow.n_behind:,} behind,"
                    f" {shadow.behind_s:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
                said_s, said = now_s, total
    finally:
        shadow.close()


def figures(shadow: Shadow) -> dict[str, Any]:
    """What is printed, by name."""
    return {
        **shadow.counts.figures(),
        "behind": {"messages": shadow.n_behind, "seconds": shadow.behind_s},
    }


def rows(found: dict[str, Any]) -> list[tuple[str, object, object]]:
    """The same as lines of a table."""
    lines: list[tuple[str, object, object]] = [
        (name, found[name], None) for name in ("messages", "scored", "published")
    ]
    lines += [(f"refused: {reason}", n, None) for reason, n in found["refused"].items()]
    for kind in ("decision", "source"):
        lines += [
            (f"{kind} {name}", one["count"], one["share"])
            for name, one in found[f"{kind}s"].items()
        ]
    lines.append(("degraded", found["degraded"]["count"], found["degraded"]["share"]))
    lines += [(f"degraded: {cause}", n, None) for cause, n in found["degraded_causes"].items()]
    lines += [
        (f"latency of one score, {name} (us)", value, None)
        for name, value in found["latency_us"].items()
        if name != "timed"
    ]
    lines += [
        (f"states behind the payment, {name} (ms)", value, None)
        for name, value in found["lag_ms"].items()
    ]
    lines.append(("messages not read yet", found["behind"]["messages"], None))
    lines.append(("seconds behind", found["behind"]["seconds"], None))
    return lines
