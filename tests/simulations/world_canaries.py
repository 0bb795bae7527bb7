"""Protections of production code, each taken out of a simulated world, so that a law breaks.

    fault                                        the canary that needs it
    commands cut off, replies lost               markers_before_appends
    a consumer killed in the middle of a batch   markers_before_appends, letters_not_awaited
    a restart or failover that loses writes      markers_not_read, connections_made_anew,
                                                 losses_admitted
    two members compact one state                prefix_not_compared
    the stream loses entries                     gaps_not_seen, flushed_never
    a node that has lost everything              rebuilt_from_commit, epoch_not_asked
    scripts that are forgotten                   scripts_missing_for_ever
    a follower that sleeps                       silence_not_noticed
    another thread, or a follower, meanwhile     tickets_not_kept, notes_not_looked_at
    events and facts on their way                never_united, forgotten_at_once
    labels that wait, late events                held_as_if_read, folded_too_early
    repetitions of what was folded early         folded_without_a_trace, own_left_in_tiles
    requests for past instants                   past_answered
    slots that move                              tags_stay, former_nodes_vouch

No protection is only against: a broker that is away, clocks that differ, rebalances, commits that
are lost, messages that come twice. States are sets, and what is read again changes nothing; these
faults are in every world, and the laws hold.
Rule: a canary changes one thing, in the processes of one world or through pytest's monkeypatch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from freshscore.features import near_ring as g
from freshscore.features import redis_compaction, redis_topology
from freshscore.features import tables as t
from freshscore.features.near_states import NearStates
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_keys import SLOTS, slot_of
from freshscore.features.redis_lines import ReplyError, errors_in
from freshscore.features.request_store import RequestStore
from freshscore.invalidation import beginnings, node_markers, under_way, waiting_labels
from freshscore.invalidation.following import Follower
from freshscore.invalidation.node_markers import refusal_of
from freshscore.invalidation.partitions import NodeMarker, begin_of
from freshscore.invalidation.step import Step
from freshscore.scoring import exchanges
from freshscore.scoring.pending import PendingEvent, PendingEvents
from freshscore.simulations import simulated_scripts
from freshscore.simulations.world_processes import ConsumerProcess, Process
from freshscore.simulations.world_scorer import ScorerProcess

Patch = pytest.MonkeyPatch
Change = Callable[[Process], None]
_NO_TICKET: Final = 2**62
_NO_LIMIT_MS: Final = -40_000


def _nothing(process: Process) -> None:
    """Leave it as it is."""


def markers_before_appends(patch: Patch) -> Change:
    """A node is told how far it has got before it is given what lies behind that."""
    send = under_way.UnderWay.send

    def first_markers(self: Any, batch: Any, upto: Mapping[Any, Any], ranges: Any) -> None:
        self._read_replies()
        lines = self.lines()
        requests = [self._markers.progress_command(node, upto) for node in range(lines.n)]
        self._exchanged(requests, [1] * lines.n)
        send(self, batch, upto, ranges)

    patch.setattr(under_way.UnderWay, "send", first_markers)
    return _nothing


def markers_not_read(patch: Patch) -> Change:
    """A consumer begins at what was committed, whatever the nodes say that they hold."""

    def committed(at: int | None, markers: Sequence[NodeMarker], first: int) -> tuple[int, bool]:
        begin, rebuild = begin_of(at, markers, first)
        return (begin, rebuild) if rebuild or at is None else (max(first, at), False)

    patch.setattr(beginnings, "begin_of", committed)
    return _nothing


def rebuilt_from_commit(patch: Patch) -> Change:
    """A node without an epoch is given the messages behind the commit, and called whole."""

    def committed(at: int | None, markers: Sequence[NodeMarker], first: int) -> tuple[int, bool]:
        begin, rebuild = begin_of(at, markers, first)
        return (max(first, at or 0), True) if rebuild else (begin, False)

    patch.setattr(beginnings, "begin_of", committed)
    return _nothing


def connections_made_anew(patch: Patch) -> Change:
    """A connection that a node has closed is replaced, and markers go out all the same."""

    def exchanged(self: Any, requests: Sequence[Any], n_replies: Sequence[int]) -> Any:
        return self.lines().exchange(requests, n_replies)

    patch.setattr(under_way.UnderWay, "_exchanged", exchanged)
    return _nothing


def epoch_not_asked(patch: Patch) -> Change:
    """A scorer believes a node that has lost everything."""
    known = exchanges._progress_of

    def believed(summaries: Sequence[bytes | None]) -> Any:
        watermark, since, _, found = known(summaries)
        return watermark, since or t.UNKNOWN, 0, found

    patch.setattr(exchanges, "_progress_of", believed)
    return _nothing


def letters_not_awaited(patch: Patch) -> Change:
    """What is refused is passed before its letter is in the log."""

    def change(process: Process) -> None:
        if isinstance(process, ConsumerProcess):
            letters: Any = process.consumer._parts.letters
            letters.settle = lambda: None

    return change


def never_united(patch: Patch) -> Change:
    """What a scorer has observed is not counted by it."""

    def change(process: Process) -> None:
        if isinstance(process, ScorerProcess):
            pending: Any = process.scorer._pending
            pending.united = lambda tokens, states, ticket: (list(states), ())

    return change


def forgotten_at_once(patch: Patch) -> Change:
    """What a scorer has observed is pending until its next breath."""
    add = PendingEvents.add

    def added(self: PendingEvents, records: dict[bytes, bytes]) -> PendingEvent:
        event = add(self, records)
        self.give_up(event, "seen")
        return event

    patch.setattr(PendingEvents, "add", added)
    return _nothing


def tickets_not_kept(patch: Patch) -> Change:
    """What one exchange has seen is forgotten, though another began before."""

    def change(process: Process) -> None:
        if isinstance(process, ScorerProcess):
            pending: Any = process.scorer._pending
            pending._oldest_ticket = lambda: _NO_TICKET

    return change


def held_as_if_read(patch: Patch) -> Change:
    """The marker of a held partition of labels tells the arrival of the last that was fetched."""

    def latest(labels: Sequence[Any], at: Any, offset: int) -> int:
        (fetched,) = (one for one in labels if one.partition == at)
        return int(fetched.spans[:, 2].max(initial=0))

    patch.setattr(waiting_labels, "_latest_before", latest)
    return _nothing


def folded_too_early(patch: Patch) -> Change:
    """States are folded and forgotten although late events are still to come."""

    def change(process: Process) -> None:
        if isinstance(process, ConsumerProcess):
            folding: Any = process.consumer._parts.folding
            folding._late_ms = _NO_LIMIT_MS

    return change


def prefix_not_compared(patch: Patch) -> Change:
    """A state is replaced where it is long enough, whatever it holds by now."""
    swap = simulated_scripts._swap

    def unchecked(call: Any, keys: Sequence[bytes], given: Sequence[bytes]) -> Any:
        held = call(b"GET", keys[0]) or b""
        digest = simulated_scripts.digest_of(held[: int(given[0])])
        return swap(call, keys, [given[0], digest, *given[2:]])

    patch.setattr(simulated_scripts, "_swap", unchecked)
    return _nothing


def scripts_missing_for_ever(patch: Patch) -> Change:
    """A consumer keeps the connection on which a node has forgotten its scripts."""

    def check(self: Any, replies: Sequence[Any]) -> None:
        if errors_in(replies):
            raise refusal_of([one for one in replies if isinstance(one, ReplyError)])

    patch.setattr(under_way.UnderWay, "_check", check)
    return _nothing


def gaps_not_seen(patch: Patch) -> Change:
    """A follower goes on behind what it never heard."""
    patch.setattr(Step, "shows_gap", lambda self, message: False)
    return _nothing


def silence_not_noticed(patch: Patch) -> Change:
    """Near states are served however long nothing was heard."""
    patch.setattr(Follower, "may_serve", lambda self: self._is_open)
    return _nothing


def notes_not_looked_at(patch: Patch) -> Change:
    """A near state takes no notice of what was followed while its exchange was under way."""
    admit = NearStates.admit

    def admitted(self: NearStates, row: bytes, states: Any, room: Any, **given: Any) -> int:
        room._drawn[:8] = _NO_TICKET.to_bytes(8, "little")
        return admit(self, row, states, room, **given)

    patch.setattr(NearStates, "admit", admitted)
    return _nothing


def losses_admitted(patch: Patch) -> Change:
    """What a node brings is held near, though the node has lost what followers were told."""
    patch.setattr(NearStates, "_is_vouched", lambda self, summary, room: True)
    return _nothing


def flushed_never(patch: Patch) -> Change:
    """A gap is seen, and near states are kept."""

    def flush(self: NearStates, *, is_open: bool) -> None:
        self._head[g.IS_OPEN // 8] = is_open

    patch.setattr(NearStates, "flush", flush)
    return _nothing


def folded_without_a_trace(patch: Patch) -> Change:
    """What is folded early is in no bucket."""
    kept = redis_compaction._Kept()
    patch.setattr(Compactor, "_keep", lambda self, one, done, lines: (kept, None))
    return _nothing


def own_left_in_tiles(patch: Patch) -> Change:
    """A payment that was folded early is scored as if it had happened before itself."""
    patch.setattr(RequestStore, "_holding", lambda self, row, states, past: 0)
    return _nothing


def past_answered(patch: Patch) -> Change:
    """A request for an instant before which all was folded is not refused."""
    take = RequestStore.take

    def taken(self: RequestStore, *given: Any) -> bool:
        found = take(self, *given)
        self.head[t.SUMMARISED // 8] = 0
        return found

    patch.setattr(RequestStore, "take", taken)
    return _nothing


def tags_stay(patch: Patch) -> Change:
    """A node's markers vouch for slots that it got since."""

    def first_owned(owned: NDArray[np.bool_]) -> str:
        return next(str(number) for number in range(SLOTS) if owned[slot_of(b"%d" % number)])

    patch.setattr(redis_topology, "_tag_of_set", first_owned)
    return _nothing


