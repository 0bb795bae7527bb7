"""What a failover of a simulated node loses, and how long it takes until it is back.

A replica that lacks the last writes takes the node's place. Its markers are as old as its states,
so consumers begin again at them, and what was lost is appended once more.
Rule: only what states held before and do not hold after it counts as lost.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from freshscore.simulations.simulated_world import SimulatedWorld
from freshscore.simulations.world_truth import BrokenLaw

_MOST_ROUNDS: Final = 400
_FLOWING_ROUNDS: Final = 6


class Repair(NamedTuple):
    """One failover: writes and records of states that were lost, and the time until all was back.

    Until then answers lack it as if it had not come yet (lag), for no marker vouches for it.
    """

    n_writes: int
    n_records: int
    repaired_s: float


def repaired(world: SimulatedWorld, number: int, n_writes: int) -> Repair:
    """Fail node `number` over, in the flow of payments, without its last `n_writes`.

    Nothing else fails meanwhile. Raises BrokenLaw.
    """
    truth, server = world.truth, world.servers.servers[number]
    with world.calm():
        for _ in range(_FLOWING_ROUNDS):
            world.say()
            world.round()
    keys = [key for key in truth.states if truth.node_of(key) == number]
    before = {key: truth.snapshot(server.node, key).records for key in keys}
    n_lost = world.servers.fail_over(number, n_writes)
    lost = {key: before[key] - truth.snapshot(server.node, key).records for key in keys}
    began_s = world.clock.monotonic_s()
    with world.calm():
        for _ in range(_MOST_ROUNDS):
            if all(lost[key] <= truth.snapshot(server.node, key).records for key in keys):
                break
            world.round()
        else:
            raise BrokenLaw(f"step {world.n_steps}: what a failover has lost does not come back")
    n_records = sum(len(records) for records in lost.values())
    return Repair(n_lost, n_records, world.clock.monotonic_s() - began_s)
