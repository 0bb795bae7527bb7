"""The follower: a thread that applies the invalidation stream to near states, and says when they
may be served.

It waits for entries (XREAD BLOCK), so that what is published is applied as soon as this thread may
run. It is in step while the stream was read to its end and every partition was heard within the
bound, by the monotonic clock; both from before they were asked for or sent. Four times a heartbeat
it looks whether the entry that it had read by the last look is still in the stream: the oldest are
trimmed first, so if that one is there, nothing behind it was missed; if it is not, the stream was
trimmed beyond it, deleted, made anew, or lost with Redis' data. With that look it reads the nodes'
progress, for which partitions there are, and whether a node has lost its data.

    what happens                                   what follows
    a partition or the connection is silent        near states wait, and are served again after it
    a message shows a gap, or is damaged           flush; what comes after is followed
    the entry read last is gone; silence for long  flush once Redis answers (until then they are all
                                                   that is known); its end is looked for anew
    a node's epoch, or since when it is complete,  flush
    has changed
    a message of other layouts                     ignored: it is about other states

Rule: nothing is admitted before every partition was heard once, for a gap could not be seen. What
is not known to be in step is not served; that costs an exchange, never an answer.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import Closed, DamagedState, FreshscoreError, Unavailable
from freshscore.features.near_states import GROUPS_AT_ONCE, NearStates
from freshscore.features.redis_commands import error_of
from freshscore.features.redis_door import MOVED_WORDS, Lines, Nodes, Reply, ReplyError, command
from freshscore.features.redis_keys import CONTROL, RedisKeys
from freshscore.features.redis_progress import Marker, Progress, progress_of
from freshscore.features.state_layout import StateLayout
from freshscore.invalidation.publishing import STREAM
from freshscore.invalidation.step import Step
from freshscore.invalidation.stream_messages import StreamMessage, decode, encode, layouts_digest

# Heartbeats without which a partition counts as silent: one that is lost on the way, and the time
# between two readings, are not silence yet.
_BOUND_HEARTBEATS: Final = 3.0
_LOOKS: Final = 4.0
# Entries of one reading. If it brings so many there may be more, and the end is not reached.
_ENTRIES: Final = 16
# Groups that are decoded and applied before other threads get the interpreter: about 80 us; what is
# done for each message takes as long as so many of them. A pause that were shorter would be over
# before the others wake.
_IN_ONE_GO: Final = 1_024
_GROUPS_OF_MESSAGE: Final = 200
_PAUSE_S: Final = 50e-6
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 2.0
_DIGEST_AT: Final = 32
_MAGIC: Final = b"fsinval\x01"
_NEVER_S: Final = float("-inf")
_SUMMARY: Final = struct.Struct("<8s3q")
_DELAYS: Final = 1_024
_HAS_ENTRY: Final = b"return #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])"
# What a waiting reader is told by a primary that becomes a replica.
_UNBLOCKED: Final = "UNBLOCKED"
_COUNTED: Final = (
    *("messages", "groups", "gaps", "damaged", "other layouts", "restarts", "troubles"),
)


class Follower:
    """Follows the stream of one namespace for `near`, from `start` until `close`.

    keys: with the fingerprints of all states. bound_s: how long a silence may be; by default three
    heartbeats. It keeps one connection to each node. until_s: until when near states may be served,
    on the monotonic clock; in_step_s: when they were in step for the last time. progress: summaries
    of what all near states hold at least, in the form of those of nodes; to be read before the
    states are.
    """

    def __init__(
        self,
        nodes: Nodes,
        keys: RedisKeys,
        layouts: Sequence[StateLayout],
        near: NearStates,
        heartbeat_s: float,
        *,
        bound_s: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._nodes = nodes
        self._keys = keys
        self._stream = keys.control(STREAM)
        self._layouts = tuple(layouts)
        self._digest = layouts_digest(self._layouts).to_bytes(8, "little")
        self._near = near
        self._look_s = heartbeat_s / _LOOKS
        self._bound_s = _BOUND_HEARTBEATS * heartbeat_s if bound_s is None else bound_s
        self._clock = clock or SystemClock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="freshscore-follower", daemon=True)
        self._lines: Lines | None = None
        self._topology = nodes.topology
        self._step = Step()
        self._is_open = False
        # What is held is kept meanwhile: it is what answers without Redis are made from.
        self._was_away = False
        # The entry that was read last, and the one that was read last when it was last looked for.
        self._last: bytes | None = None
        self._seen: bytes | None = None
        # Before this instant everything was read, by the monotonic clock.
        self._ended_s = _NEVER_S
        self._next_look_s = _NEVER_S
        self._n_in_one_go = 0
        self._epochs: dict[str, tuple[bytes, int]] = {}
        self._counts = dict.fromkeys(_COUNTED, 0)
        self._sent_ms = np.zeros(_DELAYS, np.int64)
        self._applied_us = np.zeros(_DELAYS, np.int64)
        # Read by every score: each is replaced in one piece.
        self.until_s = 0.0
        self.in_step_s = _NEVER_S
        self.progress: tuple[bytes, ...] = ()
        self.watermark_ms = 0
        near.flush(is_open=False)

    def start(self) -> None:
        """Follow from now on, in a thread of its own."""
        # Compiled before anything waits for it.
        decode(encode(self._layouts, bytes(8), 0, 0, ()), self._layouts)
        self._thread.start()

    def close(self) -> None:
        """Follow no longer; near states are not served any more."""
        self._stopping.set()
        self.until_s = 0.0
        if self._thread.is_alive():
            self._thread.join(self._look_s + self._nodes.limit_s)
        self.until_s = 0.0

    @property
    def limit_ms(self) -> int:
        """How far behind Redis near states may be while they are served."""
        return round(1_000 * self._bound_s)

    def may_serve(self) -> bool:
        """Whether near states are in step within the bound, now."""
        return self._clock.monotonic_s() < self.until_s

    @property
    def counts(self) -> dict[str, Any]:
        """What was counted since the beginning, and delays of late.

        propagation_ms: from when a message was sent, by its sender's clock, to when it was applied,
        by this one's; clocks of two machines differ. applying_us: from when it was received.
        """
        n = min(self._counts["messages"], _DELAYS)
        return {
            **self._counts,
            "in_step": self.may_serve(),
            "propagation_ms": _quantiles(self._sent_ms[:n]),
            "applying_us": _quantiles(self._applied_us[:n]),
        }

    # The thread

    def _run(self) -> None:
        n_troubles = 0
        while not self._stopping.is_set():
            try:
                self.turn()
                n_troubles = 0
            except Closed:
                break
            except FreshscoreError as problem:
                if n_troubles & (n_troubles - 1) == 0:
                    logging.getLogger("freshscore").warning(
                        "the invalidation stream cannot be followed: %s", problem
                    )
                wait_s = _FIRST_WAIT_S * 2.0 ** min(n_troubles, 10)
                self._stopping.wait(min(wait_s, _LONGEST_WAIT_S))
                n_troubles += 1
                self.recover()
        self._let_go()

    def recover(self) -> None:
        """After an error of `turn`, and a wait: the next one begins on new connections."""
        self._let_go()
        self._count("troubles")
        self._was_away = True
        # The node may be another one by now, and nobody else may be asking.
        with contextlib.suppress(FreshscoreError):
            self._nodes.refresh()

    def turn(self) -> None:
        """Look if it is time, and read what comes until the next look: what the thread repeats.

        Raises Unavailable and other errors of Redis, after which it may be tried again.
        """
        now_s = self._clock.monotonic_s()
        if self._lines is None or now_s >= self._next_look_s:
            self._next_look_s = now_s + self._look_s
            self._look(self._connected())
            if self._was_away:
                self._was_away = False
                self._give_up_after_silence()
        self._read(self._connected())
        self._give_up_after_silence()

    def _connected(self) -> Lines:
        """Connections to the nodes as they are."""
        if self._nodes.topology is not self._topology:
            self._let_go()
        if self._lines is None:
            self._topology = self._nodes.topology
            self._lines = self._nodes.borrow()
        return self._lines

    def _let_go(self) -> None:
        lines, self._lines = self._lines, None
        if lines is not None:
            self._nodes.give_back(lines)

    def _asked(self, lines: Lines, parts: Sequence[bytes], limit_s: float) -> Reply:
        """The reply of the node that has the stream."""
        requests: list[bytes | None] = [None] * lines.n
        node = self._topology.node_of(CONTROL.encode())
        requests[node] = command(*parts)
        n_replies = [int(request is not None) for request in requests]
        reply = lines.exchange(requests, n_replies, limit_s)[node][0]
        self._check(reply)
        return reply

    def _check(self, reply: Reply) -> None:
        if isinstance(reply, ReplyError):
            if reply.word in MOVED_WORDS:
                self._nodes.refresh()
            if reply.word == _UNBLOCKED:
                raise Unavailable(f"Redis: {reply}")
            raise error_of(reply)

    # The stream

    def _read(self, lines: Lines) -> None:
        """Wait for entries until the next look, and take them."""
        asked_s = self._clock.monotonic_s()
        block_s = max(0.001, self._next_look_s - asked_s)
        parts = [b"XREAD", b"COUNT", b"%d" % _ENTRIES, b"BLOCK", b"%d" % max(1, block_s * 1_000)]
        parts += [b"STREAMS", self._stream, self._last or b"$"]
        reply = self._asked(lines, parts, block_s + self._nodes.limit_s)
        received_s = self._clock.monotonic_s()
        entries = reply[0][1] if reply else []
        if self._last is None:
            # The first entries came after this was asked.
            self._ended_s = asked_s
        self._n_in_one_go = 0
        for name, fields in entries:
            self._take(fields[1], received_s)
            self._last = name
            if self._seen is None:
                self._seen = name
        if self._last is not None and len(entries) < _ENTRIES:
            self._ended_s = asked_s
        self._open_if_whole()

    def _take(self, data: bytes, received_s: float) -> None:
        """Apply one message."""
        if data[: len(_MAGIC)] == _MAGIC and data[_DIGEST_AT : _DIGEST_AT + 8] != self._digest:
            # If this is damage, the offsets of the next one show it.
            self._count("other layouts")
            return
        try:
            message = decode(data, self._layouts)
        except DamagedState:
            self._count("damaged")
            self._near.flush(is_open=self._is_open)
            return
        if self._step.shows_gap(message):
            self._count("gaps")
            self._near.flush(is_open=self._is_open)
        for first in range(0, len(message.groups), GROUPS_AT_ONCE):
            last = min(first + GROUPS_AT_ONCE, len(message.groups))
            self._let_others_go(last - first)
            self._near.apply(message.address, message.groups, first, last)
        # What was sent came behind all that the reading before this one has brought.
        self._step.hear(message, self._ended_s)
        self._note(message, received_s)
        self._tell_progress()

    def _let_others_go(self, n_groups: int) -> None:
        """Give the interpreter away before so many groups, where it was kept for long enough.

        Not more often: who never waits for anything keeps it for its whole switch interval.
        """
        self._n_in_one_go += n_groups + _GROUPS_OF_MESSAGE
        if self._n_in_one_go > _IN_ONE_GO:
            self._n_in_one_go = n_groups + _GROUPS_OF_MESSAGE
            self._stopping.wait(_PAUSE_S)

    def _open_if_whole(self) -> None:
        """Admit states once every partition was heard, and say until when they may be served."""
        if not self._step.is_whole:
            self.until_s = 0.0
            return
        if not self._is_open:
            self._is_open = True
            self._near.know(self._step.known)
            self._near.flush(is_open=True)
            self._tell_progress()
        if not self._stopping.is_set():
            self.in_step_s = min(self._ended_s, self._step.oldest_heard_s)
            self.until_s = self.in_step_s + self._bound_s

    # Whether it is still the same stream, of the same nodes

    def _look(self, lines: Lines) -> None:
        """Compare what the nodes say of themselves; find out whether entries were missed."""
        requests = [command(b"GET", self._keys.progress(tag)) for tag in self._topology.tags]
        n_replies = [1] * len(requests)
        control = self._topology.node_of(CONTROL.encode())
        if self._seen is not None:
            asked = (b"EVAL", _HAS_ENTRY, b"1", self._stream, self._seen)
            requests[control] += command(*asked)
            n_replies[control] += 1
        replies = lines.exchange(requests, n_replies)
        for some in replies:
            for reply in some:
                self._check(reply)
        if self._seen is not None:
            if not replies[control][1]:
                self._restart("entries that were not read are gone")
            self._seen = self._last
        self._compare([some[0] for some in replies])

    def _compare(self, summaries: Sequence[bytes | None]) -> None:
        """Flush where a node has begun anew; follow the partitions that the nodes name."""
        nodes = [None if one is None else progress_of(one) for one in summaries]
        epochs = {
            tag: (one.epoch, one.complete_since_ms)
            for tag, one in zip(self._topology.tags, nodes, strict=True)
            if one is not None
        }
        if any(epochs.get(tag) != known for tag, known in self._epochs.items()):
            self._near.flush(is_open=self._is_open)
        self._epochs = epochs
        markers = _markers_of(nodes)
        if markers and self._step.expect(markers):
            self._near.know(self._step.known)
            if not self._step.is_whole:
                self.until_s = 0.0

    def _restart(self, why: str) -> None:
        """Forget everything, and look for the end of the stream."""
        self._count("restarts")
        logging.getLogger("freshscore").info("near states begin anew: %s", why)
        self._begin()

    def _begin(self) -> None:
        self.until_s = 0.0
        self._is_open = False
        self._near.flush(is_open=False)
        self._step.begin()
        self._near.know(self._step.known)
        self._last = self._seen = None
        self._ended_s = self._next_look_s = _NEVER_S

    def _give_up_after_silence(self) -> None:
        if self._last is not None and self._clock.monotonic_s() - self._ended_s > self._bound_s:
            self._restart("the stream was not read to its end for too long")

    # What is told

    def _tell_progress(self) -> None:
        watermark_ms = self._step.watermark_ms
        epoch, since_ms = next(iter(self._epochs.values()), (bytes(8), 0))
        known = self._step.known
        self.progress = (
            _SUMMARY.pack(epoch, watermark_ms, since_ms, len(known)) + known.tobytes(),
        )
        self.watermark_ms = watermark_ms

    def _note(self, message: StreamMessage, received_s: float) -> None:
        at = self._counts["messages"] % _DELAYS
        self._sent_ms[at] = self._clock.now_ms() - message.sent_at_ms
        self._applied_us[at] = round(1e6 * (self._clock.monotonic_s() - received_s))
        self._count("messages")
        self._counts["groups"] += len(message.groups)

    def _count(self, what: str) -> None:
        self._counts[what] += 1


def _markers_of(nodes: Sequence[Progress | None]) -> list[Marker]:
    """Of each partition the arrival that every node has passed; [] where no node has heard of all.

    What a node lacks is out of question: its states are not admitted.
    """
    told = [one for one in nodes if one is not None and one.watermark_ms > 0]
    arrivals: dict[tuple[bytes, int], int] = {}
    for marker in (marker for one in told for marker in one.markers):
        name = (marker.topic, marker.partition)
        arrivals[name] = min(marker.arrival_ms, arrivals.get(name, marker.arrival_ms))
    return [
        msgspec.structs.replace(one, arrival_ms=arrivals[one.topic, one.partition])
        for one in (told[0].markers if told else ())
    ]


def _quantiles(delays: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[int, int] | None:
    """p50 and p99; None of nothing."""
    if not len(delays):
        return None
    p50, p99 = np.percentile(delays, (50, 99))
    return round(p50), round(p99)
