"""What must hold of one answer, by what its request read: before any oracle looks at its features.

    said        its version of each state is that of the records that were read, and of those that
                are pending; nothing else counts (law 1)
    vouched     an answer that is not degraded lacks nothing that its nodes' markers vouch for, and
                a node without an epoch makes it degraded (laws 5 and 6); and nothing is to come
                that arrived before a marker says
    near        a near state lacks nothing that its follower says, and nothing that was published
                before the bound of silence
    own writes  what its scorer observed counts, until it was seen, refused, lost or given up

Rule: an answer that says that it is degraded is counted, and not looked at further.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from freshscore.features.past_events import bucket_of_identity
from freshscore.features.redis_progress import Marker, progress_of, topic_digest
from freshscore.invalidation.partitions import Partition
from freshscore.scoring import cache_layout as c
from freshscore.scoring.result import Result
from freshscore.simulations.simulated_log import Log
from freshscore.simulations.simulated_redis import SimulatedNode
from freshscore.simulations.simulated_servers import Servers
from freshscore.simulations.world_checks import Checked, Checks
from freshscore.simulations.world_near import Published
from freshscore.simulations.world_scorer import Observed, ScorerProcess
from freshscore.simulations.world_truth import BrokenLaw, Content, Snapshot, Truth

# Of optional pending records all are tried, and every choice of fewer than so many of the first.
_MOST_TRIED: Final = 8
_MOST_CHOSEN_FROM: Final = 12
_IDENTITY_BYTES: Final = 8
_MOST_UNITED: Final = 20_000
_FORGOTTEN_S: Final = 30.0


def _bucket_of(identity: bytes) -> int:
    return bucket_of_identity(int.from_bytes(identity[:_IDENTITY_BYTES], "little"))


class Answers:
    """Looks at the answers of one world.

    clock_error_ms: by how much stamps may go back.
    """

    def __init__(
        self,
        truth: Truth,
        checks: Checks,
        servers: Servers,
        log: Log,
        published: Published,
        clock_error_ms: int,
    ) -> None:
        self._truth = truth
        self._checks = checks
        self._servers = servers
        self._log = log
        self._published = published
        self._clock_error_ms = clock_error_ms
        self._partitions = {
            (topic_digest(log.topic_ids[at[0]]), at[1]): at for at in log.partitions
        }
        self._markers: dict[bytes, dict[Partition, int]] = {}
        # Of a state and a partition: how often its node had lost writes, how many were found.
        self._found: dict[tuple[bytes, Partition], tuple[tuple[SimulatedNode, int], int]] = {}
        # Of a state: the summary and losses with which it lacked nothing; later ones only grow.
        self._whole: dict[bytes, tuple[bytes, SimulatedNode, int]] = {}
        self._united: dict[tuple[int, tuple[bytes, ...]], Snapshot] = {}
        self.counts: Counter[str] = Counter()

    def take(
        self,
        process: ScorerProcess,
        number: int,
        contents: Sequence[Content],
        results: Sequence[Result],
        decisions: Iterable[bytes],
        step: int,
    ) -> None:
        """Check the answers of score number `number` of the process. Raises BrokenLaw.

        decisions: of all that are no error, in order.
        """
        counts, following = self.counts, iter(decisions)
        # Rows that read one state, and count the same of what is pending, are looked at once.
        looked_at: dict[tuple[bytes, bytes, bytes], Snapshot] = {}
        for content, result in zip(contents, results, strict=True):
            decision = None if result.error is not None else next(following)
            if decision is None or result.score is None:
                counts["set aside"] += 1
                continue
            counts[result.source or ""] += 1
            if result.degraded:
                counts["degraded"] += 1
                continue
            counts["whole"] += 1
            counts["near"] += process.reading.near is not None
            # Identities are the end of a decision (scoring/decisions.py).
            pending = decision[len(decision) - _IDENTITY_BYTES * result.pending :]
            counts["with pending"] += bool(pending)
            served: list[Snapshot | None] = []
            at, raw = c.OUT_VERSIONS, result.raw
            for key in content.states:
                state = None
                if key is not None:
                    which = (key, raw[at : at + 16], pending)
                    state = looked_at.get(which)
                    if state is None:
                        state = self._served(process, number, content, *which, step)
                        looked_at[which] = state
                served.append(state)
                at += 16
            self._checks.add(Checked(step, content, result.as_of, result.score, tuple(served)))
        self.note_seen(process, contents)

    def _served(
        self,
        process: ScorerProcess,
        number: int,
        content: Content,
        key: bytes,
        version: bytes,
        pending: bytes,
        step: int,
    ) -> Snapshot:
        """What an answer counts of one state, which has this version in it."""
        counted = [
            pending[at : at + _IDENTITY_BYTES] for at in range(0, len(pending), _IDENTITY_BYTES)
        ]
        said: list[str] = []
        for read in process.reading.states[key]:
            state, n_missing = self._compared(read, content, version), 0
            if key in process.observed:
                found = self._with_pending(process, number, content, key, read, version, counted)
                state, n_missing = found
            if n_missing:
                said.append(f"{n_missing} events that this scorer has observed do not count")
            elif state.version != version:
                said.append(
                    f"entity {read.entity} has version {version.hex()[:8]}; of the"
                    f" {len(read.records)} records that were read it is {state.version.hex()[:8]}"
                )
            else:
                if process.reading.near is None:
                    self._check_vouched(process, key, read, state, step)
                else:
                    self._check_near(process.reading.near, key, read, state, step)
                return state
        raise BrokenLaw(f"step {step}: {'; or '.join(said)}")

    def _with_pending(
        self,
        process: ScorerProcess,
        number: int,
        content: Content,
        key: bytes,
        read: Snapshot,
        version: bytes,
        pending: Sequence[bytes],
    ) -> tuple[Snapshot, int]:
        """What was read with what is pending; and of how much that must be pending nothing is."""
        now_s = process.clock.monotonic_s()
        must: set[bytes] = set()
        may: set[bytes] = set()
        for one in process.observed[key]:
            record = one.records[key]
            if record in read.records:
                continue
            if self._is_due(process, one, key, number, now_s):
                must.add(record)
            elif record[:8] in pending:
                may.add(record)
        missing = {record[:8] for record in must} - {*pending}
        if missing:
            return read, len(missing)
        options = sorted(may - must)
        # Mostly all of them; what left one state before it left another makes the others.
        for n in (len(options), *range(min(len(options), _MOST_TRIED))):
            among = options if n == len(options) else options[:_MOST_CHOSEN_FROM]
            for some in itertools.combinations(among, n):
                state = self._compared(self._union(read, must | {*some}), content, version)
                if state.version == version:
                    return state, 0
        return self._union(read, must), 0

    def _is_due(
        self, process: ScorerProcess, one: Observed, key: bytes, number: int, now_s: float
    ) -> bool:
        """Whether an event that was not read must be pending for score number `number`."""
        if one.is_void or now_s >= one.ends_s or number < one.since:
            return False
        if process.clock.now_ms() > one.until_ms:
            return False
        return one.seen_at.get(key, number) >= number

    def _compared(self, state: Snapshot, content: Content, version: bytes) -> Snapshot:
        """The state of this version, if some of what it passes over was compared for the request.

        That is what may be in the buckets for which it has asked: of its own payment, and of facts
        whose events were folded.
        """
        if state.version == version or not state.passed:
            return state
        truth = self._truth
        told = [truth.contents[truth.facts[n].content].identity for n in state.facts.tolist()]
        asked = {_bucket_of(one) for one in (content.identity, *told)}
        some = sorted(one for one in state.passed if _bucket_of(one) in asked)[:_MOST_CHOSEN_FROM]
        for n in range(len(some), 0, -1):
            for chosen in itertools.combinations(some, n):
                found = self._counting(state, chosen)
                if found.version == version:
                    return found
        return state

    def _counting(self, state: Snapshot, records: tuple[bytes, ...]) -> Snapshot:
        which = (id(state), (b"counting", *records))
        found = self._united.get(which)
        if found is None:
            found = self._united[which] = self._truth.counting(state, frozenset(records))
            self._united[id(state), (b"",)] = state
        return found

    def _union(self, read: Snapshot, records: set[bytes]) -> Snapshot:
        if not records:
            return read
        which = (id(read), tuple(sorted(records)))
        found = self._united.get(which)
        if found is None:
            if len(self._united) >= _MOST_UNITED:
                self._united.clear()
            found = self._truth.grown(read, frozenset(records))
            # Kept with what it was made of, whose number is then nobody else's.
            self._united[which] = found
            self._united[id(read), (b"",)] = read
        return found

    def note_seen(self, process: ScorerProcess, contents: Sequence[Content]) -> None:
        """What states have shown is not pending for scores that begin from now on.

        If its node loses it after that, it comes back with the consumer, and not before.
        """
        now_s = process.clock.monotonic_s()
        for key in {key for one in contents for key in one.states if key is not None}:
            held = process.observed.get(key)
            if not held:
                continue
            read = process.reading.states.get(key, ())
            for one in held:
                if any(one.records[key] in snapshot.records for snapshot in read):
                    one.seen_at.setdefault(key, process.n_scores)
            if not process.is_under_way:
                # Time went by since they were united: what has just ended may have counted.
                held[:] = [one for one in held if now_s < one.ends_s + _FORGOTTEN_S]
                if not held:
                    del process.observed[key]

    def _check_vouched(
        self, process: ScorerProcess, key: bytes, read: Snapshot, state: Snapshot, step: int
    ) -> None:
        known = self._truth.states[key]
        summary, node = process.reading.vouchers[key]
        if summary is None:
            raise BrokenLaw(f"step {step}: a node without an epoch gave an answer that is whole")
        losses = (node, node.n_losses)
        found = (summary, *losses)
        if self._whole.get(key) == found:
            return
        markers = self._markers_of(summary, step)
        is_whole = True
        for at, entries in known.log.items():
            then, first = self._found.get((key, at), (losses, 0))
            if then != losses:
                first = 0
            end = bisect_left(entries, (markers.get(at, 0), b""))
            if end <= first:
                continue
            for offset, record in entries[first:end]:
                if record in read.records:
                    continue
                is_whole = False
                if record not in state.records:
                    raise BrokenLaw(
                        f"step {step}: a node's marker vouches for {at[0]} {at[1]} up to"
                        f" {markers.get(at, 0)}, and what stands at {offset} does not count"
                    )
            if is_whole:
                self._found[key, at] = (losses, end)
        if is_whole:
            self._whole[key] = found

    def _check_arrival(self, at: Partition, marker: Marker, step: int) -> None:
        """Nothing that is to come of a partition has arrived before its marker says."""
        first_ms = self._log.partitions[at].first_arrival_ms(marker.offset)
        if first_ms is not None and first_ms < marker.arrival_ms - self._clock_error_ms:
            raise BrokenLaw(
                f"step {step}: a marker of {at[0]} {at[1]} says that nothing before"
                f" {marker.arrival_ms} is to come, and at {marker.offset} or behind it stands what"
                f" arrived at {first_ms}"
            )

    def _check_near(
        self, summary: bytes, key: bytes, read: Snapshot, state: Snapshot, step: int
    ) -> None:
        """A near state counts what its follower says, and what was published before its bound."""
        said, published = self._markers_of(summary, step), self._published
        known = self._truth.states[key]
        node = self._servers.servers[self._truth.node_of(key)].node
        for at, entries in known.log.items():
            for offset, record in entries[: bisect_left(entries, (said.get(at, 0), b""))]:
                if record not in read.records and record not in state.records:
                    raise BrokenLaw(
                        f"step {step}: a near state lacks what stands at {offset} of {at[0]}"
                        f" {at[1]}, and its follower says that it counts"
                    )
            for offset, record in entries[: bisect_left(entries, (published.heard(at), b""))]:
                if record in read.records or record in state.records:
                    continue
                # What was lost since, and came again, was published again.
                came_s = node.came_s(key, record)
                if came_s is not None and published.is_heard(at, offset, came_s):
                    raise BrokenLaw(
                        f"step {step}: a near state lacks what stands at {offset} of {at[0]}"
                        f" {at[1]}, which was published before its bound"
                    )

    def _markers_of(self, summary: bytes, step: int) -> dict[Partition, int]:
        found = self._markers.get(summary)
        if found is None:
            if len(self._markers) > 1_000:
                self._markers.clear()
            found = {}
            for one in progress_of(summary).markers:
                at = self._partitions[one.topic, one.partition]
                found[at] = one.offset
                self._check_arrival(at, one, step)
            self._markers[summary] = found
        return found
