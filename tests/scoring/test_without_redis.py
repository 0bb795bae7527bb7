"""What is answered without Redis, or without one of its nodes: known, marked, and how old."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest

from freshscore.config.clock import SystemClock
from freshscore.config.errors import BadTransaction, Unavailable
from freshscore.config.secret import jitter
from freshscore.features.near_states import NearStates
from freshscore.features.redis_keys import slot_of, tag_of
from freshscore.features.transaction import Transaction
from freshscore.invalidation.control import EVERYTHING, Invalidation
from freshscore.scoring import cache_layout
from freshscore.scoring.decisions import Decision, unpacked
from freshscore.scoring.exchanges import token_places
from freshscore.scoring.near_reading import NearReading
from freshscore.scoring.result import Result
from tests.features.moving_slots import assign_slot
from tests.laws.law_models import law_model
from tests.laws.law_specifications import Scaled, shipped
from tests.laws.worlds import DAY_MS, MONDAY_MS, SECRET
from tests.scoring.shared_worlds import EPOCH, GivenLease, HeldWriter, SharedWorld
from tests.servers.fixtures import OwnCluster, OwnRedis
from tests.servers.redis_servers import RedisServer

AT_MS = MONDAY_MS + 30 * DAY_MS
SINCE_MS = MONDAY_MS - 400 * DAY_MS
# What is waited for a server that stands still; connecting may take long on a busy machine.
QUICK = {"timeout_ms": 400}


def payment(number: int, card: str = "c-1", merchant: str = "m-1", cents: int = 0) -> Transaction:
    entities = {"card": card, "merchant": merchant, "terminal": "t-1"}
    return Transaction(f"p-{number}", AT_MS, 100 + number + cents, "EUR", entities)


@pytest.fixture
def scaled() -> Scaled:
    return shipped("handbook")


def made(url: str, scaled: Scaled, **more: Any) -> SharedWorld:
    """A world with a little history, whose scorer has answered before."""
    redis_settings = {**QUICK, **more.pop("redis_settings", {})}
    model = law_model("walked", scaled, 1)
    world = SharedWorld(url, "w", scaled, model, redis_settings=redis_settings, **more)
    world.clock.move_to(AT_MS)
    world.report(AT_MS, SINCE_MS)
    for number in range(20):
        history = Transaction(
            f"h-{number}",
            AT_MS - 60_000 * (20 - number),
            500 + number,
            "EUR",
            {"card": f"c-{number % 2}", "merchant": f"m-{number % 3}", "terminal": "t-1"},
        )
        world.observe(history)
    return world


@contextmanager
def stopped(*servers: RedisServer) -> Iterator[None]:
    """They hear, and answer nothing."""
    for server in servers:
        os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for server in servers:
            os.kill(server.pid, signal.SIGCONT)


def same_bits(one: float | None, other: float | None) -> bool:
    assert one is not None
    assert other is not None
    return struct.pack("<d", one) == struct.pack("<d", other)


def test_the_last_answer_of_a_payment_is_given_with_its_instant_and_age(
    own_redis: OwnRedis, scaled: Scaled
) -> None:
    server, lease = own_redis(), GivenLease()
    world = made(server.url, scaled, lease=lease)
    first = world.scorer.score(payment(1))
    assert first.degraded == ()
    assert first.known_age_ms is None
    server.kill()
    world.clock.move_to(AT_MS + 7_000)
    again = world.scorer.score(payment(1), deadline_ms=1_000)
    assert again.degraded == ("remembered",)
    assert "last answer" in again.reason
    assert same_bits(again.score, first.score)
    assert (again.decision, again.as_of, again.feature_hash) == (
        first.decision,
        AT_MS,
        first.feature_hash,
    )
    assert again.known_age_ms == 7_000
    assert again.missing == ()
    # Not of other content, nor for an instant before it was given.
    for asked, as_of in ((payment(1, cents=1), None), (payment(2), None)):
        with pytest.raises(Unavailable):
            world.scorer.score(asked, as_of=as_of)
    # A cached score is not served without a lease, nor once it was invalidated.
    lease.until_s = float("-inf")
    with pytest.raises(Unavailable):
        world.scorer.score(payment(1))
    lease.until_s = float("inf")
    assert world.scorer.score(payment(1)).degraded == ("remembered",)
    world.scorer.carry_out([Invalidation(EVERYTHING, "")])
    with pytest.raises(Unavailable):
        world.scorer.score(payment(1))
    assert world.scorer.stats()["without_redis"]["remembered"] == 2
    assert world.scorer.stats()["without_redis"]["not answered"] == 4
    world.close()


def test_what_is_too_old_is_not_known(own_redis: OwnRedis, scaled: Scaled) -> None:
    """The limit of fallback.max_age_s, reached."""
    server = own_redis()
    world = made(server.url, scaled, fallback={"max_age_s": 1})
    assert world.scorer.score(payment(1)).degraded == ()
    server.kill()
    world.clock.move_to(AT_MS + 1_000)
    assert world.scorer.score(payment(1)).known_age_ms == 1_000
    world.clock.move_to(AT_MS + 1_001)
    with pytest.raises(Unavailable):
        world.scorer.score(payment(1))
    world.close()


def test_an_answer_that_was_degraded_is_not_remembered(own_redis: OwnRedis, scaled: Scaled) -> None:
    server = own_redis()
    world = made(server.url, scaled)
    world.client.delete(world.names.progress("0"))
    assert world.scorer.score(payment(1)).degraded == ("state lost",)
    server.kill()
    with pytest.raises(Unavailable):
        world.scorer.score(payment(1))
    world.close()


def test_the_settings_may_decide_what_nobody_can_judge(own_redis: OwnRedis, scaled: Scaled) -> None:
    server, writer = own_redis(), HeldWriter()
    world = made(server.url, scaled, writer=writer, fallback={"decision": "review"})
    server.kill()
    found = world.scorer.score(payment(1), as_of=AT_MS + 5)
    assert (found.score, found.decision, found.source) == (None, "review", "fallback")
    assert found.degraded == ("nothing known",)
    assert "fallback.decision" in found.reason
    assert (found.as_of, found.valid_until, found.tier) == (AT_MS + 5, AT_MS + 5, None)
    assert found.known_age_ms is None
    with pytest.raises(BadTransaction, match="before the payment's own time"):
        world.scorer.score(payment(1), as_of=AT_MS - 1)
    [decision] = decisions_of(world, writer)
    assert (decision.score, decision.decision, decision.source) == (None, "review", "fallback")
    assert decision.degraded == ("nothing known",)
    assert decision.row == world.embedded.row(payment(1))
    world.close()


def test_only_whole_answers_where_the_settings_say_so(own_redis: OwnRedis, scaled: Scaled) -> None:
    server = own_redis()
    world = made(server.url, scaled, fallback={"use_known": False})
    assert world.scorer.score(payment(1)).degraded == ()
    server.kill()
    with pytest.raises(Unavailable):
        world.scorer.score(payment(1))
    world.close()


def decisions_of(world: SharedWorld, writer: HeldWriter) -> list[Decision]:
    world.scorer.flush(20)
    return [unpacked(value) for topic, _, value in writer.sent if topic == "decisions"]


class Followed:
    """A follower that is in step when the test says so."""

    def __init__(self, world: SharedWorld) -> None:
        self._clock = world.clock
        self.is_in_step = True
        self.in_step_s = world.clock.monotonic_s()
        self.progress: tuple[bytes, ...] = (summary_of(AT_MS),)
        self.watermark_ms = AT_MS
        self.counts: dict[str, Any] = {}
        self.limit_ms = 3_000

    def may_serve(self) -> bool:
        return self.is_in_step

    def close(self) -> None:
        """Nothing is followed."""


def summary_of(watermark_ms: int) -> bytes:
    """What a node says that has applied one partition up to offset 9."""
    marker = np.array([7, 0, 9, watermark_ms], np.int64).tobytes()
    return EPOCH + struct.pack("<3q", watermark_ms, SINCE_MS, 1) + marker


def with_near(world: SharedWorld) -> Followed:
    """Let the scorer hold states near."""
    near = NearStates(world.scorer.layouts, 1 << 20)
    near.know(np.array([[7, 0, 9, AT_MS]], np.int64))
    near.flush(is_open=True)
    follower = Followed(world)
    for tag in world.nodes.tags:
        world.client.set(world.names.progress(tag), summary_of(AT_MS))
    world.scorer.take_near(NearReading(near, follower, world.clock))
    return follower


def test_near_states_out_of_step_are_used_with_what_is_pending(
    own_redis: OwnRedis, scaled: Scaled
) -> None:
    """The oracle is the embedded scorer, which is told the same events."""
    server, writer = own_redis(), HeldWriter()
    world = made(server.url, scaled, writer=writer)
    follower = with_near(world)
    # Both entities' states are held from now on.
    world.scorer.score(payment(1))
    server.kill()
    follower.is_in_step = False
    world.clock.move_to(AT_MS + 3_000)
    own = Transaction("own", AT_MS + 2_000, 9_900, "EUR", dict(payment(1).entities))
    world.scorer.observe(own)
    world.observe(own, only="embedded")
    asked = payment(2)
    found = world.scorer.score(asked)
    expected = world.embedded.scorer.score(asked, as_of=AT_MS + 3_000)
    assert found.degraded == ("states not current",)
    assert same_bits(found.score, expected.score)
    assert found.state_versions == expected.state_versions
    assert (found.known_age_ms, found.pending, found.missing) == (3_000, 1, ())
    assert found.lag_ms == 3_000
    decision = decisions_of(world, writer)[-1]
    assert (decision.degraded, decision.known_age_ms) == (("states not current",), 3_000)
    # Without a lease too: it is computed, on states that are no cached scores.
    world.scorer.take_lease(GivenLease(float("-inf")))
    assert same_bits(world.scorer.score(asked).score, expected.score)
    # Older than the limit it is not known at all.
    world.clock.move_to(AT_MS + 60_001)
    with pytest.raises(Unavailable):
        world.scorer.score(payment(3))
    world.close()


def test_an_entity_that_is_not_near_is_missing_and_not_new(
    own_redis: OwnRedis, scaled: Scaled
) -> None:
    """The oracle is the same payment without that entity."""
    server = own_redis()
    world = made(server.url, scaled)
    follower = with_near(world)
    world.scorer.score(payment(1))
    server.kill()
    follower.is_in_step = False
    first, second = [entity.name for entity in world.program.entities]
    asked = payment(2, card="c-7")
    assert first == "card"
    alone = Transaction(
        asked.transaction_id,
        asked.time,
        asked.amount_minor,
        asked.currency,
        {second: asked.entities[second]},
    )
    found = world.scorer.score(asked)
    assert found.degraded == ("state unreachable", "states not current")
    assert found.missing == ("card",)
    assert same_bits(found.score, world.embedded.scorer.score(alone, as_of=AT_MS).score)
    # A new card would have been given another one: as it is once Redis says that it is new.
    assert not same_bits(found.score, world.embedded.scorer.score(asked, as_of=AT_MS).score)
    server.start()
    world.report(AT_MS, SINCE_MS)
    assert world.scorer.score(asked).degraded == ()
    world.close()


@pytest.fixture
def cluster(own_cluster: OwnCluster) -> Any:
    # So that what is left of it goes on answering.
    return own_cluster(settings=["cluster-require-full-coverage no"])


def owners(world: SharedWorld, servers: list[RedisServer], asked: Transaction) -> dict[str, int]:
    """Entity -> number of the server that has its slot."""
    tokens = world.records.tokens(world.embedded.row(asked))
    ports = [one[1] for one in world.nodes.topology.addresses]
    return {
        entity.name: [server.port for server in servers].index(
            ports[int(world.nodes.node_of_slot[slot_of(tag_of(token))])]
        )
        for entity, token in zip(world.program.entities, tokens, strict=True)
        if token is not None
    }


def apart(world: SharedWorld, servers: list[RedisServer]) -> tuple[str, str, int, int]:
    """A card and a merchant with states on two servers, and the numbers of these."""
    for card in range(50):
        for merchant in range(50):
            asked = payment(0, f"c-{card}", f"m-{merchant}")
            found = owners(world, servers, asked)
            one, other = [*found.values()][:2]
            if one != other:
                return f"c-{card}", f"m-{merchant}", one, other
    raise AssertionError("all on one node")


def test_a_node_that_is_away_leaves_its_states_out_and_nothing_else(
    cluster: Any, scaled: Scaled
) -> None:
    """What came is used; what did not is as if it were not named: the embedded scorer says so."""
    writer = HeldWriter()
    world = made(cluster.url, scaled, cluster=True, clock=SystemClock(), writer=writer)
    first, second = [entity.name for entity in world.program.entities][:2]
    servers = cluster.primaries
    card, merchant, one, other = apart(world, servers)
    entities = {"card": card, "merchant": merchant, "terminal": merchant}
    for number in range(5):
        world.observe(
            Transaction(f"b-{number}", AT_MS - 1_000 * (9 - number), 700, "EUR", entities)
        )
    asked = Transaction("asked", AT_MS, 777, "EUR", entities)
    whole = world.scorer.score(asked, as_of=AT_MS)
    assert whole.degraded == ()
    assert same_bits(whole.score, world.embedded.scorer.score(asked, as_of=AT_MS).score)
    for gone, missing in ((other, second), (one, first)):
        with stopped(servers[gone]):
            found = in_part(world, missing, entities)
            left = {name: value for name, value in entities.items() if name != missing}
            alone = Transaction(found.transaction_id, AT_MS, 777, "EUR", left)
            expected = world.embedded.scorer.score(alone, as_of=AT_MS)
            assert same_bits(found.score, expected.score)
            [row] = world.scorer.score_many(
                [Transaction("listed", AT_MS, 777, "EUR", entities)], as_of=AT_MS
            )
            assert (row.degraded, row.missing) == (("state unreachable",), (missing,))
            assert same_bits(row.score, expected.score)
            frame = world.scorer.score_many(table_of([f"t-{gone}"], entities), as_of=AT_MS)
            assert frame["degraded"].tolist() == ["state unreachable"]
            assert same_bits(frame["score"].iloc[0], expected.score)
        whole_again(world, f"whole-{gone}", entities)
    degraded = [decision for decision in decisions_of(world, writer) if decision.degraded]
    assert {(one.degraded, one.missing) for one in degraded} == {
        (("state unreachable",), (0,)),
        (("state unreachable",), (1,)),
    }
    world.close()


def test_an_entity_is_left_out_where_either_of_its_states_is_away(
    cluster: Any, scaled: Scaled
) -> None:
    """While the secret is rotated: one of both states alone would look like fewer payments."""
    secret = SECRET.successor(AT_MS - 6_500)
    world = made(cluster.url, scaled, cluster=True, clock=SystemClock(), secret=secret)
    names = [entity.name for entity in world.program.entities]
    servers = cluster.primaries
    ports = [one.port for one in servers]
    n_tried = 0
    for number in range(200):
        entities = {"card": f"c-{number}", "merchant": f"m-{number}", "terminal": f"m-{number}"}
        row = world.packed(Transaction("any", AT_MS, 1, "EUR", entities))
        holders: list[set[int]] = []
        for at in token_places(len(names), world.packer.others_at):
            node = int(world.nodes.node_of_slot[slot_of(tag_of(row[at : at + 16]))])
            holders.append({ports.index(world.nodes.topology.addresses[node][1])})
        of_each = [holders[e] | holders[e + len(names)] for e in range(len(names))]
        current = holders[1]
        gone = (of_each[1] - of_each[0]) - (current if n_tried else set())
        if not gone:
            continue
        for nth in range(5):
            time_ms = AT_MS - 1_000 * (9 - nth)
            world.observe(Transaction(f"b-{number}-{nth}", time_ms, 700, "EUR", entities))
        asked = Transaction(f"asked-{number}", AT_MS, 777, "EUR", entities)
        assert world.scorer.score(asked, as_of=AT_MS).degraded == ()
        with stopped(servers[min(gone)]):
            found = in_part(world, names[1], entities)
            left = {name: value for name, value in entities.items() if name != names[1]}
            alone = Transaction(found.transaction_id, AT_MS, 777, "EUR", left)
            expected = world.embedded.scorer.score(alone, as_of=AT_MS)
            assert same_bits(found.score, expected.score)
        whole_again(world, f"whole-{number}", entities)
        n_tried += 1
        if n_tried == 2:
            break
    assert n_tried == 2
    world.close()


def test_marks_that_are_taken_out_are_missed(
    cluster: Any, scaled: Scaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary: without them an answer would differ from the whole one and not say so."""
    monkeypatch.setattr(cache_layout, "STATE_UNREACHABLE", 0)
    world = made(cluster.url, scaled, cluster=True, clock=SystemClock())
    card, merchant, _, other = apart(world, cluster.primaries)
    entities = {"card": card, "merchant": merchant, "terminal": merchant}
    for number in range(40):
        world.observe(Transaction(f"b-{number}", AT_MS - 10 * number, 900, "EUR", entities))
    # The identifier key is checked before anything is answered, and with all nodes.
    assert world.scorer.score(payment(1), as_of=AT_MS).degraded == ()
    with stopped(cluster.primaries[other]):
        asked = Transaction("asked", AT_MS, 777, "EUR", entities)
        found = world.scorer.score(asked, as_of=AT_MS)
    expected = world.embedded.scorer.score(asked, as_of=AT_MS)
    assert found.degraded == ()
    assert found.state_versions != expected.state_versions
    world.close()


