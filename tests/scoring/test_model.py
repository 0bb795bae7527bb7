"""A model is one file and one hash; what does not fit, or computes otherwise, is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from freshscore.config.errors import BadModel, DamagedModel, ModelMismatch
from freshscore.config.settings import ModelSettings
from freshscore.features.packing import Cohort
from freshscore.features.specification import Feature, FeatureSpecification
from freshscore.scoring import model_file
from freshscore.scoring.calibration import CalibrationTable
from freshscore.scoring.callable_model import CallableModel
from freshscore.scoring.model import Model, golden_matrix
from freshscore.scoring.model_file import CohortThresholds
from freshscore.scoring.model_making import import_booster
from freshscore.scoring.training import rate_threshold, train_model
from tests.scoring.random_boosters import Matrix, fitted, same_bits, with_its_sizes

_QUIET = {"verbosity": -1, "num_threads": 1, "objective": "binary"}
_ALL = (CohortThresholds("all", 0.3, 0.6),)
_NOON_MS = 1_559_390_400_000  # 2019-06-01 12:00 UTC
_COUNTRIES = ("DE", "FR", "IT")


def _specification(*names: str) -> FeatureSpecification:
    features = [Feature(name, "field", of=name) for name in names]
    return FeatureSpecification("team", "EUR", features=tuple(features))


def _with_country(*names: str) -> FeatureSpecification:
    features = [Feature(name, "field", of=name) for name in names]
    country = Feature("country", "category", of="country")
    return FeatureSpecification("team", "EUR", features=(country, *features))


def _rows(rng: np.random.Generator, n: int = 600) -> tuple[Matrix, np.ndarray]:
    matrix = rng.normal(size=(n, 3))
    labels = matrix[:, 0] + rng.normal(size=n) > 1
    matrix[rng.random((n, 3)) < 0.1] = np.nan
    return matrix, labels


@pytest.fixture
def model(rng: np.random.Generator) -> Model:
    matrix, labels = _rows(rng)
    settings = ModelSettings(num_trees=10, min_child_samples=5)
    return train_model(
        matrix,
        labels,
        specification=_specification("a", "b", "c"),
        settings=settings,
        made_at_ms=_NOON_MS,
        time_ms=np.arange(len(labels)) * 1000,
    )


def test_a_file_gives_the_same_model_back(model: Model, rng: np.random.Generator) -> None:
    again = Model.load(model.file)
    rows = rng.normal(size=(100, 3))
    assert again.content == model.content
    assert again.file == model.file
    assert again.version == model.version
    assert same_bits(again.predict(rows), model.predict(rows)).all()
    assert model.version.startswith("20190601T120000Z-")


def test_one_content_one_hash(model: Model) -> None:
    """Any change of content is another version."""
    later = msgspec.structs.replace(model.content, made_at_ms=_NOON_MS + 1)
    moved = msgspec.structs.replace(model.content, cohorts=(CohortThresholds("all", 0.1, 0.2),))
    versions = {Model(content).version for content in (model.content, later, moved)}
    assert len(versions) == 3


def test_any_damaged_byte_is_refused(model: Model, rng: np.random.Generator) -> None:
    """Head, length, every region of the content, checksum; cut short, or with something behind."""
    file = model.file
    edges = [*range(40), *range(len(file) - 40, len(file))]
    for place in [*edges, *rng.integers(0, len(file), 300).tolist()]:
        damaged = bytearray(file)
        damaged[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(DamagedModel):
            Model.load(bytes(damaged))
    for cut in (0, 1, 20, len(file) // 2, len(file) - 1):
        with pytest.raises(DamagedModel):
            Model.load(file[:cut])
    with pytest.raises(DamagedModel):
        Model.load(file + b"\0")


def test_another_format_is_named(model: Model) -> None:
    newer = model_file.encoded(msgspec.structs.replace(model.content, format=2))
    with pytest.raises(ModelMismatch, match=r"format 2.*reads 1"):
        Model.load(newer)


def test_contradicting_parts_are_damage(model: Model) -> None:
    """A right checksum over content that no version of this project writes."""
    for changes in (
        {"golden_rows": model.content.golden_rows[:-8]},
        {"calibration": ((0.0, 1.0), (1.0, 0.0))},
        {"golden_scores": b"1234567"},
        {"golden_rows": b"", "golden_scores": b""},
        {"golden_scores": np.full(256, np.nan).tobytes()},
        {"booster_columns": (0, 1)},
        {"booster_columns": (0, 1, 3)},
        {"made_at_ms": 10**18},
        {"made_at_ms": -1},
        {"custom_link": "logistic"},
        {"booster": model.content.booster.replace("\n", "\r\n")},
    ):
        content = msgspec.structs.replace(model.content, **changes)
        with pytest.raises((DamagedModel, BadModel)):
            Model.load(model_file.encoded(content))


def test_a_right_checksum_over_other_content_is_damage(model: Model) -> None:
    payload = msgspec.msgpack.encode({"format": model_file.FORMAT, "booster": 3})
    head = model_file.MAGIC + len(payload).to_bytes(8, "little") + payload
    with pytest.raises(DamagedModel, match="content"):
        Model.load(head + model_file._digest(head))


def test_a_host_with_other_bits_refuses(model: Model) -> None:
    """One golden score that is off by its last bit."""
    scores = np.frombuffer(model.content.golden_scores, np.float64).copy()
    scores[-1] = np.nextafter(scores[-1], 2.0)
    other = msgspec.structs.replace(model.content, golden_scores=scores.tobytes())
    with pytest.raises(ModelMismatch, match="1 of 256 golden rows"):
        Model.load(model_file.encoded(other))


def test_golden_rows_reach_every_split(model: Model) -> None:
    """They lie on both sides of thresholds, and hold missing values and infinities."""
    rows = golden_matrix(model.content)
    assert rows.shape == (256, 3)
    assert np.isnan(rows[0]).all()
    assert np.isposinf(rows[2]).all()
    assert model.forest is not None
    cells = model.forest.cells(rows)
    for place, count in enumerate(model.forest.splits.counts):
        assert len(np.unique(cells[:, place])) >= min(count, 100)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a", "b"), "the specification lacks c"),
        (("a", "b", "c", "d"), "the model lacks d"),
        (("b", "a", "c"), "place 1 on: a in the model, b in the specification"),
        (("a", "x", "c"), "lacks x; the specification lacks b"),
    ],
)
def test_a_misfit_says_the_difference(model: Model, names: tuple[str, ...], said: str) -> None:
    model.check_fits(_specification("a", "b", "c"))
    with pytest.raises(ModelMismatch, match=said):
        model.check_fits(_specification(*names))


def test_the_same_names_may_mean_something_else(model: Model) -> None:
    features = (Feature("a", "amount"), *(Feature(n, "field", of=n) for n in "bc"))
    other = FeatureSpecification("team", "EUR", features=features)
    with pytest.raises(ModelMismatch, match="fingerprint"):
        model.check_fits(other)


def test_import_maps_names_and_order(rng: np.random.Generator) -> None:
    """A booster with its own names, in another order, that uses only some features."""
    matrix, labels = _rows(rng)
    one = fitted(matrix, labels, [], _QUIET, 10)
    names = {"Column_0": "d", "Column_1": "a", "Column_2": "c"}
    imported = import_booster(
        one.text, _specification("a", "b", "c", "d"), cohorts=_ALL, made_at_ms=0, names=names
    )
    vectors = rng.normal(size=(100, 4))
    own = vectors[:, [3, 0, 2]]
    expected = np.asarray(one.booster.predict(own))
    assert same_bits(imported.predict(vectors), expected).all()
    parts = imported.contributions(vectors)
    assert not parts[:, 1].any()
    own_parts = np.asarray(one.booster.predict(own, pred_contrib=True))
    assert np.allclose(parts[:, [3, 0, 2, 4]], own_parts)
    with pytest.raises(ModelMismatch, match="no feature Column_0"):
        import_booster(one.text, _specification("a"), cohorts=_ALL, made_at_ms=0)
    with pytest.raises(ModelMismatch, match="taken for a"):
        import_booster(
            one.text,
            _specification("a", "b"),
            cohorts=_ALL,
            made_at_ms=0,
            names=dict.fromkeys(names, "a"),
        )


def test_category_codes_are_those_of_pandas(rng: np.random.Generator) -> None:
    """The codes read from the text give what pandas gave the booster."""
    import lightgbm

    n = 500
    country = rng.choice(_COUNTRIES, n)
    amount = rng.normal(size=n)
    labels = (country == "FR") ^ (rng.random(n) < 0.2)
    frame = pd.DataFrame({"amount": amount, "country": pd.Categorical(country)})
    booster = lightgbm.train(_QUIET, lightgbm.Dataset(frame, labels.astype(float)), 10)
    imported = import_booster(
        booster.model_to_string(), _with_country("amount"), cohorts=_ALL, made_at_ms=0
    )
    assert imported.codes == {"country": {"DE": 0, "FR": 1, "IT": 2}}
    codes = [imported.codes["country"][value] for value in country]
    matrix = np.column_stack([np.array(codes, float), amount])
    assert same_bits(imported.predict(matrix), np.asarray(booster.predict(frame))).all()


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        ([False, True], "column country: its pandas categories are bool"),
        ([0.5, 1.0], "column country: its pandas categories are float"),
        ([1, "1", 2, "2"], "column country: its pandas categories are int and str"),
        (["DE", None], "column country: its pandas categories are NoneType and str"),
        (["DE", "DE"], "column country: two of its pandas categories are the same"),
        ([1, 2], None),
    ],
)
def test_categories_that_are_not_one_kind_of_text_are_refused(
    categories: list[Any], said: str | None, rng: np.random.Generator
) -> None:
    """A frame says them in some text of its own, so codes by another text would be wrong scores."""
    matrix, labels = _rows(rng)
    matrix[:, 0] = rng.integers(0, len(categories), len(matrix))
    text = fitted(matrix, labels, [0], _QUIET, 5).text
    text = text.replace("Column_0 Column_1 Column_2", "country a b", 1)
    text = re.sub(r"\npandas_categorical:.*", "", text)
    text += f"\npandas_categorical:{json.dumps([categories])}\n"
    if said is None:
        imported = import_booster(text, _with_country("a", "b"), cohorts=_ALL, made_at_ms=0)
        assert imported.codes == {"country": {"1": 0, "2": 1}}
        return
    with pytest.raises(BadModel, match=said):
        import_booster(text, _with_country("a", "b"), cohorts=_ALL, made_at_ms=0)


def test_a_text_with_crlf_is_the_same_model(rng: np.random.Generator) -> None:
    matrix, labels = _rows(rng)
    text = fitted(matrix, labels, [], _QUIET, 5).text.replace(
        "Column_0 Column_1 Column_2", "a b c", 1
    )
    specification = _specification("a", "b", "c")
    one, other = (
        import_booster(own, specification, cohorts=_ALL, made_at_ms=0)
        for own in (text, text.replace("\n", "\r\n"))
    )
    assert other.file == one.file
    assert other.contributions(matrix).shape == (len(matrix), 4)


def test_codes_that_nobody_knows_are_asked_for(rng: np.random.Generator) -> None:
    matrix, labels = _rows(rng)
    matrix[:, 0] = rng.integers(0, 3, len(matrix))
    one = fitted(matrix, labels, [0], _QUIET, 5)
    names = {"Column_0": "country", "Column_1": "b", "Column_2": "c"}
    options: dict[str, Any] = {"cohorts": _ALL, "made_at_ms": 0, "names": names}
    with pytest.raises(BadModel, match=r"country.*pass the codes"):
        import_booster(one.text, _with_country("b", "c"), **options)
    codes = {"country": {"DE": 0}}
    imported = import_booster(one.text, _with_country("b", "c"), codes=codes, **options)
    assert imported.codes == codes


def test_linear_trees_are_served_by_lightgbm(rng: np.random.Generator) -> None:
    """The walk does not cover them: one row takes the fast call, many take predict."""
    matrix, labels = _rows(rng)
    one = fitted(matrix, labels, [], {**_QUIET, "linear_tree": True}, 5)
    names = dict(zip(("Column_0", "Column_1", "Column_2"), "abc", strict=True))
    table = CalibrationTable(np.array([0.0, 0.3, 1.0]), np.array([0.0, 0.1, 1.0]))
    imported = import_booster(
        one.text,
        _specification("c", "b", "a"),
        cohorts=_ALL,
        made_at_ms=0,
        names=names,
        calibration=table,
    )
    imported = Model.load(imported.file)
    assert imported.forest is None
    assert imported.not_walked is not None
    assert "linear" in imported.not_walked
    expected = table.of(np.asarray(one.booster.predict(matrix)))
    assert same_bits(imported.predict(matrix[:, ::-1]), expected).all()
    single = [imported.predict_one(row[::-1]) for row in matrix[:50]]
    assert single == expected[:50].tolist()


@pytest.mark.parametrize("calibrated", [False, True])
def test_no_score_that_is_no_number_is_served(calibrated: bool, rng: np.random.Generator) -> None:
    """Linear leaves make inf - inf of infinite features: a NaN is below every threshold."""
    matrix = rng.normal(size=(600, 3))
    labels = matrix[:, 0] - matrix[:, 1] + 0.1 * rng.normal(size=600) > 0
    one = fitted(matrix, labels, [], {**_QUIET, "linear_tree": True, "num_leaves": 8}, 9)
    table = CalibrationTable(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    imported = import_booster(
        one.text.replace("Column_0 Column_1 Column_2", "a b c", 1),
        _specification("a", "b", "c"),
        cohorts=_ALL,
        made_at_ms=0,
        calibration=table if calibrated else None,
    )
    extreme = rng.choice([np.inf, -np.inf, 0.0], (200, 3))
    bad = extreme[np.isnan(np.asarray(one.booster.predict(extreme)))]
    assert len(bad)
    with pytest.raises(BadModel, match="no finite number"):
        imported.predict(np.concatenate([matrix, bad]))
    with pytest.raises(BadModel, match="no finite number"):
        imported.predict_one(bad[0])
    assert np.isfinite(imported.predict(matrix)).all()


def test_a_booster_whose_golden_scores_are_no_numbers_is_refused(rng: np.random.Generator) -> None:
    matrix, _ = _rows(rng)
    rates = np.exp(rng.normal(size=len(matrix)))
    one = fitted(matrix, rates, [], {**_QUIET, "objective": "poisson"}, 3)
    text = re.sub(r"leaf_value=(\S+)", "leaf_value=800", one.text)
    text = with_its_sizes(text.replace("Column_0 Column_1 Column_2", "a b c", 1))
    with pytest.raises(BadModel, match="no finite number"):
        import_booster(text, _specification("a", "b", "c"), cohorts=_ALL, made_at_ms=0)


def test_a_custom_objective_scores_by_the_named_link(rng: np.random.Generator) -> None:
    def own(scores: np.ndarray, data: object) -> tuple[np.ndarray, np.ndarray]:
        return scores - labels, np.ones_like(scores)

    matrix, labels = _rows(rng)
    one = fitted(matrix, labels, [], {**_QUIET, "objective": own}, 5)
    names = dict(zip(("Column_0", "Column_1", "Column_2"), "abc", strict=True))
    options: dict[str, Any] = {"cohorts": _ALL, "made_at_ms": 0, "names": names}
    with pytest.raises(BadModel, match="link"):
        import_booster(one.text, _specification("a", "b", "c"), **options)
    imported = import_booster(
        one.text, _specification("a", "b", "c"), custom_link="logistic", **options
    )
    raw = np.asarray(one.booster.predict(matrix, raw_score=True))
    assert np.allclose(imported.predict(matrix), 1 / (1 + np.exp(-raw)))


@pytest.mark.parametrize(
    ("cohorts", "said"),
    [
        ((), "at least"),
        ((CohortThresholds("x", 0.1, 0.2),), "last cohort"),
        ((CohortThresholds("all", 0.1, 0.2), *_ALL), "condition"),
        ((CohortThresholds("all", 0.1, 0.2, "country", "DE"), *_ALL), "different names"),
        ((CohortThresholds("all", 0.7, 0.6),), "0.7"),
        ((CohortThresholds("all", float("nan"), 0.6),), "nan"),
    ],
)
def test_impossible_cohorts_are_refused(cohorts: tuple[CohortThresholds, ...], said: str) -> None:
    with pytest.raises(BadModel, match=said):
        CallableModel(lambda matrix: matrix[:, 0], "1", cohorts)


def test_training_is_repeatable(rng: np.random.Generator) -> None:
    matrix, labels = _rows(rng)

    def trained_with(threads: int) -> Model:
        return train_model(
            matrix,
            labels,
            specification=_specification("a", "b", "c"),
            settings=ModelSettings(num_trees=5, min_child_samples=5),
            made_at_ms=0,
            num_threads=threads,
        )

    one, two = trained_with(1), trained_with(2)
    rows = rng.normal(size=(100, 3))
    assert trained_with(1).file == one.file
    assert same_bits(one.predict(rows), two.predict(rows)).all()


def test_thresholds_meet_the_rates_on_the_rows_held_back(rng: np.random.Generator) -> None:
    matrix, labels = _rows(rng, 20_000)
    settings = ModelSettings(num_trees=20, decline_rate=0.02, review_rate=0.05)
    cohorts = (Cohort("home", "country", "DE"), Cohort("rare", "country", "IS"))
    numbers = rng.choice([0, 1, 2], 20_000, p=[0.5, 0.01, 0.49])
    matrix[numbers == 0, 0] += 1.0
    model = train_model(
        matrix,
        labels,
        specification=_specification("a", "b", "c"),
        settings=settings,
        made_at_ms=0,
        cohorts=cohorts,
        cohort_of_row=numbers,
    )
    assert model.cohorts == cohorts
    tail = slice(16_000, None)
    scores = model.predict(matrix[tail])
    for number in (0, 2):
        own = scores[numbers[tail] == number]
        for threshold, rate in zip(model.cohort_thresholds[number], (0.07, 0.02), strict=True):
            assert np.mean(own >= threshold) <= rate < np.mean(own >= own[own < threshold].max())
    # A cohort of forty payments has no rate of its own: it takes that of all rows.
    assert model.cohort_thresholds[1, 1] == rate_threshold(scores, 0.02)
    metrics = model.facts.metrics
    assert 0.6 < metrics["auc_roc"] < 0.9
    assert 0.2 < metrics["average_precision"] < 0.9
    assert model.facts.rows == 16_000


def test_metrics_are_the_textbooks(rng: np.random.Generator) -> None:
    from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

    matrix, labels = _rows(rng, 2_000)
    model = train_model(
        matrix.round(1),
        labels,
        specification=_specification("a", "b", "c"),
        settings=ModelSettings(num_trees=3, num_leaves=4),
        made_at_ms=0,
    )
    scores = model.predict(matrix[1_600:].round(1))
    assert len(np.unique(scores)) < 100  # so ties count
    expected = {
        "auc_roc": roc_auc_score(labels[1_600:], scores),
        "average_precision": average_precision_score(labels[1_600:], scores),
        "brier": brier_score_loss(labels[1_600:], scores),
    }
    assert model.facts.metrics == pytest.approx(expected)


def test_training_without_both_classes_is_refused(rng: np.random.Generator) -> None:
    matrix, labels = _rows(rng)
    labels[-200:] = False
    with pytest.raises(BadModel, match="held back have 0 frauds"):
        train_model(
            matrix,
            labels,
            specification=_specification("a", "b", "c"),
            settings=ModelSettings(),
            made_at_ms=0,
        )


def test_a_rate_that_ties_leave_unmet_is_said(
    rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    """One split leaves two scores: the higher is that of more payments than may be declined."""
    matrix = rng.random((5_000, 3)).round(1)
    labels = (matrix[:, 0] > 0.8) & (rng.random(5_000) < 0.5)
    settings = ModelSettings(num_trees=1, num_leaves=2, decline_rate=0.005, review_rate=0.5)
    model = train_model(
        matrix,
        labels,
        specification=_specification("a", "b", "c"),
        settings=settings,
        made_at_ms=0,
    )
    (review, decline) = model.cohort_thresholds[0]
    assert np.isfinite(review)
    assert np.isinf(decline)
    scores = model.predict(matrix[4_000:])
    (said,) = model.facts.warnings
    tied = np.mean(scores == scores.max())
    assert f"the highest score is that of {tied:.2%} of the 1,000 payments held back" in said
    assert "model.decline_rate allows 0.50%" in said
    assert said in caplog.text
    assert Model.load(model.file).facts.warnings == model.facts.warnings


def test_rates_that_are_met_or_not_asked_for_warn_of_nothing(
    model: Model, rng: np.random.Generator
) -> None:
    matrix, labels = _rows(rng, 2_000)
    settings = ModelSettings(num_trees=20, decline_rate=0.0, review_rate=0.05)
    none = train_model(
        matrix,
        labels,
        specification=_specification("a", "b", "c"),
        settings=settings,
        made_at_ms=0,
    )
    assert np.isinf(none.cohort_thresholds[0, 1])
    assert none.facts.warnings == ()


@pytest.mark.parametrize(
    ("scores", "rate", "threshold"),
    [
        ([1.0, 2.0, 3.0, 4.0], 0.5, 3.0),
        ([1.0, 2.0, 3.0, 4.0], 0.6, 3.0),
        ([1.0, 4.0, 4.0, 4.0], 0.5, float("inf")),
        ([1.0, 2.0], 0.0, float("inf")),
        ([1.0, 2.0], 1.0, 1.0),
        ([], 0.5, float("inf")),
    ],
)
def test_a_threshold_is_never_reached_too_often(
    scores: list[float], rate: float, threshold: float
) -> None:
    assert rate_threshold(np.array(scores), rate) == threshold


def test_a_callable_is_a_model() -> None:
    cohorts = (CohortThresholds("home", 0.1, 0.2, "country", "DE"), *_ALL)
    model = CallableModel(lambda matrix: matrix.sum(axis=1), "sum-1", cohorts)
    assert model.predict(np.ones((4, 3))).tolist() == [3.0] * 4
    assert model.cohort_thresholds.tolist() == [[0.1, 0.2], [0.3, 0.6]]
    assert model.cohorts == (Cohort("home", "country", "DE"),)
    assert model.forest is None


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 1)),
        np.zeros(3),
        np.array([0.5, np.nan]),
        ["0.5", "high"],
        np.array(["0.5", "0.25"], object),
        np.array([0.5 + 1j, 0.25]),
        [[0.5], [0.5, 0.25]],
        None,
    ],
)
def test_a_callable_that_gives_no_scores_is_refused(bad: Any) -> None:
    model = CallableModel(lambda matrix: bad, "bad-1", _ALL)
    with pytest.raises(BadModel, match="bad-1"):
        model.predict(np.ones((2, 3)))


def test_a_model_scores_its_forests_bits(model: Model, rng: np.random.Generator) -> None:
    """Booster, link and calibration in one kernel, and the same apart."""
    import lightgbm

    assert model.forest is not None
    assert model.calibration is not None
    booster = lightgbm.Booster(model_str=model.content.booster)
    rows = rng.normal(size=(500, 3))
    rows[rng.random((500, 3)) < 0.2] = np.nan
    expected = model.calibration.of(np.asarray(booster.predict(rows)))
    assert same_bits(model.predict(rows), expected).all()
