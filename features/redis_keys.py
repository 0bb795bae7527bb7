"""Names of what is kept in Redis: one namespace, and a hash tag that decides the node.

    NS:{TAG}:FP          record log of one entity's state        TAG: its token, FP: of the layout
    NS:{TAG}:FP:pBBB     what was folded of it, in buckets by identity
    NS:{TAG}:s:V         its recent scores under one model version
    NS:{N}:markers:LD    how far a node has got, NS:{N}:progress:LD its summary
    NS:{control}:NAME    what all processes share: the invalidation stream, leases, ...
    NS:{iBUCKET}:IX:G    label index: where a payment's entities and time are found by its identity

TAG, FP, V, LD and IX are base64url without padding, TAG of 16 bytes and the others of 8; BBB are
three digits of that alphabet; N and G are decimal numbers. LD names the layouts of all entities
together: states of other layouts have keys, and so an epoch, of their own. IX names the entities
whose tokens the index's records hold.
Rule: keys are injective in what they name (a namespace has neither colon nor brace, each part has
its own length or alphabet), and no tag can hold a brace. No identifier is in a key, only tokens.
Source: hash tags and slots of the Redis Cluster specification.
"""

from __future__ import annotations

import hashlib
from binascii import b2a_base64, crc_hqx
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

SLOTS: Final = 16_384
# Buckets of the label index: a string of a hundred records each at 10^6 payments and 4 generations.
LABEL_BUCKETS: Final = 4_096
CONTROL: Final = "control"
_DIGITS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _base64url(raw: bytes) -> bytes:
    encoded = b2a_base64(raw, newline=False).rstrip(b"=")
    return encoded.replace(b"+", b"-").replace(b"/", b"_")


def tag_of(token: bytes) -> bytes:
    """The hash tag of an entity's token (16 bytes): 22 characters."""
    return _base64url(token)


def fingerprint_name(fingerprint: int) -> bytes:
    """How keys name the fingerprint of a state's layout: 11 characters."""
    return _base64url(fingerprint.to_bytes(8, "little"))


def bucket_name(bucket: int) -> bytes:
    """How keys name a bucket of what was folded, 0 to 2^18 - 1: 3 characters."""
    digits = (_DIGITS[bucket >> shift & 63] for shift in (12, 6, 0))
    return bytes(digits)


def index_name(entities: Iterable[Sequence[str]]) -> bytes:
    """How keys name the label index of a specification: 11 characters.

    entities: in order, the name of each, and behind it those of the parts that it is made of.
    """
    encoded = msgspec.json.encode([[*one] for one in entities])
    return _base64url(hashlib.blake2b(encoded, digest_size=8, person=b"label-index").digest())


def slot_of(tag: bytes) -> int:
    """The slot of a hash tag, 0 to 16,383: CRC-16/XMODEM."""
    return crc_hqx(tag, 0) % SLOTS


def bucket_of(identity: int) -> int:
    """The bucket of the label index that holds a payment, by the low 64 bits of its identity."""
    return identity % LABEL_BUCKETS


class RedisKeys:
    """The keys in one namespace, as bytes.

    fingerprints: of the states of all entities, in order (features/state_layout.py); () where no
    program is at hand, and then nothing that says how far a node has got can be named.
    """

    def __init__(self, namespace: str, fingerprints: Sequence[int] = ()) -> None:
        self.prefix: Final = namespace.encode("ascii") + b":{"
        self._layouts = _digest_of(fingerprints) if fingerprints else b""

    def state(self, token: bytes, fingerprint: int) -> bytes:
        """Of the state of an entity, by its token and its layout's fingerprint."""
        return b"%b%b}:%b" % (self.prefix, tag_of(token), fingerprint_name(fingerprint))

    def past(self, token: bytes, fingerprint: int, bucket: int) -> bytes:
        """Of one bucket of what was folded of that state (features/past_events.py)."""
        return self.state(token, fingerprint) + b":p" + bucket_name(bucket)

    def scores(self, token: bytes, model_version: str) -> bytes:
        """Of the recent scores of an entity under a model version."""
        digest = hashlib.blake2b(model_version.encode(), digest_size=8, person=b"score-version")
        return b"%b%b}:s:%b" % (self.prefix, tag_of(token), _base64url(digest.digest()))

    def markers(self, tag: str) -> bytes:
        """Of the markers of the node that has `tag`. Raises ValueError without fingerprints."""
        return self._of_node(tag, b"markers")

    def progress(self, tag: str) -> bytes:
        """Of the summary of those markers. Raises ValueError without fingerprints."""
        return self._of_node(tag, b"progress")

    def _of_node(self, tag: str, name: bytes) -> bytes:
        if not self._layouts:
            raise ValueError("how far a node has got is named by the fingerprints of its states")
        return b"%b%b}:%b:%b" % (self.prefix, tag.encode(), name, self._layouts)

    def control(self, name: str) -> bytes:
        """Of one of the things that all processes share; they are on one node."""
        return b"%b%b}:%b" % (self.prefix, CONTROL.encode(), name.encode())

    def labels(self, bucket: int, index_name: bytes, generation: int) -> bytes:
        """Of one generation of a bucket of the label index that has this name."""
        return b"%bi%d}:%b:%d" % (self.prefix, bucket, index_name, generation)


def _digest_of(fingerprints: Sequence[int]) -> bytes:
    """How keys name the layouts of all entities: 11 characters."""
    digest = hashlib.blake2b(digest_size=8, person=b"state-layouts")
    for fingerprint in fingerprints:
        digest.update(fingerprint.to_bytes(8, "little"))
    return _base64url(digest.digest())
