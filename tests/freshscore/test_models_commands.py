"""`freshscore models list`, `show` and `import`."""

from __future__ import annotations

import json
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from freshscore.features.specification import FeatureSpecification
from freshscore.scoring.registry import Registry
from tests.freshscore.stored_models import SPECIFICATION, run, trained_store
from tests.scoring.small_models import small_model

HANDBOOK = FeatureSpecification.shipped("handbook")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one trained model; tests do not change it."""
    return trained_store(tmp_path_factory.mktemp("trained"))


def booster_file(folder: Path, names: list[str], **parameters: object) -> Path:
    rng = np.random.default_rng(1)
    matrix = rng.random((300, len(names)))
    data = lightgbm.Dataset(matrix, matrix[:, 0] > 0.5, feature_name=names)
    settings = {"objective": "binary", "num_leaves": 7, "verbosity": -1, **parameters}
    path = folder / "booster.txt"
    path.write_text(lightgbm.train(settings, data, 4).model_to_string())
    return path


def test_an_empty_store_has_no_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "list", "--store", tmp_path / "none") == 0
    assert "freshscore train" in capsys.readouterr().out
    assert run("models", "show", "--store", tmp_path / "none") == 2
    assert "freshscore models import FILE" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_threshold_that_no_score_reaches_is_never(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = booster_file(tmp_path, list(HANDBOOK.feature_names))
    figures_file = tmp_path / "figures.json"
    words = [file, *SPECIFICATION, "--store", tmp_path / "store", "--json", figures_file]
    assert run("models", "import", *words, "--decline", "inf") == 0
    thresholds = capsys.readouterr().out.splitlines()[-2]
    assert thresholds.split() == ["all", "any", "other", "payment", "0.5", "never"]
    assert json.loads(figures_file.read_text())["cohorts"][0]["decline"] is None


def test_codes_of_endless_brackets_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = booster_file(tmp_path, list(HANDBOOK.feature_names))
    codes = tmp_path / "codes.json"
    codes.write_text("[" * 100_000)
    words = [file, *SPECIFICATION, "--store", tmp_path / "store", "--codes", codes]
    assert run("models", "import", *words) == 2
    assert "codes.json is no JSON" in capsys.readouterr().err


def test_the_newest_is_listed_first_and_is_champion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, figures_file = Registry(tmp_path / "models"), tmp_path / "figures.json"
    for number in range(2):
        registry.add(small_model(number), f"model {number}", 1_000 * number)
    assert run("models", "list", "--store", tmp_path, "--json", figures_file) == 0
    lines = capsys.readouterr().out.splitlines()
    assert small_model(1).version in lines[1]
    assert "champion" in lines[1]
    assert small_model(0).version in lines[2]
    assert "champion" not in lines[2]
    listed = json.loads(figures_file.read_text())
    assert [(one["why"], one["champion"]) for one in listed] == [
        ("model 1", True),
        ("model 0", False),
    ]


def test_a_damaged_history_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry(tmp_path / "models")
    registry.add(small_model(0), "model", 0)
    history = tmp_path / "models" / "history.jsonl"
    history.write_bytes(history.read_bytes()[:-9])
    assert run("models", "list", "--store", tmp_path) == 2
    assert "line 1 of history.jsonl" in capsys.readouterr().err


def test_show_says_what_a_model_was_made_from(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = Registry(trained / "models").champion().version
    figures_file = tmp_path / "figures.json"
    for named in ([], [version], [version.partition("-")[2][:4]]):
        assert run("models", "show", *named, "--store", trained, "--json", figures_file) == 0
        said = capsys.readouterr().out
        assert version in said
        assert "trained on payments.parquet, label fraud" in said
        assert json.loads(figures_file.read_text())["specification"] == "handbook"
    assert run("models", "show", "1999", "--store", trained) == 2


def test_an_imported_booster_is_champion_and_scores_as_it_did(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = booster_file(tmp_path, list(HANDBOOK.feature_names))
    words = [path, *SPECIFICATION, "--store", tmp_path, "--review", "0.3", "--decline", "0.7"]
    assert run("models", "import", *words) == 0
    model = Registry(tmp_path / "models").champion()
    matrix = rng.random((50, len(HANDBOOK.columns)))
    expected = lightgbm.Booster(model_file=path).predict(matrix)
    np.testing.assert_array_equal(model.predict(matrix), expected)
    assert model.cohort_thresholds.tolist() == [[0.3, 0.7]]


def test_features_are_named_in_the_boosters_order(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    path = booster_file(tmp_path, ["x", "y"])
    words = ["models", "import", path, *SPECIFICATION, "--store", tmp_path]
    assert run(*words) == 2
    assert "has no feature x, y" in capsys.readouterr().err
    assert run(*words, "--features", "amount") == 2
    assert "--features has 1 names; the model has 2 features" in capsys.readouterr().err
    assert run(*words, "--features", "night,amount") == 0
    model = Registry(tmp_path / "models").champion()
    matrix = rng.random((50, len(HANDBOOK.columns)))
    expected = lightgbm.Booster(model_file=path).predict(matrix[:, [2, 0]])
    np.testing.assert_array_equal(model.predict(matrix), expected)


def test_a_custom_objective_needs_its_link(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = booster_file(tmp_path, list(HANDBOOK.feature_names))
    text = "\n".join(
        line for line in path.read_text().splitlines() if not line.startswith("objective=")
    )
    path.write_text(text)
    words = ["models", "import", path, *SPECIFICATION, "--store", tmp_path]
    assert run(*words) == 2
    assert "link must be named" in capsys.readouterr().err
    assert run(*words, "--link", "logistic") == 0


def test_a_calibration_table_is_applied(tmp_path: Path, rng: np.random.Generator) -> None:
    path, table = booster_file(tmp_path, list(HANDBOOK.feature_names)), tmp_path / "table.json"
    table.write_text(json.dumps({"scores": [0.0, 1.0], "values": [0.0, 0.5]}))
    words = ["models", "import", path, *SPECIFICATION, "--store", tmp_path]
    assert run(*words, "--calibration", table) == 0
    matrix = rng.random((50, len(HANDBOOK.columns)))
    expected = np.asarray(lightgbm.Booster(model_file=path).predict(matrix)) / 2
    np.testing.assert_allclose(Registry(tmp_path / "models").champion().predict(matrix), expected)


@pytest.mark.parametrize(
    ("option", "content", "said"),
    [
        ("--calibration", '{"scores": [0, 1]}', "is no calibration table"),
        ("--calibration", '{"scores": [1, 0], "values": [0, 1]}', "is no calibration table"),
        ("--calibration", "{", "is no JSON"),
        ("--codes", '{"category": {"a": "b"}}', "codes are an object"),
        ("--codes", "[1]", "codes are an object"),
    ],
)
def test_a_side_file_that_is_not_one_is_refused(
    option: str, content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, side = booster_file(tmp_path, list(HANDBOOK.feature_names)), tmp_path / "side.json"
    side.write_text(content)
    words = ["models", "import", path, *SPECIFICATION, "--store", tmp_path / "store"]
    assert run(*words, option, side) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_model_of_another_store_is_imported_as_it_is(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Registry(trained / "models").champion()
    file = trained / "models" / f"{model.version}.model"
    assert run("models", "import", file, *SPECIFICATION, "--store", tmp_path) == 0
    assert Registry(tmp_path / "models").champion().file == model.file
    assert run("models", "import", file, "--spec", "payments", "--store", tmp_path) == 2
    assert "was made for specification handbook" in capsys.readouterr().err
    damaged = tmp_path / "damaged.model"
    damaged.write_bytes(file.read_bytes()[:-1])
    assert run("models", "import", damaged, *SPECIFICATION, "--store", tmp_path) == 2
    assert len(Registry(tmp_path / "models").entries()) == 1


def test_a_pickle_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x04\x95\xff\xfe")
    assert run("models", "import", path, *SPECIFICATION, "--store", tmp_path) == 2
    assert "never as a pickle" in capsys.readouterr().err
