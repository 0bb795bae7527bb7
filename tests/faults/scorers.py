"""What must be true of scorers that work through a campaign.

Every decision is one that a scorer gave, whole; a scorer that died blocks no other; and when all is
settled, scores are the model on the plain oracle's features, bit for bit.
"""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from freshscore.config.clock import SystemClock
from freshscore.config.loading import load_settings
from freshscore.features.redis_door import Nodes
from freshscore.features.transaction import Transaction
from freshscore.invalidation.control import EVERYTHING, Control, Invalidation
from freshscore.invalidation.taking_effect import invalidated
from freshscore.scoring.decisions import unpacked
from freshscore.scoring.shared_scorer import SharedScorer
from tests.faults.deployment import Deployment
from tests.faults.expected import Expected, oracle_of
from tests.faults.scorer_process import model, scores_of

# Of the scores that are given again when all is settled.
_AGAIN: Final = 16
_GRACE_S: Final = 1.5


def told_by(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The payments that scorers were about to score and send; a line that a kill cut is none."""
    found = []
    for path in files:
        for line in path.read_text("utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                found.append(json.loads(line))
    return found


def meant_by(deployment: Deployment, told: Sequence[dict[str, Any]]) -> dict[bytes, Transaction]:
    """Hashed identity, as messages write it -> the payment."""
    payments = [Transaction.of(one) for one in told]
    rows = [deployment.packer.row(one) for one in payments]
    texts = [base64.urlsafe_b64encode(row[:16]).rstrip(b"=") for row in rows]
    return dict(zip(texts, payments, strict=True))


def check_decisions(deployment: Deployment, told: Sequence[dict[str, Any]]) -> int:
    """Every decision in its topic is whole, and of a payment that was scored; how many payments."""
    n_row = len(deployment.packer.row(Transaction.of(told[0]))) if told else 0
    asked = {deployment.packer.row(Transaction.of(one))[:16] for one in told}
    n_entities = len(deployment.program.entities)
    seen = set()
    for one in deployment.read(deployment.decisions):
        assert one.value is not None
        decision = unpacked(one.value)
        assert decision.model_version == model().version
        assert decision.score is None or 0.0 <= decision.score <= 1.0
        assert len(decision.row) == n_row
        assert len(decision.state_versions) == n_entities
        assert decision.transaction in asked
        seen.add(decision.transaction)
    return len(seen)


def check_nothing_blocks(deployment: Deployment, lease_s: float) -> None:
    """An invalidation takes effect within a lease, whoever died while holding one."""
    nodes = Nodes.open(deployment.redis_settings)
    try:
        control = Control(nodes, deployment.name)
        effect = invalidated(control, Invalidation(EVERYTHING, ""), lease_s, SystemClock())
    finally:
        nodes.close()
    assert effect.n_behind == 0
    assert effect.took_s <= lease_s + _GRACE_S


def check_scores(
    deployment: Deployment, expected: Expected, told: Sequence[dict[str, Any]], seed: int
) -> int:
    """Payments on the same entities, scored when all is settled; how many scores."""
    oracle, chance = oracle_of(deployment, expected), random.Random(seed)
    settings = load_settings("shared", settings=deployment.settings)
    nodes = Nodes.open(settings.redis)
    scorer = SharedScorer(settings, nodes, model(), deployment.program, deployment.keys)
    chosen = chance.sample(list(told), min(_AGAIN, len(told)))
    with scorer:
        for number, one in enumerate(chosen):
            now_ms = SystemClock().now_ms()
            # Under its own id and time the payment may lie in what has been folded since.
            fresh = {"transaction_id": f"{one['transaction_id']}-again-{number}", "time": now_ms}
            payment = Transaction.of(one | fresh)
            result = scorer.score(payment, as_of=now_ms)
            assert result.degraded == ()
            features = np.array([oracle.features(payment, now_ms)], np.float64)
            score = float(scores_of(features)[0])
            assert result.score is not None
            same = struct.pack("<d", result.score) == struct.pack("<d", score)
            assert same, f"the score is {result.score!r}, not {score!r}"
    return len(chosen)
