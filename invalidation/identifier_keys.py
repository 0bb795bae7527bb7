"""Which identifier keys states are under, as Redis notes it, and whether a process may go on.

The note is one key of the deployment: an id, or, once a rotation was announced, three words:

    FORMER CURRENT SINCE    ids of both secrets, and from which event time on the second one holds

The first consumer with both secrets announces the rotation, so early that all who run learn of it
before it begins; scorers may write no such key. From a lease and the skew before that on, a process
that knows the former alone is refused, for it would take cards for new, and hash a payment from
behind the instant wrongly; so is one that knows the current alone, until no window can begin before
it. Each node's own note, beside its epoch, is of the keys that never rotate.
Rule: pure; what is noted here is judged, and what should be noted instead is said, never written.
"""

from __future__ import annotations

from dataclasses import dataclass

from freshscore.config.clock import readable
from freshscore.config.errors import WrongSecret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys
from freshscore.features.program import Program

# A running process reads the note every heartbeat, and so at least once within a lease: one
# to learn in. Another one before the beginning: clocks may differ.
_LEASES_TO_LEARN = 1


@dataclass(frozen=True, slots=True)
class KeyNote:
    """Under which key states are, and where there are two: which was before, until when (ms)."""

    key_id: str
    former_id: str | None = None
    since_ms: int = 0

    @classmethod
    def of(cls, text: bytes | None) -> KeyNote | None:
        """The note in what Redis holds; None where nothing is noted. Raises WrongSecret."""
        if text is None:
            return None
        words = text.decode(errors="replace").split(" ")
        if len(words) == 1:
            return cls(words[0])
        if len(words) != 3 or not words[2].isdecimal():
            raise WrongSecret("what Redis notes of identifier keys is of another version")
        return cls(words[1], words[0], int(words[2]))

    @property
    def text(self) -> bytes:
        """What Redis holds."""
        if self.former_id is None:
            return self.key_id.encode()
        return f"{self.former_id} {self.key_id} {self.since_ms}".encode()


@dataclass(frozen=True, slots=True)
class IdentifierKeys:
    """The keys of one process. kept_ms: how far before now a record can matter, to whoever reads.

    lease_ms: within which a running process reads the note. skew_ms: how far ahead of its arrival a
    payment's time may lie.
    """

    key_id: str
    record_id: str
    since_ms: int | None
    former_id: str | None
    kept_ms: int
    lease_ms: int
    skew_ms: int

    @classmethod
    def of(cls, settings: Settings, program: Program, keys: Keys) -> IdentifierKeys:
        """Those that a process was given, under its settings."""
        former = keys.former
        return cls(
            key_id=keys.key_id,
            record_id=keys.record_id,
            since_ms=keys.since_ms if keys.is_successor else None,
            former_id=None if former is None else former.key_id,
            kept_ms=program.specification.held_ms + 1_000 * settings.store.horizon_s,
            lease_ms=round(1_000 * settings.redis.lease_s),
            skew_ms=1_000 * settings.store.skew_s,
        )

    @property
    def former_ends_ms(self) -> int:
        """From when on nothing under a former key can matter; 0 for a first secret."""
        return 0 if self.since_ms is None else self.since_ms + self.kept_ms

    def judged(self, note: KeyNote | None, now_ms: int) -> KeyNote:
        """What should be noted, which is mostly what is. Raises WrongSecret."""
        if self.former_id is None and now_ms < self.former_ends_ms:
            raise WrongSecret(
                f"the secret here (key {self.key_id}) is a successor, and records under the one"
                f" before it count for {self._days(self.former_ends_ms - now_ms)} more:"
                " FRESHSCORE_FORMER_SECRET is needed until then"
            )
        if note is None:
            return self._own(now_ms)
        if note.key_id == self.key_id:
            self._check_former(note)
            has_ended = note.former_id is None or now_ms >= note.since_ms + self.kept_ms
            return KeyNote(self.key_id) if has_ended else note
        if note.former_id == self.key_id and self.former_id is None:
            if now_ms >= note.since_ms - self._ahead_ms:
                raise WrongSecret(
                    f"the secret here has key {self.key_id}; payments since"
                    f" {readable(note.since_ms)} are"
                    f" under key {note.key_id}: a rotation has begun that this process does not"
                    " know (FRESHSCORE_SECRET the new one, FRESHSCORE_FORMER_SECRET this one)"
                )
            return note
        if note.key_id != self.former_id:
            raise wrong_secret(note.key_id, self.key_id)
        if note.former_id is not None and now_ms < note.since_ms + self.kept_ms:
            left_ms = note.since_ms + self.kept_ms - now_ms
            raise WrongSecret(
                f"a rotation to key {self.key_id} cannot be announced: that to {note.key_id} lasts"
                f" for {self._days(left_ms)} more"
            )
        return self._announced(now_ms)

    def check_node(self, record_id: str | None) -> None:
        """Raise WrongSecret where a node's records are of others that never rotate."""
        if record_id not in (None, self.record_id):
            raise wrong_secret(record_id or "", self.record_id)

    def _own(self, now_ms: int) -> KeyNote:
        if self.former_id is None or self.since_ms is None or now_ms >= self.former_ends_ms:
            return KeyNote(self.key_id)
        return KeyNote(self.key_id, self.former_id, self.since_ms)

    def _announced(self, now_ms: int) -> KeyNote:
        """The note of a rotation that nobody knows of yet."""
        earliest_ms = now_ms + _LEASES_TO_LEARN * self.lease_ms + self._ahead_ms
        if self.since_ms is None or self.since_ms < earliest_ms:
            since = "its instant" if self.since_ms is None else readable(self.since_ms)
            raise WrongSecret(
                f"key {self.key_id} holds from {since} on, and was not announced before"
                f" (it is {readable(now_ms)}): processes with the former alone could not learn of"
                " it. Make another successor that begins later, with `freshscore secret next`; or,"
                " if it has begun and Redis was restored from a backup of before: docs/shared.md,"
                " Backup and restore"
            )
        return self._own(now_ms)

    @property
    def _ahead_ms(self) -> int:
        """How long before the beginning nobody may be left who knows the former alone."""
        return self.lease_ms + self.skew_ms

    def _check_former(self, note: KeyNote) -> None:
        if None not in (note.former_id, self.former_id) and note.former_id != self.former_id:
            raise wrong_secret(f"{note.former_id}, then {note.key_id}", f"{self.former_id} before")

    @staticmethod
    def _days(left_ms: int) -> str:
        return f"{left_ms / 86_400_000:.1f} days"


def wrong_secret(found: str, here: str) -> WrongSecret:
    """The error for states under identifier key `found` where the secret has key `here`."""
    return WrongSecret(
        f"Redis holds states under identifier key {found}; the secret here has key {here}"
    )
