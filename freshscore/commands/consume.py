"""`freshscore consume`: from Kafka into the shared states, until it is told to stop.

Being told to stop is no failure, whenever it comes: also while the servers are still looked for the
process ends with 0, or a supervisor would count a failed start.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from freshscore.arguments import settings_of

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
    signals = _Signals()
    settings = settings_of(arguments)
    counts: Mapping[str, int] = {}
    consumer = signals.opened(settings)
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


class _ToldToStop(BaseException):
    """A signal came before there was a consumer; no error that a library may translate."""


class _Signals:
    """SIGTERM and SIGINT: they end the opening of a consumer, and stop one that is open."""

    def __init__(self) -> None:
        self._consumer: Consumer | None = None
        self._is_opening = False
        self._told = threading.Event()
        signal.signal(signal.SIGTERM, self._tell)
        signal.signal(signal.SIGINT, self._tell)

    def opened(self, settings: Settings) -> Consumer | None:
        """A consumer, which signals stop from then on; None if one came before that.

        Raises FreshscoreError, as `open_consumer` does.
        """
        try:
            self._is_opening = True
            if self._told.is_set():
                return None
            from freshscore.invalidation.assembling import open_consumer

            self._consumer = open_consumer(settings)
        except _ToldToStop:
            return None
        finally:
            self._is_opening = False
        # What a handler raises is lost where a library was just tidying up.
        if self._told.is_set():
            self._consumer.stop()
        return self._consumer

    def _tell(self, *_: object) -> None:
        self._told.set()
        if self._consumer is not None:
            # Not in the handler itself: it may interrupt what it would have to wait for.
            stop = self._consumer.stop
            threading.Thread(target=stop, name="freshscore-stop", daemon=True).start()
        elif self._is_opening:
            self._is_opening = False
            raise _ToldToStop
