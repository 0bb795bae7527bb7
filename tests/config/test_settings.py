"""Settings: defaults, limits, relations, and the file that shows them all."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from pydantic import ValidationError

from freshscore.config.errors import SettingsError
from freshscore.config.loading import flat, load_settings, profile_names, reference_text
from freshscore.config.settings import Settings

_SETTING = re.compile(r"^(# )?([a-z_0-9]+) = (.+)$")


def _reference_lines() -> list[tuple[str, bool, str, list[str]]]:
    """(dotted key, given, value, comment lines above) of each setting in the reference file."""
    found: list[tuple[str, bool, str, list[str]]] = []
    group, above = "", list[str]()
    for line in reference_text().splitlines():
        heading = re.fullmatch(r"\[(\w+)\]", line)
        setting = _SETTING.match(line)
        if heading:
            group, above = heading[1], []
        elif setting and group:
            found.append((f"{group}.{setting[2]}", setting[1] is None, setting[3], above))
            above = []
        else:
            above = [*above, line] if line else []
    return found


def test_reference_file_and_settings_agree() -> None:
    """Every key in the same order, every default; only what is unset by default is commented."""
    shown = _reference_lines()
    assert [key for key, *_ in shown] == [key for key, _ in flat(Settings())]
    defaults = dict(flat(Settings()))
    assert [key for key, given, *_ in shown if not given] == [
        key for key, value in defaults.items() if value is None
    ]
    parsed = tomllib.loads(reference_text())
    given = {
        f"{group}.{key}": value for group, keys in parsed.items() for key, value in keys.items()
    }
    assert given == {key: value for key, value in defaults.items() if value is not None}
    assert {k: type(v) for k, v in given.items()} == {k: type(defaults[k]) for k in given}


@pytest.mark.parametrize(
    ("key", "above"), [(key, above) for key, _, _, above in _reference_lines()]
)
def test_each_setting_has_a_unit_and_a_reason(key: str, above: list[str]) -> None:
    assert above
    assert above[0].startswith("# unit: ")
    assert any(line.startswith("# why: ") for line in above), key


def test_reference_file_is_a_valid_settings_file(tmp_path: Any) -> None:
    """Also with what it leaves unset by default."""
    file = tmp_path / "all.toml"
    file.write_text(reference_text().replace("# path = ", "path = "), encoding="utf-8")
    loaded = load_settings(toml=file, env={})
    assert str(loaded.store.path) == "freshscore-data"
    assert loaded.cache == Settings().cache


def test_profiles_load() -> None:
    assert profile_names() == ["default", "shared", "tiny"]
    assert load_settings("default", env={}) == Settings()


def test_tiny_has_every_limit_small() -> None:
    """No count, wait or size of the tiny profile is its default: a test can reach each."""
    tiny, default = dict(flat(load_settings("tiny", env={}))), dict(flat(Settings()))
    limits = [key for key in default if re.search(r"\.(max_|.*_(s|bytes|rows|steps)$)", key)]
    assert len(limits) > 10
    assert [key for key in limits if not tiny[key] < default[key]] == []


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.store.skew_s = 1
    with pytest.raises(ValidationError):
        settings.store = settings.store


BEYOND = [
    ("store.max_entities", 0, "greater than or equal to 1"),
    ("store.horizon_s", -1, "greater than or equal to 0"),
    ("store.skew_s", 86_401, "less than or equal to 86400"),
    ("store.max_payments", 1.5, "integer"),
    ("store.max_payments", "many", "integer"),
    ("store.max_payments", True, "truth value"),
    ("store.specification", "", "at least 1 character"),
    ("cache.probe_share", 1.1, "less than or equal to 1"),
    ("cache.probe_share", float("nan"), "finite"),
    ("cache.max_bytes", 100, "greater than or equal to 4096"),
    ("cache.inflight_wait_s", float("inf"), "finite"),
    ("store.max_entities", 2**30 + 1, "less than or equal to 1073741824"),
    ("store.max_payments", 10**30, "less than or equal to 4294967296"),
    ("store.arena_bytes", 10**25, "less than or equal to 1099511627776"),
    ("cache.max_bytes", 2**40 + 1, "less than or equal to 1099511627776"),
    ("store.path", "", "empty"),
    ("store.path", "~/freshscore", "written in full"),
    ("store.path", "a\0b", "none of them 0"),
    ("store.path", "\ud800", "surrogates"),
    ("model.learning_rate", 0.0, "greater than 0"),
    ("model.num_leaves", 1, "greater than or equal to 2"),
    ("kafka.bootstrap_servers", "a:b:c", "must be host:port"),
    ("kafka.bootstrap_servers", "localhost", "must be host:port"),
    ("kafka.bootstrap_servers", "localhost:99999", "ports from 1 to 65535"),
    ("kafka.bootstrap_servers", "localhost:0", "ports from 1 to 65535"),
    ("kafka.bootstrap_servers", "a:9092,,b:9092", "must be host:port"),
    ("kafka.bootstrap_servers", "SSL://a:9092", "must be host:port"),
    ("kafka.transactions_topic", "..", 'not "." or ".."'),
    ("kafka.labels_topic", ".", 'not "." or ".."'),
    ("kafka.decisions_topic", "", "1 to 249 letters"),
    ("kafka.dead_letters_topic", "x" * 180 + " ", "1 to 249 letters"),
]
# The value is not in the message: it may hold a password.
BAD_URLS = [
    ("redis://", "each server by its host"),
    ("redis://:6379/0", "each server by its host"),
    ("redis://user@/0", "each server by its host"),
    ("redis://host:port/0", "port from 1 to 65535"),
    ("redis://host:99999/0", "port from 1 to 65535"),
    ("redis://host:0/0", "port from 1 to 65535"),
    ("redis://one,two:0/0", "port from 1 to 65535"),
    ("redis://one,,two/0", "each server by its host"),
    ("redis://[::1/0", "each server by its host"),
    ("redis://[user@host/0", "written as %XX"),
    (f"redis://{','.join(['one'] * 33)}", "at most 32"),
    ("redis://host/abc", "database by its number"),
    ("redis://host/-1", "database by its number"),
    ("redis://host/0/1", "database by its number"),
    ("redis://host/#0", "database by its number"),
    ("redis://user:hunter2@host/0", "FRESHSCORE_REDIS__PASSWORD"),
    ("redis://user:hun/ter2@host/0", "FRESHSCORE_REDIS__PASSWORD"),
    ("redis://host/0?password=hunter2", "FRESHSCORE_REDIS__PASSWORD"),
    ("rediss://host/0?password=hunter2", "FRESHSCORE_REDIS__PASSWORD"),
    ("rediss://host/0?ssl_nonsense=1", "unknown options: ssl_nonsense"),
    ("rediss://host/0?socket_timeout=9", "unknown options: socket_timeout"),
    ("rediss://host/0?ssl_nonsense", "unknown options: ssl_nonsense"),
    ("redis://host/0?ssl_ca_certs=ca.pem", "needs rediss://"),
    ("rediss://host/0?ssl_ca_certs=", "no value to ssl_ca_certs"),
    ("redis+sentinel://host", "must name the primary"),
    ("redis+sentinel://host/0/1/2", "must name the primary"),
    ("redis+sentinel://host/name/zero", "must name the primary"),
    ("redis+sentinel:///name", "each server by its host"),
    ("redis+sentinel://one,/name", "each server by its host"),
    ("redis+sentinel://one,two:0/name", "port from 1 to 65535"),
    ("redis+sentinel://one:99999/name", "port from 1 to 65535"),
    ("redis+sentinel://[::1,two/name", "each server by its host"),
    (f"redis+sentinel://{','.join(['one'] * 33)}/name", "at most 32"),
    ("redis+sentinel://user:hunter2@one,two/name", "FRESHSCORE_REDIS__PASSWORD"),
    ("redis+sentinel://one,two/name?password=hunter2", "FRESHSCORE_REDIS__PASSWORD"),
    ("redis+sentinel://one/name?ssl_ca_certs=ca.pem", "needs rediss://"),
    ("rediss+sentinel://one/name?ssl_nonsense=1", "unknown options: ssl_nonsense"),
    ("http+sentinel://one/name", "match"),
]


def test_every_number_has_both_its_limits() -> None:
    """Without an upper one, a slip of the finger ends as a traceback of whoever runs out first."""
    limits = {
        name: {
            limit for limit in ("ge", "gt", "le") for one in field.metadata if hasattr(one, limit)
        }
        for group in Settings.model_fields.values()
        for name, field in type(group.default).model_fields.items()
        if field.annotation in (int, float)
    }
    assert len(limits) > 20
    assert [name for name, given in limits.items() if "le" not in given or len(given) != 2] == []


@pytest.mark.parametrize("key", ["store.path", "store.specification"])
def test_path_longer_than_any_system_takes_is_an_error(key: str) -> None:
    load_settings(settings={key: "x" * 4_096}, env={})
    with pytest.raises(SettingsError, match=f"{key} = .*at most 4096"):
        load_settings(settings={key: "x" * 4_097}, env={})


@pytest.mark.parametrize(("key", "value", "limit"), BEYOND)
def test_impossible_value_is_an_error_with_key_limit_and_value(
    key: str, value: object, limit: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(settings={key: value}, env={})
    said = str(caught.value)
    assert key in said
    assert limit in said
    assert repr(value) in said


@pytest.mark.parametrize(("url", "limit"), BAD_URLS)
def test_impossible_url_of_redis_is_an_error_that_shows_no_password(url: str, limit: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(settings={"redis.url": url}, env={})
    said = str(caught.value)
    assert "redis.url = ..." in said
    assert limit in said
    assert "hun" not in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kafka.bootstrap_servers", "one:1, two.example:65535,[::1]:9092,under_score:9092"),
        ("kafka.labels_topic", "..."),
        ("kafka.labels_topic", "a.B-c_9"),
        ("redis.url", "redis://host"),
        ("redis.url", "redis://host:6379/"),
        ("redis.url", "redis://user@[::1]:6379/15"),
        ("redis.url", "rediss://u@h/0?ssl_ca_certs=/a/ca.pem&ssl_certfile=c&ssl_keyfile=c"),
        ("redis.url", "redis+sentinel://one/name"),
        ("redis.url", "rediss+sentinel://u@one:1,[::1]:2,t_w.o/A-b_c.9/15?ssl_ca_certs=/a/ca.pem"),
    ],
)
def test_addresses_and_names_as_systems_have_them_are_taken(key: str, value: str) -> None:
    assert dict(flat(load_settings(settings={key: value}, env={})))[key] == value


def test_several_nodes_are_of_a_cluster() -> None:
    several = {"redis.url": "redis://u@one:1,[::1],three/0", "redis.cluster": True}
    assert dict(flat(load_settings(settings=several, env={})))["redis.url"] == several["redis.url"]
    with pytest.raises(SettingsError, match=r"redis\.url names 3 servers, and redis\.cluster is"):
        load_settings(settings=several | {"redis.cluster": False}, env={})


def test_sentinels_know_no_cluster() -> None:
    together = {"redis.url": "redis+sentinel://one/name", "redis.cluster": True}
    with pytest.raises(SettingsError, match=r"redis\.url names Sentinels, and redis\.cluster is"):
        load_settings(settings=together, env={})


RELATIONS: list[dict[str, object]] = [
    {"store.max_payments": 10, "store.max_events_per_entity": 11},
    {"store.arena_bytes": 96 * 100 - 1, "store.max_events_per_entity": 100},
    {"model.decline_rate": 0.6, "model.review_rate": 0.5},
]


@pytest.mark.parametrize("together", RELATIONS)
def test_limits_that_contradict_each_other_are_an_error(together: dict[str, object]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(settings=together, env={})
    for key, value in together.items():
        assert f"{key} = {value}" in str(caught.value)


def test_limits_that_just_agree_are_none() -> None:
    load_settings(
        settings={
            "store.max_payments": 100,
            "store.max_events_per_entity": 100,
            "store.arena_bytes": 96 * 100,
            "model.decline_rate": 0.5,
            "model.review_rate": 0.5,
        },
        env={},
    )
