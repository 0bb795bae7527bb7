"""Producers of a simulated world: what they say, again, otherwise, or wrongly.

Rule: what a message means is told to the truth before it is sent.
"""

from __future__ import annotations

from freshscore.config.clock import Clock
from freshscore.config.settings import KafkaSettings
from freshscore.simulations.simulated_log import Log
from freshscore.simulations.world_chance import Chance
from freshscore.simulations.world_traffic import Traffic, raw_label, raw_payment
from freshscore.simulations.world_truth import Said, Truth


class Producers:
    """Whoever sends payments and labels, scorers apart.

    contradict: whether a payment is said again with another content.
    """

    def __init__(
        self,
        chance: Chance,
        clock: Clock,
        settings: KafkaSettings,
        log: Log,
        truth: Truth,
        traffic: Traffic,
        *,
        contradict: bool,
    ) -> None:
        self._chance = chance
        self._clock = clock
        self._settings = settings
        self._log = log
        self._truth = truth
        self._traffic = traffic
        self._contradict = contradict
        self._conflicting: set[str] = set()

    def say(self) -> None:
        """Some messages of producers."""
        chance = self._chance
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            self._say_one()

    def _say_one(self) -> None:
        """A message of some producer: new, again, another content, or nonsense."""
        chance, drawn = self._chance, self._chance.random()
        at = chance.choice(self._log.of_topic(self._settings.transactions_topic))
        old = self._traffic.again() if drawn < 0.12 else None
        if drawn > 0.99:
            value = b'{"transaction_id": "n%d"' % chance.randrange(10**6)
            self._truth.say(value, Said(None))
            self._log.append(at, value)
            return
        if old is None:
            paid = self._traffic.payment(self._clock.now_ms())
        elif drawn < 0.08 or not self._contradict:
            paid = old
        else:
            paid = self._traffic.other_content(old)
            self._conflicting.add(paid.transaction_id)
        content = self._truth.content(paid)
        value = raw_payment(paid)
        self._truth.say(value, Said(content))
        if not self._log.faults.is_down:
            self._log.append(at, value)

    def say_label(self) -> None:
        """A message of what became known of a payment; without its entities where it is known."""
        chance, paid = self._chance, self._traffic.again()
        if paid is None or self._log.faults.is_down:
            return
        known = self._truth.accepted.get(paid.transaction_id)
        is_alone = paid.transaction_id not in self._conflicting
        with_entities = known is None or not is_alone or chance.random() < 0.5
        at = chance.choice(self._log.of_topic(self._settings.labels_topic))
        sent_ms = self._clock.now_ms() - chance.randrange(2_000)
        value = chance.random() < 0.7
        content = known if known is not None and is_alone else self._truth.content(paid)
        if not with_entities:
            # From now on it has one content, so that it is clear which one is meant.
            self._traffic.recent.remove(paid)
        message = raw_label(content.transaction, value, sent_ms, with_entities=with_entities)
        self._truth.say(message, Said(content, ((0, value),), sent_ms))
        self._log.append(at, message)
