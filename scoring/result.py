"""What a scoring call answers."""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

from freshscore.scoring import cache_layout as c

SOURCES: Final = ("memo", "box", "cell", "computed")
# And where no score could be given: the settings' decision (fallback.decision).
ALL_SOURCES: Final = (*SOURCES, "fallback")
DECISIONS: Final = ("approve", "review", "decline")
CAUSES: Final = (
    "new",
    "time",
    "content",
    "other events",
    "facts",
    "own event",
    "earlier as_of",
    "not to be served",
)
_DEGRADED: Final = {
    c.TOO_MANY_EVENTS: "too many events",
    c.STATE_LOST: "state lost",
    c.STATE_DAMAGED: "state damaged",
    c.STATE_UNREACHABLE: "state unreachable",
    c.NOT_CURRENT: "states not current",
    c.REMEMBERED: "remembered",
    c.NOTHING_KNOWN: "nothing known",
}
# Those of answers that were given without Redis, or without all of it.
WITHOUT_REDIS: Final = ("state unreachable", "states not current", "remembered", "nothing known")
# Bits of those that go with an age.
AGED: Final = c.NOT_CURRENT | c.REMEMBERED
_SENTENCES: Final = {
    "too many events": (
        "an entity has had more events than store.max_events_per_entity, so its longest windows"
        " are incomplete"
    ),
    "state lost": (
        "a node with states of this payment has lost its data, or never had any, and is not rebuilt"
        " yet, so what happened before may be missing"
    ),
    "state damaged": (
        "stored bytes of a state of this payment fail their check, so that state was left out"
    ),
    "state unreachable": (
        "a node with a state of this payment does not answer, so that entity is as if it were not"
        " named"
    ),
    "states not current": (
        "Redis does not answer, so states that this process holds were used, which lack what came"
        " since known_age_ms"
    ),
    "remembered": (
        "Redis does not answer, so this is the payment's last answer, as it was known_age_ms ago"
    ),
    "nothing known": (
        "Redis does not answer and nothing is known of this payment here, so the decision is that"
        " of the settings (fallback.decision)"
    ),
}
# The status of a row of a batch for which Redis did not answer, beside those of the kernel.
UNAVAILABLE: Final = -101

_INT: Final = struct.Struct("<q").unpack_from
# An identifier, and bytes that say nothing to a reader.
_NOT_SHOWN: Final = ("transaction_id", "raw")


class ShownWithoutIdentifier(msgspec.Struct, frozen=True):
    """What is logged without a thought: its `repr` does not name the payment."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Name and value of what is shown, also by tools that lay it out themselves."""
        names = [name for name in self.__struct_fields__ if name not in _NOT_SHOWN]
        return [(name, getattr(self, name)) for name in names]


