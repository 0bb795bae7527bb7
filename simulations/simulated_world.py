"""A world in one thread, on a virtual clock, from one number: servers, consumers, scorers, trouble.

A step is one of what can happen: payments are said, consumers turn, scorers score and observe, time
goes by, servers fail, processes die. Wherever a process waits for a server it may stand still, and
others go on in between, as deep as two. Each answer is checked (simulations/world_answers.py), and
now and then all trouble ends, and everything must come to rest as the log says.
Rule: everything is drawn from the seed: a run is repeated by its number, whatever machine it is on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from freshscore.config.errors import AsOfTooOld, BadTransaction, FreshscoreError, Unavailable
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import Program
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.state_layout import state_fingerprints
from freshscore.invalidation.deployment import claim_key
from freshscore.invalidation.identifier_keys import IdentifierKeys
from freshscore.invalidation.partitions import Partition
from freshscore.scoring.serving import ServableModel
from freshscore.simulations.clock import VirtualClock
from freshscore.simulations.simulated_log import Log
from freshscore.simulations.simulated_redis import SimulatedNode
from freshscore.simulations.simulated_servers import Servers, SimulatedNodes
from freshscore.simulations.world_answers import Answers
from freshscore.simulations.world_chance import Chance
from freshscore.simulations.world_checks import Checks
from freshscore.simulations.world_faults import Faults
from freshscore.simulations.world_near import FollowerProcess, Published
from freshscore.simulations.world_processes import (
    ConsumerProcess,
    Killed,
    Process,
    ProcessClock,
)
from freshscore.simulations.world_producers import Producers
from freshscore.simulations.world_scorer import Reading, ScorerProcess
from freshscore.simulations.world_traffic import BEGIN_MS, Traffic
from freshscore.simulations.world_truth import BrokenLaw, Content, Truth

_KEPT_WRITES: Final = 300
# Nodes, and seconds of a heartbeat: a short one often comes before the next message, a long one
# keeps followers in step for long.
_DEPLOYMENTS: Final = ((1, 1.0), (1, 4.0), (1, 4.0), (3, 1.0), (3, 4.0))
_CLUSTERS: Final = ((2, 1.0), (3, 1.0), (3, 4.0))
_MOVES: Final = ("move", "move", "go on")
_PARTITIONS: Final = 3
_LABEL_PARTITIONS: Final = 2
_ROWS: Final = 128
_CLOCK_ERROR_MS: Final = 300
# A member that has not polled for so long has left.
_SESSION_MS: Final = 3_000
_MOST_ROUNDS: Final = 200
# A lost node is noticed by the next heartbeat.
_LEAST_ROUNDS: Final = 20
_ROUND_MS: Final = 250
_ROUNDS_OF_HEARTBEAT: Final = 17
# Room for near states: none, so little that states are thrown out, and enough.
_NEAR_BYTES: Final = (0, 1 << 14, 1 << 18, 1 << 18)
_ASKED_RECENT: Final = 300
# Where answers are whole, many payments are scored at many instants, on states that hardly change
# meanwhile: so many exchanges, each up to so long after its payments.
_SURVEYED: Final = 48
_SURVEYED_MS: Final = 700_000
_DEEPEST: Final = 2
# How many of the worlds begin with whole nodes; the others are degraded for a while.
_BEGUN_AT_REST: Final = 0.8


@dataclass(frozen=True)
class Ground:
    """What worlds share: it is the same in all of them, and dear to make.

    contradicts: whether payments are said with several contents. Where events are folded early,
    the content that came first counts, and not the smaller one: not what the oracles say.
    moves: whether there is a cluster whose slots go from node to node.
    """

    settings: Settings
    program: Program
    keys: Keys
    model: ServableModel
    contradicts: bool = True
    moves: bool = False


class SimulatedWorld:
    """One world, drawn from `chance`; `run` lets things happen.

    changed: is called with each process that begins, and may take a protection out of it.
    n_surveyed: exchanges of one survey of the payments of late; 0 for none.
    """

    def __init__(
        self,
        chance: Chance,
        ground: Ground,
        changed: Callable[[Process], None] = lambda process: None,
    ) -> None:
        self.chance = chance
        self._ground = ground
        self._changed = changed
        self.clock = VirtualClock(BEGIN_MS)
        self.faults = Faults.drawn(chance)
        if ground.moves:
            self.faults.kinds += _MOVES
        n_nodes, heartbeat_s = chance.choice(_CLUSTERS if ground.moves else _DEPLOYMENTS)
        changes = {"cluster": n_nodes > 1, "heartbeat_s": heartbeat_s}
        redis = ground.settings.redis.model_copy(update=changes)
        self._settings = settings = ground.settings.model_copy(update={"redis": redis})
        kafka = settings.kafka
        nodes = [
            SimulatedNode(self._clock(), _KEPT_WRITES, lambda fields: self.published.add(fields))
            for _ in range(n_nodes)
        ]
        limit_s = settings.redis.timeout_ms / 1_000
        self.servers = Servers(nodes, chance, self._let_pass, limit_s)
        topics = {
            kafka.transactions_topic: _PARTITIONS,
            kafka.labels_topic: _LABEL_PARTITIONS,
            kafka.dead_letters_topic: 1,
        }
        packer = Packer(ground.program, ground.keys, ground.model.codes, ground.model.cohorts)
        self.truth = Truth(settings, ground.program, ground.keys, packer, self.servers.node_of_slot)
        self.broker_clock = self._clock()
        self.log = Log(topics, chance, self.broker_clock.now_ms, self._came)
        self.traffic = Traffic(chance)
        self._producers = Producers(
            chance,
            self.clock,
            settings.kafka,
            self.log,
            self.truth,
            self.traffic,
            contradict=ground.contradicts,
        )
        self.checks = Checks(ground.program.specification, ground.keys, self.truth, ground.model)
        self._names = RedisKeys(settings.redis.namespace, state_fingerprints(ground.program))
        self.published = Published(
            self.truth.maker.layouts,
            self.log.topic_ids,
            settings.redis.heartbeat_s,
            self.clock.monotonic_s,
        )
        self.answers = Answers(
            self.truth,
            self.checks,
            self.servers,
            self.log,
            self.published,
            kafka.clock_error_ms,
        )
        self.counts: Counter[str] = Counter()
        self.n_steps = self.n_acts = 0
        self.n_surveyed = _SURVEYED
        self._depth = 0
        self._is_calm = False
        self._letters: set[bytes] = set()
        self._last_poll_ms: dict[ConsumerProcess, int] = {}
        admin = SimulatedNodes(settings.redis, self.clock, self.servers, lambda what: None)
        own = IdentifierKeys.of(settings, ground.program, ground.keys)
        claim_key(admin, self._names, own, self.clock.now_ms())
        self.consumers: list[ConsumerProcess] = []
        self.scorers: list[ScorerProcess] = []
        for _ in range(chance.choice((1, 2, 2))):
            self._begin_consumer()
        self._begin_scorer()
        self.faults.begin(self.servers, self.log)

    # Processes

    def _clock(self) -> ProcessClock:
        error_ms = self.chance.randint(-_CLOCK_ERROR_MS, _CLOCK_ERROR_MS)
        return ProcessClock(self.clock, error_ms)

    def _begin_consumer(self) -> None:
        ground = self._ground
        process = ConsumerProcess(
            self._settings,
            ground.program,
            ground.keys,
            self.servers,
            self.log,
            self._clock(),
            self.chance,
            self._pause,
        )
        self._changed(process)
        self.consumers.append(process)
        self._last_poll_ms[process] = self.clock.now_ms()

    def _begin_scorer(self) -> None:
        ground = self._ground
        process = ScorerProcess(
            self._settings,
            ground.program,
            ground.keys,
            ground.model,
            self.servers,
            self.log,
            self._clock(),
            self.chance,
            self._pause,
            self.truth,
            self.chance.choice(_NEAR_BYTES),
        )
        self._changed(process)
        self.scorers.append(process)

    def _pause(self, process: Process, what: str) -> None:
        """A process waits for a server: at times others go on in between."""
        self.n_steps += 1
        if what == "blocked":
            self._meanwhile()
            return
        faults, chance = self.faults, self.chance
        if self._depth >= _DEEPEST or not faults.pause or chance.random() >= faults.pause:
            return
        if isinstance(process, ScorerProcess):
            if what != "receive":
                return
            reading = process.reading
            # It may have shown them to the scorer, though it has not answered.
            self.answers.note_seen(process, reading.asked)
        self._depth += 1
        self.counts["pauses"] += 1
        try:
            for _ in range(chance.randint(1, 6)):
                self.act()
            if isinstance(process, ConsumerProcess) and chance.random() < 0.5:
                # Another member writes to the states that this one looks at, or replaces them.
                self.say()
                self._turn()
                if chance.random() < 0.5:
                    self._compact_beside()
            if isinstance(process, ScorerProcess) and chance.random() < 0.5:
                # Another thread of this scorer sees what has come to be since.
                self._score_all(process, [chance.choice(reading.asked)])
            if isinstance(process, ScorerProcess) and process.following is not None:
                # What is published meanwhile is applied before the exchange is admitted.
                process.following.turn()
        finally:
            self._depth -= 1
            if isinstance(process, ScorerProcess):
                process.reading = reading

    def _meanwhile(self) -> None:
        """A follower waits for entries of the stream."""
        if self._depth >= _DEEPEST:
            return
        self._depth += 1
        try:
            if self._is_calm:
                n_before = self.published.n_entries
                for _ in range(_ROUNDS_OF_HEARTBEAT):
                    if self.published.n_entries == n_before:
                        self.round()
            else:
                for _ in range(self.chance.randint(0, 3)):
                    self.act()
        finally:
            self._depth -= 1

    def _compact_beside(self) -> None:
        """A member compacts states of late, whoever else does."""
        idle = [one for one in self.consumers if not one.is_under_way and not one.is_asleep]
        if idle:
            with _may_be_away():
                self.chance.choice(idle).compact([one.row for one in self._asked_of(8)])

    def _let_pass(self, wait_s: float) -> None:
        self.clock.move_to(self.clock.now_ms() + max(1, round(1_000 * wait_s)))

    def _came(self, at: Partition, offset: int, value: bytes, arrival_ms: int) -> None:
        self.truth.came(at, offset, value, arrival_ms)

    # What happens

    def run(self, n_scores: int, *, rests: int = 2, most_acts: int = 1_000) -> None:
        """Let things happen until so many scores were answered, coming to rest so often.

        most_acts: what is enough where hardly any is answered, for trouble never ends.
        Raises BrokenLaw, and whatever else a process should not have raised.
        """
        if self.chance.random() < _BEGUN_AT_REST:
            with self.calm():
                self._settle()
            self.faults.begin(self.servers, self.log)
        scores, acts = self.counts["scores"], self.n_acts
        for rest in range(1, rests + 1):
            while (
                self.counts["scores"] - scores < n_scores * rest // rests
                and self.n_acts - acts < most_acts * rest // rests
            ):
                self.act()
            self.come_to_rest()
            self.faults.begin(self.servers, self.log)
        self.checks.settle()

    def act(self) -> None:
        """One step."""
        self.n_acts += 1
        doing = self.chance.choices([*_OFTEN], [*_OFTEN.values()])[0]
        self.counts[doing] += 1
        _ACTIONS[doing](self)

    def say(self) -> None:
        """Some messages of producers."""
        self._producers.say()

    def _say_label(self) -> None:
        self._producers.say_label()

    def _turn(self) -> None:
        awake = [one for one in self.consumers if not one.is_under_way and not one.is_asleep]
        if not awake:
            return
        self._turn_of(self.chance.choice(awake))

    def _turn_of(self, process: ConsumerProcess) -> None:
        chance = self.chance
        if self.faults.kill and chance.random() < self.faults.kill:
            process.kills_in = chance.randrange(30)
        self._last_poll_ms[process] = self.clock.now_ms()
        try:
            process.turn()
        except Killed:
            self.counts["kills"] += 1
            self.consumers.remove(process)
        process.kills_in = None

    def _evict(self) -> None:
        """Who has not polled for long, or is dead, is no member any more."""
        now_ms = self.clock.now_ms()
        for process, polled_ms in [*self._last_poll_ms.items()]:
            if now_ms - polled_ms > _SESSION_MS:
                self.log.leave(process.reader)
                if process not in self.consumers:
                    del self._last_poll_ms[process]

    def _move_time(self) -> None:
        chance = self.chance
        step_ms = chance.choice((1, 20, 100, 300, 700, 1_100, 2_000, 5_000))
        if chance.random() < 0.01:
            step_ms = chance.choice((20_000, 90_000, 400_000))
        self.clock.move_to(self.clock.now_ms() + step_ms)
        self._evict()
        self._beat()
        for one in self._followings():
            self._follow(one)

    def _follow(self, following: FollowerProcess) -> None:
        if self.chance.random() < self.faults.followed:
            following.turn()

    def _follow_one(self) -> None:
        followings = self._followings()
        if followings:
            self._follow(self.chance.choice(followings))

    def _deliver(self) -> None:
        process = self.chance.choice(self.scorers)
        process.writer.deliver(self.chance.choice((1, 3, None)))

    def _observe(self) -> None:
        chance, process = self.chance, self.chance.choice(self.scorers)
        if process.is_under_way and chance.random() < 0.5:
            return
        now_ms = self.clock.now_ms()
        contents = [
            self.truth.content(self.traffic.payment(now_ms))
            for _ in range(chance.choice((1, 1, 3)))
        ]
        for content in contents:
            process.observe(content)
        if chance.random() < 0.1:
            process.label(chance.choice(contents), chance.random() < 0.7)
        if chance.random() < 0.5:
            self._score_all(process, contents[-1:])

    # Scores

    def _score(self) -> None:
        """One payment, or some after each other, which may find the states of the first near."""
        chance, process = self.chance, self.chance.choice(self.scorers)
        if process.following is None:
            self._score_all(process, [self._asked()])
            return
        self._follow(process.following)
        for _ in range(chance.choice((1, 4, 20))):
            self._score_all(process, [self._asked()])

    def _score_many(self) -> None:
        """Some payments, or as many as there are of late at many instants."""
        chance, process = self.chance, self.chance.choice(self.scorers)
        self._score_all(process, self._asked_of(chance.choice((3, 40, _ROWS))))
        if not self._depth:
            self._survey(process)

    def _survey(self, process: ScorerProcess) -> None:
        """Score the payments of late at many instants."""
        counts, chance = self.answers.counts, self.chance
        for _ in range(self.n_surveyed):
            n_whole, asked = counts["whole"], self._asked_of(_ROWS)
            self._score_all(process, asked, chance.randrange(_SURVEYED_MS))
            # Of answers that are degraded, or refused, there is nothing more to be learned.
            if 2 * (counts["whole"] - n_whole) < len(asked):
                return

    def _asked(self) -> Content:
        """A content to be scored: one of late, or new."""
        contents = self.truth.contents
        if not contents or self.chance.random() < 0.03:
            return self.truth.content(self.traffic.payment(self.clock.now_ms()))
        back = min(int(self.chance.expovariate(1 / 60)), len(contents) - 1, _ASKED_RECENT)
        return contents[-1 - back]

    def _asked_of(self, n: int) -> list[Content]:
        """So many contents of late, each once, and one that may be new."""
        late = self.truth.contents[-_ASKED_RECENT:]
        return [*self.chance.sample(late, min(n - 1, len(late))), self._asked()]

    def _score_all(
        self, process: ScorerProcess, contents: Sequence[Content], ahead_ms: int | None = None
    ) -> None:
        """Have these scored in one exchange, and check the answers.

        ahead_ms: as of so long after the last of them; None for now, or so.
        """
        scorer, chance = process.scorer, self.chance
        process.n_scores += 1
        number = process.n_scores
        outer, process.reading = process.is_under_way, Reading(contents)
        told_before = scorer.told.taken()
        process.is_under_way = True
        paid = [one.transaction for one in contents]
        if ahead_ms is None and chance.random() < 0.2:
            ahead_ms = chance.choice((0, 0, 1, 5_000, 60_000))
        as_of = None
        if ahead_ms is not None:
            as_of = max(one.time for one in paid) + ahead_ms
        try:
            if len(paid) == 1:
                results = [scorer.score(paid[0], as_of=as_of)]
            else:
                results = scorer.score_many(paid, as_of=as_of)
        except (Unavailable, AsOfTooOld, BadTransaction) as problem:
            self.counts[type(problem).__name__] += 1
            if isinstance(problem, BadTransaction):
                raise
            results = []
        finally:
            process.is_under_way = outer
        decisions = scorer.told.taken()
        scorer.told.records = told_before
        self.counts["scores"] += len(results)
        if results:
            self.answers.take(process, number, contents, results, decisions, self.n_steps)

    # Trouble

    def _trouble(self) -> None:
        processes: list[Process] = [*self.consumers, *self.scorers, *self._followings()]
        happened = self.faults.happen(self.servers, self.log, self.broker_clock, processes)
        self.counts[happened] += 1

    def _change_members(self) -> None:
        """A consumer comes or goes, or partitions move for no reason."""
        chance = self.chance
        drawn = chance.random()
        idle = [one for one in self.consumers if not one.is_under_way]
        if len(self.consumers) < 3 and (drawn < 0.5 or not self.consumers):
            try:
                self._begin_consumer()
            except Unavailable:
                self.counts["not begun"] += 1
        elif drawn < 0.8 and len(idle) > 1:
            process = chance.choice(idle)
            self.consumers.remove(process)
            if chance.random() < 0.5:
                # In good order.
                with _may_be_away():
                    process.consumer.close()
        else:
            self.log.rebalance()

    def _change_scorers(self) -> None:
        """A scorer begins in another's place: what was pending there is forgotten."""
        idle = [one for one in self.scorers if not one.is_under_way]
        if len(self.scorers) > 1 and idle:
            gone = self.chance.choice(idle)
            self.scorers.remove(gone)
            if self.chance.random() < 0.5:
                gone.writer.deliver()
        if len(self.scorers) < 2:
            with _may_be_away():
                self._begin_scorer()

    def _nothing(self) -> None:
        """Time for others."""

    # Rest

    def come_to_rest(self) -> None:
        """End all trouble, let everything be applied, and check that it is what the log says.

        Raises BrokenLaw.
        """
        with self.calm():
            self._settle()
            self._check_rest()

    @contextmanager
    def calm(self) -> Iterator[None]:
        """Nobody is killed or stands still here."""
        faults = self.faults
        kept = faults.pause, faults.kill
        faults.pause = faults.kill = 0.0
        self._is_calm = True
        try:
            yield
        finally:
            self._is_calm = False
            faults.pause, faults.kill = kept

    def _settle(self) -> None:
        self.faults.end(self.servers, self.log)
        for scorer in self.scorers:
            scorer.writer.deliver()
        if not self.consumers:
            self._begin_consumer()
        for number in range(_MOST_ROUNDS):
            self.round()
            for following in self._followings():
                following.turn()
            if number >= _LEAST_ROUNDS and self._is_at_rest():
                break
        else:
            raise BrokenLaw(f"step {self.n_steps}: nothing fails, and it does not come to rest")

    def round(self) -> None:
        """A turn of each consumer that is not in the middle of one, and a quarter of a second."""
        for process in [*self.consumers]:
            if not process.is_asleep and not process.is_under_way:
                self._turn_of(process)
        self.clock.move_to(self.clock.now_ms() + _ROUND_MS)
        self._evict()
        self._beat()

    def _beat(self) -> None:
        """Only who asks for what has moved is told so by a node."""
        for process in self.scorers if self._ground.moves else ():
            process.beat()

    def _followings(self) -> list[FollowerProcess]:
        return [one.following for one in self.scorers if one.following is not None]

    def _is_at_rest(self) -> bool:
        kafka = self._settings.kafka
        read = (kafka.transactions_topic, kafka.labels_topic)
        ends = {at: len(self.log.partitions[at]) for name in read for at in self.log.of_topic(name)}
        given = {at for one in self.consumers for at in one.reader.assignment}
        busy = [one for one in self.consumers if one.reader.assignment]
        return (
            self._is_vouched()
            and all(one.follower.may_serve() for one in self._followings())
            and given == ends.keys()
            and all(one.consumer.is_caught_up for one in busy)
            and all(self.log.committed.get(at, 0) == end for at, end in ends.items() if end)
        )

    def _is_vouched(self) -> bool:
        """Whether each node says how far it has got: one that has lost anything is rebuilt."""
        nodes = [one.node for one in self.servers.servers]
        keys = map(self._names.progress, self.servers.found().tags)
        return all(any(one.held(key) for one in nodes if one.owns(key)) for key in keys)

    def _check_rest(self) -> None:
        for key, state in self.truth.states.items():
            held = self.truth.snapshot(
                self.servers.servers[self.truth.node_of(key)].node, key
            ).records
            must = self.truth.must_hold(key)
            if held != must:
                raise BrokenLaw(
                    f"step {self.n_steps}: at rest a state of entity {state.entity} lacks"
                    f" {len(must - held)} of {len(must)} records, and has {len(held - must)} others"
                )
        self._check_letters()
        # Who has not asked since a node was away finds a connection that is lost, and says so.
        for process in self.scorers:
            self._score_all(process, [self._asked() for _ in range(_ROWS)])
        before = Counter(self.answers.counts)
        for process in self.scorers:
            for _ in range(4):
                # Those of late may be too old to be asked for by now.
                paid = self.truth.content(self.traffic.payment(self.clock.now_ms()))
                self._score_all(process, [*self._asked_of(_ROWS - 1), paid])
            self._survey(process)
        new = self.answers.counts - before
        if new["degraded"] or not new["whole"]:
            raise BrokenLaw(f"step {self.n_steps}: at rest {new['degraded']} answers are degraded")
        self.checks.settle()

    def _check_letters(self) -> None:
        """Whatever was refused has its letter."""
        topic = self._settings.kafka.dead_letters_topic
        said = set()
        for value in self.log.partitions[topic, 0].values:
            letter = msgspec.json.decode(value)
            said.add(((letter["topic"], letter["partition"]), letter["offset"]))
            place = ((letter["topic"], letter["partition"]), letter["offset"])
            if letter["reason"] != "conflict" and place not in self.truth.refused:
                raise BrokenLaw(f"step {self.n_steps}: {letter['reason']} at {place} was accepted")
        missing = self.truth.refused.keys() - said
        if missing:
            raise BrokenLaw(f"step {self.n_steps}: {len(missing)} refused messages have no letter")


@contextmanager
def _may_be_away() -> Iterator[None]:
    """Whatever is done here may find no server."""
    try:
        yield
    except FreshscoreError as problem:
        if not problem.retryable:
            raise


_ACTIONS: Final = {
    "say": SimulatedWorld.say,
    "label": SimulatedWorld._say_label,
    "turn": SimulatedWorld._turn,
    "time": SimulatedWorld._move_time,
    "deliver": SimulatedWorld._deliver,
    "observe": SimulatedWorld._observe,
    "follow": SimulatedWorld._follow_one,
    "score": SimulatedWorld._score,
    "score many": SimulatedWorld._score_many,
    "trouble": SimulatedWorld._trouble,
    "members": SimulatedWorld._change_members,
    "scorers": SimulatedWorld._change_scorers,
}
_OFTEN: Final = {
    "say": 20,
    "label": 6,
    "turn": 40,
    "time": 25,
    "deliver": 8,
    "observe": 10,
    "follow": 12,
    "score": 14,
    "score many": 8,
    "trouble": 8,
    "members": 2,
    "scorers": 0.3,
}
