"""Answers without Redis, or without all of it: from what this process still knows.

What is taken, the first that there is, none of it older than fallback.max_age_s:

    1  a state for every entity: those that did come, and near states for the others
    2  the payment's own last answer, while the lease holds (scoring/remembering.py)
    3  the states that there are; every other entity is as if the payment did not name it, so its
       features are missing, for a lost card is not a new card
    4  the settings' decision, without a score

Events of this process that are pending count in every state that is used, as always.
A last answer is a cached one, which an operator may have invalidated without our being told; so it
ends with the lease. States are not cached scores: what they give is computed, or confirmed.
Rejected: features of no events for what could not be read (a lost card would look new), a score on
nothing but the request (it knows neither card nor merchant, and looks as good as any other).
Rule: every such answer says `degraded`, why, and how old what it used is; and nothing waits here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from freshscore.config.clock import Clock
from freshscore.config.settings import FallbackSettings
from freshscore.features import row as r
from freshscore.features.compiled import entry_point
from freshscore.features.memory import BYTES_AT
from freshscore.scoring import cache_layout as c
from freshscore.scoring.exchanges import Fetched, token_places, tokens_of
from freshscore.scoring.leases import CacheRight
from freshscore.scoring.remembering import remember
from freshscore.scoring.request_states import RequestStates
from freshscore.scoring.result import DECISIONS, WITHOUT_REDIS, degraded_causes
from freshscore.scoring.seats import Seat
from freshscore.scoring.serving import Serving, check_probe

# Calls the model for a row, after NEEDS_MODEL in what the kernel wrote, and keeps its score.
CallModel = Callable[[Serving, bytes, bytes, int], None]


class KnownAnswer(NamedTuple):
    """status: as the kernel's, below 0 where the instant is refused. out: what was answered."""

    status: int
    out: bytes
    pending: tuple[bytes, ...] = ()
    progress: tuple[bytes, ...] = ()


class KnownAnswers:
    """Gives them, and counts them by cause; safe in many threads, each with a seat of its own."""

    def __init__(
        self,
        settings: FallbackSettings,
        states: RequestStates,
        right: CacheRight,
        clock: Clock,
        call_model: CallModel,
    ) -> None:
        self._settings = settings
        self._states = states
        self._right = right
        self._clock = clock
        self._call_model = call_model
        self._remember = entry_point(remember, 4)
        self._lock = threading.Lock()
        self._counts = dict.fromkeys((*WITHOUT_REDIS, "not answered"), 0)

    @property
    def counts(self) -> dict[str, int]:
        """Answers by cause (one may have two), and payments that were not answered."""
        with self._lock:
            return dict(self._counts)

    def answer(
        self,
        serving: Serving,
        row: bytes,
        at_ms: int,
        seat: Seat,
        fetched: Fetched | None,
        *,
        is_now: bool,
    ) -> KnownAnswer | None:
        """The answer to the payment in `row`; None where nothing is known and nothing is set.

        is_now: nobody has asked for the instant `at_ms`. seat: given to this request; with the
        ticket of its exchange, if `fetched` is from one. A model that is called is called here,
        whoever else may be computing the same score.
        """
        if at_ms < int.from_bytes(row[r.TIME : r.TIME + 8], "little"):
            return KnownAnswer(c.AS_OF_BEFORE_PAYMENT, b"")
        found = self._known(serving, row, at_ms, seat, fetched, is_now)
        if found is None:
            found = self._decided(serving, at_ms)
        if found is not None and found.status >= 0:
            self._count(degraded_causes(found.out[c.OUT_DEGRADED]))
        return found

    def note_unanswered(self) -> None:
        """Count a payment that has no answer."""
        self._count(("not answered",))

    def _count(self, causes: Sequence[str]) -> None:
        with self._lock:
            for cause in causes:
                self._counts[cause] = self._counts.get(cause, 0) + 1

    def _known(
        self,
        serving: Serving,
        row: bytes,
        at_ms: int,
        seat: Seat,
        fetched: Fetched | None,
        is_now: bool,
    ) -> KnownAnswer | None:
        if not self._settings.use_known:
            return None
        asked = _named_in(row, len(serving.entity_names))
        if fetched is None:
            nothing: list[bytes | None] = [None] * self._states.n_states
            fetched = Fetched(nothing, [], 0, 0, 0, (), asked)
        held, age_ms = self._with_near(seat, row, fetched)
        if held.missing:
            remembered = self._remembered(serving, row, at_ms, seat)
            if remembered is not None:
                return remembered
        return self._scored(serving, row, at_ms, seat, held, asked, age_ms, is_now)

    def _with_near(self, seat: Seat, row: bytes, held: Fetched) -> tuple[Fetched, int]:
        """What is held, with near states for what is missing of it, and how old these are."""
        near = self._states.near
        if near is None or not held.missing:
            return held, 0
        age_ms = near.age_ms
        if age_ms > 1_000 * self._settings.max_age_s:
            return held, 0
        # All at once, or else one by one.
        for wanted in (held.missing, *_each(held.missing)):
            if wanted & held.missing == wanted:
                found = near.held(seat, _with_only(row, wanted, len(held.states), 0))
                if found is not None:
                    held = _joined(held, found, wanted)
        return held, age_ms

    def _scored(
        self,
        serving: Serving,
        row: bytes,
        at_ms: int,
        seat: Seat,
        held: Fetched,
        asked: int,
        age_ms: int,
        is_now: bool,
    ) -> KnownAnswer | None:
        """The score on the states that there are, with what is pending; None if there is none."""
        missing, n = held.missing, len(serving.entity_names)
        while missing != asked:
            used = _with_only(row, asked & ~missing, n, serving.packer.others_at)
            known = [None if missing >> i % n & 1 else one for i, one in enumerate(held.states)]
            past = [None if missing >> i % n & 1 else one for i, one in enumerate(held.past)]
            states, left, pending = self._states.united(seat, used, known, past)
            degraded = held.degraded | (c.STATE_UNREACHABLE if missing else 0)
            if seat.store.take(
                used, states, held.watermark_ms, held.complete_since_ms, degraded, left
            ):
                instant = max(at_ms, seat.store.summarised_below_ms) if is_now else at_ms
                status, out = self._kernel_score(serving, used, instant, seat)
                told = _with_words(out, age_ms, missing) if status >= 0 else out
                return KnownAnswer(status, told, pending, held.progress)
            # Damaged, or in need of what was folded of it, which is in Redis.
            for entity in {*seat.store.damaged, *seat.store.late}:
                missing |= 1 << entity
        return None

    def _kernel_score(
        self, serving: Serving, row: bytes, at_ms: int, seat: Seat
    ) -> tuple[int, bytes]:
        seat.set_out(self._right.is_cache_off())
        out = bytes(serving.out_bytes)
        status = serving.score_in(seat.context_at, id(row) + BYTES_AT, at_ms, id(out) + BYTES_AT)
        if status == c.NEEDS_MODEL:
            self._call_model(serving, row, out, seat.context_at)
        elif status == c.TO_BE_PROBED:
            check_probe(serving, out)
        return min(status, c.SERVED), out

    def _remembered(
        self, serving: Serving, row: bytes, at_ms: int, seat: Seat
    ) -> KnownAnswer | None:
        if self._right.is_cache_off():
            return None
        out = bytes(serving.out_bytes)
        if not self._remember(seat.context_at, id(row) + BYTES_AT, at_ms, id(out) + BYTES_AT):
            return None
        age_ms = at_ms - int.from_bytes(out[c.OUT_AS_OF : c.OUT_AS_OF + 8], "little")
        if age_ms > 1_000 * self._settings.max_age_s:
            return None
        return KnownAnswer(c.SERVED, _with_words(out, age_ms, 0, c.REMEMBERED))

    def _decided(self, serving: Serving, at_ms: int) -> KnownAnswer | None:
        """The settings' decision."""
        decision = self._settings.decision
        if decision is None:
            return None
        out = bytearray(serving.out_bytes)
        number = DECISIONS.index(decision)
        c.HEAD.pack_into(out, 0, float("nan"), c.FALLBACK, number, at_ms, at_ms)
        return KnownAnswer(c.SERVED, _with_words(bytes(out), 0, 0, c.NOTHING_KNOWN))


