"""The journal keeps what was appended until the log has it, whatever ends in between."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshscore.config.errors import (
    Backpressure,
    Closed,
    ForkedScorer,
    SettingsError,
    Unavailable,
)
from freshscore.config.loading import load_settings
from freshscore.invalidation import journal as journal_module
from freshscore.invalidation import journal_segments
from freshscore.invalidation.journal import Journal
from freshscore.invalidation.journal_limits import JournalLimits
from freshscore.invalidation.journal_records import HEADER_BYTES
from freshscore.invalidation.journal_times import WaitingTimes
from freshscore.invalidation.journalled_log import JournalledLog
from freshscore.simulations.clock import VirtualClock
from tests.invalidation.journal_worlds import (
    HOUR_MS,
    KEY_ID,
    NOW_MS,
    ROOMY,
    STOOD,
    HeldLog,
    World,
)


def test_what_is_acknowledged_leaves_and_is_told(tmp_path: Path) -> None:
    world = World(tmp_path / "journal")
    told: list[Any] = []
    for n in range(3):
        world.append(b"%d" % n, told=told.append)
    world.step()
    assert world.log.sent == [b"0", b"1", b"2"]
    world.log.acknowledge(1)
    assert (told, world.journal.is_acknowledged) == ([STOOD], False)
    world.log.acknowledge()
    assert (len(told), world.journal.is_acknowledged) == (3, True)
    assert oct(world.files[0].stat().st_mode & 0o777) == "0o600"
    world.close()
    assert world.files == []
    with pytest.raises(Closed):
        world.append(b"late")


def test_files_leave_while_messages_come(tmp_path: Path) -> None:
    """What the log has takes at most the newest file."""
    world = World(tmp_path, replace(ROOMY, max_bytes=64 * 1024))
    for n in range(200):
        world.append(b"%d" % n * 500)
        world.step(0.1)
        world.log.acknowledge()
    world.step()
    assert len(world.files) == 1
    assert world.journal.held_bytes == world.files[0].stat().st_size < 8 * 1024


def test_a_full_journal_says_so_and_takes_again_what_fits(tmp_path: Path) -> None:
    world = World(tmp_path, replace(ROOMY, max_bytes=16 * 1024))
    for _ in range(15):
        world.append(bytes(1_000))
    with pytest.raises(Backpressure, match=r"journal.max_bytes is 16384, and \d+ bytes wait"):
        world.append(bytes(1_000))
    assert sum(path.stat().st_size for path in world.files) == world.journal.held_bytes <= 16384
    assert len(world.sent_and_acknowledged()) == 15
    world.append(bytes(1_000))


def test_a_disk_that_takes_nothing_is_told_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a record that did not fit is written over by the next."""
    world = World(tmp_path)
    world.append(b"first")
    real = journal_segments.write_all
    number = errno.ENOSPC

    def half(descriptor: int, data: bytes, at: int) -> None:
        real(descriptor, data[: len(data) // 2], at)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_all", half)
        with pytest.raises(Backpressure, match="has no room for"):
            world.append(b"x" * 900)
        number = errno.EIO
        with pytest.raises(Unavailable, match="Input/output error"):
            world.append(b"x" * 900)
    world.append(b"second")
    world.die()
    assert World(tmp_path).sent_and_acknowledged() == [b"first", b"second"]


def test_a_folder_that_cannot_be_written_is_said_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"journal.path .*file/journal: Not a directory"):
        World(tmp_path / "file" / "journal")
    World(tmp_path / "large", replace(ROOMY, max_bytes=2**60)).close()
    assert "bytes are free" in caplog.text


def test_nothing_is_taken_behind_what_comes_too_late(tmp_path: Path) -> None:
    world = World(tmp_path)
    # Nearly too late when it comes: it takes its chance.
    world.append(b"old", NOW_MS - HOUR_MS - 1)
    world.append(b"fact")
    world.append(b"first", NOW_MS)
    world.log.is_there = False
    world.step(3_500.0)
    world.append(b"second", NOW_MS + 3_500_000)
    world.step(110.0)
    with pytest.raises(Backpressure, match=r"is 36\d\d\d\d\d ms old; beyond 3600000 ms"):
        world.append(b"third", world.clock.now_ms())
    world.log.is_there = True
    world.step()
    with pytest.raises(Backpressure):
        world.append(b"third", world.clock.now_ms())
    world.log.acknowledge()
    world.append(b"third", world.clock.now_ms())
    assert world.journal.n_refused == 2


def test_what_was_taken_over_ages_too(tmp_path: Path) -> None:
    dead = World(tmp_path)
    dead.append(b"1", NOW_MS)
    dead.die()
    world = World(tmp_path)
    world.log.is_there = False
    world.step(3_000.0)
    world.append(b"2", world.clock.now_ms())
    world.step(700.0)
    with pytest.raises(Backpressure, match="ms old"):
        world.append(b"3", world.clock.now_ms())
    world.log.is_there = True
    world.step()
    world.log.acknowledge()
    world.step()
    world.append(b"3", world.clock.now_ms())
    # What is too old when it is found is sent, and stops nobody.
    world.die()
    late = World(tmp_path)
    late.clock.move_to(NOW_MS + 24 * HOUR_MS)
    late.log.is_there = False
    late.step()
    late.append(b"4", late.clock.now_ms())
    late.log.is_there = True
    assert late.sent_and_acknowledged() == [b"3", b"4"]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3)), max_size=60))
