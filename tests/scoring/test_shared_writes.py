"""What a shared scorer sends: events that it counts at once, labels, decisions, scores."""

from __future__ import annotations

import asyncio
import random
import struct
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from freshscore.config.clock import SystemClock
from freshscore.config.errors import Backpressure, BadTransaction, SettingsError, Unavailable
from freshscore.features.redis_keys import slot_of, tag_of
from freshscore.features.transaction import Transaction
from freshscore.invalidation.control import Invalidation
from freshscore.invalidation.message_reading import MessageReader
from freshscore.scoring.callable_model import CallableModel
from freshscore.scoring.decisions import as_shadow, packed, unpacked
from freshscore.scoring.pending import PendingEvents
from freshscore.scoring.result import Result
from freshscore.scoring.seats import NO_TICKET
from freshscore.scoring.shared_scorer import SharedScorer
from freshscore.simulations.clock import VirtualClock
from tests.laws.law_models import callable_model, law_model
from tests.laws.law_specifications import Scaled, mixed, shipped
from tests.laws.worlds import DAY_MS, MONDAY_MS
from tests.scoring.shared_worlds import GivenLease, HeldWriter, SharedWorld
from tests.servers.redis_servers import RedisCluster, RedisServer

AT_MS = MONDAY_MS + 30 * DAY_MS


def payment(number: int, time_ms: int = AT_MS, card: str = "c-1") -> Transaction:
    entities = {"card": card, "merchant": "m-1", "terminal": "t-1"}
    return Transaction(f"p-{number}", time_ms, 100 + number, "EUR", entities)


@pytest.fixture
def scaled() -> Scaled:
    return shipped("handbook")


@pytest.fixture
def writer() -> HeldWriter:
    return HeldWriter()


@pytest.fixture
def world(
    redis_server: RedisServer, namespace: str, scaled: Scaled, writer: HeldWriter
) -> Iterator[SharedWorld]:
    limits = {"max_pending_events": 4, "pending_s": 30.0}
    model = law_model("walked", scaled, 1)
    url = redis_server.url
    world = SharedWorld(url, namespace, scaled, model, writer=writer, redis_settings=limits)
    world.clock.move_to(AT_MS)
    world.report(AT_MS, MONDAY_MS - 400 * DAY_MS)
    yield world
    world.close()


def pending_counts(world: SharedWorld) -> dict[str, int]:
    counts: dict[str, int] = world.scorer.stats()["store"]["pending_events"]
    return {name: n for name, n in counts.items() if n}


def agree(found: Result, expected: Result) -> None:
    assert found.score == expected.score
    assert found.state_versions == expected.state_versions
    assert found.valid_until == expected.valid_until


def test_what_was_observed_counts_at_once_and_once(world: SharedWorld, writer: HeldWriter) -> None:
    """A burst on one card: before Kafka brings it back, while it does, and after."""
    asked = payment(100)
    for number in range(3):
        one = payment(number, AT_MS - 1_000 * (3 - number))
        world.scorer.observe(one)
        world.observe(one, only="embedded")
        expected = world.embedded.scorer.score(asked, as_of=AT_MS)
        found = world.scorer.score(asked, as_of=AT_MS)
        agree(found, expected)
        assert found.pending == number + 1
    # A payment's own event counts once, pending or not.
    own = payment(2, AT_MS - 1_000)
    agree(world.scorer.score(own, as_of=AT_MS), world.embedded.scorer.score(own, as_of=AT_MS))
    # One comes back at the card and not yet at the terminal; then all do.
    row = world.embedded.row(payment(0, AT_MS - 3_000))
    token = world.records.tokens(row)[0]
    assert token is not None
    world.append(0, token, world.records.event(row, 0))
    agree(world.scorer.score(asked, as_of=AT_MS), world.embedded.scorer.score(asked, as_of=AT_MS))
    assert world.scorer.stats()["store"]["pending"] == 3
    for number in range(3):
        world.observe(payment(number, AT_MS - 1_000 * (3 - number)), only="redis")
    found = world.scorer.score(asked, as_of=AT_MS)
    agree(found, world.embedded.scorer.score(asked, as_of=AT_MS))
    assert found.pending == 0
    assert pending_counts(world) == {"sent": 3, "seen": 3}
    assert len(writer.sent) >= 3