def test_moved_nodes_are_looked_for_within_the_deadline(cluster: Any, scaled: Scaled) -> None:
    """Also where the one that is asked first stands still; what the time is short for goes on."""
    given: dict[str, Any] = {
        "redis_settings": {"timeout_ms": 5_000},
        "fallback": {"decision": "review"},
    }
    world = made(cluster.url, scaled, cluster=True, clock=SystemClock(), **given)
    still, source, target = cluster.primaries
    cards = [payment(0, card=f"c-{number}") for number in range(50)]
    asked = next(
        Transaction(one.transaction_id, AT_MS, 100, "EUR", {"card": one.entities["card"]})
        for one in cards
        if owners(world, [still, source, target], one)["card"] == 1
    )
    assert world.scorer.score(asked, as_of=AT_MS).degraded == ()
    token = world.records.tokens(world.embedded.row(asked))[0]
    assert token is not None
    slot = slot_of(tag_of(token))
    assign_slot(cluster, slot, target)
    clock, nodes = SystemClock(), world.scorer._exchanges.nodes
    assert nodes.topology.node_of_slot[slot] == 1
    with stopped(still):
        began_s = clock.monotonic_s()
        world.scorer.score(asked, as_of=AT_MS + 1, deadline_ms=400)
        took_s = clock.monotonic_s() - began_s
    assert took_s < 1.0
    assert nodes.topology.node_of_slot[slot] == 2
    world.close()


