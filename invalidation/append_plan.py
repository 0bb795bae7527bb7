"""What the kernels of a batch read: one int64 array for all batches, one for the batch at hand.

Addresses and limits by name instead of twenty arguments a call. The plan holds what a
specification, its keys and the settings say; the batch, where its rows, groups and buffers lie.
Rule: whoever makes one of these keeps all arrays alive whose addresses are in it.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features.memory import address_of
from freshscore.features.packing import Keys
from freshscore.features.program import Program
from freshscore.features.record_making import shapes_head
from freshscore.features.redis_labels import GENERATIONS, name_of_index
from freshscore.features.state_layout import StateLayout, state_layout
from freshscore.invalidation.feed import Acceptance

# The plan, in bytes.
N_ENTITIES: Final = 0
RECORDS_HEAD: Final = 8  # address of what `make_event` reads
HORIZON: Final = 16
SKEW: Final = 24
RECENT: Final = 32  # identities seen of late, 16 bytes each
RECENT_MASK: Final = 40
EXPIRIES: Final = 48  # when a key's life was extended last, 8 bytes each
EXPIRIES_MASK: Final = 56
LIFE: Final = 64  # seconds of a state's life, as text, and its length
LIFE_LENGTH: Final = 72
INDEX_LIFE: Final = 80  # the same of the label index
INDEX_LIFE_LENGTH: Final = 88
INDEX_GENERATION: Final = 96  # ms of one generation of the label index; 0: there is none
NAMESPACE: Final = 104
NAMESPACE_LENGTH: Final = 112
CRC: Final = 120  # uint16[256]
ALPHABET: Final = 128  # 64 characters
COMMANDS: Final = 136  # the beginnings of APPEND and EXPIRE, COMMAND_BYTES each
KEY: Final = 144  # room for a key that is being written
RECORD: Final = 152  # room for a record that is being made
INDEX_NAME: Final = 160  # of the label index, as keys have it: INDEX_NAME_CHARACTERS
LAYOUTS: Final = 168  # for each entity: address of its layout, of its fingerprint as text
LAYOUT: Final = 16

# A batch, in bytes.
N_ROWS: Final = 0
N_TRANSACTIONS: Final = 8  # rows before this are transactions, those behind it are labels
ROWS: Final = 16
ROW_BYTES: Final = 24
STATUSES: Final = 32  # a byte for each row
INPUTS: Final = 40  # address, length, arrival of each message
LABELS: Final = 48  # what labels say, LABEL bytes each
LINKS: Final = 56  # int32: the group of each row's entities, and of its place in the index
GROUPS: Final = 64
N_GROUPS: Final = 72
HASH: Final = 80  # int32: group + 1
HASH_MASK: Final = 88
N_STATES: Final = 96  # groups of states; those of the index are behind them
BODY: Final = 104
STATE_BYTES: Final = 112  # of the body: groups of states
BODY_BYTES: Final = 120  # all of it
N_RECORDS: Final = 128  # of states
HALF_DAY: Final = 136
NODES: Final = 144  # uint16[16384]: the node of each slot
SIZES: Final = 152  # bytes for each node
REPLIES: Final = 160  # replies of each node
BUFFERS: Final = 168  # address of each node's buffer
N_NODES: Final = 176
BATCH: Final = 184

# A label: which facts it gives, their values, when they were known, the sender's instant.
GIVEN: Final = 0
VALUES: Final = 8
KNOWN: Final = 16
SENDER: Final = 24
LABEL: Final = 32

# A group: an entity with its token, or the index with bucket and generation.
ENTITY: Final = 0
LOW: Final = 8
HIGH: Final = 16
COUNT: Final = 24
BODY_AT: Final = 32
CURSOR: Final = 40
NODE: Final = 48
REPLY: Final = 56  # which of its node's replies is that of its APPEND
EXPIRES: Final = 64
GROUP: Final = 72

# In the body a group is its entity << 32 | count, its token, and its records.
GROUP_HEAD: Final = 24

INDEX_NAME_CHARACTERS: Final = 11
COMMAND_BYTES: Final = 17
_COMMANDS: Final = b"*3\r\n$6\r\nAPPEND\r\n$*3\r\n$6\r\nEXPIRE\r\n$"
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
N_SLOTS: Final = 16_384
# Identities that conflicts are looked for among, and keys whose life was extended: direct-mapped,
# so that a collision costs a conflict that is not seen, or an EXPIRE that was not needed.
_N_RECENT: Final = 1 << 18
_N_EXPIRIES: Final = 1 << 20
_DAY_MS: Final = 86_400_000
_CRC_POLYNOMIAL: Final = 0x1021


@dataclass(frozen=True, slots=True)
class AppendLimits:
    """What of the settings shapes a batch.

    life_s: of an idle state. label_index_days: 0 for no index. compact_records: a state's least
    size for compaction.
    """

    namespace: str
    life_s: int
    label_index_days: int
    compact_records: int


class AppendPlan:
    """The plan for one program, its keys and limits; its tables are one thread's own."""

    def __init__(
        self, program: Program, keys: Keys, acceptance: Acceptance, limits: AppendLimits
    ) -> None:
        n = len(program.entities)
        self.program = program
        self.layouts: tuple[StateLayout, ...] = tuple(
            state_layout(program, keys, e) for e in range(n)
        )
        self._expiries = np.zeros(_N_EXPIRIES, np.int64)
        self._recent = np.zeros((_N_RECENT, 2), np.uint64)
        self._held: list[Any] = [program, keys]
        self.words = np.zeros((LAYOUTS + LAYOUT * n) // 8, np.int64)
        self.address = address_of(self.words)
        self._set(N_ENTITIES, n)
        self._set(RECORDS_HEAD, self._kept(shapes_head(program)))
        self._set(HORIZON, acceptance.horizon_ms)
        self._set(SKEW, acceptance.skew_ms)
        self._set(RECENT, address_of(self._recent))
        self._set(RECENT_MASK, _N_RECENT - 1)
        self._set(EXPIRIES, address_of(self._expiries))
        self._set(EXPIRIES_MASK, _N_EXPIRIES - 1)
        self._set_text(LIFE, str(limits.life_s).encode())
        index_ms = limits.label_index_days * _DAY_MS
        # A payment is looked up for as long as its generation may hold it, and one more.
        self._set_text(
            INDEX_LIFE, str(index_ms * (GENERATIONS + 1) // GENERATIONS // 1000).encode()
        )
        self._set(INDEX_GENERATION, index_ms // GENERATIONS)
        self._set(INDEX_NAME, self._kept(np.frombuffer(name_of_index(program), np.uint8).copy()))
        self._set_text(NAMESPACE, limits.namespace.encode())
        self._set(CRC, self._kept(_crc_table()))
        self._set(ALPHABET, self._kept(np.frombuffer(_ALPHABET, np.uint8).copy()))
        self._set(COMMANDS, self._kept(np.frombuffer(_COMMANDS, np.uint8).copy()))
        self._set(KEY, self._kept(np.zeros(len(limits.namespace) + 64, np.uint8)))
        widths = [layout.width for layout in self.layouts]
        self._set(RECORD, self._kept(np.zeros(max([16 + 16 * n, *widths]), np.uint8)))
        for e, layout in enumerate(self.layouts):
            self._set(LAYOUTS + LAYOUT * e, layout.address)
            text = base64.urlsafe_b64encode(layout.fingerprint.to_bytes(8, "little"))
            self._set(LAYOUTS + LAYOUT * e + 8, self._kept(np.frombuffer(text, np.uint8).copy()))

    def forget_expiries(self) -> None:
        """Let the next append to each key extend its life again: what was sent may be lost."""
        self._expiries[:] = 0

    def _set(self, at: int, value: int) -> None:
        self.words[at // 8] = value

    def _set_text(self, at: int, text: bytes) -> None:
        self._set(at, self._kept(np.frombuffer(text, np.uint8).copy()))
        self._set(at + 8, len(text))

    def _kept(self, array: NDArray[Any]) -> int:
        self._held.append(array)
        return address_of(array)


def _crc_table() -> NDArray[np.uint16]:
    """CRC-16 as Redis Cluster takes it of a hash tag (polynomial 1021, begins with 0)."""
    table = np.zeros(256, np.uint16)
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (_CRC_POLYNOMIAL if crc & 0x8000 else 0)) & 0xFFFF
        table[byte] = crc
    return table
