import numpy as np
import pytest

from livo.pipelines.calibration import Calibration, tally

EVEN = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}


def calibration(rows):
    return Calibration(("a", "b", "c"), tuple(map(tuple, rows)), 300, "judge@1", 10)


def test_perfect_directions_need_no_correction():
    shares, miss = calibration(np.eye(3)).shares({"a": 0.7, "b": 0.2, "c": 0.1})
    assert shares == pytest.approx({"a": 0.7, "b": 0.2, "c": 0.1}, abs=1e-6) and miss == pytest.approx(0, abs=1e-6)


def test_leaky_directions_are_made_up_for_exactly_where_that_is_possible():
    confusion = np.array([[0.8, 0.2, 0.0], [0.1, 0.9, 0.0], [0.0, 0.3, 0.7]])
    shares, miss = calibration(confusion).shares(EVEN)
    solved = np.linalg.solve(confusion.T, np.full(3, 1 / 3))  # all positive, so it is the answer
    assert (solved > 0).all() and list(shares.values()) == pytest.approx((solved / solved.sum()).tolist(), abs=1e-5)
    assert miss == pytest.approx(0, abs=1e-6)


def test_an_unreachable_target_is_approached_by_shares_and_its_miss_is_told():
    shares, miss = calibration([[0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]).shares({"a": 0.2, "b": 0.2, "c": 0.6})
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0 and miss == pytest.approx(0.6, abs=1e-3)


def test_the_tally_counts_images_by_direction_and_leaves_unreadable_ones_out_of_every_class():
    seen = [("a", "a"), ("a", "b"), ("a", "none"), ("a", "a"), ("b", "b"), ("c", "c")]
    found = tally(["a", "b", "c"], iter(seen), "judge@1", 2)
    assert found.confusion[0] == (0.5, 0.25, 0.0) and found.images == 6
    with pytest.raises(ValueError, match="towards 'c'"):
        tally(["a", "b", "c"], iter([("a", "a"), ("b", "b"), ("c", "none")]), "judge@1", 1)
    with pytest.raises(ValueError, match="no image was made towards 'c': make at least as many as there are classes, 3"):
        tally(["a", "b", "c"], iter([("a", "a"), ("b", "b")]), "judge@1", 1)


def test_a_direction_that_is_often_unreadable_is_given_more():
    shares, miss = calibration([[0.5, 0, 0], [0, 1, 0], [0, 0, 1]]).shares(EVEN)
    assert list(shares.values()) == pytest.approx([0.5, 0.25, 0.25], abs=1e-6) and miss == pytest.approx(0, abs=1e-6)
