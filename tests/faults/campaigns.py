"""The campaigns: a stream flows, something is killed, and in the end everything must be true.

Each takes its seed's generator and how much of it there is, so that a test runs a short one and a
soak a long one, and returns what was done. What a kill falls into follows from the seed and from
the machine; whatever it is, the same must hold.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from freshscore.config.clock import SystemClock
from tests.faults.deployment import Deployment, Process, pause, wait_until
from tests.faults.expected import (
    check_account,
    check_features,
    check_states,
    expected_of,
    letters_of,
)
from tests.faults.identifiers import check_no_identifiers
from tests.faults.scorer_process import said_at_the_end
from tests.faults.scorers import (
    check_decisions,
    check_nothing_blocks,
    check_scores,
    meant_by,
    told_by,
)
from tests.faults.streams import Sender, Stream

_FLOW_S = 0.05
_CHUNK = 12
_LAST_FLOW_S = 0.5
# Ten a second, beside 240 messages of the stream.
_SCORED_EVERY_S = 0.1
_DEADLINE_MS = 2_000.0
_BEGUN_S = 150.0


@dataclass
class Seen:
    """What a campaign did and found, for the table."""

    kills: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    n_states: int = 0
    n_folded: int = 0
    n_values: int = 0
    n_decisions: int = 0
    n_scores: int = 0
    n_searched: int = 0
    # What scorers counted of their answers, all of them together.
    answers: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        outcomes = ", ".join(f"{n:,} {what}" for what, n in sorted(self.outcomes.items()))
        kills = ", ".join(f"{n} {what}" for what, n in sorted(self.kills.items())) or "nothing"
        return (
            f"{kills}; {sum(self.outcomes.values()):,} messages: {outcomes}; {self.n_states} states"
            f" ({self.n_folded} folded) and {self.n_values} values equal;{self._of_scorers()}"
            f" {self.n_searched:,} places searched for identifiers"
        )

    def _of_scorers(self) -> str:
        if not self.n_decisions:
            return ""
        return f" {self.n_decisions} payments with decisions, {self.n_scores} scores equal;"


def say(line: str) -> None:
    """How far a campaign is, at once: `make soak` shows it."""
    print(line, flush=True)


class Lane:
    """One deployment with a stream of its own, and how many consumers it wants."""

    def __init__(
        self,
        deployment: Deployment,
        chance: random.Random,
        *,
        most_members: int = 1,
        span_ms: int = 2_000,
    ) -> None:
        self.deployment = deployment
        self.chance = chance
        self.most_members = most_members
        self.stream = Stream(deployment, chance, span_ms)
        self.sender = Sender(deployment, chance)
        self.seen = Seen()
        self.clock = SystemClock()
        self.lease_s = float(str(deployment.settings["redis.lease_s"]))

    def flow(self, n: int = _CHUNK) -> None:
        """Send a little."""
        self.sender.send(self.stream, n)

    def flow_for(self, wait_s: float) -> None:
        """Send a little again and again."""
        end_s = self.clock.monotonic_s() + wait_s
        while self.clock.monotonic_s() < end_s:
            self.flow()
            pause(_FLOW_S)

    def kill(self, process: Process) -> None:
        """End a consumer as kill -9 does."""
        self.deployment.end(process, signal.SIGKILL)
        self.seen.kills["SIGKILL"] += 1

    def begin_scorers(
        self, n: int, *, every_s: float = _SCORED_EVERY_S, deadline_ms: float = _DEADLINE_MS
    ) -> None:
        """Scorers that score, observe and label a little beside the stream."""
        own = self.deployment
        for number in range(n):
            told = own.folder.with_name(f"{own.folder.name}-told-{number}")
            seed = self.chance.getrandbits(32)
            own.start_scorer(self.stream.mark, seed, told, every_s, deadline_ms)
        # Their first start may compile what they score with.
        wait_until(lambda: all(one.has_begun for one in own.scorers), "they have begun", _BEGUN_S)

    def kill_scorer(self) -> None:
        """End one as kill -9 does."""
        assert self.deployment.scorers.pop().end(signal.SIGKILL) == -signal.SIGKILL
        self.seen.kills["scorers killed"] += 1

    def end_scorers(self) -> None:
        """End them in order; what each has counted adds up."""
        while self.deployment.scorers:
            process = self.deployment.scorers.pop()
            assert process.end(signal.SIGTERM) == 0, process.tail()
            said = said_at_the_end(process.log)
            counted, sent = said["counted"], said["stats"]["decisions"]
            assert sent["sent"] + sent["lost"] == counted["scored"] > 0
            assert sent["waiting"] == 0
            longest_ms = max(self.seen.answers["longest_ms"], counted.pop("longest_ms"))
            self.seen.answers.update(counted)
            self.seen.answers["longest_ms"] = longest_ms

    def stop(self, process: Process) -> None:
        """End a consumer as SIGTERM does."""
        self.deployment.end(process, signal.SIGTERM)
        self.seen.kills["SIGTERM"] += 1

    def finish(self, n_requests: int = 12) -> Seen:
        """Wait until all is done, end the consumers, and check everything."""
        if not self.deployment.processes:
            self.deployment.start()
        if self.deployment.scorers:
            check_nothing_blocks(self.deployment, self.lease_s)
            self.end_scorers()
        self.deployment.wait_until_whole()
        self.sender.close()
        self.check(n_requests)
        self.deployment.stop_all()
        marks = [self.stream.mark]
        self.seen.n_searched = check_no_identifiers(self.deployment, marks)
        return self.seen

    def check(self, n_requests: int = 12) -> None:
        """What holds at every moment at which nothing is under way.

        n_requests: how many feature vectors the oracle computes; 0 where there are too many events
        for it, and the versions of the states must do.
        """
        told = told_by(self.deployment.scorers_told)
        self.stream.meant |= meant_by(self.deployment, told)
        expected = expected_of(self.deployment, [self.stream])
        self.seen.outcomes = check_account(expected, letters_of(self.deployment))
        self.seen.n_states = check_states(self.deployment, expected, self.chance)
        self.seen.n_folded = self.deployment.n_folded()
        if n_requests:
            now_ms = self.clock.now_ms()
            self.seen.n_values = check_features(
                self.deployment, expected, self.stream, n_requests, now_ms
            )
        if told:
            self.seen.n_decisions = check_decisions(self.deployment, told)
            seed = self.chance.getrandbits(32)
            self.seen.n_scores = check_scores(self.deployment, expected, told, seed)


def consumers_killed(lanes: Sequence[Lane], n_kills: int) -> None:
    """Kill the only consumer of each lane again and again, while all lanes flow."""
    clock = SystemClock()
    due_s = [0.0] * len(lanes)
    for lane in lanes:
        lane.deployment.start()
    while min(lane.seen.kills["SIGKILL"] for lane in lanes) < n_kills:
        for number, lane in enumerate(lanes):
            now_s = clock.monotonic_s()
            if due_s[number] == 0.0:
                due_s[number] = now_s + _life_s(lane.chance)
            elif now_s >= due_s[number] and lane.seen.kills["SIGKILL"] < n_kills:
                lane.kill(lane.deployment.processes[0])
                lane.deployment.start()
                due_s[number] = 0.0
            lane.flow()
        pause(_FLOW_S)
    for lane in lanes:
        # So much that the last consumer finds states that have doubled.
        lane.flow_for(_LAST_FLOW_S)


def _life_s(chance: random.Random) -> float:
    """A third ends before it has its partitions: a dead member keeps them for a second."""
    return chance.uniform(0.05, 1.0) if chance.random() < 0.3 else chance.uniform(1.1, 2.0)


def members_change(lane: Lane, n_changes: int) -> None:
    """Consumers of one group join, leave, die, and stand still for longer than their session.

    One that stood still goes on with a batch whose partitions are another's by then.
    """
    clock, own = SystemClock(), lane.deployment
    standing: list[Process] = []
    for _ in range(lane.most_members):
        own.start()
    done = 0
    due_s = clock.monotonic_s() + 1.5
    while done < n_changes:
        lane.flow()
        pause(_FLOW_S)
        if clock.monotonic_s() < due_s:
            continue
        due_s = clock.monotonic_s() + lane.chance.uniform(0.1, 1.3)
        done += 1
        while standing:
            standing.pop().send(signal.SIGCONT)
        if lane.chance.random() < 0.25 and own.processes:
            standing.append(lane.chance.choice(own.processes))
            standing[-1].send(signal.SIGSTOP)
            lane.seen.kills["SIGSTOP"] += 1
            due_s = clock.monotonic_s() + lane.chance.uniform(0.5, 2.5)
        elif len(own.processes) < lane.most_members and lane.chance.random() < 0.7:
            own.start()
            lane.seen.kills["joined"] += 1
        elif own.processes:
            process = lane.chance.choice(own.processes)
            (lane.kill if lane.chance.random() < 0.5 else lane.stop)(process)
    while standing:
        standing.pop().send(signal.SIGCONT)
