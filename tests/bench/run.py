"""The table of figures: every one beside its alternative, measured in this run.

`make bench`, or with names to run some: `python tests/bench/run.py memo growth`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

# Older OpenBLAS builds need these; a current numpy is slowed by them (they are set here alone).
for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import (  # noqa: E402  # the path is above
    cluster_figures,
    consumer_figures,
    degraded_figures,
    history_figures,
    journal_figures,
    large_merchant,
    large_states,
    message_figures,
    near_figures,
    redis_figures,
    reuse_figures,
    routed_figures,
    scoring_figures,
    shadow_figures,
    shared_figures,
    start_figures,
    starting_figures,
    state_figures,
)
from tests.bench.consumer_bench import ConsumerBench  # noqa: E402
from tests.bench.figures import Figure, written  # noqa: E402
from tests.bench.material import Material  # noqa: E402

RESULT = Path("build/bench.json")


def parts(bench: ConsumerBench) -> dict[str, Callable[[], list[Figure]]]:
    """Name -> what measures it."""
    material = Material()
    return {
        "memo": lambda: scoring_figures.memo(material),
        "computed": lambda: scoring_figures.computed(material),
        "payments": lambda: scoring_figures.five_entities(Material(specification="payments")),
        "box": lambda: scoring_figures.moved_states(material),
        "not_walked": lambda: scoring_figures.not_walked(material),
        "dear": lambda: scoring_figures.dear_model(material),
        "observe": lambda: scoring_figures.observing(material),
        "many": lambda: scoring_figures.whole_batch(material),
        "memory": lambda: state_figures.memory(material),
        "entities": lambda: state_figures.entities(material),
        "growth": lambda: state_figures.hot_entities(material),
        "history": lambda: history_figures.whole_file(material),
        "reuse": reuse_figures.rescored,
        "routed": routed_figures.routed,
        "start": start_figures.first_score,
        "starting": starting_figures.starting,
        "messages": message_figures.messages,
        "redis_memory": redis_figures.memory,
        "redis_index": redis_figures.label_index,
        "redis_exchange": redis_figures.exchange,
        "large": large_states.large,
        "cluster": lambda: cluster_figures.three_nodes(bench),
        "journal": lambda: journal_figures.observing(bench),
        "merchant": large_merchant.merchant,
        **shared_figures.parts(),
        **degraded_figures.parts(),
        **near_figures.parts(),
        **consumer_figures.parts(bench),
        **shadow_figures.parts(bench),
    }


def main(names: list[str]) -> int:
    """Measure, print, write; 0 even where a goal is missed, which the table says."""
    with ExitStack() as stack:
        return _measured(parts(stack.enter_context(ConsumerBench())), names)


def _measured(known: dict[str, Callable[[], list[Figure]]], names: list[str]) -> int:
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    figures: list[Figure] = []
    print(f"{'figure':58} {'value':>10} {'unit':9} {'beside':>10} {'ratio':>7}  goal")
    for name in names or known:
        for figure in known[name]():
            figures.append(figure)
            _print(figure)
    written(figures, RESULT)
    missed = sum(figure.met is False for figure in figures)
    print(f"{len(figures)} figures, {missed} goals missed; {RESULT}")
    return 0


def _print(figure: Figure) -> None:
    beside = "" if figure.reference_value is None else f"{figure.reference_value:.3f}"
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
    print(
        f"{figure.name:58} {figure.value:10.3f} {figure.unit:9} {beside:>10} {ratio:>7}"
        f"  {figure.goal} {verdict}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
