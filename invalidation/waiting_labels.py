"""Labels that bring only a transaction id: applied where the index knows their payment.

One that it does not know yet holds its partition, until all payments that were in the log when it
was read are applied; if it is unknown then, it is set aside.
Rule: nothing behind a label that waits is passed, and nothing waits for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from freshscore.config.clock import Clock
from freshscore.invalidation.batches import Batch, Batcher, Found, Refusal
from freshscore.invalidation.fetched_runs import messages_of, place_of
from freshscore.invalidation.kafka_batches import Fetched
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.label_lookups import LabelLookups
from freshscore.invalidation.message_reading import FAR
from freshscore.invalidation.messages import MALFORMED, UNKNOWN_TRANSACTION
from freshscore.invalidation.node_markers import NodeMarkers
from freshscore.invalidation.outcomes import Outcomes
from freshscore.invalidation.partitions import Partition, Place
from freshscore.invalidation.publishing import Range
from freshscore.invalidation.under_way import UnderWay


class WaitingLabels:
    """Looks payments up for one consumer, and holds partitions of labels; of its thread.

    transactions_topic: where payments come from. All methods raise Unavailable, and DataLost.
    """

    def __init__(
        self,
        reader: LogReader,
        batcher: Batcher,
        lookups: LabelLookups,
        markers: NodeMarkers,
        under_way: UnderWay,
        outcomes: Outcomes,
        places: Mapping[Partition, Place],
        clock: Clock,
        transactions_topic: str,
    ) -> None:
        self._reader = reader
        self._batcher = batcher
        self._lookups = lookups
        self._markers = markers
        self._under_way = under_way
        self._outcomes = outcomes
        self._places = places
        self._clock = clock
        self._transactions_topic = transactions_topic

    def look_up(
        self,
        batch: Batch,
        labels: Sequence[Fetched],
        upto: dict[Partition, tuple[int, int]],
        ranges: Sequence[Range],
    ) -> None:
        """Apply those of a batch that was sent and answered, where the index knows their payment.

        upto, ranges: of the partitions that they came from.
        """
        found, missing = self._sought(batch, labels)
        for at, offset in missing.items():
            self._hold(at, offset, _latest_before(labels, at, offset))
            upto[at] = (offset, self._places[at].arrival_ms)
        nothing = messages_of([])
        again = self._batcher.build(nothing, nothing, self._clock.now_ms(), found)
        for one in again.far:
            self._refuse(labels, Refusal(True, one.lookup.index, MALFORMED, FAR))
        covered = tuple(
            one._replace(end=upto[one.partition][0], arrival_ms=upto[one.partition][1])
            for one in ranges
        )
        self._under_way.send(again, upto, covered)
        self._under_way.settle()

    def release(self) -> None:
        """Read on where the payments that labels waited for are applied."""
        held = {at: place for at, place in self._places.items() if place.is_held}
        if not held:
            return
        wanted = sorted({payment for place in held.values() for payment in place.waits_for})
        applied = self._markers.lowest_offsets(self._under_way.lines(), wanted)
        for at, place in held.items():
            if place.release(applied):
                self._reader.resume([at])

    def _sought(
        self, batch: Batch, labels: Sequence[Fetched]
    ) -> tuple[list[Found], dict[Partition, int]]:
        """The labels whose payment is known, and the first of each partition that is to wait."""
        found: list[Found] = []
        missing: dict[Partition, int] = {}
        places = [place_of(labels, one.index) for one in batch.lookups]
        arrivals_ms = [int(fetched.spans[i, 2]) for fetched, i in places]
        looked_up = self._lookups.find(batch.lookups, arrivals_ms)
        for (fetched, i), (lookup, known) in zip(places, looked_up, strict=True):
            offset = int(fetched.offsets[i])
            if known is not None:
                found.append(known)
            elif self._places[fetched.partition].is_final(offset):
                detail = "the payment of this fact is not in the label index"
                self._refuse(labels, Refusal(True, lookup.index, UNKNOWN_TRANSACTION, detail))
            else:
                missing.setdefault(fetched.partition, offset)
        return found, missing

    def _refuse(self, labels: Sequence[Fetched], refusal: Refusal) -> None:
        self._outcomes.set_aside(labels, refusal)
        self._outcomes.count(refusal.reason)

    def _hold(self, at: Partition, offset: int, arrival_ms: int) -> None:
        """Read nothing of a partition of labels from `offset` on, until the payments are in."""
        topic = self._transactions_topic
        payments = [(topic, number) for number in self._reader.partitions(topic)]
        # Asked before the payments' ends: up to here all labels wait for the same payments.
        end = self._reader.ends([at])[at]
        self._places[at].hold(offset, end, self._reader.ends(payments), arrival_ms)
        self._reader.pause([at])
        self._reader.seek(at, offset)


def _latest_before(labels: Sequence[Fetched], at: Partition, offset: int) -> int:
    """The latest arrival of a partition's messages before `offset`; 0 where there are none."""
    [fetched] = [one for one in labels if one.partition == at]
    return int(fetched.spans[fetched.offsets < offset, 2].max(initial=0))
