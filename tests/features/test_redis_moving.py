"""Slots that move between nodes: a state is served with what vouches for it, or it is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes, command
from freshscore.features.redis_former_nodes import forget_former_nodes
from freshscore.features.redis_keys import slot_of, tag_of
from freshscore.features.redis_reading import STATE_LOST, StoredStates
from tests.features.moving_slots import assign_slot, move_slot
from tests.features.stored_states import NOON_MS, Ground, Payment
from tests.features.stores import EPOCH, RedisPlace, redis_settings
from tests.servers.fixtures import OwnCluster
from tests.servers.redis_servers import RedisCluster

pytestmark = pytest.mark.servers

CARD = 0
PAYMENT = Payment(1, NOON_MS)


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground()


@pytest.fixture
def cluster(own_cluster: OwnCluster) -> RedisCluster:
    return own_cluster()


@pytest.fixture
def nodes(cluster: RedisCluster) -> Iterator[Nodes]:
    with closing(Nodes.open(redis_settings(cluster.url, cluster=True))) as opened:
        yield opened


@pytest.fixture
def place(ground: Ground, nodes: Nodes) -> RedisPlace:
    made = RedisPlace(ground, nodes)
    made.open().observe(ground.row(PAYMENT))
    return made


def read(place: RedisPlace) -> StoredStates:
    return place.open().read_states([place.ground.row(PAYMENT)])[0]


def card_slot(place: RedisPlace) -> int:
    return slot_of(tag_of(place.ground.token(PAYMENT, CARD)))


def another_node(cluster: RedisCluster, nodes: Nodes, slot: int) -> int:
    """A node that does not have a slot now."""
    return (int(nodes.node_of_slot[slot]) + 1) % len(cluster.primaries)


def test_a_slot_that_came_empty_has_lost_its_states(
    place: RedisPlace, cluster: RedisCluster, nodes: Nodes
) -> None:
    """As where a node is gone for good, and its slots are given to others."""
    assert read(place).problems == (None, None, None)
    slot = card_slot(place)
    target = another_node(cluster, nodes, slot)
    assign_slot(cluster, slot, cluster.primaries[target])
    # Read with nodes that are not yet known to have changed, and when they are.
    for _ in range(2):
        found = read(place)
        assert found.states[CARD] is None
        assert found.problems[CARD] == STATE_LOST
    assert int(nodes.node_of_slot[slot]) == target


def test_a_slot_that_came_with_its_states_is_not_vouched_for_by_its_new_node(
    place: RedisPlace, cluster: RedisCluster, nodes: Nodes
) -> None:
    """Nobody can see whether all of them came; once the nodes are whole again they are served."""
    before = read(place)
    slot = card_slot(place)
    target = another_node(cluster, nodes, slot)
    assert move_slot(cluster, slot, cluster.primaries[target]) > 0
    assert read(place).problems[CARD] == STATE_LOST
    place.open().begin(EPOCH)
    after = read(place)
    assert after.problems == (None, None, None)
    assert [s.version for s in after.states if s] == [s.version for s in before.states if s]


def test_a_slot_that_went_and_came_back_is_not_vouched_for_by_what_was_said_before(
    place: RedisPlace, cluster: RedisCluster, nodes: Nodes
) -> None:
    """It was elsewhere, and what became of it there nobody knows."""
    slot, names = card_slot(place), place.open().names
    source = int(nodes.node_of_slot[slot])
    target = another_node(cluster, nodes, slot)
    assert forget_former_nodes(nodes, names) == 0
    before = nodes.tags
    for node in (target, source):
        assign_slot(cluster, slot, cluster.primaries[node])
        nodes.refresh()
        assert forget_former_nodes(nodes, names) == 2
    assert nodes.tags == before
    assert read(place).problems[CARD] == STATE_LOST
    # The node that had no part in it is as whole as it was.
    asked = [(tag.encode(), command(b"EXISTS", names.markers(tag))) for tag in nodes.tags]
    whole = [node for node, there in enumerate(replies_to(nodes, asked)) if there]
    assert whole == [3 - source - target]
    assert forget_former_nodes(nodes, names) == 0
