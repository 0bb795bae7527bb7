"""What must be true in the end, from what the topics hold: plain Python, and nothing remembered.

The sources are read back with a raw client; json.loads and the stamps say what each message is.
The states in Redis are compared with a memory store that was fed the accepted messages in another
order, by the versions of all states, and feature vectors with the slow plain oracle, bit for bit.
Rule: every message is applied, or stands under its position among the dead letters; a conflict may
be both, where one consumer saw both contents.
"""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from freshscore.config.errors import BadTransaction
from freshscore.features import row as r
from freshscore.features.store import MemoryStore, StoreLimits
from freshscore.features.transaction import Transaction
from freshscore.simulations.oracle import PlainOracle
from tests.faults.deployment import Deployment, Ground, Logged
from tests.faults.streams import Stream

_PAYMENT_NAMES: Final = set(
    "v ids transaction_id time amount_minor currency entities kind base_amount_minor original_id"
    " fields location flags".split()
)
_LABEL_NAMES: Final = set("v ids transaction_id flags sent_at known_at entities time".split())
_LIMITS: Final = StoreLimits(10**5, 10**6, 16_384, 10**12, 1 << 27)
_REFUSALS: Final = {"malformed", "oversized", "wrong key"}


class Refused(Exception):
    """A message that no reader takes; the reason."""


class PlainLabel(NamedTuple):
    """A label as it was read. about: its payment's time and entities, None where it brings none."""

    transaction_id: str
    flags: dict[str, bool]
    sender_ms: int
    known_ms: int
    about: Transaction | None


@dataclass
class Expected:
    """What the sources hold: accepted payments and labels, and what each position must have.

    reasons: position -> the reason that its dead letter must give; may_conflict: those whose letter
    may say "conflict".
    """

    payments: list[tuple[Transaction, int]] = field(default_factory=list)
    labels: list[tuple[PlainLabel, Transaction]] = field(default_factory=list)
    reasons: dict[tuple[str, int, int], str] = field(default_factory=dict)
    may_conflict: set[tuple[str, int, int]] = field(default_factory=set)
    n_messages: int = 0


class Letters(NamedTuple):
    """The dead letters by position: the reasons that each gives, and all that they say."""

    by_position: Mapping[tuple[str, int, int], set[str]]
    whole: Mapping[tuple[str, int, int], list[str]]


def expected_of(deployment: Deployment, streams: Iterable[Stream]) -> Expected:
    """What must be, by the topics."""
    meant: dict[bytes, Transaction] = {}
    for stream in streams:
        meant |= stream.meant
    found = Expected()
    contents: dict[str, list[tuple[tuple[str, int, int], tuple[Any, ...]]]] = {}
    known: dict[str, Transaction] = {}
    for one in deployment.read(deployment.transactions):
        found.n_messages += 1
        try:
            payment = plain_payment(one.value, deployment, meant)
        except Refused as refused:
            found.reasons[one.at] = str(refused)
            continue
        if payment.time < one.stamp_ms - deployment.horizon_ms:
            found.reasons[one.at] = "late"
        elif payment.time > one.stamp_ms + deployment.skew_ms:
            found.reasons[one.at] = "early"
        else:
            found.payments.append((payment, one.stamp_ms))
            known.setdefault(payment.transaction_id, payment)
            what = (payment.time, payment.amount_minor, *sorted(payment.entities.items()))
            contents.setdefault(payment.transaction_id, []).append((one.at, what))
    for same in contents.values():
        if len({what for _, what in same}) > 1:
            found.may_conflict |= {at for at, _ in same}
    for one in deployment.read(deployment.labels):
        found.n_messages += 1
        _add_label(found, one, deployment, meant, known)
    return found


def _add_label(
    found: Expected,
    one: Logged,
    deployment: Deployment,
    meant: Mapping[bytes, Transaction],
    known: Mapping[str, Transaction],
) -> None:
    try:
        label = plain_label(one.value, one.stamp_ms, deployment, meant)
    except Refused as refused:
        found.reasons[one.at] = str(refused)
        return
    about = label.about or known.get(label.transaction_id)
    if about is None:
        found.reasons[one.at] = "unknown transaction"
    else:
        found.labels.append((label, about))


def plain_payment(
    value: bytes | None, ground: Ground, meant: Mapping[bytes, Transaction]
) -> Transaction:
    """The payment in a message. Raises Refused."""
    hashed = _hashed(value, ground, meant)
    if hashed is not None:
        return hashed
    said = _plain(value, ground, _PAYMENT_NAMES)
    needed = {"transaction_id", "time", "amount_minor", "currency", "entities"}
    if needed - said.keys():
        raise Refused("malformed")
    for name in ("fields", "flags", "kind"):
        if name in said and said[name] is None:
            raise Refused("malformed")
    try:
        payment = Transaction.of(said)
    except BadTransaction:
        raise Refused("malformed") from None
    is_foreign = payment.currency != ground.specification.currency
    if is_foreign and payment.base_amount_minor is None:
        raise Refused("malformed")
    if payment.flags.keys() - {*ground.specification.facts}:
        raise Refused("malformed")
    return payment


