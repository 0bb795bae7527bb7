"""A calibration table keeps the order of scores, and says how often they are fraud."""

from __future__ import annotations

import numpy as np
import pytest

from freshscore.scoring.calibration import MAX_KNOTS, CalibrationTable, fitted_table


def test_values_are_those_of_linear_interpolation(rng: np.random.Generator) -> None:
    table = CalibrationTable(np.sort(rng.random(40)), np.sort(rng.random(40)))
    scores = np.concatenate([rng.uniform(-0.5, 1.5, 2000), table.scores, [-np.inf, np.inf]])
    expected = np.interp(scores, table.scores, table.values)
    assert np.allclose(table.of(scores), expected, rtol=1e-14, atol=0)
    assert (table.of(table.scores) == table.values).all()


def test_order_is_kept_to_the_last_bit(rng: np.random.Generator) -> None:
    """Also among neighbours in float64, and across knots."""
    for _ in range(50):
        table = CalibrationTable(np.sort(rng.random(8)), np.sort(rng.random(8)))
        dense = [table.scores, rng.random(500)]
        for _ in range(3):
            dense += [np.nextafter(dense[-1], 2.0), np.nextafter(dense[0], -1.0)]
        values = table.of(np.sort(np.concatenate(dense)))
        assert (np.diff(values) >= 0).all()


def test_a_fit_is_monotone_and_calibrated(rng: np.random.Generator) -> None:
    scores = rng.random(100_000) ** 3
    labels = rng.random(100_000) < scores**2
    table = fitted_table(scores, labels)
    assert (np.diff(table.scores) > 0).all()
    assert (np.diff(table.values) > 0).all()
    for low, high in ((0.1, 0.2), (0.4, 0.5), (0.8, 0.9)):
        within = (scores >= low) & (scores < high)
        assert table.of(scores[within]).mean() == pytest.approx(labels[within].mean(), abs=0.01)


def test_a_fit_ties_no_scores(rng: np.random.Generator) -> None:
    scores = np.unique(rng.random(5_000))
    table = fitted_table(scores, rng.random(len(scores)) < scores)
    assert len(np.unique(table.of(scores))) == len(scores)


@pytest.mark.parametrize("labels", [[True, True], [False, False], []])
def test_both_classes_are_needed(labels: list[bool]) -> None:
    with pytest.raises(ValueError, match="both classes"):
        fitted_table(np.linspace(0.1, 0.9, len(labels)), np.array(labels, bool))


def test_knots_are_bounded(rng: np.random.Generator) -> None:
    """Labels that agree with the scores everywhere would give a knot for each."""
    scores = np.sort(rng.random(20_000))
    labels = np.arange(20_000) % np.linspace(40, 1, 20_000).astype(int) == 0
    assert len(fitted_table(scores, labels).scores) <= MAX_KNOTS


@pytest.mark.parametrize(
    ("scores", "values"),
    [
        ([0.5], [0.5]),
        ([0.0, 0.0], [0.0, 1.0]),
        ([0.0, 1.0], [1.0, 0.0]),
        ([0.0, np.nan], [0.0, 1.0]),
        ([0.0, np.inf], [0.0, 1.0]),
        (np.linspace(0, 1, MAX_KNOTS + 1), np.linspace(0, 1, MAX_KNOTS + 1)),
    ],
)
def test_what_is_no_table_is_refused(scores: list[float], values: list[float]) -> None:
    with pytest.raises(ValueError, match="knots"):
        CalibrationTable(np.array(scores), np.array(values))
