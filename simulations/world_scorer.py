"""A scorer of a simulated world: the production scorer, and what it must count beside its states.

What a request has read is noted as servers and near states hand it out, so that its answer can be
checked on that; and what the scorer has observed is followed until it may be forgotten.
Rule: nothing is noted that a request might not have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, cast

from freshscore.config.clock import Clock
from freshscore.config.errors import Unavailable
from freshscore.config.settings import Settings
from freshscore.features import row as r
from freshscore.features.packing import Keys
from freshscore.features.program import Program
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.state_layout import state_fingerprints
from freshscore.invalidation.delivery import Delivered
from freshscore.invalidation.feed import Acceptance
from freshscore.scoring.near_reading import NearReading
from freshscore.scoring.outbox import Outbox
from freshscore.scoring.serving import ServableModel
from freshscore.scoring.shared_feed import SharedFeed
from freshscore.scoring.shared_scorer import SharedScorer
from freshscore.simulations.simulated_log import Log, SimulatedWriter
from freshscore.simulations.simulated_redis import SimulatedNode
from freshscore.simulations.simulated_servers import Servers, SimulatedNodes, Told
from freshscore.simulations.world_chance import Chance
from freshscore.simulations.world_near import Brought, FollowerProcess, NotedNear
from freshscore.simulations.world_processes import Process, ProcessClock
from freshscore.simulations.world_truth import Content, Fact, Said, Snapshot, Truth

_DRAWN_BITS: Final = 63
# What clocks may be wrong by, taken together: an event so near the horizon may be refused or not.
_MARGIN_MS: Final = 2_000
_EVER_MS: Final = 1 << 62


class ToldDecisions:
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
        self.told = ToldDecisions()
        self._decisions = cast("Outbox[bytes]", self.told)
        self.take_decide(self.told.add)
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


@dataclass
class Reading:
    """What one request asks for, and has read so far.

    states: by key what was read, each time that it was, the latest first: a state is read once more
    where something that was folded of it is asked for, and other rows stand on what was before.
    vouchers: by key the node, and what it said of itself with the state. near: of the follower,
    where the states were near. shown: by key near states that rows were answered on without Redis.
    """

    asked: Sequence[Content] = ()
    states: dict[bytes, list[Snapshot]] = field(default_factory=dict)
    vouchers: dict[bytes, tuple[bytes | None, SimulatedNode]] = field(default_factory=dict)
    near: bytes | None = None
    shown: dict[bytes, list[Snapshot]] = field(default_factory=dict)


class ScorerProcess(Process):
    """A process that scores, observes and labels; near_bytes: room for near states, 0 for none.

    observed: by the key of each state what was handed to the log and may be pending. reading: the
    request that is under way.
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
        near_bytes: int,
    ) -> None:
        super().__init__(clock, pause)
        self.truth = truth
        self.pending_s = settings.redis.pending_s
        self.n_scores = 0
        self.observed: dict[bytes, list[Observed]] = {}
        self.reading = Reading()
        self.nodes = SimulatedNodes(settings.redis, clock, servers, self.step, self._reading)
        self.writer = SimulatedWriter(log, self.step)
        seed = chance.getrandbits(_DRAWN_BITS)
        self.scorer = SimulatedScorer(
            settings, self.nodes, model, program, keys, self.writer, clock, seed
        )
        self._brought = Brought(truth)
        self.following: FollowerProcess | None = None
        if near_bytes:
            layouts = self.scorer.layouts
            near = NotedNear(layouts, near_bytes, self._served_near)
            names = RedisKeys(settings.redis.namespace, state_fingerprints(program))
            self.following = FollowerProcess(
                settings.redis, names, layouts, near, servers, clock, pause
            )
            self.scorer.take_near(NearReading(near, self.following.follower, clock))

    def _reading(self) -> Told:
        """Who notes what the request that is under way now reads, and when it does."""
        reading, truth = self.reading, self.truth

        def read(node: SimulatedNode, commands: Sequence[Sequence[bytes]]) -> None:
            # Rows of one exchange ask for the same states.
            asked = (parts[1] for parts in commands if parts[0] in (b"GET", b"MGET"))
            summary: bytes | None = None
            says = False
            for key in dict.fromkeys(asked):
                if not node.owns(key):
                    continue
                held = node.held(key)
                if key in truth.states:
                    # What is read once more, with what was folded, has no question before it.
                    if says:
                        reading.vouchers[key] = summary, node
                    snapshot = truth.snapshot(node, key)
                    reading.states.setdefault(key, []).insert(0, snapshot)
                    if self.following is not None:
                        self._brought.note(key, held or b"", snapshot)
                else:
                    summary, says = held, True

        return read

    def _served_near(self, row: bytes, states: list[bytes | None]) -> None:
        """The request that is under way has read near states, of all its entities or of some.

        Of some, and of several payments, only where Redis did not answer: what is told then is
        degraded, and what it has shown is not pending any more.
        """
        reading, following = self.reading, self.following
        assert following is not None
        if len(reading.asked) == 1:
            (reading.near,) = following.follower.progress
        for asked in reading.asked:
            if asked.row[:16] != row[:16]:
                continue
            for entity, (key, data) in enumerate(zip(asked.states, states, strict=True)):
                at = r.TOKENS + 16 * entity
                if key is None or asked.row[at : at + 16] != row[at : at + 16]:
                    continue
                found = self._brought.counted(key, data or b"")
                if len(reading.asked) == 1:
                    reading.states[key] = [found]
                else:
                    # Other rows stand on what an exchange has brought.
                    reading.shown.setdefault(key, []).append(found)

    def beat(self) -> None:
        """What the thread that keeps its lease does too: look now and then where the nodes are."""
        nodes = [self.nodes]
        if self.following is not None:
            # The same as the scorer's, but for the steps that it takes.
            nodes.append(self.following.nodes)
        for one in nodes:
            with suppress(Unavailable), one.lines():
                pass

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