def plain_label(
    value: bytes | None, stamp_ms: int, ground: Ground, meant: Mapping[bytes, Transaction]
) -> PlainLabel:
    """The label in a message that arrived then. Raises Refused."""
    hashed = _hashed(value, ground, meant)
    is_hashed = hashed is not None
    said = json.loads(value) if is_hashed and value else _plain(value, ground, _LABEL_NAMES)
    if {"transaction_id", "flags"} - said.keys() or not said["flags"]:
        raise Refused("malformed")
    flags = said["flags"]
    facts = ground.specification.facts
    if not isinstance(flags, dict) or not all(
        name in facts and isinstance(one, bool) for name, one in flags.items()
    ):
        raise Refused("malformed")
    entities, time = said.get("entities"), said.get("time")
    if (entities is None) != (time is None):
        raise Refused("malformed")
    read = {part for entity in ground.specification.entities for part in entity.parts}
    names_one = isinstance(entities, dict) and bool(read & entities.keys())
    if not is_hashed and entities is not None and not names_one:
        raise Refused("malformed")
    instants = [said.get(name) for name in ("sent_at", "known_at")]
    given = [one for one in instants if one is not None]
    identity = said["transaction_id"]
    try:
        for instant in given:
            _about(identity, instant, {})
        about = None if time is None else _about(identity, time, entities if not is_hashed else {})
        if about is None:
            _about(identity, 10**12, {})
    except BadTransaction:
        raise Refused("malformed") from None
    if hashed is not None:
        about = hashed
        if not read & about.entities.keys():
            raise Refused("malformed")
        identity = about.transaction_id
    known_ms = max([stamp_ms, *given])
    sender_ms = given[0] if given else known_ms
    if about is not None and abs(sender_ms - about.time) >= 2**39:
        raise Refused("malformed")
    return PlainLabel(identity, flags, sender_ms, known_ms, about)


def _hashed(
    value: bytes | None, ground: Ground, meant: Mapping[bytes, Transaction]
) -> Transaction | None:
    """The payment that a hashed message is of; None for another message."""
    if value is None or not meant:
        return None
    if value in meant:
        return meant[value]
    try:
        said = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.get("ids") != ground.keys.key_id:
        return None
    return meant.get(str(said.get("transaction_id")).encode())


def _about(identity: Any, time_ms: Any, entities: Any) -> Transaction:
    given = {"transaction_id": identity, "time": time_ms, "amount_minor": 0, "currency": "EUR"}
    return Transaction.of({**given, "entities": entities})


