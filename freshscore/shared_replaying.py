"""`freshscore replay --profile shared`: the stream through real servers, beside the embedded one.

A run has topics, a Redis namespace and a consumer process of its own, with names that no other run
has; all of it is removed when the run ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import SecretStr

from freshscore.config.clock import Clock
from freshscore.config.errors import Unavailable
from freshscore.config.loading import flat
from freshscore.config.secret import Secret, random_seed, shared_secret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import Program, compiled
from freshscore.features.record_making import time_of
from freshscore.features.redis_commands import remove_namespace, replies_to
from freshscore.features.redis_door import Nodes, command
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.redis_progress import progress_of
from freshscore.features.state_layout import state_fingerprints
from freshscore.invalidation.kafka_admin import LogAdmin
from freshscore.invalidation.kafka_writing import LogWriter
from freshscore.invalidation.messages import encode_label, encode_transaction
from freshscore.invalidation.topics import make_topics, topic_names
from freshscore.output import progress
from freshscore.scoring.serving import ServableModel
from freshscore.scoring.shared_scorer import SharedScorer
from freshscore.simulations.records import Records
from freshscore.simulations.shared_outcome import SharedOutcome
from freshscore.simulations.shared_replay import StreamClock, compared_answers, replay_shared
from freshscore.simulations.streams import Stream

# How long the consumer may take to apply what it is given, beside a rate that any machine has.
_PATIENCE_S: Final = 60.0
_SLOWEST_PER_S: Final = 2_000
_WAIT_S: Final = 0.1
_FLUSH_S: Final = 60.0
_STOP_S: Final = 30.0


def run_shared(
    stream: Stream,
    model: ServableModel,
    settings: Settings,
    embedded: Records,
    clock: Clock,
) -> SharedOutcome:
    """Play `stream` through the servers of the settings, and compare with the embedded answers.

    Raises SettingsError, Unavailable.
    """
    program = compiled(stream.table.specification)
    with _deployment(settings, program) as own, _Log(own, program) as log:
        nodes = Nodes.open(own.redis)
        applied = _Applied(nodes, own, program)
        started_s = clock.monotonic_s()
        log.send_history(stream, clock)
        with _consumer(own):
            _wait_until_applied(applied, log, clock)
            history, history_s = log.sent, clock.monotonic_s() - started_s
            stream_clock = StreamClock(clock, stream.start_ms)
            log.clock = stream_clock
            with SharedScorer(
                own, nodes, model, program, log.keys, writer=log, clock=stream_clock, seed=1
            ) as scorer:
                line_s = own.output.progress_line_s
                with progress("shared touches", len(stream), clock, line_s) as advance:
                    answers = replay_shared(
                        stream,
                        scorer,
                        stream_clock,
                        clock,
                        lambda: log.sent - applied.messages(),
                        advance=advance,
                    )
    return SharedOutcome(answers, compared_answers(stream, embedded, answers), history, history_s)


class _Log:
    """The run's writer: stamps each message with the instant of the stream, and counts it."""

    def __init__(self, settings: Settings, program: Program) -> None:
        secret = run_secret(settings)
        self._settings = settings
        self._program = program
        self.keys = Keys(program, secret)
        self._writer = LogWriter(settings.kafka)
        self.clock: StreamClock | None = None
        self.sent = 0

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(_STOP_S)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        event_ms: int | None = None,
        done: Any = None,
    ) -> None:
        """Send a message of the scorer at the instant of the stream."""
        kafka = self._settings.kafka
        is_source = topic in (kafka.transactions_topic, kafka.labels_topic)
        self.sent += is_source
        at_ms = self.clock.at_ms if self.clock is not None and is_source else None
        self._writer.send(topic, key, value, stamp_ms=at_ms, done=done)

    def flush(self, timeout_s: float) -> None:
        """Wait until all is acknowledged."""
        self._writer.flush(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Send what is left."""
        self._writer.close(timeout_s)

    def send_history(self, stream: Stream, clock: Clock) -> None:
        """Send what was played before the stream, at its own instants; facts behind payments."""
        table = stream.history_table()
        packer = Packer(self._program, self.keys)
        kafka = self._settings.kafka
        facts = table.facts
        wanted = set(facts.row.tolist())
        rows: dict[int, bytes] = {}
        total = len(table) + len(facts.row)
        line_s = self._settings.output.progress_line_s
        with progress("messages of history", total, clock, line_s) as advance:
            arrivals_ms = table.arrival_ms.tolist()
            for number, transaction in enumerate(table.transactions()):
                row = packer.row(transaction)
                key_id = self.keys.key_id_at(transaction.time)
                value = encode_transaction(self._program, key_id, transaction, row)
                self._writer.send(
                    kafka.transactions_topic, None, value, stamp_ms=arrivals_ms[number]
                )
                if number in wanted:
                    rows[number] = row
                advance(1)
            order = np.argsort(facts.known_at_ms, kind="stable").tolist()
            names = table.specification.facts
            for i in order:
                flags = {names[facts.name[i]]: bool(facts.value[i])}
                sent_ms, known_ms = int(facts.sender_ms[i]), int(facts.known_at_ms[i])
                row = rows[int(facts.row[i])]
                key_id = self.keys.key_id_at(time_of(row))
                value = encode_label(self._program, key_id, row, flags, sent_ms, known_ms)
                self._writer.send(kafka.labels_topic, None, value, stamp_ms=known_ms)
                advance(1)
        self._writer.flush(_FLUSH_S)
        self.sent += total


class _Applied:
    """How many messages of the log all nodes of Redis hold."""

    def __init__(self, nodes: Nodes, settings: Settings, program: Program) -> None:
        self._nodes = nodes
        self._keys = RedisKeys(settings.redis.namespace, state_fingerprints(program))
        self._last = 0

    def messages(self) -> int:
        """The least of all nodes, 0 while one has no epoch; as before while one is away."""
        tags = self._nodes.tags
        asked = [(tag.encode(), command(b"GET", self._keys.progress(tag))) for tag in tags]
        try:
            summaries = replies_to(self._nodes, asked)
        except Unavailable:
            return self._last
        self._last = 0
        if None not in summaries:
            held = (progress_of(said).markers for said in summaries)
            self._last = min(sum(one.offset for one in markers) for markers in held)
        return self._last


def run_secret(settings: Settings) -> Secret:
    """The secret of all processes of a run. Raises SettingsError."""
    return shared_secret(settings.store.path)


@contextmanager
def _deployment(settings: Settings, program: Program) -> Iterator[Settings]:
    """Settings with topics and a namespace of the run's own; what they name is removed at the end.

    Of what is in Redis only keys of the namespace are touched.
    """
    name = f"replay-{random_seed():016x}"
    topics = {
        f"{kind}_topic": f"{name}-{kind}"
        for kind in ("transactions", "labels", "decisions", "dead_letters")
    }
    kafka = settings.kafka.model_copy(update={**topics, "historical": True, "group": name})
    redis = settings.redis.model_copy(update={"namespace": name})
    own = settings.model_copy(update={"kafka": kafka, "redis": redis})
    with LogAdmin(own.kafka) as admin:
        make_topics(admin, own, program.specification)
        try:
            yield own
        finally:
            admin.delete(topic_names(own))
            nodes = Nodes.open(own.redis)
            remove_namespace(nodes, name)
            nodes.close()


@contextmanager
def _consumer(settings: Settings) -> Iterator[None]:
    """A consumer process with these settings, while the context lasts."""
    with tempfile.TemporaryDirectory(prefix="freshscore-replay-") as folder:
        file, said = Path(folder) / "settings.toml", Path(folder) / "consumer.log"
        file.write_text(_as_toml(settings), encoding="utf-8")
        command = [sys.executable, "-m", "freshscore", "consume", "--config", str(file)]
        with said.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
            if process.poll() is not None:
                raise Unavailable(
                    f"the consumer ended by itself: {said.read_text('utf-8')[-1_000:]}"
                )
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _as_toml(settings: Settings) -> str:
    """The settings as a file, without passwords: those are in the environment."""
    groups: dict[str, list[str]] = {}
    for key, value in flat(settings):
        if value is None or isinstance(value, SecretStr):
            continue
        group, name = key.split(".")
        shown = json.dumps(value if isinstance(value, bool | int | float) else str(value))
        groups.setdefault(group, []).append(f"{name} = {shown}")
    return "\n".join(f"[{group}]\n" + "\n".join(lines) + "\n" for group, lines in groups.items())


def _wait_until_applied(applied: _Applied, log: _Log, clock: Clock) -> None:
    ends_s = clock.monotonic_s() + _PATIENCE_S + log.sent / _SLOWEST_PER_S
    waiting = threading.Event()
    while applied.messages() < log.sent:
        if clock.monotonic_s() > ends_s:
            raise Unavailable(
                f"the consumer has applied {applied.messages():,} of {log.sent:,} messages of"
                " history, and takes too long"
            )
        waiting.wait(_WAIT_S)
