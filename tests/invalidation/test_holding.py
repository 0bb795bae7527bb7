"""The hold on folding: one at a time, for as long as it is renewed, and no longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from freshscore.config.errors import StoreInUse, Unavailable
from freshscore.config.settings import RedisSettings
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.invalidation.folding_lines import HOLD
from freshscore.invalidation.holding import Hold
from freshscore.simulations.clock import VirtualClock
from tests.servers.redis_servers import RedisServer

LIFE_S = 60.0


@pytest.fixture
def nodes(redis_server: RedisServer) -> Iterator[Nodes]:
    found = Nodes.open(RedisSettings(url=redis_server.url))
    yield found
    found.close()


@pytest.fixture
def keys(namespace: str) -> RedisKeys:
    return RedisKeys(namespace)


def life_ms(redis_server: RedisServer, keys: RedisKeys) -> int:
    with redis_server.client() as client:
        return int(client.pttl(keys.control(HOLD)))


def end(redis_server: RedisServer, keys: RedisKeys) -> None:
    """What its life does, at once."""
    with redis_server.client() as client:
        for key in client.keys(keys.prefix + b"control}:hold*"):
            client.delete(key)


def test_it_is_one_process_and_ends_with_it(
    redis_server: RedisServer, nodes: Nodes, keys: RedisKeys
) -> None:
    clock = VirtualClock(0)
    with Hold(nodes, keys, "a", LIFE_S, clock):
        assert 0 < life_ms(redis_server, keys) <= 1_000 * LIFE_S
        with pytest.raises(StoreInUse, match="within 60 s"), Hold(nodes, keys, "b", LIFE_S, clock):
            pass
        # Who was refused has ended nothing.
        assert life_ms(redis_server, keys) > 0
    assert life_ms(redis_server, keys) == -2
    with Hold(nodes, keys, "b", LIFE_S, clock):
        pass


def test_it_is_renewed_where_a_third_of_its_life_has_passed(
    redis_server: RedisServer, nodes: Nodes, keys: RedisKeys
) -> None:
    clock = VirtualClock(0)
    with Hold(nodes, keys, "a", LIFE_S, clock) as hold:
        with redis_server.client() as client:
            client.pexpire(keys.control(HOLD), 5_000)
        hold.renew()
        assert life_ms(redis_server, keys) <= 5_000
        clock.move_to(round(1_000 * LIFE_S / 3))
        hold.renew()
        assert life_ms(redis_server, keys) > 5_000


def test_one_that_has_ended_is_not_renewed(
    redis_server: RedisServer, nodes: Nodes, keys: RedisKeys
) -> None:
    """Something may have been folded meanwhile, whether or not another has it now."""
    clock = VirtualClock(0)
    with Hold(nodes, keys, "a", LIFE_S, clock) as hold:
        end(redis_server, keys)
        clock.move_to(round(1_000 * LIFE_S))
        with pytest.raises(Unavailable, match="has ended"):
            hold.renew()
        with Hold(nodes, keys, "b", LIFE_S, clock):
            with pytest.raises(Unavailable, match="has ended"):
                hold.renew()
            assert life_ms(redis_server, keys) > 0


def test_its_own_end_leaves_that_of_another(
    redis_server: RedisServer, nodes: Nodes, keys: RedisKeys
) -> None:
    clock = VirtualClock(0)
    first = Hold(nodes, keys, "a", LIFE_S, clock)
    first.__enter__()
    end(redis_server, keys)
    with Hold(nodes, keys, "b", LIFE_S, clock):
        first.__exit__(None, None, None)
        assert life_ms(redis_server, keys) > 0
