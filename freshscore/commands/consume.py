"""`freshscore consume`: from Kafka into the shared states, until it is told to stop."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from freshscore.arguments import settings_of
from freshscore.stopping import Signals

if TYPE_CHECKING:
    from freshscore.config.settings import Settings
    from freshscore.invalidation.consumer import Consumer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """When to stop by itself."""
    parser.add_argument(
        "--until-caught-up",
        action="store_true",
        help="stop once all that the log holds is applied, instead of waiting for more",
    )


def run(arguments: argparse.Namespace) -> int:
    """Consume until SIGTERM or SIGINT. Raises FreshscoreError."""
    signals: Signals[Consumer] = Signals()
    settings = settings_of(arguments)
    counts: Mapping[str, int] = {}
    consumer = signals.opened(lambda: _opened(settings))
    if consumer is None:
        print("told to stop before it had begun", file=sys.stderr, flush=True)
    else:
        print(f"consuming as group {settings.kafka.group}", file=sys.stderr, flush=True)
        _consume(consumer, settings.output.progress_line_s, arguments.until_caught_up)
        counts = consumer.counts

    from freshscore.output import print_table, write_json

    print_table(["outcome", "messages"], sorted(counts.items()))
    write_json(arguments.json, {"outcomes": counts})
    return 0


def _opened(settings: Settings) -> Consumer:
    from freshscore.invalidation.assembling import open_consumer

    return open_consumer(settings)


def _consume(consumer: Consumer, progress_line_s: float, until_caught_up: bool) -> None:
    """Turn after turn, with a line on standard error now and then, until there is to be none."""
    from freshscore.config.clock import SystemClock

    clock = SystemClock()
    said_s, said = clock.monotonic_s(), 0
    try:
        while not consumer.is_stopping:
            consumer.turn()
            now_s = clock.monotonic_s()
            if now_s - said_s >= progress_line_s:
                total = sum(consumer.counts.values())
                rate = (total - said) / (now_s - said_s)
                print(_line(consumer, total, rate), file=sys.stderr, flush=True)
                said_s, said = now_s, total
            if until_caught_up and consumer.is_caught_up:
                break
    finally:
        consumer.close()


def _line(consumer: Consumer, total: int, rate: float) -> str:
    state = "caught up" if consumer.is_caught_up else "catching up"
    return f"{total:,} messages, {rate:,.0f} a second, {state}"