def test_what_leaves_is_hashed_and_what_a_consumer_makes_of_it_is_the_same_record(
    world: SharedWorld, writer: HeldWriter
) -> None:
    one = payment(1, card="4000-1234")
    world.scorer.observe(one)
    topic, key, value = writer.sent[0]
    assert topic == "transactions"
    assert b"4000" not in value + (key or b"")
    assert b"p-1" not in value
    row = MessageReader(world.program, world.keys).transaction(value)
    for entity in range(len(world.program.entities)):
        mine = world.records.event(world.embedded.row(one), entity)
        assert world.records.event(row, entity) == mine


def test_pending_events_leave_when_refused_lost_late_or_too_many(
    world: SharedWorld, writer: HeldWriter
) -> None:
    horizon_ms = world.limits.horizon_ms
    asked = payment(100)
    alone = world.scorer.score(asked, as_of=AT_MS).state_versions
    world.scorer.observe(payment(1))
    writer.acknowledge(AT_MS + horizon_ms + 1)
    world.scorer.observe(payment(2, AT_MS + 100))
    writer.acknowledge(AT_MS + 100 - world.limits.skew_ms - 1)
    world.scorer.observe(payment(3))
    writer.acknowledge(None)
    assert world.scorer.score(asked, as_of=AT_MS).state_versions == alone
    assert pending_counts(world) == {"sent": 3, "refused": 2, "not sent": 1}
    feed = world.scorer.stats()["feed"]
    assert feed == {"sent": 3, "late": 1, "early": 1, "not sent": 1}
    for number in range(4, 10):
        world.scorer.observe(payment(number))
    writer.acknowledge(AT_MS)
    assert world.scorer.score(asked, as_of=AT_MS).pending == 4
    assert pending_counts(world)["no room"] == 2
    world.clock.move_to(AT_MS + 30_001)
    found = world.scorer.score(asked, as_of=AT_MS)
    assert found.pending == 0
    assert found.state_versions == alone
    assert pending_counts(world)["timed out"] == 4


def test_a_label_counts_from_its_arrival_on(world: SharedWorld, writer: HeldWriter) -> None:
    one = payment(1, AT_MS - 1_000)
    fact = world.program.specification.facts[0]
    world.observe(one)
    world.scorer.label(
        one.transaction_id, entities=dict(one.entities), time=one.time, **{fact: True}
    )
    asked = payment(100)
    before = world.scorer.score(asked, as_of=AT_MS)
    assert before.pending == 0
    writer.acknowledge(AT_MS + 5)
    found = world.scorer.score(asked, as_of=AT_MS + 10)
    assert found.pending == 1
    [value] = [value for topic, _, value in writer.sent if topic == "labels"]
    label = MessageReader(world.program, world.keys).label(value, AT_MS + 5)
    row = world.embedded.row(one)
    for entity, token in enumerate(world.records.tokens(row)):
        if token is not None:
            record = world.records.fact(
                row,
                entity,
                time_ms=one.time,
                fact=0,
                value=True,
                known_at_ms=label.known_ms,
                sender_ms=label.sender_ms,
            )
            world.append(entity, token, record)
    agree(world.scorer.score(asked, as_of=AT_MS + 10), found)
    assert pending_counts(world) == {"sent": 1, "seen": 1}