def _joined(held: Fetched, found: Fetched, wanted: int) -> Fetched:
    """With near states for the entities `wanted`."""
    states = [found.states[e] if wanted >> e & 1 else one for e, one in enumerate(held.states)]
    watermark_ms = found.watermark_ms
    if held.progress:
        watermark_ms = min(watermark_ms, held.watermark_ms)
    return Fetched(
        states,
        [],
        watermark_ms,
        max(held.complete_since_ms, found.complete_since_ms),
        held.degraded | c.NOT_CURRENT,
        held.progress or found.progress,
        held.missing & ~wanted,
        held.past,
    )


def _named_in(row: bytes, n: int) -> int:
    """Bits of the entities that a row has."""
    return sum(any(token) << e for e, token in enumerate(tokens_of(row, n)))


def _each(bits: int) -> list[int]:
    return [1 << e for e in range(bits.bit_length()) if bits >> e & 1]


def _with_only(row: bytes, entities: int, n: int, others_at: int) -> bytes:
    """The row as if it had no others: their own features are missing.

    It is of another content then, so that what is kept of it is no memo of the whole payment, nor
    the other way round.
    """
    others = _named_in(row, n) & ~entities
    if not others:
        return row
    changed = bytearray(row)
    for number, at in enumerate(token_places(n, others_at)):
        if others >> number % n & 1:
            changed[at : at + 16] = bytes(16)
    changed[r.CONTENT_LOW] ^= 1 + others & 0xFF
    return bytes(changed)


def _with_words(out: bytes, age_ms: int, missing: int, degraded: int = 0) -> bytes:
    """What was answered, with what only answers without Redis say."""
    told = bytearray(out)
    told[c.OUT_KNOWN_AGE : c.OUT_KNOWN_AGE + 8] = age_ms.to_bytes(8, "little")
    told[c.OUT_MISSING : c.OUT_MISSING + 8] = missing.to_bytes(8, "little")
    told[c.OUT_DEGRADED] |= degraded
    return bytes(told)
