"""Every setting: its type, its default and its limits.

Rule: a setting is checked once, here; inside, it is trusted.
`reference.toml` beside this file shows the unit and the reason of each (a test proves that both
agree); `loading.py` reads them from files, variables and arguments.
Building `Settings` directly reads nothing from outside.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from freshscore.config.redis_url import SCHEMES, RedisUrl, redis_url

# A name of letters and digits, or an address of IPv6 in brackets, and a port.
_SERVER: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_MOST_PORT: Final = 65_535
_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")


def _topic_name(value: str) -> str:
    # Kafka keeps a topic in a folder of its name.
    if not _TOPIC.fullmatch(value) or value in (".", ".."):
        raise ValueError(
            'must be 1 to 249 letters, digits, dots, dashes or underscores, and not "." or ".."'
        )
    return value


Share = Annotated[float, Field(ge=0.0, le=1.0)]
TopicName = Annotated[str, AfterValidator(_topic_name)]

# The widest record that a specification may have (design: at most 48 bytes for `payments`), and
# twice of it, for a segment is copied into a larger one while both exist.
_BYTES_OF_A_GROWING_EVENT = 2 * 48
# Messages that a journal has room for at least, so that one file in it is a part of it.
_JOURNALLED = 16
_KIB = 1024
# What no machine that this runs on has, in bytes: a number above it is a slip, not a wish.
_MOST_BYTES = 2**40
# Entities are numbered in 32 bits, and slots of their tables, twice as many, too.
_MOST_ENTITIES = 2**30
# Longest path that the usual systems take, in bytes.
_MOST_PATH_BYTES = 4_096
_YEAR_S = 366 * 86_400


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_values_where_they_are_meant(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic reads True as 1, which would make `max_events = true` a limit of one event.
        is_meant = cls.model_fields[info.field_name or ""].annotation is bool
        if isinstance(value, bool) and not is_meant:
            raise ValueError("a truth value is no value of this setting")
        return value


def _folder(value: Any) -> Any:
    """The path of a folder, where it can be one. Raises ValueError."""
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    if not text:
        raise ValueError("must not be empty; without a folder, leave it out")
    if "\0" in text or len(text.encode()) > _MOST_PATH_BYTES:
        raise ValueError(f"must be a path of at most {_MOST_PATH_BYTES} bytes, none of them 0")
    if text.startswith("~"):
        # Only a shell knows whose home that is; a folder called ~ would be a surprise.
        raise ValueError("~ stands for nothing here; must be the folder written in full")
    return value


Folder = Annotated[Path, BeforeValidator(_folder)]


class StoreSettings(_Group):
    """What is kept of entities and payments, for how long, and where."""

    backend: Literal["memory", "redis"] = "memory"
    specification: str = Field(default="payments", min_length=1, max_length=_MOST_PATH_BYTES)
    path: Folder | None = None
    horizon_s: int = Field(default=86_400, ge=0, le=_YEAR_S)
    skew_s: int = Field(default=60, ge=0, le=86_400)
    max_entities: int = Field(default=2_000_000, ge=1, le=_MOST_ENTITIES)
    max_payments: int = Field(default=8_000_000, ge=1, le=2**32)
    max_events_per_entity: int = Field(default=16_384, ge=1, le=32_768)
    arena_bytes: int = Field(default=4 * _KIB**3, ge=4 * _KIB, le=_MOST_BYTES)


class CacheSettings(_Group):
    """The score cache in memory."""

    max_bytes: int = Field(default=256 * _KIB**2, ge=4 * _KIB, le=_MOST_BYTES)
    probe_share: Share = 0.001
    valid_until_cap_s: int = Field(default=3_600, ge=0, le=_YEAR_S)
    valid_until_max_steps: int = Field(default=4, ge=1, le=65_536)
    inflight_wait_s: float = Field(default=5.0, ge=0.0, le=600.0)
    max_invalidated: int = Field(default=1_024, ge=1, le=2**24)


class ModelSettings(_Group):
    """How models are trained, where their thresholds lie, and how they are checked."""

    decline_rate: Share = 0.005
    review_rate: Share = 0.01
    golden_rows: int = Field(default=256, ge=1, le=65_536)
    num_trees: int = Field(default=200, ge=1, le=100_000)
    learning_rate: float = Field(default=0.05, gt=0.0, le=1.0)
    num_leaves: int = Field(default=63, ge=2, le=131_072)
    min_child_samples: int = Field(default=50, ge=1, le=2**31 - 1)
    lambda_l2: float = Field(default=1.0, ge=0.0, le=1e9)
    seed: int = Field(default=7, ge=0, le=2**31 - 1)


class ReplaySettings(_Group):
    """What a replay compares the scorer with."""

    foresight_window_s: int = Field(default=1_800, ge=1, le=_YEAR_S)
    oracle_share: Share = 0.001


class KafkaSettings(_Group):
    """The log that events, facts and decisions flow through."""

    bootstrap_servers: str = Field(default="127.0.0.1:9092", min_length=1, max_length=4_096)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: Path | None = None
    certificate_file: Path | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str | None = None
    password: SecretStr | None = None
    transactions_topic: TopicName = "transactions"
    labels_topic: TopicName = "labels"
    decisions_topic: TopicName = "decisions"
    dead_letters_topic: TopicName = "dead-letters"
    historical: bool = False
    partitions: int = Field(default=8, ge=1, le=4_096)
    replication: int = Field(default=1, ge=1, le=16)
    retention_days: int = Field(default=60, ge=1, le=3_660)
    group: str = Field(default="freshscore", min_length=1, max_length=255)
    produce: bool = True
    columns: str | None = Field(default=None, min_length=1, max_length=_MOST_PATH_BYTES)
    decode: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$", max_length=512)
    max_message_bytes: int = Field(default=65_536, ge=256, le=8 * _KIB**2)
    max_poll_records: int = Field(default=20_000, ge=1, le=100_000)
    fetch_apart_ms: int = Field(default=2, ge=0, le=1_000)
    commit_every_s: float = Field(default=0.5, gt=0.0, le=60.0)
    session_s: float = Field(default=10.0, ge=0.5, le=600.0)
    request_timeout_s: float = Field(default=30.0, ge=1.0, le=600.0)
    clock_error_ms: int = Field(default=5_000, ge=0, le=3_600_000)
    max_unsent_decisions: int = Field(default=100_000, ge=1, le=10_000_000)

    @field_validator("bootstrap_servers")
    @classmethod
    def _servers_with_ports(cls, value: str) -> str:
        for one in value.split(","):
            found = _SERVER.fullmatch(one.strip())
            if found is None or not 1 <= int(found[1]) <= _MOST_PORT:
                raise ValueError(
                    f"must be host:port, several with commas, ports from 1 to {_MOST_PORT};"
                    f" {one.strip()!r} is not"
                )
        return value


class JournalSettings(_Group):
    """What was observed and Kafka does not have yet, on the disk of the scorer."""

    path: Folder | None = None
    max_bytes: int = Field(default=_KIB**3, ge=4 * _KIB, le=_MOST_BYTES)
    fsync_s: float = Field(default=1.0, ge=0.0, le=60.0)
    margin_s: float = Field(default=600.0, ge=0.0, le=_YEAR_S)
    in_flight_bytes: int = Field(default=4 * _KIB**2, ge=256, le=_KIB**3)
    send_per_s: int = Field(default=5_000, ge=1, le=1_000_000)


class RedisSettings(_Group):
    """Where states are kept, so that many processes share them."""

    url: str = Field(default="redis://127.0.0.1:6379/0", pattern=SCHEMES, max_length=4_096)
    password: SecretStr | None = None
    sentinel_username: str | None = None
    sentinel_password: SecretStr | None = None
    cluster: bool = False
    namespace: str = Field(default="fs", pattern=r"^[A-Za-z0-9_.-]+$", max_length=32)
    timeout_ms: int = Field(default=1_000, ge=1, le=60_000)
    least_timeout_ms: int = Field(default=50, ge=1, le=60_000)
    max_connections: int = Field(default=64, ge=2, le=4_096)
    idle_margin_days: int = Field(default=2, ge=1, le=366)
    lease_s: float = Field(default=5.0, ge=0.05, le=600.0)
    heartbeat_s: float = Field(default=1.0, ge=0.01, le=60.0)
    stream_max_bytes: int = Field(default=64 * _KIB**2, ge=4 * _KIB, le=_MOST_BYTES)
    near: bool = False
    near_max_bytes: int = Field(default=256 * _KIB**2, ge=16 * _KIB, le=_MOST_BYTES)
    compact_records: int = Field(default=64, ge=2, le=32_768)
    grid_records: int = Field(default=512, ge=2, le=262_144)
    past_max_bytes: int = Field(default=256 * _KIB**2, ge=512 * _KIB, le=_MOST_BYTES)
    max_pending_events: int = Field(default=100_000, ge=1, le=10_000_000)
    pending_s: float = Field(default=30.0, gt=0.0, le=3_600.0)
    label_index_days: int = Field(default=120, ge=0, le=3_660)
    hold_s: float = Field(default=300.0, ge=0.1, le=86_400.0)
    score_copies: int = Field(default=4, ge=1, le=64)
    score_ttl_s: int = Field(default=3_600, ge=1, le=_YEAR_S)

    @field_validator("url")
    @classmethod
    def _url_as_it_is_read(cls, value: str) -> str:
        redis_url(value)
        return value

    @property
    def parsed_url(self) -> RedisUrl:
        """What the URL names."""
        return redis_url(self.url)


class BreakerSettings(_Group):
    """When a node of Redis that does not answer is no longer asked by scores, and for how long."""

    max_failures: int = Field(default=3, ge=1, le=1_000)
    open_ms: int = Field(default=100, ge=1, le=60_000)
    max_open_ms: int = Field(default=1_000, ge=1, le=600_000)


class FallbackSettings(_Group):
    """What is answered where Redis does not say all that a score needs."""

    use_known: bool = True
    max_age_s: int = Field(default=60, ge=1, le=86_400)
    decision: Literal["approve", "review", "decline"] | None = None


class InputSettings(_Group):
    """The limits of what is taken in."""

    max_listed_rows: int = Field(default=20, ge=1, le=1_000_000)


class OutputSettings(_Group):
    """How long commands say where they are."""

    progress_line_s: float = Field(default=5.0, gt=0.0, le=3_600.0)


class Settings(BaseSettings):
    """All settings; frozen.

    Raises pydantic's `ValidationError` (a `ValueError`); `load_settings` translates it.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    store: StoreSettings = StoreSettings()
    cache: CacheSettings = CacheSettings()
    model: ModelSettings = ModelSettings()
    replay: ReplaySettings = ReplaySettings()
    kafka: KafkaSettings = KafkaSettings()
    journal: JournalSettings = JournalSettings()
    redis: RedisSettings = RedisSettings()
    breaker: BreakerSettings = BreakerSettings()
    fallback: FallbackSettings = FallbackSettings()
    input: InputSettings = InputSettings()
    output: OutputSettings = OutputSettings()

    @property
    def journal_path(self) -> Path | None:
        """Where observed events wait for Kafka: journal.path, else below store.path; None: nowhere.

        Nothing waits where nothing is produced.
        """
        if self.store.backend != "redis" or not self.kafka.produce:
            return None
        if self.journal.path is not None or self.store.path is None:
            return self.journal.path
        return self.store.path / "journal"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed; the environment enters through `load_settings` alone."""
        return (init_settings,)

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        broken = [sentence for holds, sentence in _relations(self) if not holds]
        if broken:
            raise ValueError("; ".join(broken))
        return self


def _relations(settings: Settings) -> list[tuple[bool, str]]:
    store, model, redis, kafka = settings.store, settings.model, settings.redis, settings.kafka
    journal, url = settings.journal, settings.redis.parsed_url
    topics = (
        kafka.transactions_topic,
        kafka.labels_topic,
        kafka.decisions_topic,
        kafka.dead_letters_topic,
    )
    journal_needed = _JOURNALLED * kafka.max_message_bytes
    arena_needed = _BYTES_OF_A_GROWING_EVENT * store.max_events_per_entity
    return [
        (
            store.max_payments >= store.max_events_per_entity,
            f"store.max_payments = {store.max_payments} is below store.max_events_per_entity"
            f" = {store.max_events_per_entity}, which could then never be reached",
        ),
        (
            store.arena_bytes >= arena_needed,
            f"store.arena_bytes = {store.arena_bytes} is below {arena_needed}, what one entity of"
            f" store.max_events_per_entity = {store.max_events_per_entity} events takes to grow",
        ),
        (
            settings.journal_path is None or journal.margin_s < store.horizon_s,
            f"journal.margin_s = {journal.margin_s} is not below store.horizon_s"
            f" = {store.horizon_s}: the journal would take nothing",
        ),
        (
            journal.max_bytes >= journal_needed,
            f"journal.max_bytes = {journal.max_bytes} is below {journal_needed}, what"
            f" {_JOURNALLED} messages of kafka.max_message_bytes = {kafka.max_message_bytes} take",
        ),
        (
            redis.heartbeat_s < redis.lease_s,
            f"redis.heartbeat_s = {redis.heartbeat_s} is not below redis.lease_s"
            f" = {redis.lease_s}: a lease would end before it is renewed",
        ),
        (
            settings.breaker.open_ms <= settings.breaker.max_open_ms,
            f"breaker.open_ms = {settings.breaker.open_ms} is above breaker.max_open_ms"
            f" = {settings.breaker.max_open_ms}, up to which it doubles",
        ),
        (
            redis.max_connections >= 3 or not redis.near,
            f"redis.max_connections = {redis.max_connections}: near states need a connection of"
            " their own, so at least 3",
        ),
        (
            url.primary is None or not redis.cluster,
            "redis.url names Sentinels, and redis.cluster is true: nodes of a cluster have none",
        ),
        (
            len(url.servers) == 1 or redis.cluster or url.primary is not None,
            f"redis.url names {len(url.servers)} servers, and redis.cluster is false: only of a"
            " cluster, or of Sentinels, can there be several",
        ),
        (
            len({*topics}) == len(topics),
            f"kafka's topics must differ from each other: {', '.join(topics)}",
        ),
        (
            model.decline_rate + model.review_rate <= 1.0,
            f"model.decline_rate = {model.decline_rate} and model.review_rate"
            f" = {model.review_rate} add up to more than 1",
        ),
    ]