def in_part(world: SharedWorld, missing: str, entities: dict[str, str]) -> Result:
    """The first answer to a new payment that says that a state was left out."""
    for number in range(50):
        asked = Transaction(f"part-{missing}-{number}", AT_MS, 777, "EUR", entities)
        found = world.scorer.score(asked, as_of=AT_MS)
        if found.degraded:
            assert (found.degraded, found.missing) == (("state unreachable",), (missing,))
            return found
    raise AssertionError("no answer said so")


def whole_again(world: SharedWorld, mark: str, entities: dict[str, str]) -> None:
    """Wait until a breaker has let a trial through that was answered."""
    clock, never = SystemClock(), threading.Event()
    ends_s = clock.monotonic_s() + 10.0
    number = 0
    while True:
        number += 1
        asked = Transaction(f"{mark}-{number}", AT_MS, 777, "EUR", entities)
        if not world.scorer.score(asked, as_of=AT_MS).degraded:
            return
        assert clock.monotonic_s() < ends_s
        never.wait(0.02)


def table_of(names: list[str], entities: dict[str, str]) -> pd.DataFrame:
    rows = [
        {"transaction_id": name, "time": AT_MS, "amount_minor": 777, "currency": "EUR", **entities}
        for name in names
    ]
    return pd.DataFrame(rows)


