"""The processes of a simulated world: production consumers and scorers, on simulated servers.

Each takes a step before anything that leaves it; there it can be killed, or stand still while all
others go on. A killed process leaves nothing behind but what servers hold.
Rule: what runs here is what runs in production; only doors, clock, waits and chance are others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from freshscore.config.clock import Clock
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys
from freshscore.features.program import Program
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_erasing import Eraser
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.redis_store import RedisStore
from freshscore.features.state_layout import state_fingerprints
from freshscore.features.store import StoreLimits
from freshscore.invalidation.batches import Batcher
from freshscore.invalidation.consumer import Consumer, ConsumerParts
from freshscore.invalidation.dead_letters import DeadLetters
from freshscore.invalidation.folding_lines import FoldingLines
from freshscore.invalidation.label_lookups import LabelLookups
from freshscore.invalidation.node_markers import NodeMarkers
from freshscore.invalidation.publishing import Publisher
from freshscore.simulations.simulated_log import Log, SimulatedReader, SimulatedWriter
from freshscore.simulations.simulated_servers import Servers, SimulatedNodes
from freshscore.simulations.world_chance import Chance

_DIGEST_KEY: Final = bytes(16)
_DRAWN_BITS: Final = 63
_DELIVERED_AT_ONCE: Final = 0.5
# What clocks may be wrong by, taken together: an event so near the horizon may be refused or not.
_MARGIN_MS: Final = 2_000
_EVER_MS: Final = 1 << 62


class Killed(BaseException):
    """The process has ended in the middle of what it did."""


class ProcessClock:
    """The clock of one process: the world's, and wrong by so much."""

    def __init__(self, clock: Clock, error_ms: int) -> None:
        self._clock = clock
        self.error_ms = error_ms

    def now_ms(self) -> int:
        """Milliseconds UTC since the epoch, as this process believes."""
        return self._clock.now_ms() + self.error_ms

    def monotonic_s(self) -> float:
        """Seconds that never step back."""
        return self._clock.monotonic_s()


class Process:
    """One process. pause: called where it stands still; kills_in: steps that it has left."""

    def __init__(self, clock: ProcessClock, pause: Callable[[Process, str], None]) -> None:
        self.clock = clock
        self.kills_in: int | None = None
        self.is_under_way = False
        self._pause = pause

    def step(self, what: str) -> None:
        """Before something leaves the process. Raises Killed."""
        if self.kills_in is not None:
            self.kills_in -= 1
            if self.kills_in < 0:
                raise Killed
        self._pause(self, what)


class _Waiting:
    """What a consumer waits on after trouble: no time goes by, but it is not asked until then."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.until_s = 0.0

    def is_set(self) -> bool:
        """Whether it was told to stop: never."""
        return False

    def wait(self, limit_s: float) -> bool:
        """Sleep for so long."""
        self.until_s = self._clock.monotonic_s() + limit_s
        return False


class ConsumerProcess(Process):
    """A consumer of the group."""

    def __init__(
        self,
        settings: Settings,
        program: Program,
        keys: Keys,
        servers: Servers,
        log: Log,
        clock: ProcessClock,
        chance: Chance,
        pause: Callable[[Process, str], None],
    ) -> None:
        super().__init__(clock, pause)
        self._chance = chance
        kafka, store_settings = settings.kafka, settings.store
        nodes = SimulatedNodes(settings.redis, clock, servers, self.step)
        names = RedisKeys(settings.redis.namespace, state_fingerprints(program))
        store = RedisStore(program, keys, StoreLimits.of(store_settings), nodes, clock)
        self._maker = store.maker
        topics = (kafka.transactions_topic, kafka.labels_topic)
        topic_ids = {name: log.topic_ids[name] for name in topics}
        self.reader = SimulatedReader(log, topics, self.step)
        self.writer = SimulatedWriter(log, self.step)
        self._waiting = _Waiting(clock)
        parts = ConsumerParts(
            reader=self.reader,
            nodes=nodes,
            batcher=Batcher.of(settings, program, keys, nodes.node_of_slot),
            letters=DeadLetters(self.writer, kafka.dead_letters_topic, kafka.request_timeout_s),
            markers=NodeMarkers(
                nodes,
                names,
                keys.record_id,
                topic_ids,
                n_partitions=sum(len(log.of_topic(name)) for name in topics),
                draw=lambda: chance.getrandbits(_DRAWN_BITS),
                skew_ms=1_000 * store_settings.skew_s,
            ),
            publisher=Publisher(
                settings.redis, store.maker.layouts, topic_ids, chance.randbytes(8)
            ),
            lookups=LabelLookups(nodes, store.index, kafka.clock_error_ms),
            compactor=Compactor(store, nonce=lambda: chance.getrandbits(_DRAWN_BITS)),
            eraser=Eraser(store, nonce=lambda: chance.getrandbits(_DRAWN_BITS)),
            folding=FoldingLines(settings, nodes, names, program.specification.held_ms),
            topic_ids=topic_ids,
            digest_key=_DIGEST_KEY,
            clock=clock,
        )
        self.consumer = Consumer(settings, parts)
        self.consumer._stopping = cast("Any", self._waiting)

    @property
    def is_asleep(self) -> bool:
        """Whether it waits after trouble."""
        return self.clock.monotonic_s() < self._waiting.until_s

    def turn(self) -> None:
        """One turn. Raises Killed."""
        self.is_under_way = True
        try:
            self.consumer.turn(0)
            # Else what it has sent is still on its way when the next turn begins.
            if self._chance.random() < _DELIVERED_AT_ONCE:
                self.writer.deliver()
        finally:
            self.is_under_way = False

    def compact(self, rows: Sequence[bytes]) -> None:
        """Compact the states of these payments, due or not. Raises Unavailable."""
        parts = self.consumer._parts
        wanted = {
            (entity, token): None
            for row in rows
            for entity, token in enumerate(self._maker.tokens(row))
            if token is not None
        }
        self.is_under_way = True
        try:
            parts.compactor.compact([*wanted], only_due=False)
        finally:
            self.is_under_way = False
