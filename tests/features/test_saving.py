"""A saved store: the same bits once it is opened again, and nothing of a damaged file."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freshscore.config.errors import (
    BadFile,
    BadSpecification,
    DamagedState,
    StoreFull,
    WrongSecret,
)
from freshscore.features import saving, section_files, tables
from freshscore.features.program import compiled
from freshscore.features.saving import open_store, save_store
from freshscore.features.specification import FeatureSpecification
from freshscore.features.store import MemoryStore
from freshscore.features.store_protocol import Store
from freshscore.features.transaction import Transaction
from tests.features.stored_states import (
    DAY_MS,
    LIMITS,
    NOON_MS,
    OTHER_SECRET,
    SPECIFICATION,
    Fact,
    Ground,
    Payment,
    held,
)

Thing = Payment | Fact


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground()


def some_things(rng: np.random.Generator, n: int, cards: int = 40) -> list[Thing]:
    """Events of which some repeat or contradict each other, and facts of some."""
    things: list[Thing] = []
    for _ in range(n):
        payment = Payment(
            number=int(rng.integers(n)),
            time_ms=NOON_MS + 1_000 * int(rng.integers(400)),
            amount_minor=int(rng.integers(100_000)),
            card=int(rng.integers(cards)),
            merchant=int(rng.integers(5)),
            refund=bool(rng.random() < 0.1),
            declined=bool(rng.random() < 0.1),
        )
        things.append(payment)
        if rng.random() < 0.2:
            known_ms = payment.time_ms + int(rng.integers(300_000))
            things.append(Fact(payment, int(rng.integers(2)), bool(rng.random() < 0.7), known_ms))
    return things


def filled(ground: Ground, things: list[Thing], **limits: int) -> MemoryStore:
    store = ground.store(**limits)
    for thing in things:
        ground.apply(store, thing)
    return store


def reopened(ground: Ground, path: Path, **limits: int) -> MemoryStore:
    return open_store(path, ground.program, ground.keys, ground.store(**limits).limits)


def assert_equal(ground: Ground, one: MemoryStore, other: MemoryStore, things: list[Thing]) -> None:
    """Every state, counter and feature of the two is the same."""
    for name in ("newest_ms", "n_payments", "n_entities", "n_records"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.memory["records"] == other.memory["records"]
    assert one.head[tables.CONFLICTS // 8] == other.head[tables.CONFLICTS // 8]
    for thing in things:
        payment = thing if isinstance(thing, Payment) else thing.payment
        row = ground.row(payment)
        assert one.versions(row) == other.versions(row)
        for as_of_ms in (payment.time_ms, one.newest_ms + 1, NOON_MS + 500_000):
            left, right = (store.features(row, as_of_ms) for store in (one, other))
            assert left.tobytes() == right.tobytes()
        for entity in range(3):
            token = ground.token(payment, entity)
            assert held(one, entity, token)[0].tolist() == held(other, entity, token)[0].tolist()


def test_an_opened_store_is_the_saved_one_and_goes_on_like_it(
    ground: Ground, tmp_path: Path, rng: np.random.Generator
) -> None:
    things = some_things(rng, 400)
    store = filled(ground, things)
    save_store(store, tmp_path / "state")
    again = reopened(ground, tmp_path / "state")
    assert_equal(ground, store, again, things)
    # Payments, conflicts and facts are known as before: what comes next has the same outcome.
    later = [*things[::3], *some_things(rng, 300)]
    outcomes = [[ground.apply(one, thing) for thing in later] for one in (store, again)]
    assert outcomes[0] == outcomes[1]
    assert set(outcomes[0]) == {"accepted", "repeated", "conflict"}
    assert_equal(ground, store, again, later)


@given(seed=st.integers(0, 2**32), n=st.integers(0, 60), cards=st.sampled_from((1, 3, 60)))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_store_survives_any_number_of_savings(
    ground: Ground, tmp_path: Path, seed: int, n: int, cards: int
) -> None:
    things = some_things(np.random.default_rng(seed), n, cards)
    store = again = filled(ground, things)
    for _ in range(2):
        save_store(again, tmp_path / "state")
        again = reopened(ground, tmp_path / "state")
    assert_equal(ground, store, again, things)


def test_a_fact_finds_its_payment_in_an_opened_store(ground: Ground, tmp_path: Path) -> None:
    store = filled(ground, [Payment(1, NOON_MS)])
    save_store(store, tmp_path / "state")
    again = reopened(ground, tmp_path / "state")
    for number, outcome in ((1, "accepted"), (2, "unknown")):
        # Only the identity is given; time and entities are looked up.
        row = ground.row(Payment(number, NOON_MS + DAY_MS, card=7))
        assert again.label(row, 0, True, NOON_MS + 5, NOON_MS + 5, True) == outcome


def test_what_was_forgotten_and_lost_is_remembered(ground: Ground, tmp_path: Path) -> None:
    small = {"max_events_per_entity": 32, "horizon_ms": 60_000}
    things: list[Thing] = [Payment(n, NOON_MS + 1_000 * n) for n in range(100)]
    store = filled(ground, things, **small)
    save_store(store, tmp_path / "state")
    again = reopened(ground, tmp_path / "state", **small)
    assert_equal(ground, store, again, things)
    rows = [row_of(one, ground, Payment(1, NOON_MS)) for one in (store, again)]
    for at in (tables.LOST, tables.FORGOTTEN, tables.MAX_KNOWN, tables.N_FACTS):
        assert rows[0][at // 8] == rows[1][at // 8]
    assert rows[1][tables.LOST // 8] > NOON_MS


def row_of(store: MemoryStore, ground: Ground, payment: Payment) -> np.ndarray:
    """The table's row of the payment's card."""
    low, high = struct.unpack("<2Q", ground.token(payment, 0))
    head = tables.entity_head(store.address, 0)
    number = tables.find_entity(head, np.uint64(low), np.uint64(high))
    first = tables.ENTITY_ROW // 8 * number
    return store._rows[0][first : first + tables.ENTITY_ROW // 8]


def test_longer_windows_know_what_the_saved_store_never_kept(
    ground: Ground, tmp_path: Path
) -> None:
    """A new model finds its states warm, and how far back they are complete."""
    store = filled(ground, [Payment(1, NOON_MS)])
    save_store(store, tmp_path / "state")
    longer = SPECIFICATION.replace('["20s", "3m"]', '["20s", "3m", "90d"]')
    changed = Ground(compiled(FeatureSpecification.from_toml(longer)))
    again = reopened(changed, tmp_path / "state")
    forgotten = row_of(again, changed, Payment(1, NOON_MS))[tables.FORGOTTEN // 8]
    kept_ms = LIMITS.horizon_ms + ground.program.specification.held_ms
    assert forgotten == NOON_MS - kept_ms
    assert row_of(store, ground, Payment(1, NOON_MS))[tables.FORGOTTEN // 8] == 0


def test_states_larger_than_a_section_are_cut(
    ground: Ground, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SECTION_BYTES", 1_000)
    things = some_things(rng, 300, cards=3)
    store = filled(ground, things)
    save_store(store, tmp_path / "state")
    assert (tmp_path / "state").stat().st_size > 30 * 1_000
    assert_equal(ground, store, reopened(ground, tmp_path / "state"), things)


def small_file(ground: Ground, path: Path) -> bytes:
    things: list[Thing] = [Payment(n, NOON_MS + n, n, card=n % 2) for n in range(4)]
    save_store(filled(ground, [*things, Fact(Payment(1, NOON_MS), 0, True, NOON_MS + 9)]), path)
    return path.read_bytes()


def test_every_damaged_byte_is_found(ground: Ground, tmp_path: Path) -> None:
    path = tmp_path / "state"
    whole = small_file(ground, path)
    limits = ground.store(arena_bytes=1 << 18, max_entities=10, max_payments=1000).limits
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 1 << at % 8
        path.write_bytes(broken)
        with pytest.raises(DamagedState, match="state is damaged"):
            open_store(path, ground.program, ground.keys, limits)


def test_every_cut_and_addition_is_found(ground: Ground, tmp_path: Path) -> None:
    path = tmp_path / "state"
    whole = small_file(ground, path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedState):
            reopened(ground, path, arena_bytes=1 << 18, max_entities=10)
    for more in (b"\0", whole, whole[8:]):
        path.write_bytes(whole + more)
        with pytest.raises(DamagedState, match="behind its end"):
            reopened(ground, path)


def sections_of(whole: bytes) -> list[bytes]:
    """The sections of a file, heads and digests included."""
    found = []
    at = 8
    while at < len(whole):
        _, _, n_bytes = struct.unpack_from("<2IQ", whole, at)
        found.append(whole[at : at + 16 + n_bytes + 16])
        at += 16 + n_bytes + 16
    return found


def test_a_lost_doubled_or_moved_section_is_found(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of several that belong together and look alike."""
    monkeypatch.setattr(saving, "SECTION_BYTES", 1_000)
    path = tmp_path / "state"
    save_store(filled(ground, [Payment(n, NOON_MS + n, card=n % 30) for n in range(60)]), path)
    whole = path.read_bytes()
    sections = sections_of(whole)
    assert b"".join([whole[:8], *sections]) == whole
    kinds = [struct.unpack_from("<2IQ", section) for section in sections]
    assert max(kinds.count(kind) for kind in kinds) >= 2
    for i in range(len(sections)):
        before, after = sections[:i], sections[i + 1 :]
        lost = [*before, *after]
        doubled = [*before, sections[i], sections[i], *after]
        swapped = [*before, *after[:1], sections[i], *after[1:]]
        for broken in (lost, doubled, swapped):
            if broken != sections:
                path.write_bytes(whole[:8] + b"".join(broken))
                with pytest.raises(DamagedState):
                    reopened(ground, path)


