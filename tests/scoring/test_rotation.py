"""While a secret is rotated every answer is the one that a single secret would give."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from freshscore.config.errors import AsOfTooOld, WrongSecret
from freshscore.config.secret import Secret
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import compiled
from freshscore.features.reading import read_payments
from freshscore.features.table_rows import rows_of
from freshscore.features.transaction import Transaction
from freshscore.scoring.exchanges import Exchanges
from tests.laws.law_models import law_model
from tests.laws.law_specifications import Scaled, mixed, shipped
from tests.laws.worlds import DAY_MS, MONDAY_MS, SECRET, Limits
from tests.scoring.shared_worlds import HeldWriter, SharedWorld
from tests.scoring.test_shared_scorer import SPECIFICATIONS, run
from tests.servers.redis_servers import RedisCluster, RedisServer

STEPS = 400
# A campaign observes about so many payments, at a mean gap of 0.8 of the specification's.
_OBSERVED = 0.2 * STEPS


def named(name: str, seed: int) -> Scaled:
    return mixed(np.random.default_rng(seed)) if name.startswith("mixed") else shipped(name)


def since_of(scaled: Scaled) -> int:
    """An instant in the first half of a campaign, on no grid's step."""
    return MONDAY_MS + round(0.4 * _OBSERVED * 0.8 * scaled.gap_ms) + 1


def world_of(
    url: str,
    namespace: str,
    scaled: Scaled,
    seed: int,
    *,
    kind: str = "walked",
    secret: Secret | None = None,
    **other: Any,
) -> SharedWorld:
    """A world in the middle of whose campaign another secret begins to hold."""
    return SharedWorld(
        url,
        namespace,
        scaled,
        law_model(kind, scaled, seed),
        Limits(horizon_ms=scaled.horizon_ms, cache_bytes=1 << 16),
        secret=secret or SECRET.successor(since_of(scaled)),
        **other,
    )


def n_under_both(world: SharedWorld) -> tuple[int, int]:
    """How many states are under the current key and under the former one."""
    assert world.keys.former is not None
    former = {(e, world.embedded.row(one)[64 + 16 * e :][:16]) for e, one in _entities(world)}
    n_former = len(world.written & former)
    return len(world.written) - n_former, n_former


def _parts(world: SharedWorld) -> list[str]:
    return sorted({part for layout in world.program.entities for part in layout.parts})


def _entities(world: SharedWorld) -> list[tuple[int, Transaction]]:
    return [
        (e, paid.first) for paid in world.traffic.recent for e in range(len(world.program.entities))
    ]


@pytest.mark.parametrize("compacts", [False, True], ids=["appended", "compacted"])
@pytest.mark.parametrize("name", SPECIFICATIONS)
def test_states_under_two_tokens_answer_as_one(
    redis_server: RedisServer, namespace: str, name: str, seed: int, *, compacts: bool
) -> None:
    """Bit for bit, versions of states and hits of the cache included; embedded nothing rotates."""
    world = world_of(redis_server.url, namespace, named(name, seed), seed)
    assert run(world, STEPS, random.Random(seed), compacts=compacts) > 100
    assert min(n_under_both(world)) > 0
    world.close()


def test_two_tokens_may_lie_on_two_nodes(
    redis_cluster: RedisCluster, namespace: str, seed: int
) -> None:
    world = world_of(
        redis_cluster.url, namespace, named("mixed", seed), seed, cluster=True, kind="called"
    )
    assert run(world, STEPS, random.Random(seed), compacts=True) > 100
    assert min(n_under_both(world)) > 0
    world.close()