class Result(ShownWithoutIdentifier, frozen=True, gc=False):
    """One answer.

    transaction_id: as asked. score: float64; None where it could not be given. decision: approve,
    review or decline. source: memo, box, cell or computed; fallback for a decision of the settings
    without a score. as_of, valid_until: int ms UTC; until then time alone cannot change the
    score. model_version: of the model that gave it. error: in a batch, why a row was set aside;
    then there is no score. pending: events of its entities that this process observed, which the
    score counts and Redis did not show yet; embedded none. near: whether its states were in this
    process' memory, kept in step by the invalidation stream: what had been applied and was not yet
    told here is missing, a cause of staleness of its own (`propagation`).
    """

    transaction_id: str
    score: float | None
    decision: str | None
    source: str | None
    as_of: int
    valid_until: int
    model_version: str
    entity_names: tuple[str, ...]
    raw: bytes
    error: str | None = None
    pending: int = 0
    near: bool = False

    @property
    def feature_hash(self) -> str:
        """The feature-aggregate hash under which the score was computed: 32 hexadecimal digits."""
        return self.raw[c.OUT_HASH_LOW : c.OUT_HASH_LOW + 16].hex()

    @property
    def tier(self) -> str | None:
        """Where a cached score was found: memory or redis; None for a computed one."""
        if self.source not in ("memo", "box", "cell"):
            return None
        return "redis" if self.raw[c.OUT_MODE] == c.FOUND else "memory"

    @property
    def age_ms(self) -> int:
        """Time between the computation of the score and `as_of`."""
        computed: int = _INT(self.raw, c.OUT_COMPUTED)[0]
        return max(0, self.as_of - computed)

    @property
    def state_versions(self) -> dict[str, str]:
        """Entity -> version of its state, 32 hexadecimal digits; zeros for one without a state."""
        at = c.OUT_VERSIONS
        return {
            name: self.raw[at + 16 * e : at + 16 * e + 16].hex()
            for e, name in enumerate(self.entity_names)
        }

    @property
    def complete_since(self) -> int | None:
        """Since when the history behind the features is complete, int ms UTC.

        None: for as long as any window reaches. Else windows that reach further back hold less
        than happened: the installation is new, or an entity is over its limit. The time of the
        request where nothing was observed yet.
        """
        since: int = _INT(self.raw, c.OUT_COMPLETE_SINCE)[0]
        return min(since, self.as_of) if since else None

    @property
    def watermark(self) -> int:
        """Up to when the states are complete, int ms UTC; 0 while that is not known.

        Embedded: the newest event time applied. Shared: the arrivals that every partition of the
        log has passed, as the nodes said that were read.
        """
        watermark: int = _INT(self.raw, c.OUT_WATERMARK)[0]
        return watermark

    @property
    def lag_ms(self) -> int | None:
        """How far `as_of` lies ahead of the watermark, at least 0; None while that is not known."""
        watermark = self.watermark
        return max(0, self.as_of - watermark) if watermark else None

    @property
    def control(self) -> bool:
        """Whether this payment is in the control group; there is none until the audit has one."""
        return False

    @property
    def control_probability(self) -> float | None:
        """The probability with which it came into the control group; None outside of one."""
        return None

    @property
    def cause(self) -> str:
        """Why the payment's last score was not served as it stood ("new": there was none)."""
        return CAUSES[_INT(self.raw, c.OUT_CAUSE)[0]]

    @property
    def degraded(self) -> tuple[str, ...]:
        """Causes for which the answer is not what complete states would give; usually empty."""
        bits: int = _INT(self.raw, c.OUT_DEGRADED)[0]
        return degraded_causes(bits) if bits else ()

    @property
    def known_age_ms(self) -> int | None:
        """How long ago what was used without Redis was known to be right; None where nothing was.

        Of near states the time since they were in step, of a remembered answer that since it was
        given.
        """
        age_ms: int = _INT(self.raw, c.OUT_KNOWN_AGE)[0]
        bits: int = _INT(self.raw, c.OUT_DEGRADED)[0]
        return age_ms if bits & AGED else None

    @property
    def missing(self) -> tuple[str, ...]:
        """Entities of the payment whose states could not be reached, and were left out."""
        bits: int = _INT(self.raw, c.OUT_MISSING)[0]
        return tuple(name for e, name in enumerate(self.entity_names) if bits >> e & 1)

    @property
    def reason(self) -> str:
        """`degraded` as a sentence; empty if it is."""
        return "; ".join(_SENTENCES[cause] for cause in self.degraded)


def degraded_causes(bits: int) -> tuple[str, ...]:
    """The causes that are set in OUT_DEGRADED."""
    return tuple(name for bit, name in _DEGRADED.items() if bits & bit)


def result_of(
    transaction_id: str,
    out: bytes,
    model_version: str,
    entity_names: tuple[str, ...],
    pending: int = 0,
) -> Result:
    """The Result that a kernel wrote to `out`."""
    score, source, decision, as_of, valid_until = c.HEAD.unpack_from(out)
    return Result(
        transaction_id,
        None if source == c.FALLBACK else score,
        DECISIONS[decision],
        ALL_SOURCES[source],
        as_of,
        valid_until,
        model_version,
        entity_names,
        out,
        None,
        pending,
    )


def refused(transaction_id: str, model_version: str, n_entities: int, error: str) -> Result:
    """The Result of a row that was set aside."""
    nothing = bytes(c.out_bytes(n_entities, 0))
    return Result(transaction_id, None, None, None, 0, 0, model_version, (), nothing, error)
