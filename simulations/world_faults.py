"""What goes wrong in a simulated world, and how often: drawn anew for each, for some need calm.

A world in which everything fails all the time learns little: nothing is ever in step. So each kind
of trouble is there or not, by chance, and comes seldom or often.
Rule: trouble ends when it is told to; a world must come to rest after any of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freshscore.simulations.simulated_log import Log
from freshscore.simulations.simulated_servers import Servers
from freshscore.simulations.world_chance import Chance
from freshscore.simulations.world_processes import Process, ProcessClock

_LOST_WRITES = (0, 1, 2, 5, 20, 100)
_BROKER_ERROR_MS = 300


@dataclass
class Faults:
    """How likely each is: of a thing sent, polled or committed, of a turn, of a step.

    followed: how likely followers are awake when time goes by.
    kinds: of what `happen` draws from. lost_writes: how many a node loses that dies, likewise.
    """

    chance: Chance
    lost: float
    cut: float
    unanswered: float
    slow: float
    lost_commit: float
    failed_poll: float
    never_sent: float
    doubled: float
    kill: float
    pause: float
    followed: float
    kinds: tuple[str, ...]
    lost_writes: tuple[int, ...] = _LOST_WRITES

    @classmethod
    def drawn(cls, chance: Chance) -> Faults:
        """The faults of one world."""

        def rate(most: float) -> float:
            return chance.choice((0.0, 0.0, most / 10, most))

        every = (
            *("restart", "crash", "crash empty", "fail over", "stop", "kafka", "clock", "scripts"),
            *("partition", "go on"),
        )
        kinds = tuple(one for one in every if chance.random() < 0.6)
        return cls(
            chance=chance,
            lost=rate(0.05),
            cut=rate(0.1),
            unanswered=rate(0.05),
            slow=rate(0.05),
            lost_commit=rate(0.3),
            failed_poll=rate(0.05),
            never_sent=rate(0.1),
            doubled=rate(0.2),
            kill=rate(0.1),
            pause=chance.choice((0.0, 0.01, 0.03, 0.1)),
            followed=chance.choice((0.2, 0.7, 0.9)),
            kinds=(*kinds, "go on"),
        )

    def begin(self, servers: Servers, log: Log) -> None:
        """Let connections and commits fail from now on."""
        servers.faults.lost, servers.faults.cut = self.lost, self.cut
        servers.faults.unanswered, servers.faults.slow = self.unanswered, self.slow
        log.faults.lost_commit, log.faults.failed_poll = self.lost_commit, self.failed_poll
        log.faults.never_sent, log.faults.doubled = self.never_sent, self.doubled

    def end(self, servers: Servers, log: Log) -> None:
        """No trouble more."""
        servers.heal()
        log.faults.calm()

    def happen(
        self,
        servers: Servers,
        log: Log,
        broker_clock: ProcessClock,
        processes: Sequence[Process],
    ) -> str:
        """One thing goes wrong, or right again; its name. processes: that may be cut off."""
        chance = self.chance
        kind = chance.choice(self.kinds)
        number = chance.randrange(len(servers.servers))
        server = servers.servers[number]
        is_away = not server.is_up or server.is_stopped
        if is_away or log.faults.is_down or servers.cut_off or kind == "go on":
            # Mostly one thing at a time.
            server.is_up = True
            server.go_on()
            log.faults.is_down = False
            servers.cut_off.clear()
            return "go on"
        if kind == "restart":
            servers.crash(number, chance.choice(self.lost_writes))
            server.is_up = True
        elif kind == "crash":
            servers.crash(number, chance.choice(self.lost_writes))
        elif kind == "crash empty":
            servers.crash(number, None)
        elif kind == "fail over":
            servers.fail_over(number, chance.choice(self.lost_writes))
        elif kind == "stop":
            server.is_stopped = True
        elif kind == "partition":
            servers.cut_off.add(chance.choice(processes))
        elif kind == "move":
            servers.move_slots(number)
        elif kind == "scripts":
            server.node.forget_scripts()
        elif kind == "kafka":
            log.faults.is_down = True
        elif kind == "clock":
            # Another broker leads, whose clock is another.
            broker_clock.error_ms = chance.randint(-_BROKER_ERROR_MS, _BROKER_ERROR_MS)
        return kind
