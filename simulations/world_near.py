"""Near states in a simulated world: a production follower, and what the states it keeps must count.

A near state is bytes that an exchange brought and records that the stream carried. So what it
counts is known from its bytes: what was brought stands first, and is looked up; whatever is behind
it are records. And what was published so long ago that the follower must have heard it counts.
Rule: what near states must count is decided from what was published, and when, by whoever asks; it
is never read from the follower.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from freshscore.config.errors import FreshscoreError
from freshscore.config.settings import RedisSettings
from freshscore.features.near_states import NearRoom, NearStates
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.redis_progress import topic_digest
from freshscore.features.state_layout import StateLayout
from freshscore.invalidation.following import Follower
from freshscore.invalidation.partitions import Partition
from freshscore.invalidation.stream_messages import decode
from freshscore.simulations.simulated_redis import Undo
from freshscore.simulations.simulated_servers import Servers, SimulatedNodes
from freshscore.simulations.world_processes import Process, ProcessClock
from freshscore.simulations.world_truth import BrokenLaw, Snapshot, Truth

# Different bytes of one state that are remembered: one of the last was admitted.
_MOST_BROUGHT: Final = 64
# Within this bound of silence a follower serves, in heartbeats; beyond it twice the time between
# two looks, in which what was lost in between is noticed.
_BOUND_HEARTBEATS: Final = 3.5


class NotedNear(NearStates):
    """Near states that tell what they serve: the row of the request, and its states."""

    def __init__(
        self,
        layouts: Sequence[StateLayout],
        max_bytes: int,
        served: Callable[[bytes, list[bytes | None]], None],
    ) -> None:
        super().__init__(layouts, max_bytes)
        self._served = served

    def look(self, row: bytes, room: NearRoom, now_s: int) -> list[bytes | None] | None:
        """What near states serve for a row; None where one is not held."""
        found = super().look(row, room, now_s)
        if found is not None:
            self._served(row, found)
        return found


class FollowerProcess(Process):
    """The follower of one scorer; a turn is what its thread repeats."""

    def __init__(
        self,
        settings: RedisSettings,
        names: RedisKeys,
        layouts: Sequence[StateLayout],
        near: NearStates,
        servers: Servers,
        clock: ProcessClock,
        pause: Callable[[Process, str], None],
    ) -> None:
        super().__init__(clock, pause)
        self.nodes = SimulatedNodes(settings, clock, servers, self.step)
        heartbeat_s = settings.heartbeat_s
        self.follower = Follower(self.nodes, names, layouts, near, heartbeat_s, clock=clock)

    def turn(self) -> None:
        """One turn, if it is not in the middle of one."""
        if self.is_under_way:
            return
        self.is_under_way = True
        try:
            self.follower.turn()
        except FreshscoreError:
            self.follower.recover()
        finally:
            self.is_under_way = False


class Brought:
    """What exchanges have brought to one scorer: of each state its last different bytes."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._held: dict[bytes, OrderedDict[bytes, Snapshot]] = {}
        self._last: dict[bytes, tuple[bytes, Snapshot]] = {}

    def note(self, key: bytes, data: bytes, snapshot: Snapshot) -> None:
        """An exchange has brought this."""
        held = self._held.setdefault(key, OrderedDict())
        held[data] = snapshot
        held.move_to_end(data)
        if len(held) > _MOST_BROUGHT:
            held.popitem(last=False)

    def counted(self, key: bytes, data: bytes) -> Snapshot:
        """What a near state with these bytes counts. Raises BrokenLaw."""
        known, found = self._last.get(key, (None, None))
        if found is None or known != data:
            found = self._read(key, data)
            self._last[key] = data, found
        return found

    def _read(self, key: bytes, data: bytes) -> Snapshot:
        begins = [one for one in self._held.get(key, ()) if data.startswith(one)]
        if not begins:
            raise BrokenLaw("a near state does not begin with what an exchange has brought")
        begin = max(begins, key=len)
        snapshot = self._held[key][begin]
        records = self._truth.split(key, data[len(begin) :]) - snapshot.records
        return self._truth.grown(snapshot, records) if records else snapshot


class _Entry(NamedTuple):
    """What an entry of the stream covers of a partition; upto: the highest end so far."""

    added_s: float
    begin: int
    end: int
    upto: int


class Published:
    """What was put into the invalidation stream of a world, and when.

    now_s: the world's clock. topic_ids: name -> id. n_entries: how many there were.
    """

    def __init__(
        self,
        layouts: Sequence[StateLayout],
        topic_ids: dict[str, str],
        heartbeat_s: float,
        now_s: Callable[[], float],
    ) -> None:
        self._layouts = tuple(layouts)
        self._names = {topic_digest(topic_id): name for name, topic_id in topic_ids.items()}
        self._bound_s = _BOUND_HEARTBEATS * heartbeat_s
        self._now_s = now_s
        self.n_entries = 0
        self._entries: dict[Partition, list[_Entry]] = {}

    def add(self, fields: Sequence[bytes]) -> Undo:
        """An entry was put into the stream; what takes it back, where it is lost again."""
        self.n_entries += 1
        now_s, added = self._now_s(), []
        for one in decode(fields[1], self._layouts).covered:
            if one.from_offset < one.to_offset:
                entries = self._entries.setdefault((self._names[one.topic], one.partition), [])
                upto = max(one.to_offset, entries[-1].upto if entries else 0)
                entries.append(_Entry(now_s, one.from_offset, one.to_offset, upto))
                added.append(entries)
        return lambda: [entries.pop() for entries in added]

    def heard(self, at: Partition) -> int:
        """The highest offset of a partition that was published before the bound."""
        entries = self._entries.get(at, [])
        number = self._n_before(entries)
        return entries[number - 1].upto if number else 0

    def is_heard(self, at: Partition, offset: int, since_s: float) -> bool:
        """Whether what stands at an offset was published between an instant and the bound."""
        entries = self._entries.get(at, [])
        return any(
            one.begin <= offset < one.end and one.added_s >= since_s
            for one in entries[: self._n_before(entries)]
        )

    def _n_before(self, entries: list[_Entry]) -> int:
        return bisect_right(entries, self._now_s() - self._bound_s, key=lambda one: one.added_s)