def _plain(value: bytes | None, ground: Ground, names: set[str]) -> dict[str, Any]:
    """The object in a message, of names that the format has. Raises Refused."""
    if value is None:
        raise Refused("malformed")
    if len(value) > ground.max_message_bytes:
        raise Refused("oversized")
    try:
        said = json.loads(value.decode(), object_pairs_hook=_each_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused("malformed") from None
    if not isinstance(said, dict) or said.keys() - names:
        raise Refused("malformed")
    version, ids = said.pop("v", 1), said.pop("ids", "raw")
    if not isinstance(ids, str) or isinstance(version, bool) or version != 1:
        raise Refused("malformed")
    if ids != "raw":
        raise Refused("malformed" if ids == ground.keys.key_id else "wrong key")
    return said


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def letters_of(deployment: Deployment, topic_ids: Mapping[str, str] | None = None) -> Letters:
    """The dead letters of the sources as they are now, or of those ids."""
    names = {topic_id: name for name, topic_id in (topic_ids or deployment.topic_ids()).items()}
    found: dict[tuple[str, int, int], set[str]] = {}
    whole: dict[tuple[str, int, int], list[str]] = {}
    for one in deployment.read(deployment.letters):
        assert one.value is not None
        said = json.loads(one.value)
        if said["topic_id"] in names:
            at = (names[said["topic_id"]], int(said["partition"]), int(said["offset"]))
            found.setdefault(at, set()).add(said["reason"])
            whole.setdefault(at, []).append(str(said))
    return Letters(found, whole)


def check_account(expected: Expected, letters: Letters) -> Counter[str]:
    """Every message is applied or has its letter, each position once; reason -> positions."""
    for at, reason in expected.reasons.items():
        said = letters.by_position.get(at)
        assert said == {reason}, f"{at}: must be {reason!r}, its letter says {said}"
    for at, said in letters.by_position.items():
        if at not in expected.reasons:
            assert said == {"conflict"}, f"must be applied, letters say {letters.whole[at]}"
            assert at in expected.may_conflict, f"must be applied, letters say {letters.whole[at]}"
    counted = Counter(expected.reasons.values())
    n_applied = len(expected.payments) + len(expected.labels)
    assert n_applied + sum(counted.values()) == expected.n_messages
    counted["applied"] = n_applied
    return counted


def check_states(deployment: Deployment, expected: Expected, chance: random.Random) -> int:
    """Versions of all states are those of the accepted set; how many states there are.

    For streams without facts of payments that no window reaches any more: they are forgotten at
    some compaction, and count in the version until then.
    """
    memory = MemoryStore(deployment.program, deployment.keys, _LIMITS)
    rows = _fed(memory, deployment, expected, chance)
    n_entities = len(deployment.program.entities)
    wanted: dict[tuple[int, bytes], bytes] = {}
    for row in rows:
        for entity, token in enumerate(_tokens(row, n_entities)):
            if any(token):
                wanted.setdefault((entity, token), row)
    with deployment.store() as store:
        chosen = sorted(set(wanted.values()))
        found = dict(zip(chosen, (store.versions(row) for row in chosen), strict=True))
        differ = Counter[str]()
        for (entity, _), row in wanted.items():
            if found[row][entity] != memory.versions(row)[entity]:
                differ[deployment.program.entities[entity].name] += 1
        assert not differ, f"of {len(wanted)} states differ: {dict(differ)}"
        tags = {store.reading.state_key(entity, token) for entity, token in wanted}
    assert _state_keys(deployment) == tags
    return len(wanted)


def _tokens(row: bytes, n_entities: int) -> list[bytes]:
    first = r.TOKENS
    return [row[first + 16 * e : first + 16 * e + 16] for e in range(n_entities)]


def _fed(
    memory: MemoryStore, deployment: Deployment, expected: Expected, chance: random.Random
) -> list[bytes]:
    """Feed all that was accepted in an order of chance; the rows."""
    facts = deployment.specification.facts
    row_of = deployment.packer.row
    steps: list[tuple[bytes, tuple[Any, ...]]] = []
    for payment, _ in expected.payments:
        steps.append((row_of(payment), ()))
    for label, about in expected.labels:
        for name, value in label.flags.items():
            said = (facts.index(name), value, label.known_ms, label.sender_ms, False)
            steps.append((row_of(about), said))
    chance.shuffle(steps)
    for row, fact in steps:
        outcome = memory.label(row, *fact) if fact else memory.observe(row)
        assert outcome in ("accepted", "repeated", "conflict"), outcome
    return [row for row, _ in steps]


def _state_keys(deployment: Deployment) -> set[bytes]:
    """The keys of all states, found by looking at every key that there is."""
    prefix = f"{deployment.name}:{{".encode()
    with deployment.redis.client() as client:
        keys = list(client.scan_iter(match=prefix + b"*", count=1_000))
    # Of a state: a tag of 22 characters, and a fingerprint of 11.
    return {key for key in keys if len(key) == len(prefix) + 22 + 2 + 11}


def check_features(
    deployment: Deployment, expected: Expected, stream: Stream, n: int, now_ms: int
) -> int:
    """Feature vectors from Redis are the plain oracle's, bit for bit; how many values."""
    oracle = oracle_of(deployment, expected)
    n_values = 0
    with deployment.store() as store:
        for number in range(n):
            time_ms = now_ms + stream.chance.choice((0, 0, 700, 4_000, 61_000))
            request = stream.request(number, time_ms)
            as_of_ms = time_ms + stream.chance.choice((0, 0, 900))
            vector = store.features(deployment.packer.row(request), as_of_ms)
            plain = oracle.features(request, as_of_ms)
            assert len(vector) == len(plain)
            for column, (one, other) in enumerate(zip(vector.tolist(), plain, strict=True)):
                name = deployment.specification.feature_names[column]
                same = struct.pack("<d", one) == struct.pack("<d", other)
                assert same or (one != one and other != other), f"{name}: {one!r}, not {other!r}"
            n_values += len(plain)
    return n_values


def oracle_of(deployment: Deployment, expected: Expected) -> PlainOracle:
    """The plain oracle, fed with all that was accepted."""
    oracle = PlainOracle(
        deployment.specification,
        horizon_ms=deployment.horizon_ms,
        skew_ms=deployment.skew_ms,
        record_key=deployment.keys.record,
    )
    for payment, stamp_ms in sorted(expected.payments, key=lambda one: one[1]):
        assert oracle.observe(payment, stamp_ms) not in ("late", "early")
    for label, about in expected.labels:
        for name, value in label.flags.items():
            said = (label.sender_ms, label.known_ms, about.time)
            oracle.label(label.transaction_id, name, value, *said)
    return oracle