def test_what_only_the_log_can_say_is_refused(world: SharedWorld, scaled: Scaled) -> None:
    with pytest.raises(BadTransaction, match="stamp"):
        world.scorer.observe(payment(1), arrival=AT_MS)
    silent = world.another(world.embedded.model)
    with pytest.raises(SettingsError, match=r"kafka\.produce"):
        silent.observe(payment(1))
    with pytest.raises(SettingsError, match=r"kafka\.produce"):
        silent.label("p-1", fraud=True)


def test_a_decision_says_on_what_it_was_made(world: SharedWorld, writer: HeldWriter) -> None:
    world.observe(payment(1, AT_MS - 2_000))
    pending = payment(2, AT_MS - 1_000)
    world.scorer.observe(pending)
    asked = payment(3)
    found = world.scorer.score(asked, as_of=AT_MS)
    world.scorer.flush(20)
    [record] = [value for topic, _, value in writer.sent if topic == "decisions"]
    decision = unpacked(record)
    assert decision.model_version == found.model_version
    assert (decision.score, decision.decision, decision.source) == (
        found.score,
        found.decision,
        found.source,
    )
    assert decision.feature_hash.hex() == found.feature_hash
    versions = [found.state_versions[layout.name] for layout in world.program.entities]
    assert [one.hex() for one in decision.state_versions] == versions
    assert decision.row == world.embedded.row(asked)
    assert decision.progress == (world.client.get(world.names.progress("0")),)
    assert decision.pending == (world.embedded.row(pending)[:8],)
    assert decision.degraded == ()
    assert b"c-1" not in record
    for damaged in (record[:-1], record + b"x", record[:40], b"\x03" + record[1:]):
        with pytest.raises(ValueError, match="decision"):
            unpacked(damaged)


def test_decisions_beyond_the_buffer_are_lost_and_counted_and_no_score_waits(
    redis_server: RedisServer, namespace: str, scaled: Scaled
) -> None:
    held = threading.Event()

    class Stuck(HeldWriter):
        def send(self, topic: str, *rest: Any, **more: Any) -> None:
            held.wait(20)
            super().send(topic, *rest, **more)

    world = SharedWorld(
        redis_server.url,
        namespace,
        scaled,
        law_model("walked", scaled, 1),
        writer=Stuck(),
        kafka_settings={"max_unsent_decisions": 2},
    )
    world.report(AT_MS, 1)
    for number in range(10):
        world.scorer.score(payment(number), as_of=AT_MS)
    counts = world.scorer.stats()["decisions"]
    assert counts["lost"] >= 7
    assert counts["lost"] + counts["waiting"] + counts["sent"] in (10, 11)
    with pytest.raises(Unavailable, match="decisions"):
        world.scorer.flush(0.05)
    held.set()
    world.scorer.flush(20)
    assert world.scorer.stats()["decisions"]["waiting"] == 0
    world.close()


def test_an_invalidation_ends_what_was_cached_for_an_entity_a_cohort_or_all(
    redis_server: RedisServer, namespace: str, seed: int
) -> None:
    scaled = shipped("payments")
    model = law_model("walked", scaled, seed)
    world = SharedWorld(redis_server.url, namespace, scaled, model)
    world.report(AT_MS, 1)
    cards = [payment(number, card=f"c-{number}") for number in range(2)]

    def sources() -> list[str | None]:
        return [world.scorer.score(one, as_of=AT_MS).source for one in cards]

    assert sources() == ["computed", "cell"] or sources()[0] == "memo"
    assert sources() == ["memo", "memo"]
    token = world.records.tokens(world.embedded.row(cards[0]))[0]
    assert token is not None
    world.scorer.carry_out([Invalidation("entity", token.hex())])
    assert sources()[1] == "memo"
    assert world.scorer.score(cards[0], as_of=AT_MS).source == "memo"
    world.scorer.carry_out([Invalidation("model", "another version")])
    assert sources() == ["memo", "memo"]
    for told in (Invalidation("model", model.version), Invalidation("everything", "")):
        world.scorer.carry_out([told])
        assert "memo" not in sources()
        assert sources() == ["memo", "memo"]
    world.scorer.carry_out([Invalidation("cohort", "all")])
    assert "memo" not in sources()
    world.scorer.carry_out([Invalidation("cohort", "no such cohort")])
    assert sources() == ["memo", "memo"]
    world.close()