def test_many_rows_are_answered_from_what_is_known_or_have_an_error(
    own_redis: OwnRedis, scaled: Scaled
) -> None:
    server = own_redis()
    world = made(server.url, scaled)
    first = world.scorer.score(payment(1))
    server.kill()
    listed = world.scorer.score_many([payment(1), payment(2)])
    assert [one.degraded for one in listed] == [("remembered",), ()]
    assert same_bits(listed[0].score, first.score)
    assert listed[1].score is None
    assert "Redis" in (listed[1].error or "")
    entities = dict(payment(1).entities)
    table = table_of(["p-1", "p-2"], entities)
    table["amount_minor"] = [payment(1).amount_minor, payment(2).amount_minor]
    frame = world.scorer.score_many(table, as_of=AT_MS + 10)
    assert frame["degraded"].tolist() == ["remembered", ""]
    assert frame["known_age_ms"].tolist()[0] == 10
    assert same_bits(frame["score"].iloc[0], first.score)
    assert "nothing is known" in frame["error"].iloc[1]
    # With nothing to say at all, it says so as one.
    with pytest.raises(Unavailable):
        world.scorer.score_many([payment(3), payment(4)])
    with pytest.raises(Unavailable):
        world.scorer.score_many(table_of(["p-3"], entities))
    world.close()