def test_the_sections_are_those_that_the_page_promises(ground: Ground, tmp_path: Path) -> None:
    whole = small_file(ground, tmp_path / "state")
    assert whole[:8] == b"fsstore\x01"
    before = b""
    kinds = []
    for section in sections_of(whole):
        kind, entity, _ = struct.unpack_from("<2IQ", section)
        kinds.append((kind, entity))
        digest = hashlib.blake2b(
            before + section[:-16], digest_size=16, person=b"saved state"
        ).digest()
        assert section[-16:] == digest
        before = digest
    assert kinds == [(1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (2, 2), (3, 2), (4, 0), (5, 0)]


# Rows, records and payments of a saved store, as a digest: later versions must read them too.
GOLDEN = "80c4c8bdd468ffbcc8caeb8ea7a01a39"


def test_golden_sections(ground: Ground, tmp_path: Path) -> None:
    whole = small_file(ground, tmp_path / "state")
    # The description aside, which tests above read by its names.
    contents = b"".join(section[:-16] for section in sections_of(whole)[1:])
    assert hashlib.blake2b(contents, digest_size=16).hexdigest() == GOLDEN


def test_another_secret_is_refused(ground: Ground, tmp_path: Path) -> None:
    path = tmp_path / "state"
    small_file(ground, path)
    other = Ground(secret=OTHER_SECRET)
    with pytest.raises(WrongSecret) as caught:
        reopened(other, path)
    for ground_of in (ground, other):
        assert ground_of.keys.key_id in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("EUR", "USD", "other records of card, merchant, terminal"),
        ('facts = ["fraud", "declined"]', 'facts = ["declined", "fraud"]', "other records of"),
        ('{ function = "last" }', '{ function = "distinct", of = "terminal" }', "records of card"),
        ('"terminal"', '"till"', "card, merchant, terminal; the specification has card"),
    ],
)
def test_other_records_are_refused(
    ground: Ground, tmp_path: Path, old: str, new: str, what: str
) -> None:
    path = tmp_path / "state"
    small_file(ground, path)
    text = SPECIFICATION.replace(old, new)
    assert text != SPECIFICATION
    with pytest.raises(BadSpecification, match=what):
        reopened(Ground(compiled(FeatureSpecification.from_toml(text))), path)