def former_nodes_vouch(patch: Patch) -> Change:
    """What a node said of its slots is believed where they come back to it."""
    patch.setattr(node_markers, "forget_former_nodes", lambda nodes, keys: 0)
    return _nothing


class Canary(NamedTuple):
    """A protection that is taken out, under the trouble for which it is there.

    first: the first world that is tried; kind: of worlds.
    """

    change: Callable[[Patch], Change]
    trouble: dict[str, Any]
    first: int = 0
    kind: str = "trees"


# The last thing that a consumer does in a turn is to publish.
_LAST_ENTRY_LOST: Final = {
    "kinds": ("fail over",),
    "lost_writes": (1, 2, 3),
    "pause": 0.0,
    "kill": 0.0,
    "followed": 0.5,
}
# Whoever follows is in step until then, and after it.
_ONE_ENTRY_LOST: Final = {
    "kinds": ("fail over",),
    "lost_writes": (1,),
    **dict.fromkeys(("pause", "kill", "lost", "cut", "unanswered", "slow"), 0.0),
    **dict.fromkeys(("lost_commit", "failed_poll"), 0.0),
    "followed": 0.9,
}
# No connection is made anew: each would load what a node has forgotten.
_CONNECTED: Final = {"lost": 0.0, "cut": 0.0, "unanswered": 0.0, "slow": 0.0, "pause": 0.0}
CANARIES: Final = (
    Canary(markers_before_appends, {"kill": 0.1}),
    Canary(markers_not_read, {"kinds": ("restart", "fail over")}),
    Canary(rebuilt_from_commit, {"kinds": ("crash empty", "go on")}),
    Canary(connections_made_anew, {"kinds": ("restart",), "kill": 0.0, "pause": 0.0}, 11),
    Canary(epoch_not_asked, {"kinds": ("crash empty", "go on")}),
    Canary(letters_not_awaited, {"kill": 0.2}, 13),
    Canary(never_united, {}),
    Canary(forgotten_at_once, {}),
    Canary(tickets_not_kept, {"pause": 0.3, "kinds": ("go on",)}),
    Canary(held_as_if_read, {}, 7),
    Canary(folded_too_early, {}),
    Canary(prefix_not_compared, {"pause": 0.3, "kinds": ("go on",)}, 3),
    Canary(scripts_missing_for_ever, {"kinds": ("scripts",), **_CONNECTED}),
    Canary(gaps_not_seen, _ONE_ENTRY_LOST, 33),
    Canary(silence_not_noticed, {"followed": 0.1}, 2),
    Canary(notes_not_looked_at, {"pause": 0.3, "kinds": ("go on",)}, 16),
    Canary(losses_admitted, {"kinds": ("restart", "fail over"), "pause": 0.0}),
    Canary(flushed_never, _LAST_ENTRY_LOST),
    Canary(folded_without_a_trace, {}, 0, "early"),
    Canary(own_left_in_tiles, {}, 0, "early"),
    Canary(past_answered, {}, 0, "early"),
    Canary(tags_stay, {"kinds": ("move", "go on")}, 1, "moving"),
    Canary(former_nodes_vouch, {"kinds": ("move", "crash empty")}, 3, "moving"),
)