def test_the_oldest_time_is_that_of_a_plain_minimum(steps: list[tuple[int, int]]) -> None:
    times, plain, first = WaitingTimes(10), [], 0
    for number, (event_ms, n_leaving) in enumerate(steps):
        times.add((0, number), event_ms)
        plain.append(event_ms // 10 * 10)
        first = min(first + n_leaving, len(plain))
        at = (0, first)
        assert times.oldest_ms(lambda at=at: at) == min(plain[first:], default=None)  # type: ignore[misc]
        assert len(times._times) <= 6


def test_only_what_waits_is_brought_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two looks are one interval; one fsync serves all that waits."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    world = World(tmp_path)
    synced.clear()
    for _ in range(5):
        # Kafka answers at once: nothing ever waits.
        world.append(b"x")
        world.step(0.1)
        world.log.acknowledge()
        world.journal.disk.sync_old()
    assert synced == []
    for _ in range(10):
        world.append(b"x")
    world.journal.disk.sync_old()
    assert synced == []
    world.append(b"x")
    world.journal.disk.sync_old()
    # The file, and its name.
    assert len(synced) == 2
    world.journal.disk.sync_old()
    world.journal.disk.sync_old()
    assert len(synced) == 2
    assert world.journal.disk.n_synced == 1


def test_without_an_interval_each_append_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, replace(ROOMY, fsync_s=0.0))
    for n in range(5):
        world.append(b"x")
        assert world.journal.disk.n_synced == n + 1

    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(Unavailable, match="lost only if the power is"):
            world.append(b"kept")
    assert world.sent_and_acknowledged()[-1] == b"kept"


def test_a_disk_that_fails_later_is_told_until_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    world.append(b"x")

    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        for _ in range(3):
            world.journal.disk.sync_old()
        with pytest.raises(Unavailable, match="Input/output error"):
            world.append(b"y")
    assert caplog.text.count("is not brought to the disk") == 1
    world.journal.disk.sync_old()
    world.append(b"y")


