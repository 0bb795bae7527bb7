"""Figures of memory and growth: what an event, an entity and a score take, and what size costs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from freshscore.features.transaction import Transaction
from freshscore.scoring.scorer import Scorer
from tests.bench.figures import Figure, at_most, p50_us, ratio_at_most
from tests.bench.material import DAY_MS, START_MS, Material


def memory(material: Material) -> list[Figure]:
    """Bytes for each live record, entity and cached score, slack included."""
    scorer = material.scorer(material.model)
    for payment in material.scored:
        scorer.score(payment)
    store = scorer.stats()["store"]
    tier = scorer._serving.tier  # type: ignore[union-attr]  # it is open
    held = store["bytes"]
    # Segment heads are counted with the entities, so that slack alone stands with the records.
    heads = 16 * store["entities"]
    slack = (held["regions"] - heads) / held["records"]
    per_entity = (held["entities"] + heads) / store["entities"]
    per_score = tier.max_bytes / tier.max_entries
    scorer.close()
    return [
        at_most("records, slack included, beside the record width", slack, "x", 1.25),
        at_most("an entity", per_entity, "bytes", 200),
        at_most("a cached score, box and memo included", per_score, "bytes", 480),
        Figure("a payment known by identity", held["payments"] / store["payments"], "bytes"),
    ]


def entities(material: Material) -> list[Figure]:
    """Answers with 10^4 and with 10^6 entities."""
    sizes = (10_000, 1_000_000)
    with _spread(material, sizes[0]) as few, _spread(material, sizes[1]) as many:
        answers = _answers({sizes[0]: few, sizes[1]: many}, material.seed)
    figures = []
    for source in ("memo", "box", "computed"):
        few_us, many_us = (answers[n][source] for n in sizes)
        name = f"{source}, 10^6 entities, p50"
        if source == "computed":
            figures.append(ratio_at_most(name, many_us, "us", 1.15, "10^4 entities", few_us))
        else:
            goal, met = "<= 1 us more", many_us - few_us <= 1.0
            figures.append(Figure(name, many_us, "us", "10^4 entities", few_us, goal, met))
    return figures


def _spread(material: Material, n_entities: int) -> Scorer:
    """A scorer on payments of two thirds as many cards, 3 of each, and a third as many merchants.

    The last of each card is within five days, where facts move its state and no feature.
    """
    rng = np.random.default_rng(material.seed)
    scorer = Scorer.open(
        settings={"store.specification": material.specification}, model=material.model
    )
    n_cards, n_merchants = 2 * n_entities // 3, n_entities // 3
    for turn, first_day in enumerate((0, 8, 16)):
        times = START_MS + DAY_MS * first_day + np.sort(rng.integers(0, 4 * DAY_MS, n_cards))
        merchants = rng.permutation(n_cards) % n_merchants
        amounts = rng.integers(100, 50_000, n_cards)
        for i, card in enumerate(rng.permutation(n_cards)):
            entities = {"card": f"c{card}", "merchant": f"m{merchants[i]}"}
            scorer.observe(
                Transaction(f"p{turn}-{card}", int(times[i]), int(amounts[i]), "EUR", entities)
            )
    return scorer


def _answers(scorers: dict[int, Scorer], seed: int) -> dict[int, dict[str, float]]:
    """Medians in microseconds by source, the scorers taking turns."""
    elapsed: dict[int, dict[str, list[int]]] = {n: {} for n in scorers}
    rng = np.random.default_rng(seed)
    for _ in range(8):
        for n, scorer in scorers.items():
            cards = rng.integers(0, 2 * n // 3, 1_000)
            others = rng.integers(0, n // 3, 1_000)
            asked = [
                Transaction(
                    f"q{rng.integers(2**60)}",
                    scorer._store.newest_ms,
                    int(rng.integers(100, 50_000)),
                    "EUR",
                    {"card": f"c{card}", "merchant": f"m{other}"},
                )
                for card, other in zip(cards, others, strict=True)
            ]
            for turn in range(3):
                if turn == 2:
                    for card in cards:
                        scorer.label(f"p2-{card}", fraud=True)
                _time_by_source(scorer, asked, elapsed[n])
    return _medians(elapsed)


def _time_by_source(
    scorer: Scorer, asked: list[Transaction], elapsed: dict[str, list[int]]
) -> None:
    """Score each payment, and note what it took under the source of its answer, ns."""
    for payment in asked:
        started = time.perf_counter_ns()
        result = scorer.score(payment)
        elapsed.setdefault(result.source or "", []).append(time.perf_counter_ns() - started)


def _medians(elapsed: dict[int, dict[str, list[int]]]) -> dict[int, dict[str, float]]:
    """Microseconds by size and source."""
    return {
        n: {source: p50_us(np.array(found)) for source, found in by_source.items()}
        for n, by_source in elapsed.items()
    }


def hot_entities(material: Material) -> list[Figure]:
    """Exact entities of 10 and of 10,000 events, and grid entities of 10 and of 10^6."""
    grid = material.specification.replace("specification.toml", "grid_specification.toml")
    figures = []
    for mode, specification, sizes in (
        ("exact", material.specification, (10, 10_000)),
        ("grid", grid, (10, 1_000_000)),
    ):
        model = material.imported(specification)
        scorers = {n: _hot(material, specification, model, n) for n in sizes}
        medians = _hot_answers(scorers, material.seed)
        for source in ("box", "computed"):
            figures.append(
                ratio_at_most(
                    f"{source}, {mode} entity of {sizes[1]:,} events, p50",
                    medians[sizes[1]][source],
                    "us",
                    2.0,
                    f"of {sizes[0]} events",
                    medians[sizes[0]][source],
                )
            )
        for scorer in scorers.values():
            scorer.close()
    return figures


_LABELLED = 10


def _hot(material: Material, specification: str, model: Any, n: int) -> Scorer:
    """A scorer on `n` payments at one merchant over a month, the last few of them at its end."""
    scorer = Scorer.open(settings={"store.specification": specification}, model=model)
    rng = np.random.default_rng(material.seed)
    times = START_MS + np.sort(rng.integers(0, 25 * DAY_MS, n))
    times[-_LABELLED:] += 4 * DAY_MS
    amounts = rng.integers(100, 50_000, n)
    for i in range(n):
        scorer.observe(_at_hot(f"p{i}", int(times[i]), int(amounts[i]), i))
    return scorer


def _at_hot(name: str, time_ms: int, amount: int, number: int) -> Transaction:
    entities = {"card": f"c{number % 50_000}", "merchant": "hot"}
    return Transaction(name, time_ms, amount, "EUR", entities)


def _hot_answers(scorers: dict[int, Scorer], seed: int) -> dict[int, dict[str, float]]:
    """Medians in microseconds; a fact moves the merchant's state before each turn of box hits."""
    rng = np.random.default_rng(seed)
    elapsed: dict[int, dict[str, list[int]]] = {n: {} for n in scorers}
    for turn in range(_LABELLED):
        for n, scorer in scorers.items():
            newest_ms = scorer._store.newest_ms
            asked = [
                _at_hot(f"q{turn}-{i}", newest_ms, int(rng.integers(100, 50_000)), i)
                for i in range(200)
            ]
            for again in (False, True):
                if again:
                    scorer.label(f"p{n - 1 - turn}", fraud=True)
                _time_by_source(scorer, asked, elapsed[n])
    return _medians(elapsed)
