"""Figures of memory and growth: what an event, an entity and a score take, and what size costs."""

from __future__ import annotations

import time

import numpy as np

from freshscore.features.transaction import Transaction
from freshscore.scoring.scorer import Scorer
from tests.bench.figures import Figure, at_most, each_ns, p50_us
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
    medians = {}
    for n in (10_000, 1_000_000):
        scorer = Scorer.open(
            settings={"store.specification": material.specification},
            model=material.model,
        )
        medians[n] = _answers(scorer, _spread(n, material.seed), material.seed)
        scorer.close()
    few, many = medians[10_000], medians[1_000_000]
    return [
        at_most(f"{source}, 10^6 entities less 10^4, p50", many[source] - few[source], "us", 1.0)
        for source in ("memo", "box")
    ] + [
        Figure(
            "computed, 10^6 entities, p50",
            many["computed"],
            "us",
            "10^4 entities",
            few["computed"],
            "<= 1.15 x",
            many["computed"] <= 1.15 * few["computed"],
        )
    ]


def _spread(n_entities: int, seed: int) -> list[Transaction]:
    """Payments over two thirds as many cards and one third as many merchants, 3 of each card."""
    rng = np.random.default_rng(seed)
    n_cards, n_merchants = 2 * n_entities // 3, n_entities // 3
    n = 3 * n_cards
    times = START_MS + np.sort(rng.integers(0, 20 * DAY_MS, n))
    cards, merchants = rng.permutation(n) % n_cards, rng.permutation(n) % n_merchants
    amounts = rng.integers(100, 50_000, n)
    return [
        Transaction(
            f"p{i}",
            int(times[i]),
            int(amounts[i]),
            "EUR",
            {"card": f"c{cards[i]}", "merchant": f"m{merchants[i]}"},
        )
        for i in range(n)
    ]


def _answers(scorer: Scorer, payments: list[Transaction], seed: int) -> dict[str, float]:
    for payment in payments:
        scorer.observe(payment)
    rng = np.random.default_rng(seed)
    chosen = [payments[i] for i in rng.permutation(len(payments))[:10_000]]
    found: dict[str, list[int]] = {}
    for turn in range(3):
        for i, payment in enumerate(chosen):
            if turn == 2:
                other = chosen[i - 1]
                moved = Transaction(
                    f"again{i}",
                    scorer._store.newest_ms,
                    500,
                    "EUR",
                    {"card": payment.entities["card"], "merchant": other.entities["merchant"]},
                )
                scorer.observe(moved)
            started = time.perf_counter_ns()
            result = scorer.score(payment)
            elapsed = time.perf_counter_ns() - started
            found.setdefault(result.source or "", []).append(elapsed)
    return {source: p50_us(np.array(elapsed)) for source, elapsed in found.items()}


def hot_entities(material: Material) -> list[Figure]:
    """An exact entity of 10 to 10,000 events, and a grid entity of 10 to 10^6."""
    figures = []
    for mode, sizes in (("exact", (10, 10_000)), ("grid", (10, 1_000_000))):
        medians = {n: _of_size(material, mode, n) for n in sizes}
        small, large = (medians[n] for n in sizes)
        for source in ("box", "computed"):
            figures.append(
                Figure(
                    f"{source}, {mode} entity of {sizes[1]:,} events, p50",
                    large[source],
                    "us",
                    f"of {sizes[0]} events",
                    small[source],
                    "<= 2 x",
                    large[source] <= 2 * small[source],
                )
            )
    return figures


def _of_size(material: Material, mode: str, n: int) -> dict[str, float]:
    specification = material.specification
    if mode == "grid":
        specification = specification.replace("specification.toml", "grid_specification.toml")
    scorer = Scorer.open(
        settings={"store.specification": specification, "cache.probe_share": 0.0},
        model=material.model,
    )
    rng = np.random.default_rng(material.seed)
    times = START_MS + np.sort(rng.integers(0, 29 * DAY_MS, n))
    for i in range(n):
        scorer.observe(
            Transaction(
                f"p{i}",
                int(times[i]),
                int(rng.integers(100, 50_000)),
                "EUR",
                {"card": "hot" if mode == "exact" else f"c{i % 50_000}", "merchant": "hot"},
            )
        )
    newest = scorer._store.newest_ms
    asked = [
        Transaction(
            f"q{i}",
            newest,
            int(rng.integers(100, 50_000)),
            "EUR",
            {"card": "hot" if mode == "exact" else f"c{i % 50_000}", "merchant": "hot"},
        )
        for i in range(2_000)
    ]
    computed = each_ns(scorer.score, asked)
    box: list[int] = []
    for i, payment in enumerate(asked):
        if i % 20 == 0:
            scorer.observe(
                Transaction(f"r{i}", newest, 700, "EUR", {"card": "other", "merchant": "hot"})
            )
        started = time.perf_counter_ns()
        result = scorer.score(payment)
        if result.source == "box":
            box.append(time.perf_counter_ns() - started)
    scorer.close()
    return {"computed": p50_us(computed), "box": p50_us(np.array(box))}
