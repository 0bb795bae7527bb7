"""One node of Redis, simulated: the commands that our code sends, on dictionaries.

It takes the bytes that a client would send and gives the bytes that a server would answer. What it
has done can be undone, the last write first: a server that is killed with an append-only file, or
whose replica takes over, has lost the end of its writes and never one in the middle.
Beside the keys it keeps, for whoever checks, everything that was ever appended to each of them and
not lost: compaction replaces a state, and must not change what it counts.
Rule: a command that is not known here is an error, never ignored; a script is one write.
Source: the Redis serialization protocol (RESP 2) and the documentation of each command.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from freshscore.config.clock import Clock
from freshscore.simulations.simulated_scripts import Script, digest_of, known_scripts

_OK: Final = "OK"
# Requests that are read often are parsed once: a score asks for the same keys again and again.
_MOST_PARSED: Final = 4_096
_LONGEST_KEPT: Final = 1_024
# What a request for many states consists of, which is found faster than it is parsed: no key has a
# carriage return in it.
_ASKED: Final = (
    rb"\*2\r\n\$3\r\nGET\r\n\$\d+\r\n([^\r]*)\r\n"
    rb"|\*3\r\n\$4\r\nMGET\r\n\$\d+\r\n([^\r]*)\r\n\$\d+\r\n([^\r]*)\r\n"
)
_ONE_ASKED: Final = re.compile(_ASKED)
_ALL_ASKED: Final = re.compile(b"(?:%b)*+" % _ASKED)

_Value = bytearray | dict[bytes, bytes] | list[bytes] | set[bytes] | list[tuple[bytes, Any]]
Undo = Callable[[], object]


class CommandRefused(Exception):
    """What a server answers as an error; its text is the answer."""


class SimulatedNode:
    """One node; `clock` is what its TIME shows, and keys live by it.

    kept_writes: how many of the last writes can be lost. n_losses: how often writes were lost.
    n_changes: how often anything was changed that a read could show. added: is told of what is put
    into streams, and gives what takes it back. appended: of each key all that was ever appended;
    appended_s: where each part of it begins, and when it came, on the monotonic clock.
    """

    def __init__(
        self,
        clock: Clock,
        kept_writes: int,
        added: Callable[[Sequence[bytes]], Undo] = lambda fields: lambda: None,
    ) -> None:
        self._clock = clock
        self._added = added
        # Names of entries of streams that were ever given: no two instants are quite the same, so
        # after a loss none is given again, though this clock stands still between steps.
        self._names: set[bytes] = set()
        self._values: dict[bytes, Any] = {}
        self._ends_ms: dict[bytes, int] = {}
        self._undo: deque[list[Undo]] = deque(maxlen=kept_writes)
        self._doing: list[Undo] = []
        self._scripts: dict[bytes, Script] = known_scripts()
        # Those that it has been sent, so that their digests are enough.
        self._loaded: set[bytes] = set()
        self._parsed: dict[bytes, tuple[list[list[bytes]], int]] = {}
        self.appended: dict[bytes, bytearray] = {}
        self.appended_s: dict[bytes, list[tuple[int, float]]] = {}
        self.n_losses = 0
        self.n_changes = 0
        # Which keys are here; None for all.
        self.has_slot_of: Callable[[bytes], bool] | None = None
        # What reads have answered since the last change.
        self._answered: dict[bytes, bytes] = {}
        self._answered_at = 0
        self._commands: dict[bytes, Callable[..., Any]] = {
            name.encode(): getattr(self, f"_{name.lower()}")
            for name in (
                "GET MGET SET APPEND STRLEN EXPIRE DEL UNLINK HGET HMGET HGETALL HSET HSETNX"
                " HEXISTS HDEL SADD SMEMBERS SREM LPUSH LTRIM LRANGE XADD XRANGE XREAD TIME EVAL"
                " EVALSHA"
            ).split()
        }

    def commands(self, request: bytes) -> tuple[list[list[bytes]], int]:
        """The whole commands in a request, and how many bytes they take."""
        found = self._parsed.get(request)
        if found is None:
            found = parsed_upto(request)
            if len(request) <= _LONGEST_KEPT:
                if len(self._parsed) >= _MOST_PARSED:
                    self._parsed.clear()
                self._parsed[request] = found
        return found

    def run(self, commands: Sequence[Sequence[bytes]]) -> bytes:
        """Do the commands, one after the other; the bytes of all replies."""
        return b"".join([self._answer(parts) for parts in commands])

    def owns(self, key: bytes) -> bool:
        """Whether a key is to be looked for here."""
        return self.has_slot_of is None or self.has_slot_of(key)

    def hand_over(self, other: SimulatedNode, moves: Callable[[bytes], bool]) -> None:
        """Let another node have the keys that move, as they are; nobody loses what was before."""
        for name in ("_values", "_ends_ms", "appended", "appended_s"):
            mine, its = getattr(self, name), getattr(other, name)
            for key in [key for key in mine if moves(key)]:
                its[key] = mine.pop(key)
        for one in (self, other):
            one._undo.clear()
            one.n_losses += 1
            one.n_changes += 1

    def _answer(self, parts: Sequence[bytes]) -> bytes:
        if self.has_slot_of is not None:
            return encoded(self.reply(parts))
        if parts[0] == b"GET":
            return self._read(parts[1])
        if parts[0] == b"MGET":
            return b"*%d\r\n%b" % (len(parts) - 1, b"".join(map(self._read, parts[1:])))
        return encoded(self.reply(parts))

    def _read(self, key: bytes) -> bytes:
        """The reply to GET, or a part of one: scores ask for the same states over and over."""
        if self._answered_at != self.n_changes:
            self._answered.clear()
            self._answered_at = self.n_changes
        found = self._answered.get(key)
        ends_ms = self._ends_ms.get(key)
        if found is None or (ends_ms is not None and self._clock.now_ms() >= ends_ms):
            found = encoded(self.reply((b"GET", key)))
            if self._answered_at == self.n_changes:
                self._answered[key] = found
        return found

    def reply(self, parts: Sequence[bytes]) -> Any:
        """Do one command: bytes, int, None, a list, text for a status, or CommandRefused."""
        try:
            if not all(map(self.owns, _keys_of(parts))):
                raise CommandRefused("MOVED 0 elsewhere:1")
            answer = self._call(*parts)
        except CommandRefused as refused:
            answer = refused
        if self._doing:
            self.n_changes += 1
            self._undo.append(self._doing)
            self._doing = []
        return answer

    def lose(self, n_writes: int) -> int:
        """Lose the last writes; how many it were."""
        n_lost = 0
        while n_lost < n_writes and self._undo:
            for undo in reversed(self._undo.pop()):
                undo()
            n_lost += 1
        if n_lost:
            self.n_changes += 1
            self.n_losses += 1
        return n_lost

    def lose_all(self) -> None:
        """Lose everything."""
        self._values.clear()
        self._ends_ms.clear()
        self._undo.clear()
        self.appended.clear()
        self.appended_s.clear()
        self.n_changes += 1
        self.n_losses += 1

    def came_s(self, key: bytes, record: bytes) -> float | None:
        """When a record was appended first, of what is not lost; None if it is not there."""
        ever, at = self.appended.get(key, b""), -1
        while (at := ever.find(record, at + 1)) >= 0:
            if at % len(record) == 0:
                parts = self.appended_s[key]
                return parts[bisect_right(parts, (at, math.inf)) - 1][1]
        return None

    def load_scripts(self) -> None:
        """Every connection begins with that."""
        self._loaded.update(self._scripts)

    def forget_scripts(self) -> None:
        """SCRIPT FLUSH, or a server that was started anew."""
        self._loaded.clear()

    def held(self, key: bytes) -> bytes | None:
        """The string at a key, for whoever looks from outside."""
        value = self._at(key)
        return None if value is None else bytes(value)

    def content(self) -> dict[bytes, Any]:
        """All keys with their values, copied; streams as their number of entries."""
        found: dict[bytes, Any] = {}
        for key in [*self._values]:
            value = self._at(key)
            if isinstance(value, bytearray):
                found[key] = bytes(value)
            elif value is not None:
                found[key] = type(value)(value)
        return found

    def _call(self, *parts: bytes) -> Any:
        does = self._commands.get(parts[0])
        if does is None:
            raise CommandRefused(f"ERR unknown command '{parts[0].decode()}'")
        return does(*parts[1:])

    def _at(self, key: bytes) -> Any:
        ends_ms = self._ends_ms.get(key)
        if ends_ms is not None and self._clock.now_ms() >= ends_ms:
            self._remove(key)
        return self._values.get(key)

    def _put(self, key: bytes, value: Any) -> None:
        """Let another object stand at a key; the one before is kept for undoing."""
        before = self._values.get(key)
        if before is None:
            self._doing.append(lambda: self._values.pop(key, None))
        else:
            self._doing.append(lambda: self._values.__setitem__(key, before))
        self._values[key] = value

    def _set_end(self, key: bytes, ends_ms: int | None) -> None:
        before = self._ends_ms.get(key)
        if before == ends_ms:
            return
        if before is None:
            self._doing.append(lambda: self._ends_ms.pop(key, None))
        else:
            self._doing.append(lambda: self._ends_ms.__setitem__(key, before))
        if ends_ms is None:
            del self._ends_ms[key]
        else:
            self._ends_ms[key] = ends_ms

    def _remove(self, key: bytes) -> bool:
        value = self._values.pop(key, None)
        if value is None:
            return False
        self._doing.append(lambda: self._values.__setitem__(key, value))
        appended = self.appended.pop(key, None)
        if appended is not None:
            parts = self.appended_s.pop(key)
            self._doing.append(lambda: self.appended.__setitem__(key, appended))
            self._doing.append(lambda: self.appended_s.__setitem__(key, parts))
            self.n_losses += 1
        self._set_end(key, None)
        return True

    # Strings

    def _get(self, key: bytes) -> bytes | None:
        value = self._at(key) if key in self._ends_ms else self._values.get(key)
        return None if value is None else bytes(value)

    def _set(self, key: bytes, value: bytes, *options: bytes) -> Any:
        if b"NX" in options and self._at(key) is not None:
            return None
        self._put(key, bytearray(value))
        ends_ms = None
        if b"EX" in options:
            life_s = int(options[options.index(b"EX") + 1])
            ends_ms = self._clock.now_ms() + 1_000 * life_s
        self._set_end(key, ends_ms)
        return _OK

    def _append(self, key: bytes, data: bytes) -> int:
        value = self._at(key)
        if value is None:
            self._put(key, bytearray(data))
        else:
            length = len(value)
            self._doing.append(lambda: value.__delitem__(slice(length, None)))
            value += data
        ever = self.appended.setdefault(key, bytearray())
        so_far = len(ever)
        self._doing.append(lambda: ever.__delitem__(slice(so_far, None)))
        ever += data
        parts = self.appended_s.setdefault(key, [])
        parts.append((so_far, self._clock.monotonic_s()))
        self._doing.append(parts.pop)
        return len(self._values[key])

    def _mget(self, *keys: bytes) -> list[bytes | None]:
        return [self._get(key) for key in keys]

    def _strlen(self, key: bytes) -> int:
        return len(self._at(key) or b"")

    def _expire(self, key: bytes, life_s: bytes) -> int:
        if self._at(key) is None:
            return 0
        self._set_end(key, self._clock.now_ms() + 1_000 * int(life_s))
        return 1

    def _del(self, *keys: bytes) -> int:
        return sum(self._at(key) is not None and self._remove(key) for key in keys)

    _unlink = _del

    # Hashes

    def _hget(self, key: bytes, field: bytes) -> bytes | None:
        found: bytes | None = (self._at(key) or {}).get(field)
        return found

    def _hmget(self, key: bytes, *fields: bytes) -> list[bytes | None]:
        held = self._at(key) or {}
        return [held.get(field) for field in fields]

    def _hgetall(self, key: bytes) -> list[bytes]:
        return [part for pair in (self._at(key) or {}).items() for part in pair]

    def _hset(self, key: bytes, *pairs: bytes) -> int:
        held = self._at(key) or {}
        new = dict(zip(pairs[::2], pairs[1::2], strict=True))
        self._put(key, held | new)
        return len(new.keys() - held.keys())

    def _hsetnx(self, key: bytes, field: bytes, value: bytes) -> int:
        return self._hset(key, field, value) if self._hget(key, field) is None else 0

    def _hexists(self, key: bytes, field: bytes) -> int:
        return int(field in (self._at(key) or {}))

    def _hdel(self, key: bytes, *fields: bytes) -> int:
        held = self._at(key) or {}
        left = {field: value for field, value in held.items() if field not in fields}
        if len(left) < len(held):
            self._put_or_remove(key, left)
        return len(held) - len(left)

    def _put_or_remove(self, key: bytes, value: Any) -> None:
        if value:
            self._put(key, value)
        else:
            self._remove(key)

    # Sets and lists

    def _sadd(self, key: bytes, *members: bytes) -> int:
        held = self._at(key) or set()
        both = held | {*members}
        self._put(key, both)
        return len(both) - len(held)

    def _smembers(self, key: bytes) -> list[bytes]:
        return sorted(self._at(key) or ())

    def _srem(self, key: bytes, *members: bytes) -> int:
        held = self._at(key) or set()
        left = held - {*members}
        if len(left) < len(held):
            self._put_or_remove(key, left)
        return len(held) - len(left)

    def _lpush(self, key: bytes, *values: bytes) -> int:
        both = [*reversed(values), *(self._at(key) or ())]
        self._put(key, both)
        return len(both)

    def _ltrim(self, key: bytes, first: bytes, last: bytes) -> str:
        held = self._at(key)
        if held is not None:
            self._put_or_remove(key, _ranged(held, first, last))
        return _OK

    def _lrange(self, key: bytes, first: bytes, last: bytes) -> list[bytes]:
        return _ranged(self._at(key) or [], first, last)

    # Streams, the clock, scripts

    def _xadd(self, key: bytes, *given: bytes) -> bytes:
        word, most, star, *fields = given
        if word != b"MAXLEN" or star != b"*":
            raise CommandRefused("ERR only XADD key MAXLEN n * is simulated")
        held = self._at(key) or []
        last_ms, last_number = held[-1][0].split(b"-") if held else (b"0", b"0")
        now_ms = max(self._clock.now_ms(), int(last_ms))
        number = int(last_number) + 1 if now_ms == int(last_ms) else 0
        while b"%d-%d" % (now_ms, number) in self._names:
            number += 1
        name = b"%d-%d" % (now_ms, number)
        self._names.add(name)
        self._put(key, [*held, (name, fields)][-int(most) :])
        self._doing.append(self._added(fields))
        return name

    def _xrange(self, key: bytes, first: bytes, last: bytes) -> list[Any]:
        low, high = _name(first), _name(last)
        return [[*one] for one in self._at(key) or () if low <= _name(one[0]) <= high]

    def _xread(self, *parts: bytes) -> list[Any] | None:
        """What has come; who waits for it (BLOCK) asks again, with what `awaited` gives."""
        most, key, after = int(parts[parts.index(b"COUNT") + 1]), parts[-2], parts[-1]
        if parts[-3] != b"STREAMS":
            raise CommandRefused("ERR only XREAD COUNT n BLOCK ms STREAMS key id is simulated")
        if after == b"$":
            return None
        entries = [[*one] for one in self._at(key) or () if _name(one[0]) > _name(after)]
        return [[key, entries[:most]]] if entries else None

    def awaited(self, parts: Sequence[bytes]) -> list[bytes]:
        """An XREAD as it stands from now on: `$` is the last entry of this moment."""
        if parts[-1] != b"$":
            return [*parts]
        held = self._at(parts[-2])
        return [*parts[:-1], held[-1][0] if held else b"0-0"]

    def _time(self) -> list[bytes]:
        now_ms = self._clock.now_ms()
        return [b"%d" % (now_ms // 1_000), b"%d" % (now_ms % 1_000 * 1_000)]

    def _eval(self, text: bytes, n_keys: bytes, *given: bytes) -> Any:
        digest = digest_of(text)
        self._loaded.add(digest)
        return self._run(digest, n_keys, given)

    def _evalsha(self, digest: bytes, n_keys: bytes, *given: bytes) -> Any:
        return self._run(digest, n_keys, given)

    def _run(self, digest: bytes, n_keys: bytes, given: Sequence[bytes]) -> Any:
        script = self._scripts.get(digest)
        if script is None or digest not in self._loaded:
            raise CommandRefused("NOSCRIPT No matching script")
        n = int(n_keys)
        return script(self._call, given[:n], given[n:])


def _keys_of(parts: Sequence[bytes]) -> Sequence[bytes]:
    """The keys that a command names."""
    word = parts[0]
    if word in (b"EVAL", b"EVALSHA"):
        return parts[3 : 3 + int(parts[2])]
    if word in (b"MGET", b"DEL", b"UNLINK"):
        return parts[1:]
    return parts[-2:-1] if word == b"XREAD" else parts[1:2]


def _name(text: bytes) -> tuple[int, int]:
    """The name of an entry of a stream, to be compared."""
    milliseconds, number = text.split(b"-")
    return int(milliseconds), int(number)


def parsed(request: bytes) -> list[list[bytes]]:
    """The commands in a request (RESP 2); what is cut off at its end is left out."""
    return parsed_upto(request)[0]


def parsed_upto(request: bytes) -> tuple[list[list[bytes]], int]:
    """The whole commands in a request (RESP 2), and how many bytes they take."""
    if _ALL_ASKED.fullmatch(request):
        asked = _ONE_ASKED.findall(request)
        whole = [[b"MGET", a, b] if a else [b"GET", key] for key, a, b in asked]
        return whole, len(request)
    found: list[list[bytes]] = []
    at, end, find = 0, len(request), request.find
    while at < end:
        line = find(b"\r\n", at)
        if line < 0:
            return found, at
        at_part = line + 2
        parts = []
        for _ in range(int(request[at + 1 : line])):
            line = find(b"\r\n", at_part)
            if line < 0:
                return found, at
            first = line + 2
            last = first + int(request[at_part + 1 : line])
            at_part = last + 2
            if at_part > end:
                return found, at
            parts.append(request[first:last])
        found.append(parts)
        at = at_part
    return found, at


def encoded(reply: Any) -> bytes:
    """A reply as the protocol has it."""
    if reply.__class__ is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, str):
        return b"+%b\r\n" % reply.encode()
    if isinstance(reply, CommandRefused):
        return b"-%b\r\n" % str(reply).encode()
    return b"*%d\r\n%b" % (len(reply), b"".join([encoded(one) for one in reply]))


def _ranged(held: list[bytes], first: bytes, last: bytes) -> list[bytes]:
    n = len(held)
    begin, end = (at if at >= 0 else max(0, n + at) for at in (int(first), int(last)))
    return held[begin : end + 1]