def test_a_scorer_that_reads_one_token_is_found_out(
    redis_server: RedisServer, namespace: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A canary: without the other state the comparison fails."""
    monkeypatch.setattr(
        Exchanges, "united", lambda self, _, states, pasts: list(states[: len(self._layouts)])
    )
    world = world_of(redis_server.url, namespace, named("handbook", seed), seed)
    with pytest.raises(AssertionError):
        run(world, STEPS, random.Random(seed), compacts=False)
    world.close()


def test_what_came_under_the_wrong_key_or_both_counts_once(
    redis_server: RedisServer, namespace: str, seed: int
) -> None:
    """A process that learns of a rotation late writes under the former; exact entities forgive."""
    scaled = shipped("handbook")
    world = world_of(redis_server.url, namespace, scaled, seed)
    chance = random.Random(seed)
    former = Packer(world.program, Keys(world.program, SECRET))
    honest = world.packed

    def packed(payment: Transaction) -> bytes:
        row = honest(payment)
        if chance.random() < 0.4:
            late = former.row(payment)
            for entity, token in enumerate(world.records.tokens(late)):
                if token is not None:
                    world.append(entity, token, world.records.event(late, entity))
            if chance.random() < 0.5:
                return late
        return row

    world.packed = packed  # type: ignore[method-assign]  # the same, by a process that is behind
    assert run(world, STEPS, chance, compacts=False) > 100
    world.compact(0, chance, share=0.7)
    assert run(world, STEPS // 2, chance, compacts=False) > 50
    world.close()


def test_lists_and_frames_are_answered_alike(
    redis_server: RedisServer, namespace: str, seed: int
) -> None:
    scaled = shipped("handbook")
    world = world_of(redis_server.url, namespace, scaled, seed)
    run(world, STEPS, random.Random(seed), compacts=True)
    asked = [paid.first for paid in world.traffic.recent]
    store = world.embedded.store
    world.report(store.newest_ms, store.complete_since_ms or 0)
    as_of = store.newest_ms + 1
    asked = [one for one in asked if as_of - world.limits.horizon_ms < one.time < as_of]
    assert len({one.time < world.keys.since_ms for one in asked}) == 2
    expected = [world.embedded.scorer.score(one, as_of=as_of).score for one in asked]
    assert [one.score for one in world.scorer.score_many(asked, as_of=as_of)] == expected
    frame = pd.DataFrame(
        {
            "transaction_id": [one.transaction_id for one in asked],
            "time": [one.time for one in asked],
            "amount_minor": [one.amount_minor for one in asked],
            "base_amount_minor": pd.array([one.base_amount_minor for one in asked], "Int64"),
            "currency": [one.currency for one in asked],
            "kind": [one.kind for one in asked],
            **{part: [one.entities.get(part) for one in asked] for part in _parts(world)},
        }
    )
    scored = world.scorer.score_many(frame, as_of=as_of)
    assert scored["score"].tolist() == expected
    world.close()


def test_what_is_pending_is_united_under_either_token(
    redis_server: RedisServer, namespace: str
) -> None:
    """A burst over the instant: observed here, not yet in Redis; messages name their own key."""
    scaled = shipped("handbook")
    writer = HeldWriter()
    secret = SECRET.successor(MONDAY_MS + 1_000)
    world = world_of(redis_server.url, namespace, scaled, 1, secret=secret, writer=writer)
    entities = {"card": "c", "merchant": "m", "terminal": "t"}
    for number in range(4):
        payment = Transaction(f"p{number}", MONDAY_MS + 500 * number, 100, "EUR", entities)
        world.clock.move_to(payment.time)
        world.scorer.observe(payment)
        world.observe(payment, only="embedded")
        same_but_pending = world.scorer.score(payment, as_of=payment.time + 1)
        expected = world.embedded.scorer.score(payment, as_of=payment.time + 1)
        assert same_but_pending.score == expected.score
        assert same_but_pending.state_versions == expected.state_versions
    topic = world.settings.kafka.transactions_topic
    sent = [value for to, _, value in writer.sent if to == topic]
    ids = [msgspec.json.decode(value)["ids"] for value in sent]
    assert world.keys.former is not None
    assert ids == [world.keys.former.key_id] * 2 + [world.keys.key_id] * 2
    world.close()


def test_rows_of_tables_are_those_of_single_payments(seed: int) -> None:
    scaled = shipped("handbook")
    program = compiled(scaled.specification)
    packer = Packer(program, Keys(program, SECRET.successor(MONDAY_MS + 5_000)))
    payments = [
        Transaction(
            f"p{number}",
            MONDAY_MS + 1_000 * number,
            100,
            "EUR",
            {"card": f"c{number % 3}", "merchant": "m", "terminal": "t"},
        )
        for number in range(10)
    ]
    rows = rows_of(read_payments(payments, scaled.specification), packer)
    assert [row.tobytes() for row in rows] == [packer.row(one) for one in payments]
    current, others = rows[5:, 8:10], rows[5:, packer.others_at // 8 :][:, :2]
    assert not (current == others).all()
    assert (rows[0, 8:10] == rows[6, packer.others_at // 8 :][:2]).all()


def test_the_former_secret_is_dropped_once_no_window_reaches_it(
    redis_server: RedisServer, namespace: str
) -> None:
    """The same answers without it, bit for bit; what needs its records is refused."""
    scaled = shipped("handbook")
    model = law_model("walked", scaled, 3)
    secret = SECRET.successor(since_of(scaled))
    world = world_of(redis_server.url, namespace, scaled, 3, secret=secret)
    run(world, STEPS, random.Random(3), compacts=True)
    held_ms, horizon_ms = scaled.specification.held_ms, world.limits.horizon_ms
    begin_ms = since_of(scaled) + held_ms + horizon_ms
    world.keys = Keys(world.program, replace(secret, former=None))
    world.packer = Packer(world.program, world.keys, model.codes, model.cohorts)
    alone = world.another(model)
    with pytest.raises(WrongSecret, match="FRESHSCORE_FORMER_SECRET is needed until then"):
        alone.score(world.traffic.recent[-1].first)
    world.clock.move_to(begin_ms)
    entities = {"card": "c1", "merchant": "m1", "terminal": "t1"}
    for number in range(30):
        time_ms = begin_ms - 3 * DAY_MS + number * DAY_MS // 4
        payment = Transaction(f"after-{number}", time_ms, 100 + number, "EUR", entities)
        world.observe(payment)
        world.report(time_ms, world.embedded.store.complete_since_ms or 0)
        if time_ms >= begin_ms:
            answer = alone.score(payment, as_of=time_ms + 5)
            expected = world.embedded.scorer.score(payment, as_of=time_ms + 5)
            assert (answer.score, answer.degraded) == (expected.score, ())
    with pytest.raises(AsOfTooOld):
        alone.score(long_ago(payment), as_of=since_of(scaled) + held_ms - 1)
    assert alone.score(long_ago(payment), as_of=since_of(scaled) + held_ms).score is not None
    world.close()


def long_ago(payment: Transaction) -> Transaction:
    """A payment of the same entities, before everything."""
    return Transaction("long-ago", MONDAY_MS, 100, "EUR", payment.entities)
