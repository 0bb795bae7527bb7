"""What became of messages: counted by outcome, and set aside where they were refused.

Rule: a refusal holds no content, only where the message stands and a keyed digest of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from freshscore.invalidation.batch import Refusal
from freshscore.invalidation.dead_letters import DeadLetter, DeadLetters, digest_of
from freshscore.invalidation.fetched_runs import place_of
from freshscore.invalidation.kafka_batches import Fetched


class Outcomes:
    """Counts messages, and sends the letters of those that are refused.

    topic_ids: name -> id, may be replaced. digest_key: of the digests in letters.
    """

    def __init__(
        self, letters: DeadLetters, topic_ids: Mapping[str, str], digest_key: bytes
    ) -> None:
        self._letters = letters
        self._digest_key = digest_key
        self.topic_ids = dict(topic_ids)
        # Outcome -> messages; what is read again counts again.
        self.counts: dict[str, int] = {}

    def count(self, outcome: str, n: int = 1) -> None:
        """`n` messages more had this outcome."""
        self.counts[outcome] = self.counts.get(outcome, 0) + n

    def set_aside(self, parts: Sequence[Fetched], refusal: Refusal) -> None:
        """Send the letter of one of the messages in `parts`. Raises Unavailable."""
        fetched, i = place_of(parts, refusal.index)
        topic, partition = fetched.partition
        payload = fetched.value(i)
        self._letters.put(
            DeadLetter(
                topic=topic,
                topic_id=self.topic_ids[topic],
                partition=partition,
                offset=int(fetched.offsets[i]),
                arrival_ms=int(fetched.spans[i, 2]),
                reason=refusal.reason,
                detail=refusal.detail,
                length=len(payload),
                digest=digest_of(payload, self._digest_key),
            )
        )
