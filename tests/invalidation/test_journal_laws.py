"""The journal against a model: whatever happens, what the log does not have is still there."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from freshscore.config.errors import Backpressure
from freshscore.invalidation.journal_records import Placed
from freshscore.invalidation.journal_segments import Segment
from freshscore.invalidation.journal_sending import JournalSender
from tests.invalidation.journal_worlds import NOW_MS, ROOMY, World

_LIMITS = replace(ROOMY, max_bytes=24 * 1024, in_flight_bytes=4_096, send_per_s=5)


class JournalLaws(RuleBasedStateMachine):
    """Two processes of one machine, each killed and begun anew; a log that comes and goes.

    appended: all that may reach the log. unacknowledged: what must, for `append` returned, and the
    log has not acknowledged it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parent = Path(tempfile.mkdtemp(prefix="freshscore-journal-"))
        self.n_begun = 0
        self.worlds = [self._begun() for _ in range(2)]
        self.unacknowledged: set[bytes] = set()
        self.appended: set[bytes] = set()
        self.n_named = 0

    def teardown(self) -> None:
        """In the end all of it arrives."""
        for which in range(2):
            self.killed(which, 0)
        world = self.worlds[0]
        for _ in range(3):
            self._arrived(world, world.sent_and_acknowledged())
        self.worlds[1].die()
        assert self.unacknowledged == set()
        assert world.sender.n_damaged_bytes == 0
        world.close()
        self.worlds[1].close()
        assert [*self.parent.iterdir()] == []
        shutil.rmtree(self.parent)

    @rule(which=st.integers(0, 1), n=st.integers(1, 5), n_bytes=st.integers(0, 2_000))
    def appends(self, which: int, n: int, n_bytes: int) -> None:
        for _ in range(n):
            value = self._named(n_bytes)
            try:
                self.worlds[which].append(value, self.worlds[which].clock.now_ms())
            except Backpressure:
                continue
            self.appended.add(value)
            self.unacknowledged.add(value)

    @rule(which=st.integers(0, 1), passed_s=st.floats(0.0, 30.0))
    def steps(self, which: int, passed_s: float) -> None:
        self.worlds[which].step(passed_s)

    @rule(which=st.integers(0, 1), chosen=st.data(), is_taken=st.booleans())
    def answers(self, which: int, chosen: st.DataObject, is_taken: bool) -> None:
        log = self.worlds[which].log
        if not log.held:
            return
        place = st.integers(0, len(log.held) - 1)
        places = chosen.draw(st.sets(place, min_size=1))
        values = [log.held[one][0] for one in places]
        if is_taken:
            log.acknowledge(*places)
            self._arrived(self.worlds[which], values)
        else:
            log.refuse(*places)

    @rule(which=st.integers(0, 1), is_there=st.booleans())
    def comes_and_goes(self, which: int, is_there: bool) -> None:
        self.worlds[which].log.is_there = is_there

    @rule(which=st.integers(0, 1))
    def looks_at_the_disk(self, which: int) -> None:
        self.worlds[which].journal.disk.sync_old()

    @rule(which=st.integers(0, 1), n_torn=st.integers(0, 80))
    def killed(self, which: int, n_torn: int) -> None:
        """With `n_torn` bytes of an append that never returned."""
        world = self.worlds[which]
        value = self._named(20)
        if n_torn:
            self._torn(world, value, n_torn)
        world.die()
        self.worlds[which] = self._begun(world.clock.now_ms())

    @rule(which=st.integers(0, 1))
    def ends_in_order(self, which: int) -> None:
        world = self.worlds[which]
        world.close()
        self.worlds[which] = self._begun(world.clock.now_ms())

    @precondition(lambda self: any(world.log.held for world in self.worlds))
    @invariant()
    def the_window_is_kept(self) -> None:
        for world in self.worlds:
            # What was refused takes room until it is there; the client holds no more than that.
            held = sum(len(value) for value, _ in world.log.held)
            assert held <= _LIMITS.in_flight_bytes

    @invariant()
    def the_limit_is_kept(self) -> None:
        for world in self.worlds:
            folders = {world.journal.folder.path} | {one.path for one in world.sender._others}
            on_disk = sum(path.stat().st_size for path in world.files if path.parent in folders)
            n_torn = 80 * len(folders)
            assert world.journal.held_bytes <= _LIMITS.max_bytes + n_torn
            assert on_disk <= _LIMITS.max_bytes + n_torn

    def _begun(self, now_ms: int = NOW_MS) -> World:
        """At an instant of its own: the names of folders have an order, and a run repeats."""
        self.n_begun += 1
        return World(self.parent, _LIMITS, now_ms=now_ms // 1_000 * 1_000 + self.n_begun)

    def _named(self, n_bytes: int) -> bytes:
        self.n_named += 1
        return b"%d:" % self.n_named + random.Random(self.n_named).randbytes(n_bytes)

    def _torn(self, world: World, value: bytes, n_torn: int) -> None:
        """Bytes behind the end, as of an append in which its process was killed."""
        active = world.journal.folder.segments[-1]
        size = active.size
        try:
            world.append(value)
        except Backpressure:
            return
        segment = world.journal.folder.segments[-1]
        whole = segment.size
        begin = size if segment is active else 40
        end = min(begin + n_torn, whole)
        with segment.path.open("r+b") as file:
            file.truncate(end)
        if end == whole:
            # Whole, and nobody was told: it may be sent.
            self.appended.add(value)

    def _arrived(self, world: World, values: list[bytes]) -> None:
        assert {*values} <= self.appended
        self.unacknowledged -= {*values}


TestJournal = JournalLaws.TestCase
TestJournal.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_sender_that_trusts_its_client_is_found() -> None:
    """The canary: a message that leaves when it is handed over, not when the log has it."""
    hand_over = JournalSender._hand_over

    def trusting(sender: JournalSender, segment: Segment, one: Placed) -> None:
        hand_over(sender, segment, one)
        segment.acknowledged(one.at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JournalSender, "_hand_over", trusting)
        with pytest.raises(AssertionError):
            run_state_machine_as_test(
                JournalLaws,
                settings=settings(
                    max_examples=200,
                    stateful_step_count=40,
                    deadline=None,
                    derandomize=True,
                    phases=[Phase.generate],
                ),
            )
