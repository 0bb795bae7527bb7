"""The same topic with quixstreams: number and mean amount of a card in a sliding window of a day.

Run by the Python of an environment of its own, since quixstreams wants other versions of libraries
than freshscore is tested with:

    python quixstreams_loop.py BOOTSTRAP TOPIC MESSAGES FOLDER

It prints the messages a second of the last nine tenths, and nothing else on standard output.
"""

from __future__ import annotations

import importlib
import sys
import uuid
from datetime import timedelta
from time import perf_counter
from typing import Any


def rate(bootstrap: str, topic: str, n: int, folder: str) -> float:
    """Messages a second."""
    streams: Any = importlib.import_module("quixstreams")
    aggregations: Any = importlib.import_module("quixstreams.dataframe.windows")
    application = streams.Application(
        broker_address=bootstrap,
        consumer_group=uuid.uuid4().hex,
        auto_offset_reset="earliest",
        state_dir=folder,
        loglevel="WARNING",
    )
    seen: list[float] = []

    def count(_: object) -> None:
        seen.append(perf_counter())

    messages = application.dataframe(application.topic(topic, value_deserializer="json"))
    window = messages.sliding_window(timedelta(days=1), grace_ms=timedelta(days=1))
    aggregates = window.agg(
        count=aggregations.Count(), mean=aggregations.Mean(column="amount_minor")
    )
    aggregates.current().update(count)
    application.run(count=n, timeout=30.0)
    first = len(seen) // 10
    return (len(seen) - first) / (seen[-1] - seen[first])


if __name__ == "__main__":
    bootstrap, topic, n, folder = sys.argv[1:]
    print(rate(bootstrap, topic, int(n), folder))