def test_threads_do_not_pile_up_behind_a_server_that_does_not_answer(
    own_redis: OwnRedis, scaled: Scaled
) -> None:
    """Eight threads at once: three wait in vain, and then nobody but a trial now and then."""
    server = own_redis()
    world = made(
        server.url,
        scaled,
        clock=SystemClock(),
        redis_settings={"max_connections": 4},
        fallback={"decision": "approve"},
    )
    clock, took_ms = SystemClock(), []
    assert world.scorer.score(payment(1), as_of=AT_MS).degraded == ()

    def ask(first: int) -> None:
        for number in range(first, first + 100):
            began_s = clock.monotonic_s()
            found = world.scorer.score(payment(number), as_of=AT_MS, deadline_ms=50)
            took_ms.append(1_000 * (clock.monotonic_s() - began_s))
            assert found.source == "fallback"

    with stopped(server):
        threads = [threading.Thread(target=ask, args=(1_000 * n,)) for n in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(took_ms) == 800
    nodes = world.scorer.stats()["nodes"]
    assert nodes["opened"] == nodes["open"] == 1
    # Connections are four, less two for who works beside: of 800 payments few were let through.
    assert nodes["failed"] < 40
    assert np.quantile(took_ms, 0.9) < 50
    world.close()


def test_a_breaker_that_is_taken_out_lets_every_payment_wait(
    own_redis: OwnRedis, scaled: Scaled
) -> None:
    """The canary of the test above: with a threshold that nobody reaches, all wait."""
    server = own_redis()
    world = made(
        server.url,
        scaled,
        clock=SystemClock(),
        breaker={"max_failures": 1_000},
        fallback={"decision": "approve"},
    )
    assert world.scorer.score(payment(1), as_of=AT_MS).degraded == ()
    with stopped(server):
        for number in range(10):
            world.scorer.score(payment(100 + number), as_of=AT_MS, deadline_ms=20)
    assert world.scorer.stats()["nodes"]["failed"] == 10
    world.close()


def test_the_seed_of_pauses_is_the_scorers(own_redis: OwnRedis, scaled: Scaled) -> None:
    world = made(own_redis().url, scaled)
    assert world.scorer._health._chance() == jitter(7)()
    world.close()
