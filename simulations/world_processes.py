"""The processes of a simulated world: production consumers and scorers, on simulated servers.

Each takes a step before anything that leaves it; there it can be killed, or stand still while all
others go on. A killed process leaves nothing behind but what servers hold.
Rule: what runs here is what runs in production; only doors, clock, waits and chance are others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from freshscore.invalidation.delivery import Delivered
from freshscore.invalidation.feed import Acceptance
from freshscore.invalidation.folding_lines import FoldingLines
from freshscore.invalidation.label_lookups import LabelLookups
from freshscore.invalidation.node_markers import NodeMarkers
from freshscore.invalidation.publishing import Publisher
from freshscore.scoring.outbox import Outbox
from freshscore.scoring.serving import ServableModel
from freshscore.scoring.shared_feed import SharedFeed
from freshscore.scoring.shared_scorer import SharedScorer
from freshscore.simulations.simulated_log import Log, SimulatedReader, SimulatedWriter
from freshscore.simulations.simulated_redis import SimulatedNode
from freshscore.simulations.simulated_servers import Servers, SimulatedNodes
from freshscore.simulations.world_chance import Chance
from freshscore.simulations.world_truth import Content, Fact, Said, Snapshot, Truth

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
                keys.key_id,
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


class Told:
    """Where decisions go: the newest are kept until they are asked for."""

    n_sent = n_lost = n_waiting = 0

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def add(self, one: bytes) -> None:
        """Hand over a decision."""
        self.records.append(one)

    def taken(self) -> list[bytes]:
        """What has come since it was last asked for."""
        found, self.records = self.records, []
        return found

    def flush(self, timeout_s: float) -> bool:
        """Nothing waits."""
        return True

    def close(self, timeout_s: float) -> None:
        """Nothing is left."""


class SimulatedScorer(SharedScorer):
    """The scorer of the shared profile, without the thread that sends its decisions."""

    def __init__(
        self,
        settings: Settings,
        nodes: SimulatedNodes,
        model: ServableModel,
        program: Program,
        keys: Keys,
        writer: SimulatedWriter,
        clock: Clock,
        seed: int,
    ) -> None:
        super().__init__(
            settings, nodes, model, program, keys, clock=clock, seed=seed, shares_scores=False
        )
        self.told = Told()
        self._decisions = cast("Outbox[bytes]", self.told)
        packer = self._open_serving().packer
        acceptance = Acceptance.of(settings.store)
        self._shared_feed = SharedFeed(
            writer, settings.kafka, packer, acceptance, self._pending, clock
        )


class Observed:
    """One event or fact that a scorer handed to the log, as its state will hold it.

    records: by the key of each state. ends_s: when it is given up, on the monotonic clock; infinite
    until the log has it. since: the number of the first score that must count it; until_ms: when it
    is too late to be accepted. is_void: it was not sent, or is refused. seen_at: by key the number
    of the last score that had begun when one read it there.
    """

    __slots__ = ("ends_s", "is_void", "records", "seen_at", "since", "until_ms")

    def __init__(self, records: Mapping[bytes, bytes], since: int, until_ms: int) -> None:
        self.records = dict(records)
        self.ends_s = math.inf
        self.since = since
        self.until_ms = until_ms
        self.is_void = False
        self.seen_at: dict[bytes, int] = {}


class ScorerProcess(Process):
    """A process that scores, observes and labels.

    observed: by the key of each state what was handed to the log and may be pending. asked: what is
    being scored; states, summaries: what that has read so far.
    """

    def __init__(
        self,
        settings: Settings,
        program: Program,
        keys: Keys,
        model: ServableModel,
        servers: Servers,
        log: Log,
        clock: ProcessClock,
        chance: Chance,
        pause: Callable[[Process, str], None],
        truth: Truth,
    ) -> None:
        super().__init__(clock, pause)
        self.truth = truth
        self.pending_s = settings.redis.pending_s
        self.n_scores = 0
        self.asked: Sequence[Content] = ()
        self.observed: dict[bytes, list[Observed]] = {}
        self.states: dict[bytes, Snapshot] = {}
        self.summaries: dict[bytes, bytes | None] = {}
        self.nodes = SimulatedNodes(settings.redis, clock, servers, self.step, self._read)
        self.writer = SimulatedWriter(log, self.step)
        seed = chance.getrandbits(_DRAWN_BITS)
        self.scorer = SimulatedScorer(
            settings, self.nodes, model, program, keys, self.writer, clock, seed
        )

    def _read(self, node: SimulatedNode, commands: Sequence[Sequence[bytes]]) -> None:
        states, truth = self.states, self.truth
        for parts in commands:
            if parts[0] == b"GET":
                key = parts[1]
                if key in truth.states:
                    states[key] = truth.snapshot(node, key)
                else:
                    self.summaries[key] = node.held(key)

    def observe(self, content: Content) -> None:
        """Observe a payment. Raises Unavailable."""
        given = zip(content.states, content.records, strict=True)
        records = {key: record for key, record in given if key is not None}
        until_ms = content.transaction.time + self.truth.horizon_ms - _MARGIN_MS
        one = self._observed(records, until_ms)
        self.scorer.observe(content.transaction)
        sent = self.writer.on_way[-1]
        self.truth.say(sent.value, Said(content))
        self._keep(one)
        told = sent.done

        def done(at: Delivered | None) -> None:
            one.ends_s = self.clock.monotonic_s() + self.pending_s
            one.is_void = at is None or self.truth.refusal(content, at.arrival_ms) is not None
            if told is not None:
                told(at)

        sent.done = done

    def label(self, content: Content, value: bool) -> None:
        """Say of a payment whether it is a fraud. Raises Unavailable."""
        paid = content.transaction
        entities, time = dict(paid.entities), paid.time
        self.scorer.label(paid.transaction_id, entities=entities, time=time, fraud=value)
        sent = self.writer.on_way[-1]
        sent_ms = self.clock.now_ms()
        said = Said(content, ((0, value),), sent_ms)
        self.truth.say(sent.value, said)
        told = sent.done

        def done(at: Delivered | None) -> None:
            if at is not None:
                # From now on it is pending, for only now it is known since when it is known.
                fact = Fact(content.number, 0, value, sent_ms, max(sent_ms, at.arrival_ms))
                records = self.truth.fact_records(self.truth.fact(fact))
                one = self._observed(records, _EVER_MS)
                one.ends_s = self.clock.monotonic_s() + self.pending_s
                self._keep(one)
            if told is not None:
                told(at)

        sent.done = done

    def _observed(self, records: Mapping[bytes, bytes], until_ms: int) -> Observed:
        return Observed(records, self.n_scores + 1, until_ms)

    def _keep(self, one: Observed) -> None:
        for key in one.records:
            self.observed.setdefault(key, []).append(one)
