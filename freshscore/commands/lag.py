"""`freshscore lag`: how far the states in Redis are behind the log, by partition and by node."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from freshscore.arguments import settings_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beyond what every command takes."""


def run(arguments: argparse.Namespace) -> int:
    """Print one look; 1 where a node has lost its data. Raises SettingsError, Unavailable."""
    from freshscore.config.clock import SystemClock
    from freshscore.features.redis_door import Nodes
    from freshscore.invalidation.lag import lag_of
    from freshscore.output import print_table, write_json

    settings = settings_of(arguments)
    clock = SystemClock()
    nodes = Nodes.open(settings.redis, clock)
    try:
        found = lag_of(settings, nodes, clock.now_ms())
    finally:
        nodes.close()
    print_table(
        ["topic", "partition", "end", "committed", "applied", "behind"],
        [
            (one.topic, one.partition, one.end, one.committed, one.applied, one.behind)
            for one in found.partitions
        ],
    )
    print_table(
        ["node", "state", "watermark age s"],
        [
            (one.address, _state(one.has_epoch, one.is_rebuilding), one.watermark_age_s)
            for one in found.nodes
        ],
    )
    write_json(arguments.json, asdict(found) | {"group": settings.kafka.group})
    return int(not found.is_whole)


def _state(has_epoch: bool, is_rebuilding: bool) -> str:
    if has_epoch:
        return "whole"
    return "being rebuilt" if is_rebuilding else "without data"