class _Dear:
    """A callable that counts its calls, and takes as long as a remote model."""

    def __init__(self, calls: list[int], work: int) -> None:
        self.calls = calls
        self.work = work

    def __call__(self, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.calls.append(len(matrix))
        for _ in range(self.work):
            np.sort(np.arange(20_000)[::-1])
        scores: np.ndarray[Any, Any] = np.abs(np.nan_to_num(matrix).sum(1)) % 1.0
        return scores


def dear_model(scaled: Scaled, calls: list[int], work: int) -> CallableModel:
    like = callable_model(scaled)
    from freshscore.scoring.model_file import CohortThresholds

    thresholds = [CohortThresholds("all", 0.4, 0.6)]
    return CallableModel(_Dear(calls, work), "dear 1", thresholds, like.codes)


def warmed(world: SharedWorld, scorer: SharedScorer, first: int) -> None:
    """Until both costs are measured."""
    for number in range(first, first + 60):
        scorer.score(payment(number, card=f"c-{number}"), as_of=AT_MS)
        if number % 5 == 0:
            assert scorer._remote is not None
            scorer._remote._outbox.flush(20)


def test_a_dear_models_score_is_found_by_another_process(
    redis_server: RedisServer, namespace: str, scaled: Scaled
) -> None:
    calls: list[int] = []
    model = dear_model(scaled, calls, 20)
    world = SharedWorld(redis_server.url, namespace, scaled, model, clock=SystemClock())
    world.report(AT_MS, 1)
    other = world.another(dear_model(scaled, calls, 20))
    warmed(world, world.scorer, 1_000)
    warmed(world, other, 2_000)
    assert world.scorer.stats()["remote_scores"]["used"]
    assert other.stats()["remote_scores"]["used"]
    asked = payment(1)
    computed = world.scorer.score(asked, as_of=AT_MS)
    assert (computed.source, computed.tier) == ("computed", None)
    assert world.scorer._remote is not None
    world.scorer._remote._outbox.flush(20)
    n = len(calls)
    found = [other.score(payment(1), as_of=AT_MS + second) for second in range(3)]
    assert len(calls) == n
    assert {one.score for one in found} == {computed.score}
    assert found[0].source == "cell"
    assert found[0].tier == "redis"
    assert [one.tier for one in found[1:]] == ["memory", "memory"]
    assert found[0].age_ms == 0
    key = world.names.scores(world.embedded.row(asked)[64:80], model.version)
    kept: Any = world.client.lrange(key, 0, -1)
    assert len(kept) == 1
    left_s: Any = world.client.ttl(key)
    assert 0 < left_s <= world.settings.redis.score_ttl_s
    # A damaged one is as if it were not there.
    world.client.lset(key, 0, kept[0][:30] + b"\x00" + kept[0][31:])
    third = world.another(dear_model(scaled, calls, 20))
    warmed(world, third, 3_000)
    n = len(calls)
    assert third.score(payment(1), as_of=AT_MS).source == "computed"
    assert len(calls) == n + 1
    world.close()


def test_a_cheap_models_scores_are_not_shared(
    redis_server: RedisServer, namespace: str, scaled: Scaled
) -> None:
    calls: list[int] = []
    model = dear_model(scaled, calls, 0)
    world = SharedWorld(redis_server.url, namespace, scaled, model, clock=SystemClock())
    world.report(AT_MS, 1)
    warmed(world, world.scorer, 1_000)
    counts = world.scorer.stats()["remote_scores"]
    assert not counts["used"]
    assert counts["model_us"] < counts["cost_us"]
    asked = counts["asked"]
    warmed(world, world.scorer, 2_000)
    assert world.scorer.stats()["remote_scores"]["asked"] - asked <= 2
    world.close()


@pytest.mark.parametrize("form", ["frame", "list"])
def test_rows_of_many_find_what_other_processes_computed(
    redis_server: RedisServer, namespace: str, scaled: Scaled, form: str
) -> None:
    """Whoever is charged by the call is charged once, also before it is known what a call costs."""
    calls: list[int] = []
    model = dear_model(scaled, calls, 20)
    world = SharedWorld(redis_server.url, namespace, scaled, model)
    world.report(AT_MS, 1)
    rows: list[Any] = [payment(i, AT_MS - i, f"c-{i}") for i in range(150)]
    many: Any = rows if form == "list" else frame_of(rows)

    def scored(scorer: SharedScorer) -> tuple[list[float], list[str]]:
        found = scorer.score_many(many, as_of=AT_MS)
        if isinstance(found, list):
            return [one.score or 0.0 for one in found], [str(one.source) for one in found]
        return found["score"].tolist(), found["source"].tolist()

    scores, sources = scored(world.scorer)
    assert {*sources} == {"computed"}
    assert sum(calls) == len(rows)
    remote = world.scorer._remote
    assert remote is not None
    if form == "frame":
        # Kept behind the answer, all of them.
        assert remote._outbox.flush(20)
        assert remote.counts["sent"] == len(rows)
    else:
        # One by one they are measured, and few are kept before it is known whether it pays.
        for row in rows:
            state = world.embedded.row(row)
            out = world.scorer.score(row, as_of=AT_MS).raw
            remote.offer_of_many(state[64:80], out, 0)
        assert remote._outbox.flush(20)
    n = sum(calls)
    other = world.another(dear_model(scaled, calls, 20))
    assert scored(other) == (scores, ["cell"] * len(rows))
    assert sum(calls) == n
    counts = other.stats()["remote_scores"]
    assert (counts["asked"], counts["found"]) == (len(rows), len(rows))
    assert other.stats()["answers"]["cell"] == len(rows)
    # They are in its own cache from then on.
    assert scored(other)[1] == ["memo"] * len(rows)
    # What was invalidated since is computed, and kept anew.
    lease = GivenLease(seen=1)
    third = world.another(dear_model(scaled, calls, 20), lease=lease)
    assert {*scored(third)[1]} == {"computed"}
    # Without a lease nothing of others is served.
    lease.until_s = float("-inf")
    assert {*scored(third)[1]} == {"computed"}
    world.close()


def frame_of(rows: list[Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "transaction_id": [row.transaction_id for row in rows],
            "time": [row.time for row in rows],
            "amount_minor": [row.amount_minor for row in rows],
            "currency": "EUR",
            "card": [row.entities["card"] for row in rows],
            "merchant": "m-1",
            "terminal": "t-1",
        }
    )


@pytest.mark.parametrize("kind", ["walked", "callable"])
def test_many_rows_share_exchanges_and_get_what_each_gets_alone(
    world: SharedWorld, scaled: Scaled, kind: str
) -> None:
    for number in range(50):
        world.observe(payment(number, AT_MS - 60_000 * (50 - number), f"c-{number % 7}"))
    rows: list[Any] = [payment(100 + i, AT_MS - i, f"c-{i % 9}") for i in range(300)]
    model = law_model(kind, scaled, 1)
    alone, many = world.another(model), world.another(model)
    expected = [alone.score(row, as_of=AT_MS) for row in rows]
    bad = {"transaction_id": "bad", "time": AT_MS}
    found = many.score_many([*rows, bad], as_of=AT_MS)
    assert many.stats()["store"]["exchanges"] == 3
    assert found[-1].score is None
    assert "missing" in (found[-1].error or "")
    assert [one.score for one in found[:-1]] == [one.score for one in expected]
    assert [one.state_versions for one in found[:-1]] == [one.state_versions for one in expected]
    frame = frame_of(rows)
    framed = world.another(model).score_many(frame, as_of=AT_MS)
    assert framed["score"].tolist() == [one.score for one in expected]
    assert world.another(model).score_many(frame)["score"].notna().all()


def test_score_async_leaves_the_event_loop_free_and_has_a_limit(world: SharedWorld) -> None:
    rows = [payment(number, card=f"c-{number}") for number in range(40)]

    async def all_of_them() -> list[Result]:
        return await asyncio.gather(*(world.scorer.score_async(row, as_of=AT_MS) for row in rows))

    found = asyncio.run(all_of_them())
    assert [one.transaction_id for one in found] == [row.transaction_id for row in rows]
    threads = world.scorer._async
    threads._most = 3
    with pytest.raises(Backpressure, match="3 scores"):
        asyncio.run(all_of_them())
    threads._most = 100
    assert len(asyncio.run(all_of_them())) == 40


def test_many_threads_get_what_one_gets(world: SharedWorld, scaled: Scaled) -> None:
    for number in range(200):
        world.observe(payment(number, AT_MS - 10_000 * (200 - number), f"c-{number % 11}"))
    rows = [payment(1_000 + i, AT_MS - i, f"c-{i % 13}") for i in range(150)]
    expected = {one.transaction_id: world.embedded.scorer.score(one, as_of=AT_MS) for one in rows}
    wrong: list[str] = []

    def work(number: int) -> None:
        for row in random.Random(number).sample(rows, len(rows)):
            found = world.scorer.score(row, as_of=AT_MS)
            mine = expected[row.transaction_id]
            if (found.score, found.state_versions) != (mine.score, mine.state_versions):
                wrong.append(row.transaction_id)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert wrong == []
    assert world.scorer.stats()["requests"] == 6 * len(rows)
    assert world.scorer.stats()["store"]["exchanges"] == 6 * len(rows)


def test_by_default_a_payment_is_scored_now_and_never_before_its_own_time(
    world: SharedWorld,
) -> None:
    assert world.scorer.score(payment(1, AT_MS - 5_000)).as_of == AT_MS
    assert world.scorer.score(payment(2, AT_MS + 5_000)).as_of == AT_MS + 5_000


def test_on_a_cluster_each_node_is_asked_for_what_it_owns(
    redis_cluster: RedisCluster, namespace: str, seed: int
) -> None:
    scaled = mixed(np.random.default_rng(seed))
    model = law_model("walked", scaled, seed)
    world = SharedWorld(redis_cluster.url, namespace, scaled, model, cluster=True)
    chance = random.Random(seed)
    for _ in range(150):
        one = world.traffic.new().first
        world.traffic.newest_ms = max(world.traffic.newest_ms, one.time)
        world.observe(one)
        store = world.embedded.store
        world.report(store.newest_ms, store.complete_since_ms or 0)
        if chance.random() < 0.5:
            asked = world.traffic.new().first
            as_of = max(asked.time, store.newest_ms)
            expected = world.embedded.scorer.score(asked, as_of=as_of)
            agree(world.scorer.score(asked, as_of=as_of), expected)
    many = [world.traffic.new().first for _ in range(20)]
    as_of = max([store.newest_ms, *(one.time for one in many)])
    expected_all = world.embedded.scorer.score_many(many, as_of=as_of)
    found_all = world.scorer.score_many(many, as_of=as_of)
    assert [one.score for one in found_all] == [one.score for one in expected_all]
    # A node that lost its epoch makes answers that read it degraded.
    tag = world.nodes.tags[0]
    world.client.delete(world.names.progress(tag))
    causes = {one.degraded for one in world.scorer.score_many(many, as_of=as_of)}
    assert ("state lost",) in causes
    world.close()


def test_a_slot_that_moves_is_followed(
    redis_cluster: RedisCluster, namespace: str, scaled: Scaled
) -> None:
    model = law_model("walked", scaled, 1)
    world = SharedWorld(redis_cluster.url, namespace, scaled, model, cluster=True)
    world.report(AT_MS, 1)
    asked = payment(1)
    expected = world.scorer.score(asked, as_of=AT_MS)
    token = world.records.tokens(world.embedded.row(asked))[0]
    assert token is not None
    slot = slot_of(tag_of(token))
    owner = int(world.nodes.node_of_slot[slot])
    names = [one.client().cluster("myid") for one in redis_cluster.nodes]
    ports = [address[1] for address in world.nodes.topology.addresses]
    by_port = {one.port: name for one, name in zip(redis_cluster.nodes, names, strict=True)}
    for node in ((owner + 1) % len(ports), owner):
        for one in redis_cluster.nodes:
            with one.client() as client:
                client.execute_command(
                    "CLUSTER", "SETSLOT", slot, "NODE", by_port[ports[node]].decode()
                )
        asked = payment(2 + node)
        found = world.scorer.score(asked, as_of=AT_MS)
        if node != owner:
            # Nothing vouches for a slot that has come to a node, until the node is whole again.
            assert found.degraded == ("state lost",)
            world.nodes.refresh()
            world.report(AT_MS, 1)
            found = world.scorer.score(payment(20), as_of=AT_MS)
        assert found.degraded == ()
        assert found.state_versions == expected.state_versions
        assert int(world.scorer._nodes.node_of_slot[slot]) == node
    world.close()


def test_an_explanation_is_of_the_same_states(world: SharedWorld) -> None:
    for number in range(5):
        world.observe(payment(number, AT_MS - 1_000 * number))
    asked = payment(100)
    mine = world.scorer.explain(asked, as_of=AT_MS)
    assert mine.score == world.embedded.scorer.score(asked, as_of=AT_MS).score


def test_a_decision_of_a_log_with_many_partitions_is_read_back(world: SharedWorld) -> None:
    """Summaries of thousands of markers, and more pending events than a payment should have."""
    asked = payment(3)
    found = world.scorer.score(asked, as_of=AT_MS)
    row = world.embedded.row(asked)
    n = len(world.program.entities)
    progress, pending = (bytes(300_000), b"second"), (b"12345678",) * 70_000
    record = packed(row, found.raw, b"v" * 300, n, progress, pending)
    decision = unpacked(record)
    assert (decision.progress, decision.pending, decision.row) == (progress, pending, row)
    assert decision.transaction == row[:16]
    assert not decision.is_near
    near = unpacked(packed(row, found.raw, b"v" * 300, n, progress, pending, is_near=True))
    assert near.is_near
    assert near.source == decision.source == found.source


def test_a_shadows_decision_is_another_in_its_mark_alone(world: SharedWorld) -> None:
    """It names the message that it answers, which tells one given twice."""
    asked = payment(3)
    found = world.scorer.score(asked, as_of=AT_MS)
    record = packed(world.embedded.row(asked), found.raw, b"v", 2, (b"summary",), (b"12345678",))
    plain, marked = unpacked(record), unpacked(as_shadow(record, 7, 2**40))
    assert (plain.message, plain.is_shadow) == (None, False)
    assert (marked.message, marked.is_shadow) == ((7, 2**40), True)
    assert msgspec.structs.replace(marked, message=None) == plain


def test_a_burst_on_one_card_does_not_hold_up_its_scores(
    redis_server: RedisServer, namespace: str, scaled: Scaled, writer: HeldWriter
) -> None:
    """20,000 pending events of one card: far from quadratic, and all leave when they are back."""
    n, limits = 20_000, {"max_pending_events": 30_000, "pending_s": 3_600.0}
    model = law_model("walked", scaled, 1)
    url = redis_server.url
    world = SharedWorld(url, namespace, scaled, model, writer=writer, redis_settings=limits)
    world.clock.move_to(AT_MS)
    world.report(AT_MS, MONDAY_MS - 400 * DAY_MS)
    states: dict[tuple[int, bytes], list[bytes]] = {}
    for number in range(n):
        one = payment(number, AT_MS - 10 * (n - number))
        world.scorer.observe(one)
        row = world.embedded.row(one)
        for entity, token in enumerate(world.records.tokens(row)):
            if token is not None:
                record = world.records.event(row, entity)
                states.setdefault((entity, token), []).append(record)
    clock, elapsed_ms = SystemClock(), []
    for number in range(7):
        started_s = clock.monotonic_s()
        found = world.scorer.score(payment(n + number), as_of=AT_MS)
        elapsed_ms.append(1_000 * (clock.monotonic_s() - started_s))
        assert found.pending == n
    # It was seconds.
    assert sorted(elapsed_ms)[3] < 100, elapsed_ms
    for (entity, token), records in states.items():
        world.append(entity, token, b"".join(records))
    for number in range(n // 64 + 1):
        found = world.scorer.score(payment(n + number), as_of=AT_MS)
    assert found.pending == 0
    assert pending_counts(world) == {"sent": n, "seen": n}
    world.close()


def test_what_is_looked_for_in_a_state_is_bounded() -> None:
    """And what is passed over, or came in another order, is united, and leaves later."""
    pending = PendingEvents(10_000, 60.0, VirtualClock(MONDAY_MS), lambda: NO_TICKET)
    token = bytes(16)
    records = [struct.pack("<QQ", number + 1, number) for number in range(200)]
    for record in records:
        pending.add({token: record})
    # The first never comes back; the others do, in another order.
    state = b"".join(reversed(records[1:]))
    lengths = []
    for _ in range(5):
        [found], identities = pending.united([token], [state], pending.ticket())
        assert found is not None
        assert {found[at : at + 16] for at in range(0, len(found), 16)} == {*records}
        assert identities[0] == records[0][:8]
        lengths.append(len(pending))
    assert lengths == [137, 74, 11, 1, 1]
    assert pending.united([token], [None], pending.ticket()) == ([records[0]], (records[0][:8],))
    assert pending.counts["seen"] == 199


def test_what_the_log_does_not_have_is_pending_until_it_has_it() -> None:
    """However long Kafka is away; the limit in time begins then, that in number holds always."""
    clock = VirtualClock(MONDAY_MS)
    pending = PendingEvents(3, 60.0, clock, lambda: NO_TICKET)
    events = [pending.add({bytes([number]) * 16: bytes(16)}) for number in range(3)]
    clock.move_to(MONDAY_MS + DAY_MS)
    pending.acknowledged(events[1])
    pending.united([], [], pending.ticket())
    assert len(pending) == 3
    clock.move_to(MONDAY_MS + DAY_MS + 30_000)
    # Told twice, it does not begin again.
    pending.acknowledged(events[1])
    pending.acknowledged(events[0])
    clock.move_to(MONDAY_MS + DAY_MS + 61_000)
    pending.united([], [], pending.ticket())
    assert len(pending) == 2
    for _ in range(3):
        pending.add({bytes(16): bytes(16)})
    assert len(pending) == 3
    assert pending.counts["no room"] == 2
    # What has left is told of no more.
    pending.acknowledged(events[0])
    assert not pending._ending


def test_what_ends_at_once_is_dropped_over_several_calls() -> None:
    clock = VirtualClock(MONDAY_MS)
    pending = PendingEvents(10_000, 60.0, clock, lambda: NO_TICKET)
    for number in range(1_000):
        pending.acknowledged(pending.add({bytes(16): struct.pack("<Q", number)}))
    clock.move_to(MONDAY_MS + 61_000)
    lengths = []
    while pending:
        pending.united([], [], pending.ticket())
        lengths.append(len(pending))
    assert lengths == [744, 488, 232, 0]
    assert not pending.is_any
    assert pending.counts["timed out"] == 1_000
