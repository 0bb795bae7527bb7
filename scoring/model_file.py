"""The bytes of a model: one file, one checksum, one version.

Layout: MAGIC, the length of the content (8 bytes, little-endian), the content (msgpack of
ModelContent), blake2b-256 of all that precedes. Never pickle.
Rule: bytes that are not exactly what was written are DamagedModel, whichever byte it is.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from freshscore.config.decoding import as_type
from freshscore.config.errors import DamagedModel, ModelMismatch

MAGIC: Final = b"freshscore model"
FORMAT: Final = 1
_LENGTH_BYTES: Final = 8
_DIGEST_BYTES: Final = 32
_HEAD_BYTES: Final = len(MAGIC) + _LENGTH_BYTES


class CohortThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Scores from which payments of one cohort are reviewed and declined.

    name `all` with neither field nor value: every payment that met no cohort before it.
    """

    name: str
    review: float
    decline: float
    field: str | None = None
    value: str | None = None


class TrainingFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model was made from: rows in time order, and how it did on those held back.

    rows, frauds: learned from; validation_rows: the later ones, which set calibration and
    thresholds. first_ms, last_ms: of all of them, so that nothing after last_ms was seen. metrics:
    on those held back. warnings: sentences on what training could not do as asked.
    """

    rows: int | None = None
    frauds: int | None = None
    first_ms: int | None = None
    last_ms: int | None = None
    validation_rows: int | None = None
    metrics: dict[str, float] = {}
    warnings: tuple[str, ...] = ()


class ModelContent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a model is.

    booster: LightGBM's text. booster_columns: the place in the feature vector of each of the
    booster's features. custom_link: `identity` or `logistic` where the objective has none.
    specification, fingerprint, feature_names: of the feature specification that it scores.
    codes: category field -> value -> code. calibration: knots of scores and values, if any.
    cohorts: in order, `all` last. golden_rows, golden_scores: float64, little-endian.
    """

    format: int
    made_at_ms: int
    booster: str
    booster_columns: tuple[int, ...]
    custom_link: str | None
    specification: str
    fingerprint: bytes
    feature_names: tuple[str, ...]
    codes: dict[str, dict[str, int]]
    calibration: tuple[tuple[float, ...], tuple[float, ...]] | None
    cohorts: tuple[CohortThresholds, ...]
    facts: TrainingFacts
    golden_rows: bytes
    golden_scores: bytes


def encoded(content: ModelContent) -> bytes:
    """The file of `content`."""
    payload = msgspec.msgpack.encode(content)
    file = MAGIC + len(payload).to_bytes(_LENGTH_BYTES, "little") + payload
    return file + _digest(file)


def decoded(file: bytes) -> ModelContent:
    """The content of a file; raises DamagedModel, or ModelMismatch for another format."""
    if not file.startswith(MAGIC) or len(file) < _HEAD_BYTES + _DIGEST_BYTES:
        raise DamagedModel(f"{len(file)} bytes that do not begin as a model does")
    whole = _HEAD_BYTES + int.from_bytes(file[len(MAGIC) : _HEAD_BYTES], "little") + _DIGEST_BYTES
    if len(file) != whole:
        raise DamagedModel(f"the model has {len(file)} bytes of {whole}")
    if _digest(file[:-_DIGEST_BYTES]) != file[-_DIGEST_BYTES:]:
        raise DamagedModel("the model's checksum does not match its bytes")
    payload = file[_HEAD_BYTES:-_DIGEST_BYTES]
    try:
        found = as_type(msgspec.msgpack.decode, payload, _Format).format
        if found != FORMAT:
            raise ModelMismatch(f"the model has format {found}; this freshscore reads {FORMAT}")
        return as_type(msgspec.msgpack.decode, payload, ModelContent)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise DamagedModel(f"the model's content is not one: {problem}") from problem


def content_hash(file: bytes) -> str:
    """The checksum of an encoded model, hexadecimal."""
    return file[-_DIGEST_BYTES:].hex()


class _Format(msgspec.Struct):
    format: int


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, person=b"freshscore-model").digest()
