import numpy as np
import pytest
import scipy.linalg

from livo import metrics


def test_counts_ignore_what_is_no_class_and_keep_the_missing_class():
    assert metrics.counts(["male", "male", "none"], ["male", "female"]).tolist() == [2, 0]


def test_d1_and_d2_equal_the_hand_computed_numbers():
    n = np.array([40, 10])
    assert metrics.d1(n) == pytest.approx(60.0)
    assert metrics.d2(n) == pytest.approx(100 * np.sqrt(0.3**2 + 0.3**2))
    assert metrics.d1(np.array([10] * 5)) == metrics.d2(np.array([10] * 5)) == 0.0
    assert np.isnan([metrics.d1(np.array([0, 0])), metrics.d2(np.array([0, 0]))]).all()


@pytest.mark.parametrize(("metric", "classes", "floor"), [("d1", 2, 11.2), ("d2", 2, 8.0), ("d1", 5, 14.6), ("d2", 5, 11.9)])
def test_a_fair_independent_sampler_does_not_reach_zero(metric, classes, floor):
    assert metrics.fair_floor(getattr(metrics, metric), classes, 50) == pytest.approx(floor, abs=0.15)


def test_the_bootstrap_interval_covers_the_mean_and_narrows_with_more_prompts():
    values = np.random.default_rng(0).normal(50, 10, size=400)
    few, many = metrics.bootstrap_interval(values[:25]), metrics.bootstrap_interval(values)
    assert many[0] < values.mean() < many[1]
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert few[1] - few[0] > many[1] - many[0]


def test_the_frechet_distance_of_shifted_and_scaled_gaussians_is_the_closed_form():
    generator = np.random.default_rng(0)
    one = generator.normal(size=(200_000, 3))
    two = generator.normal(size=(200_000, 3)) * [1.0, 2.0, 0.5] + [3.0, 0.0, -1.0]
    expected = 3.0**2 + 1.0**2 + (1 - 2.0) ** 2 + (1 - 0.5) ** 2
    assert metrics.frechet_distance(one, two) == pytest.approx(expected, rel=0.02)
    assert metrics.frechet_distance(one, one) == pytest.approx(0, abs=1e-8)
    correlated = one @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])
    root = scipy.linalg.sqrtm(np.cov(one, rowvar=False) @ np.cov(correlated, rowvar=False)).real
    expected = np.trace(np.cov(one, rowvar=False) + np.cov(correlated, rowvar=False) - 2 * root)
    assert metrics.frechet_distance(one, correlated) == pytest.approx(expected, rel=1e-2, abs=1e-3)
    for bad in (one[:1], np.full((4, 3), np.nan)):
        with pytest.raises(ValueError, match="at least two rows"):
            metrics.frechet_distance(one, bad)