def test_threads_share_what_brings_to_the_disk(tmp_path: Path) -> None:
    """While one waits for the disk, those that come wait for the next one together."""
    world = World(tmp_path, replace(ROOMY, fsync_s=0.0))

    def appending() -> None:
        for _ in range(50):
            world.append(b"x")

    threads = [threading.Thread(target=appending) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.journal.n_appended == 400
    assert 1 <= world.journal.disk.n_synced < 400
    assert len(world.sent_and_acknowledged()) == 400


def test_a_journal_of_a_living_process_is_its_own(tmp_path: Path) -> None:
    living, other = World(tmp_path), World(tmp_path)
    living.append(b"1")
    assert other.sent_and_acknowledged() == []
    living.die()
    other.step()
    assert other.sender.n_others == 1
    third = World(tmp_path)
    assert third.sent_and_acknowledged() == []
    assert other.log.sent == [b"1"]
    other.log.acknowledge()
    other.step()
    assert other.sender.n_others == 0
    other.close()
    third.close()
    assert [*tmp_path.iterdir()] == []


def test_a_dead_journal_that_does_not_fit_waits_for_its_turn(tmp_path: Path) -> None:
    limits = replace(ROOMY, max_bytes=32 * 1024)
    for n in range(2):
        dead = World(tmp_path, limits, now_ms=NOW_MS + n)
        for _ in range(20):
            dead.append(b"%d" % n * 1_000)
        dead.die()
    world = World(tmp_path, limits, now_ms=NOW_MS + 2)
    world.log.is_there = False
    world.step()
    assert world.sender.n_others == 1
    while world.journal.held_bytes < limits.max_bytes - 1_100:
        world.append(bytes(1_000))
    with pytest.raises(Backpressure, match="full"):
        world.append(bytes(1_000))
    world.log.is_there = True
    sent = world.sent_and_acknowledged()
    # It is looked for again, once there is room.
    assert sent[:20] == [b"0" * 1_000] * 20
    assert {*sent[20:-20]} == {bytes(1_000)}
    assert sent[-20:] == [b"1" * 1_000] * 20


def test_another_key_or_layout_is_left_in_place_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = World(tmp_path, key_id="ffffffff")
    dead.append(b"1")
    dead.die()
    newer = World(tmp_path)
    newer.append(b"2")
    newer.die()
    path = next(path for path in newer.files if path.parent == newer.journal.folder.path)
    path.write_bytes(b"fsjrnl\x00\x09" + path.read_bytes()[8:])
    world = World(tmp_path)
    assert world.sent_and_acknowledged() == []
    world.step()
    assert world.sender.n_left == 2
    assert caplog.text.count("written under the identifier secret ffffffff; this one is") == 1
    assert caplog.text.count("of another version of freshscore") == 1
    world.close()
    assert World(tmp_path, key_id="ffffffff").sent_and_acknowledged() == [b"1"]


def test_a_key_that_is_valid_beside_ours_is_sent(tmp_path: Path) -> None:
    dead = World(tmp_path, key_id="ffffffff")
    dead.append(b"1")
    dead.die()
    world = World(tmp_path)
    sender = world.sender
    sender._key_ids |= {"ffffffff"}
    assert world.sent_and_acknowledged() == [b"1"]


@pytest.mark.parametrize("n_bytes", [0, 7, HEADER_BYTES - 1, HEADER_BYTES])
def test_a_process_that_died_before_its_first_append_leaves_nothing(
    tmp_path: Path, n_bytes: int
) -> None:
    dead = World(tmp_path)
    dead.die()
    path = dead.files[0]
    path.write_bytes(path.read_bytes()[:n_bytes])
    world = World(tmp_path)
    assert world.sent_and_acknowledged() == []
    assert (world.sender.n_others, world.sender.n_left) == (0, 0)
    assert not dead.journal.folder.path.exists()


def test_damage_is_counted_and_said_and_the_rest_is_sent(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(seed)
    for _ in range(20):
        caplog.clear()
        dead = World(tmp_path)
        values = [b"%d:" % n + chance.randbytes(50) for n in range(30)]
        for value in values:
            dead.append(value)
        dead.die()
        path = dead.files[0]
        data = bytearray(path.read_bytes())
        at = chance.randrange(HEADER_BYTES, len(data))
        data[at] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        world = World(tmp_path)
        sent = world.sent_and_acknowledged()
        assert sent == [value for value in values if value in sent]
        assert len(sent) == 29
        length = (len(data) - HEADER_BYTES) / 30
        n_lost = world.sender.n_damaged_bytes + world.sender.n_torn_bytes
        assert abs(n_lost - length) < 2
        assert ("the journal is damaged" in caplog.text) == (world.sender.n_damaged_bytes > 0)
        world.close()
        assert world.files == []


def test_a_child_of_a_fork_has_no_journal(tmp_path: Path) -> None:
    """And does not keep its parent's from the others when the parent has ended."""
    world = World(tmp_path)
    world.append(b"1")
    (reading, writing), (waiting, ending) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            world.append(b"2")
        except ForkedScorer:
            os.write(writing, b"refused")
        # Lives on until its parent says so.
        os.read(waiting, 1)
        os._exit(0)
    try:
        assert os.read(reading, 7) == b"refused"
        world.die()
        assert World(tmp_path).sent_and_acknowledged() == [b"1"]
    finally:
        os.write(ending, b"!")
        os.waitpid(child, 0)


_APPENDING = """
import sys
from pathlib import Path
from freshscore.config.clock import SystemClock
from freshscore.invalidation.journal import Journal
from freshscore.invalidation.journal_limits import JournalLimits
limits = JournalLimits(1 << 26, 1.0, 10**9, 10**5, 1 << 22, 5_000)
journal = Journal(Path(sys.argv[1]), sys.argv[2], limits, SystemClock())
for n in range(10**9):
    journal.append("transactions", None, b"%d" % n, None)
    print(n, flush=True)
"""


def test_a_killed_process_loses_nothing_that_was_appended(tmp_path: Path, seed: int) -> None:
    """kill -9 in the middle; what `append` returned for is there, in order, and once."""
    chance = random.Random(seed)
    for _ in range(2):
        command = [sys.executable, "-c", _APPENDING, str(tmp_path), KEY_ID]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            told = [child.stdout.readline() for _ in range(chance.randint(1, 3_000))]
            child.kill()
            # The last line may be cut.
            told += child.stdout.read().split(b"\n")[:-1]
        world = World(tmp_path)
        sent = [int(value) for value in world.sent_and_acknowledged()]
        assert sent == [*range(len(sent))]
        assert len(sent) > int(told[-1])
        world.close()


def test_what_is_sent_by_its_own_threads_is_told_and_flushed(tmp_path: Path) -> None:
    told: list[Any] = []

    class AtOnce(HeldLog):
        def send(self, *message: Any, **more: Any) -> None:
            super().send(*message, **more)
            self.acknowledge()

    log = AtOnce()

    limits = replace(ROOMY, fsync_s=0.01)
    opened = JournalledLog.open(tmp_path, KEY_ID, limits, log)
    for n in range(100):
        opened.send("transactions", None, b"%d" % n, event_ms=None, done=told.append)
    opened.flush(10.0)
    assert log.sent == [b"%d" % n for n in range(100)]
    assert told == [STOOD] * 100
    assert opened.counts["acknowledged"] == 100
    opened.close(5.0)
    assert [*tmp_path.iterdir()] == []


def test_what_was_not_sent_stays_and_comes_with_the_next_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = HeldLog(is_there=False)
    opened = JournalledLog.open(tmp_path, KEY_ID, ROOMY, away)
    opened.send("transactions", None, b"kept")
    with pytest.raises(Unavailable, match="in the journal"):
        opened.flush(0.05)
    opened.close(0.05)
    assert caplog.text.count("Kafka is away") == 1
    assert World(tmp_path).sent_and_acknowledged() == [b"kept"]


def test_appends_of_many_threads_are_all_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path, KEY_ID, replace(ROOMY, max_bytes=1 << 22), VirtualClock(NOW_MS))

    def appending(number: int) -> None:
        for n in range(300):
            journal.append("transactions", None, b"%d-%d" % (number, n), NOW_MS)

    threads = [threading.Thread(target=appending, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.folder.release()
    sent = Counter(World(tmp_path).sent_and_acknowledged())
    assert sent == Counter(b"%d-%d" % (number, n) for number in range(4) for n in range(300))


def test_what_did_not_reach_the_log_is_sent_again_and_holds_nothing_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    told: list[Any] = []
    for n in range(3):
        world.append(b"%d" % n, told=told.append)
    world.step()
    world.log.refuse(0)
    world.append(b"3")
    world.step(0.5)
    # Not at once.
    assert world.log.sent == [b"0", b"1", b"2", b"3"]
    world.step(1.0)
    assert world.log.sent[4:] == [b"0"]
    assert [value for value, _ in world.log.held] == [b"1", b"2", b"3", b"0"]
    world.log.acknowledge(0, 1, 2)
    assert (len(told), world.journal.is_acknowledged) == (2, False)
    # A process that begins now has it too.
    world.die()
    assert World(tmp_path).sent_and_acknowledged()[0] == b"0"
    world.log.acknowledge()
    assert len(told) == 3


def test_what_is_refused_takes_room_until_it_is_there(tmp_path: Path) -> None:
    """A topic that takes nothing cannot fill the memory with what is to be sent again."""
    world = World(tmp_path, replace(ROOMY, in_flight_bytes=1_000))
    for n in range(100):
        world.append(b"%d" % n * 50)
    for _ in range(20):
        world.step()
        world.log.refuse()
    assert {*world.log.sent} < {b"%d" % n * 50 for n in range(10)} | {b"10" * 50}
    assert {*world.sent_and_acknowledged()} == {b"%d" % n * 50 for n in range(100)}


def test_what_waits_is_paced_and_what_comes_is_not(tmp_path: Path) -> None:
    world = World(tmp_path, replace(ROOMY, send_per_s=10))
    world.log.is_there = False
    for _ in range(200):
        world.append(b"x")
    world.step()
    world.log.is_there = True
    # What came while nothing could be sent may be sent beside the pace, once.
    counts = []
    for _ in range(30):
        world.step(1.0)
        counts.append(len(world.log.sent))
    assert counts[-1] == 200
    before = World(tmp_path / "next", replace(ROOMY, send_per_s=10))
    for _ in range(200):
        before.append(b"y")
    before.die()
    later = World(tmp_path / "next", replace(ROOMY, send_per_s=10))
    later.step(1.0)
    assert len(later.log.sent) == 20
    for n in range(1, 6):
        for _ in range(100):
            later.append(b"z")
        later.step(1.0)
        assert len(later.log.sent) == 20 + 110 * n


def test_the_client_is_handed_so_much_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, replace(ROOMY, in_flight_bytes=1_000))
    for _ in range(10):
        world.append(b"x" * 300)
    world.append(b"y" * 5_000)
    world.append(b"z")
    world.step()
    assert len(world.log.held) == 2
    world.log.acknowledge(0)
    world.step()
    assert len(world.log.held) == 2
    for _ in range(4):
        world.log.acknowledge()
        world.step()
    world.log.acknowledge()
    world.step()
    # Larger than the limit: alone.
    assert [value[:1] for value, _ in world.log.held] == [b"y"]
    world.log.acknowledge()
    world.step()
    assert [value for value, _ in world.log.held] == [b"z"]


def test_so_many_are_told_and_no_more(tmp_path: Path) -> None:
    """Of what waits the newest, for the others nobody waits any more."""
    world = World(tmp_path, replace(ROOMY, most_told=2))
    told: list[int] = []
    for n in range(3):
        world.append(b"x", told=lambda _, n=n: told.append(n))
    world.sent_and_acknowledged()
    assert told == [1, 2]
    world.append(b"x", told=lambda _: told.append(3))
    world.sent_and_acknowledged()
    assert told == [1, 2, 3]


def test_nothing_is_done_before_the_dead_were_looked_for(tmp_path: Path) -> None:
    """Else whoever waits for it leaves what they left."""
    dead = World(tmp_path)
    dead.append(b"1")
    dead.die()
    world = World(tmp_path)
    assert not world.sender.is_done
    world.step()
    assert not world.sender.is_done
    world.log.acknowledge()
    world.step()
    assert world.sender.is_done


def test_a_file_that_cannot_be_followed_by_another_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the log has all of it: it is the one that is appended to."""
    world = World(tmp_path, replace(ROOMY, max_bytes=64 * 1024))
    world.append(b"first" * 800)
    world.step()
    world.log.acknowledge()

    def fails(*_: Any) -> None:
        # Meanwhile somebody looks for what can be removed.
        world.journal.remove_acknowledged()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(journal_segments.Segment, "made", fails)
        with pytest.raises(Backpressure, match="has no room"):
            world.append(b"second" * 800)
    world.append(b"3")
    world.die()
    assert World(tmp_path).sent_and_acknowledged() == [b"3"]


def test_a_file_that_somebody_has_removed_or_cut_is_said_and_holds_nothing_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for cut in (None, 60):
        caplog.clear()
        world = World(tmp_path / str(cut))
        world.append(b"x" * 100)
        if cut is None:
            world.files[0].unlink()
        else:
            os.truncate(world.files[0], cut)
        world.step()
        assert "the journal is damaged: 1" in caplog.text
        assert world.sender.n_damaged_bytes > 100
        world.close()


def test_what_is_acknowledged_is_not_sent_by_the_next_process(tmp_path: Path) -> None:
    """The mark is in the file before anybody is killed."""
    world = World(tmp_path)
    for n in range(500):
        world.append(b"%d" % n)
    world.step()
    world.log.acknowledge(*range(400))
    world.die()
    sent = [int(value) for value in World(tmp_path).sent_and_acknowledged()]
    # It is written when nothing of a file is in flight, and every 64 KiB: less than a file is over.
    assert sent == [*range(sent[0], 500)]
    assert 0 < sent[0] <= 400
    again = World(tmp_path)
    for n in range(500):
        again.append(b"%d" % n)
    again.step()
    again.log.acknowledge()
    again.append(b"last")
    again.die()
    assert World(tmp_path).sent_and_acknowledged() == [b"last"]


def test_the_limits_are_those_of_the_settings() -> None:
    limits = JournalLimits.of(load_settings("tiny"))
    assert limits == JournalLimits(
        max_bytes=4_096,
        fsync_s=0.05,
        most_age_ms=10_000,
        most_told=8,
        in_flight_bytes=256,
        send_per_s=10,
    )
    assert limits.segment_bytes == 4_096


def test_where_the_journal_lies() -> None:
    """Where nothing is produced, or is to be kept anywhere, there is none."""
    shared = {"store.backend": "redis"}
    cases: list[tuple[dict[str, Any], Path | None]] = [
        ({}, None),
        ({"store.path": "a"}, Path("a/journal")),
        ({"journal.path": "b"}, Path("b")),
        ({"store.path": "a", "journal.path": "b"}, Path("b")),
        ({"journal.path": "b", "kafka.produce": False}, None),
        ({"journal.path": "b", "store.backend": "memory"}, None),
    ]
    for further, path in cases:
        assert load_settings(settings=shared | further).journal_path == path
    with pytest.raises(SettingsError, match="the journal would take nothing"):
        load_settings(settings=shared | {"journal.path": "b", "store.horizon_s": 600})
    assert load_settings(settings=shared | {"store.horizon_s": 600}).journal_path is None
    with pytest.raises(SettingsError, match=r"journal\.max_bytes = 4096 is below 1048576"):
        load_settings(settings={"journal.max_bytes": 4_096})
