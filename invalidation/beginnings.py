"""Where a consumer begins with its partitions, and that it misses nothing of them from there on.

A client that is overtaken by the retention of the log goes on at its beginning and says nothing. So
wherever messages were to be read that the log no longer has, the nodes that lack them give up their
epochs, loudly, and are rebuilt from what is left: an answer is degraded, never silently wrong.
Rule: a partition is read without a gap from the offset at which it was begun with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from freshscore.invalidation.kafka_batches import Fetched
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.node_markers import DataLost, NodeMarkers
from freshscore.invalidation.partitions import NodeMarker, Partition, Place, begin_of, is_cut_off
from freshscore.invalidation.under_way import UnderWay


class Beginnings:
    """Opens partitions for one consumer, whose `places` it fills; of its thread.

    All methods raise Unavailable, and DataLost where messages are gone from the log.
    """

    def __init__(
        self,
        reader: LogReader,
        markers: NodeMarkers,
        under_way: UnderWay,
        places: dict[Partition, Place],
    ) -> None:
        self._reader = reader
        self._markers = markers
        self._under_way = under_way
        self._places = places

    def open(self, partitions: Sequence[Partition]) -> None:
        """Begin with partitions, each where what is durable of it ends. Raises WrongSecret too."""
        self._markers.forget_former_nodes()
        lines = self._under_way.lines()
        if not any(place.rebuilt_at is not None for place in self._places.values()):
            self._markers.begin_rebuilding(lines)
        markers = self._markers.read(lines, partitions)
        first, ends = self._reader.beginnings(partitions), self._reader.ends(partitions)
        self._give_up_cut_off(markers, first)
        for at in partitions:
            begin, rebuild = begin_of(self._reader.committed(at), markers[at], first[at])
            # A log that has lost its end goes on where it ends now.
            begin = min(begin, ends[at])
            self._places[at] = Place.begun(begin, first[at], ends[at], rebuild=rebuild)
            self._reader.seek(at, begin)
            self._reader.resume([at])

    def check_no_gap(self, fetched: Sequence[Fetched]) -> None:
        """Raise where the log has forgotten messages that were to be read before these."""
        gaps = {}
        for one in fetched:
            place = self._places[one.partition]
            if int(one.offsets[0]) > place.read and not place.is_held:
                gaps[one.partition] = place.read
        self._check_still_there(gaps)

    def skip_gap(self, at: Partition) -> None:
        """Go on where the client is, if what stands before it is no message."""
        place, position = self._places[at], self._reader.position(at)
        if position > place.read:
            self._check_still_there({at: place.read})
        place.skip_to(position)

    def _check_still_there(self, offsets: Mapping[Partition, int]) -> None:
        """Raise where an offset is gone from the log.

        A gap alone says nothing: where a transaction ended there is no message either.
        """
        for at, first in self._reader.beginnings([*offsets]).items():
            if first > offsets[at]:
                raise DataLost(
                    f"topic {at[0]} partition {at[1]} begins at offset {first}, and what stood at"
                    f" {offsets[at]} was not read"
                )

    def _give_up_cut_off(
        self, markers: Mapping[Partition, Sequence[NodeMarker]], first: Mapping[Partition, int]
    ) -> None:
        """Have nodes that lack what is gone from the log begin again with what is left; say so."""
        given_up: set[int] = set()
        for at, of_nodes in markers.items():
            cut_off = {
                node: marker.offset or 0
                for node, marker in enumerate(of_nodes)
                if is_cut_off(marker, first[at])
            }
            if cut_off:
                given_up |= cut_off.keys()
                lowest = min(cut_off.values())
                logging.getLogger("freshscore").error(
                    "topic %s partition %d begins at offset %d, and Redis holds it up to %d: what"
                    " stood in %d offsets is gone from the log before it was applied",
                    *at,
                    first[at],
                    lowest,
                    first[at] - lowest,
                )
        lines = self._under_way.lines()
        for node in sorted(given_up):
            self._markers.give_up(lines, node)
        if given_up:
            raise DataLost(
                f"{len(given_up)} of {lines.n} nodes of Redis are rebuilt from what the log still"
                " has: answers are degraded until then, and complete since its beginning"
            )
