"""What nodes of Redis say of themselves: whether they have kept their data, and how far it goes.

A node that was initialised has an epoch; one without has lost its data, or is new. Both become
whole in the same way: everything that the log has is read again, each consumer notes for its
partitions that this is done, and the last note gives the node its epoch. The notes are of one
rebuilding, which has a random name: if the node loses its data once more, the name is gone, and
they begin again.
A node that lacks messages which are gone from the log gives its epoch up, and becomes whole from
what is left: so its scorers know that something is missing, and from when on nothing is.
Since when the history of a node is complete follows from where the log began: a partition that
still has its first message has all that ever was in it; one that was cut has what came since.
Rule: an epoch is only given behind the appends that it vouches for, on the same connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from freshscore.config.errors import FreshscoreError, Unavailable, WrongSecret
from freshscore.features.redis_commands import error_of
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_former_nodes import forget_former_nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.redis_lines import Lines, Reply, ReplyError, command
from freshscore.features.redis_scripts import PROGRESS
from freshscore.invalidation.partitions import NodeMarker, Partition, RebuiltNote

# KEYS markers; ARGV name of the rebuilding, key id, how many partitions must be noted, the current
# topic ids joined by a comma, the clock (ms), the skew (ms), then pairs of field
# and value: "b:TOPICID:PARTITION" and how far it has got, "r:TOPICID:PARTITION" and the note that
# it is read again ("KIND FIRST_ARRIVAL"). 1: the node has an epoch; 0: others are still to note;
# -1: the rebuilding has another name. The name becomes the epoch, and how far each partition has
# got its marker, without an arrival as yet: a consumer that dies now leaves no node without one.
_NOTE: Final = """
if redis.call('HEXISTS', KEYS[1], 'epoch') == 1 then return 1 end
if redis.call('HGET', KEYS[1], 'rebuilding') ~= ARGV[1] then return -1 end
for i = 7, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
local known = {}
for topic in string.gmatch(ARGV[4], '[^,]+') do known[topic] = true end
local held, fields, gone, reached = redis.call('HGETALL', KEYS[1]), {}, {}, {}
local first, since = nil, 0
for i = 1, #held, 2 do
  local kind, topic = string.match(held[i], '^([br]):([^:]+):%d+$')
  if topic then gone[#gone + 1] = held[i] end
  if kind == 'b' and known[topic] then
    reached[#reached + 1] = 'm' .. string.sub(held[i], 2)
    reached[#reached + 1] = held[i + 1] .. ' 0'
  end
  if kind == 'r' and known[topic] then
    fields[#fields + 1] = held[i]
    local kind, arrival = string.match(held[i + 1], '^(%a+) (%d+)$')
    arrival = tonumber(arrival)
    if kind ~= 'empty' and (not first or arrival < first) then first = arrival end
    if kind == 'cut' then since = math.max(since, arrival + tonumber(ARGV[6])) end
  end
end
if #fields < tonumber(ARGV[3]) then return 0 end
since = math.max(since, first or tonumber(ARGV[5]))
redis.call('HDEL', KEYS[1], 'rebuilding', unpack(gone))
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'key_id', ARGV[2],
  'complete_since', string.format('%.0f', since), unpack(reached))
return 1
"""

# KEYS markers, progress; ARGV the name that the node had, of its epoch or of its rebuilding, and
# that of the rebuilding which begins. 0: it has another by now, so it is not the one that was read.
_GIVE_UP: Final = """
local name = redis.call('HGET', KEYS[1], 'epoch') or redis.call('HGET', KEYS[1], 'rebuilding')
if name ~= ARGV[1] then return 0 end
local key_id = redis.call('HGET', KEYS[1], 'key_id')
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'rebuilding', ARGV[2])
if key_id then redis.call('HSET', KEYS[1], 'key_id', key_id) end
return 1
"""


class DataLost(Exception):
    """A node has lost its data, or the log what a node lacks: it is rebuilt from the log."""


def marker_field(topic_id: str, partition: int) -> str:
    """The field of a partition's marker."""
    return f"m:{topic_id}:{partition}"


class NodeMarkers:
    """Markers of all nodes, for one consumer. All methods raise Unavailable, SettingsError."""

    def __init__(
        self,
        nodes: Nodes,
        keys: RedisKeys,
        key_id: str,
        topic_ids: Mapping[str, str],
        n_partitions: int,
        draw: Callable[[], int],
        skew_ms: int,
    ) -> None:
        """topic_ids: name -> id of the topics that are read; n_partitions: of all of them.

        draw: 63 random bits, for the name of a rebuilding that this consumer begins.
        skew_ms: by how much an event may be newer than its arrival.
        """
        self._nodes = nodes
        self._keys = keys
        self._key_id = key_id
        self.follow(topic_ids, n_partitions)
        self._draw = draw
        self._skew_ms = skew_ms
        # Node tag -> name of its rebuilding, of the nodes without an epoch.
        self._rebuildings: dict[str, bytes] = {}
        # Node tag -> name of its epoch, else of its rebuilding, as it was last read.
        self._names: dict[str, bytes] = {}

    def follow(self, topic_ids: Mapping[str, str], n_partitions: int) -> None:
        """From now on these are the topics: name -> id, and the partitions of all of them."""
        self._topic_ids = dict(topic_ids)
        self._n_partitions = n_partitions

    def read(
        self, lines: Lines, partitions: Sequence[Partition]
    ) -> dict[Partition, list[NodeMarker]]:
        """What each node holds of each partition. Raises WrongSecret too."""
        names = [f"{self._topic_ids[topic]}:{number}" for topic, number in partitions]
        fields = [f"{kind}:{name}" for kind in "mb" for name in names]
        asked = ["epoch", "rebuilding", "key_id", *fields]
        found: dict[Partition, list[NodeMarker]] = {at: [] for at in partitions}
        for node, tag in enumerate(self._nodes.tags):
            reply = _asked(
                lines, node, b"HMGET", self._keys.markers(tag), *(f.encode() for f in asked)
            )
            epoch, rebuilding, key_id, *markers = reply
            self._names[tag] = epoch or rebuilding or b""
            if key_id is not None and key_id.decode() != self._key_id:
                raise WrongSecret(
                    f"Redis holds states under identifier key {key_id.decode()}; the secret here"
                    f" has key {self._key_id}"
                )
            of_node = markers[: len(names)] if epoch is not None else markers[len(names) :]
            for at, marker in zip(partitions, of_node, strict=True):
                offset = None if marker is None else int(marker.split()[0])
                found[at].append(NodeMarker(epoch is not None, offset))
        return found

    def lowest_offsets(self, lines: Lines, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The offset up to which every node holds each partition; 0 where one holds none of it."""
        return {
            at: min(marker.offset or 0 for marker in markers)
            for at, markers in self.read(lines, partitions).items()
        }

    def forget_former_nodes(self) -> None:
        """Let markers vouch for nothing that has moved; to be called before they are read."""
        forget_former_nodes(self._nodes, self._keys)

    def begin_rebuilding(self, lines: Lines) -> None:
        """Give each node without an epoch a name for its rebuilding, or learn the one it has."""
        self._rebuildings.clear()
        for node, tag in enumerate(self._nodes.tags):
            key = self._keys.markers(tag)
            if not _asked(lines, node, b"HEXISTS", key, b"epoch"):
                # Drawn anew each time: a name is one rebuilding's, also if all is lost again.
                drawn = f"{self._draw():016x}".encode()
                _asked(lines, node, b"HSETNX", key, b"rebuilding", drawn)
                name = _asked(lines, node, b"HGET", key, b"rebuilding")
                self._rebuildings[tag] = name or b""

    def give_up(self, lines: Lines, node: int) -> None:
        """Have a node begin a rebuilding in place of the epoch or rebuilding that was read of it.

        What it holds stays; nothing is done where it has begun another one meanwhile.
        """
        tag = self._nodes.tags[node]
        name = self._names.get(tag)
        if name is None:
            # The nodes have other slots since they were read.
            return
        keys = (self._keys.markers(tag), self._keys.progress(tag))
        drawn = f"{self._draw():016x}".encode()
        _asked(lines, node, b"EVAL", _GIVE_UP.encode(), b"2", *keys, name, drawn)

    @property
    def is_rebuilding(self) -> bool:
        """Whether a node was without an epoch when it was last asked."""
        return bool(self._rebuildings)

    def note_rebuilt(
        self,
        lines: Lines,
        applied: Mapping[Partition, int],
        notes: Mapping[Partition, RebuiltNote],
        now_ms: int,
    ) -> bool:
        """Note on every node that is rebuilt how far these partitions are, and which are whole.

        False where a node has lost its data once more, so that everything begins again.
        """
        fields: list[bytes] = []
        for (topic, number), offset in applied.items():
            fields.append(f"b:{self._topic_ids[topic]}:{number}".encode())
            fields.append(b"%d" % offset)
        for (topic, number), note in notes.items():
            fields.append(f"r:{self._topic_ids[topic]}:{number}".encode())
            fields.append(f"{note.kind} {note.first_arrival_ms}".encode())
        told = (self._key_id, self._n_partitions, self.topic_ids, now_ms, self._skew_ms)
        common = [str(one).encode() for one in told]
        for node, tag in enumerate(self._nodes.tags):
            name = self._rebuildings.get(tag)
            if name is None:
                continue
            script = (b"EVAL", _NOTE.encode(), b"1", self._keys.markers(tag))
            answer = _asked(lines, node, *script, name, *common, *fields)
            if answer < 0:
                return False
            if answer:
                del self._rebuildings[tag]
        return True

    @property
    def topic_ids(self) -> str:
        """The ids of the topics that are read, joined by a comma."""
        return ",".join(self._topic_ids.values())

    def progress_command(self, node: int, positions: Mapping[Partition, tuple[int, int]]) -> bytes:
        """The command that moves a node's markers on: partition -> next offset, arrival in ms."""
        tag = self._nodes.tags[node]
        triples: list[bytes] = []
        for (topic, number), (offset, arrival_ms) in positions.items():
            triples.append(marker_field(self._topic_ids[topic], number).encode())
            triples += [b"%d" % offset, b"%d" % arrival_ms]
        return command(
            *(b"EVALSHA", PROGRESS.digest, b"2"),
            *(self._keys.markers(tag), self._keys.progress(tag)),
            *(b"%d" % self._n_partitions, self.topic_ids.encode()),
            *triples,
        )


def _asked(lines: Lines, node: int, *parts: bytes) -> Reply:
    """The reply to one command, on a connection that is as it was (invalidation/under_way.py)."""
    requests: list[bytes | None] = [None] * lines.n
    requests[node] = command(*parts)
    lines.send(requests)
    (reply,) = lines.read([int(request is not None) for request in requests])[node]
    if isinstance(reply, ReplyError):
        raise refusal_of([reply])
    return reply


def refusal_of(errors: Sequence[ReplyError]) -> FreshscoreError:
    """The error that refused writes mean, one or more: where no waiting mends one, that."""
    problems = []
    for one in {error.word: error for error in errors}.values():
        try:
            problems.append(error_of(one))
        except RuntimeError:
            # Whatever it is, a consumer that ends would not mend it. Its text may show arguments.
            problems.append(Unavailable(f"Redis refused a write: {one.word}"))
    return next((one for one in problems if not one.retryable), problems[0])
