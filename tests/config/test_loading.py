"""Which layer counts, and what is refused in each."""

from __future__ import annotations

from pathlib import Path

import pytest

from freshscore.config.errors import SettingsError
from freshscore.config.loading import load_settings, load_with_origins
from freshscore.config.settings import Settings

KEY, VARIABLE = "store.skew_s", "FRESHSCORE_STORE__SKEW_S"


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    file = tmp_path / "settings.toml"
    file.write_text("[store]\nskew_s = 3\nmax_entities = 33\n", encoding="utf-8")
    return file


def test_each_layer_covers_those_below(toml: Path) -> None:
    """Arguments over variables over the file over the profile over the defaults."""
    loaded = load_settings(env={})
    assert loaded.store.skew_s == 60
    assert load_settings("tiny", env={}).store.skew_s == 2
    assert load_settings("tiny", toml=toml, env={}).store.skew_s == 3
    assert load_settings("tiny", toml=toml, env={VARIABLE: "4"}).store.skew_s == 4
    above = load_settings("tiny", toml=toml, env={VARIABLE: "4"}, settings={KEY: 5})
    assert above.store.skew_s == 5
    assert above.store.max_entities == 33
    assert above.store.horizon_s == 60


def test_origins_name_the_layer_of_each_value(toml: Path) -> None:
    loaded = load_with_origins(
        "tiny",
        toml=toml,
        env={"FRESHSCORE_CACHE__MAX_BYTES": "5000"},
        settings={"model": {"seed": 1}},
    )
    assert loaded.origins["store.skew_s"] == f"file {toml}"
    assert loaded.origins["store.horizon_s"] == "profile tiny"
    assert loaded.origins["cache.max_bytes"] == "environment"
    assert loaded.origins["model.seed"] == "argument"
    assert loaded.origins["model.learning_rate"] == "default"
    assert loaded.settings.cache.max_bytes == 5000


def test_nested_and_dotted_arguments_mean_the_same() -> None:
    nested = load_settings(settings={"store": {"skew_s": 5, "horizon_s": 7}}, env={})
    dotted = load_settings(settings={"store.skew_s": 5, "store.horizon_s": 7}, env={})
    assert nested == dotted != Settings()


def test_finished_settings_are_returned_as_they_are() -> None:
    settings = Settings()
    assert load_settings("tiny", settings=settings) is settings


def test_none_as_argument_unsets_what_a_lower_layer_set() -> None:
    variables = {"FRESHSCORE_STORE__PATH": "somewhere"}
    assert load_settings(env=variables).store.path == Path("somewhere")
    assert load_settings(env=variables, settings={"store.path": None}).store.path is None


def test_file_in_the_working_folder_is_read(
    tmp_path: Path, toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(env={}).store.skew_s == 60
    (tmp_path / "freshscore.toml").write_text("[store]\nskew_s = 9\n", encoding="utf-8")
    assert load_settings(env={}).store.skew_s == 9
    assert load_settings(env={"FRESHSCORE_CONFIG": str(toml)}).store.skew_s == 3


def test_the_process_environment_is_read_where_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "11")
    assert load_settings().store.skew_s == 11
    assert Settings().store.skew_s == 60


def test_empty_variables_are_as_if_unset() -> None:
    assert load_settings(env={"FRESHSCORE_STORE__PATH": "", VARIABLE: ""}) == Settings()


def test_variables_that_an_orchestrator_sets_for_a_service_are_left_alone() -> None:
    """Kubernetes sets these for a service called freshscore; a crash there would be absurd."""
    variables = {"FRESHSCORE_SERVICE_HOST": "10.0.0.1", "FRESHSCORE_PORT": "tcp://10.0.0.1:80"}
    assert load_settings(env=variables) == Settings()


UNKNOWN = [
    ({"settings": {"store.max_entites": 5}}, ["store.max_entites", "store.max_entities"]),
    ({"settings": {"stor": {"skew_s": 5}}}, ["stor.skew_s", "store.skew_s"]),
    ({"settings": {"store": 5}}, ["store", "group"]),
    ({"settings": {"store.skew_s.deep": 5}}, ["store.skew_s.deep"]),
    ({"env": {"FRESHSCORE_STORE__SKEW": "5"}}, ["store.skew", "environment", "store.skew_s"]),
    ({"env": {"FRESHSCORE_SHOP__SKEW_S": "5"}}, ["FRESHSCORE_SHOP__SKEW_S", "no group"]),
    ({"env": {"FRESHSCORE_STORE_SKEW_S": "5"}}, ["FRESHSCORE_STORE_SKEW_S", VARIABLE]),
    ({"env": {"FRESHSCORE_STORE": "garbage"}}, ["FRESHSCORE_STORE is no", "FRESHSCORE_STORE__"]),
    ({"env": {"FRESHSCORE_STORE": '{"skew_s": 9}'}}, ["FRESHSCORE_STORE is no setting"]),
    ({"env": {"freshscore_cache": "1"}}, ["FRESHSCORE_CACHE is no setting", "FRESHSCORE_CACHE__"]),
    ({"settings": {"bogus": {}}}, ["bogus", "argument"]),
    ({"toml": "a\0b"}, ["null byte"]),
    ({"env": {VARIABLE: "soon"}}, ["store.skew_s", "'soon'", "environment"]),
    ({"profile": "huge"}, ["'huge'", "default, shared, tiny"]),
    ({"toml": "absent.toml"}, ["absent.toml"]),
]


@pytest.mark.parametrize(("arguments", "said"), UNKNOWN)
def test_what_is_unknown_is_an_error_that_names_it(
    arguments: dict[str, object], said: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**{"env": {}, **arguments})  # type: ignore[arg-type]  # one table for all
    assert [word for word in said if word not in str(caught.value)] == []


DAMAGED = [b"[store\n", b"\xff\xfe", b"[store]\nskew_s = \n", b"x = " + b"9" * 5_000]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_settings_file_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"bad\.toml"):
        load_settings(toml=file, env={})


def test_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "typo.toml"
    file.write_text("[cache]\nmax_byte = 1\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"cache\.max_byte .*typo\.toml.*cache\.max_bytes"):
        load_settings(toml=file, env={})


@pytest.mark.parametrize("content", ["[bogus]\n", "[store.bogus]\n", "bogus.deep = {}\n"])
def test_unknown_empty_table_names_the_file(tmp_path: Path, content: str) -> None:
    file = tmp_path / "empty.toml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"bogus.* \(file .*empty\.toml\) is no setting"):
        load_settings(toml=file, env={})


def test_known_empty_tables_say_nothing(tmp_path: Path) -> None:
    file = tmp_path / "empty.toml"
    file.write_text("[store]\n[cache]\n", encoding="utf-8")
    assert load_settings(toml=file, settings={"model": {}}, env={}) == Settings()


@pytest.mark.parametrize("value", ["9" * 5_000, 10**5_000, ["x"] * 5_000], ids=type)
def test_long_values_are_cut_in_messages(value: object) -> None:
    with pytest.raises(SettingsError, match=r"store\.max_entities = .* \(argument\)") as caught:
        load_settings(settings={"store.max_entities": value}, env={})
    assert len(str(caught.value)) < 400
