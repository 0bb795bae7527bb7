"""`freshscore consume`: from Kafka into the shared states, until it is told to stop."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from typing import TYPE_CHECKING

from freshscore.arguments import settings_of

if TYPE_CHECKING:
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
    from freshscore.config.clock import SystemClock
    from freshscore.invalidation.assembling import open_consumer
    from freshscore.output import print_table, write_json

    settings = settings_of(arguments)
    consumer = open_consumer(settings)
    _stop_on_signals(consumer)
    print(f"consuming as group {settings.kafka.group}", file=sys.stderr, flush=True)
    clock = SystemClock()
    said_s, said = clock.monotonic_s(), 0
    try:
        while not consumer.is_stopping:
            consumer.turn()
            now_s = clock.monotonic_s()
            if now_s - said_s >= settings.output.progress_line_s:
                total = sum(consumer.counts.values())
                rate = (total - said) / (now_s - said_s)
                print(_line(consumer, total, rate), file=sys.stderr, flush=True)
                said_s, said = now_s, total
            if arguments.until_caught_up and consumer.is_caught_up:
                break
    finally:
        consumer.close()
    print_table(["outcome", "messages"], sorted(consumer.counts.items()))
    write_json(arguments.json, {"outcomes": consumer.counts})
    return 0


def _line(consumer: Consumer, total: int, rate: float) -> str:
    state = "caught up" if consumer.is_caught_up else "catching up"
    return f"{total:,} messages, {rate:,.0f} a second, {state}"


def _stop_on_signals(consumer: Consumer) -> None:
    def stop(*_: object) -> None:
        # Not in the handler itself: it may interrupt what it would have to wait for.
        threading.Thread(target=consumer.stop, name="freshscore-stop", daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