def test_other_windows_over_the_same_records_are_welcome(ground: Ground, tmp_path: Path) -> None:
    path = tmp_path / "state"
    small_file(ground, path)
    text = SPECIFICATION.replace('["8s", "28s", "2m"]', '["8s"]')
    changed = Ground(compiled(FeatureSpecification.from_toml(text)))
    assert changed.program.specification.fingerprint != ground.program.specification.fingerprint
    assert reopened(changed, path).n_payments == 4


@pytest.mark.parametrize(
    ("limit", "value", "named"),
    [
        ("max_entities", 29, "store.max_entities is 29"),
        ("max_payments", 199, "store.max_payments is 199"),
        ("max_events_per_entity", 6, "store.max_events_per_entity, 6"),
        ("arena_bytes", 1 << 14, "store.arena_bytes is 16384"),
    ],
)
def test_smaller_limits_than_the_content_are_refused(
    ground: Ground, tmp_path: Path, limit: str, value: int, named: str
) -> None:
    things: list[Thing] = [Payment(n, NOON_MS + n, card=n % 30) for n in range(200)]
    store = filled(ground, things)
    save_store(store, tmp_path / "state")
    with pytest.raises(StoreFull, match=named):
        reopened(ground, tmp_path / "state", **{limit: value})
    exact = {"max_entities": 30, "max_payments": 200, "max_events_per_entity": 7}
    assert_equal(ground, store, reopened(ground, tmp_path / "state", **exact), things)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_saving_leaves_the_old_file(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "state"
    before = small_file(ground, path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    target = Path if step == "replace" else os
    with monkeypatch.context() as patched:
        patched.setattr(target, step, fail)
        with pytest.raises(BadFile, match="No space left"):
            save_store(filled(ground, [Payment(9, NOON_MS)]), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert reopened(ground, path).n_payments == 4


def test_a_process_that_dies_while_saving_leaves_the_old_file(
    ground: Ground, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    before = small_file(ground, path)
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from freshscore.features import saving\n"
        "from tests.features.stored_states import NOON_MS, Ground, Payment\n"
        "ground = Ground()\n"
        "store = ground.store()\n"
        "ground.apply(store, Payment(9, NOON_MS))\n"
        "os.fsync = lambda descriptor: os._exit(9)\n"
        "saving.save_store(store, Path(sys.argv[1]))\n"
    )
    root = Path(__file__).parents[2]
    died = subprocess.run([sys.executable, "-c", script, str(path)], cwd=root, check=False)
    assert died.returncode == 9
    assert path.read_bytes() == before
    left = [one for one in tmp_path.iterdir() if one != path]
    assert [one.name.endswith(".partial") for one in left] == [True]
    assert reopened(ground, path).n_payments == 4


def test_a_store_that_changes_while_it_is_saved_is_not_saved(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(ground, [Payment(1, NOON_MS)])
    digest = section_files._digest

    def meddling(before: bytes, head: bytes, content: bytes | memoryview) -> bytes:
        ground.apply(store, Payment(2, NOON_MS + 1))
        return digest(before, head, content)

    monkeypatch.setattr(section_files, "_digest", meddling)
    with pytest.raises(RuntimeError, match="changed while it was saved"):
        save_store(store, tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_can_read_the_file(ground: Ground, tmp_path: Path) -> None:
    small_file(ground, tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600


def test_no_identifier_is_in_the_file(ground: Ground, tmp_path: Path) -> None:
    store = ground.store()
    named = Transaction(
        "pay-7781", NOON_MS, 1, "EUR", {"card": "4929000000006", "merchant": "holder@example.com"}
    )
    store.observe(ground.packer.row(named))
    save_store(store, tmp_path / "named")
    whole = (tmp_path / "named").read_bytes()
    for identifier in ("4929000000006", "holder@example.com", "pay-7781"):
        assert identifier.encode() not in whole


def test_a_file_that_is_not_there_or_not_a_store_is_named(ground: Ground, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="nowhere"):
        reopened(ground, tmp_path / "nowhere")
    with pytest.raises(BadFile, match="cannot write"):
        save_store(ground.store(), tmp_path / "no folder" / "state")
    (tmp_path / "text").write_text("transaction_id,time\n")
    with pytest.raises(DamagedState, match="text is damaged"):
        reopened(ground, tmp_path / "text")


def test_the_memory_store_meets_the_protocol(ground: Ground) -> None:
    held_in = ground.store()
    store: Store = held_in
    assert isinstance(store, Store)
    assert store.newest_ms == 0
    row = ground.row(Payment(1, NOON_MS))
    assert store.versions(row) == (None, None, None)
    assert store.observe(row) == "accepted"
    versions = store.versions(row)
    assert store.label(row, 0, True, NOON_MS, NOON_MS, False) == "accepted"
    for entity, version in enumerate(store.versions(row)):
        assert version not in (None, versions[entity])
        assert version == held(held_in, entity, row[64 + 16 * entity :][:16])[1]
