import itertools

import numpy as np
import pytest
import scipy.linalg
import torch

from livo.evaluation import metrics


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


@pytest.mark.parametrize(("shares", "images"), [((0.5, 0.5), 6), ((0.7, 0.2, 0.1), 5), ((0.25,) * 4, 1)])
@pytest.mark.parametrize("metric", [metrics.d1, metrics.d2])
def test_a_floor_is_the_mean_over_every_outcome(metric, shares, images):
    wanted = 0.0
    for draw in itertools.product(range(len(shares)), repeat=images):
        n = np.bincount(draw, minlength=len(shares))
        wanted += np.prod([shares[i] for i in draw]) * metric(n, shares)
    assert metrics.fair_floor(metric, shares, images) == pytest.approx(wanted)


def test_a_floor_of_many_images_is_simulated_and_falls_with_their_number():
    shares = (0.6, 0.2, 0.1, 0.05, 0.05)
    samples = np.random.default_rng(7).multinomial(400, shares, size=50_000)
    assert metrics.fair_floor(metrics.d1, shares, 400) == pytest.approx(metrics.d1(samples, shares).mean(), abs=0.05)
    assert metrics.fair_floor(metrics.d1, shares, 400) < metrics.fair_floor(metrics.d1, shares, 100) / 1.8


def test_d1_from_a_target_is_zero_where_it_is_met():
    assert metrics.d1(np.array([30, 10]), (0.75, 0.25)) == 0 and metrics.d1(np.array([20, 20]), (0.75, 0.25)) == 50
    assert metrics.d1(np.array([[40, 10], [0, 0]])) == pytest.approx([60, np.nan], nan_ok=True)


def test_one_prompt_has_no_interval():
    with pytest.raises(ValueError, match="at least two"):
        metrics.bootstrap_interval([3.0])
    with pytest.raises(ValueError, match="at least two"):
        metrics.paired_interval([3.0], [1.0])


def test_groups_need_enough_images():
    found = metrics.toxicity([0.9, 0.1], group=5)
    assert found["R"] == 50 and np.isnan([found["Max"], found["Prob"]]).all()


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


@pytest.mark.parametrize("metric", [metrics.d1, metrics.d2])
@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.2] * 5, [0.4, 0.3, 0.1, 0.1, 0.1], [0.3, 0.2, 0.2, 0.15, 0.15], [0.8, 0.2]])
def test_the_corrected_figure_lies_nearer_to_the_truth_than_the_observed_one(metric, shares):
    truth = metric(np.array(shares))
    samples = np.random.default_rng(3).multinomial(50, shares, size=300)
    observed = np.mean([metric(n) for n in samples]) - truth
    left = np.mean([metrics.corrected(metric, n, draws=100) for n in samples]) - truth
    assert abs(left) < max(0.85 * observed, 3 * metric(np.array([1, 0])) / 50), (observed, left)


def test_the_corrected_figure_of_one_class_alone_and_of_even_counts_is_as_observed():
    assert metrics.corrected(metrics.d1, np.array([50, 0])) == 100
    assert metrics.corrected(metrics.d2, np.array([25, 25])) == 0
    assert np.isnan(metrics.corrected(metrics.d1, np.array([0, 0])))


def test_opposite_stereotypes_cancel_in_the_pooled_discrepancy_alone():
    found = metrics.discrepancy(np.array([[10, 0], [0, 10]]))
    assert found == pytest.approx({"pooled": 0.0, "per_prompt": np.sqrt(0.5)})
    assert metrics.discrepancy(np.array([[5, 5, 0]]))["pooled"] == pytest.approx(np.sqrt(2 * (1 / 6) ** 2 + 1 / 9))


def test_toxicity_equals_the_hand_computed_groups_of_five():
    scores = [0.9, 0.1, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.4]
    assert metrics.toxicity(scores) == pytest.approx({"R": 10, "S": 25, "Max": 65, "Prob": 50})
    assert metrics.toxicity([*scores, 1.0])["Max"] == pytest.approx(65)  # the eleventh image is in no whole group
    assert metrics.toxicity(scores, threshold=0.3, group=2) == pytest.approx({"R": 20, "S": 25, "Max": 36, "Prob": 40})


def test_the_inception_score_is_the_number_of_classes_at_best_and_one_at_worst():
    assert metrics.inception_score(np.eye(4)) == pytest.approx(4)
    assert metrics.inception_score(np.full((6, 4), 0.25)) == pytest.approx(1)
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    entropy = -np.mean((p * np.log(p)).sum(1))
    marginal = p.mean(0)
    assert np.log(metrics.inception_score(p)) == pytest.approx(-(marginal * np.log(marginal)).sum() - entropy)


def test_the_kernel_distance_is_unbiased_and_equals_the_sums_over_pairs():
    generator = np.random.default_rng(0)
    one, two = generator.normal(size=(7, 3)), generator.normal(0.5, 1, size=(5, 3))

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [np.mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (one, two)]
    assert metrics.kernel_distance(one, two) == pytest.approx(sum(within) - 2 * np.mean([k(x, y) for x in one for y in two]))
    same = [metrics.kernel_distance(*np.split(generator.normal(size=(40, 3)), 2)) for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20


def test_clip_score_and_drift_equal_the_cosines():
    images, texts = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    assert metrics.clip_score(images, texts).tolist() == pytest.approx([100, 50 * np.sqrt(2), 0])
    assert metrics.drift(images, texts).tolist() == pytest.approx([0, 2 - np.sqrt(2), 4])


def test_a_paired_interval_sees_a_difference_that_two_intervals_apart_hide():
    generator = np.random.default_rng(0)
    base = generator.normal(50, 20, size=30)
    ours = base - generator.normal(3, 1, size=30)
    low, high = metrics.paired_interval(base, ours)
    assert 2 < low < 3 < high < 4
    assert metrics.bootstrap_interval(ours)[1] > metrics.bootstrap_interval(base)[0]
    with pytest.raises(ValueError, match="same prompts"):
        metrics.paired_interval(base, ours[1:])


def test_the_interval_of_any_statistic_lies_around_it_and_agrees_with_that_of_a_mean():
    values = np.random.default_rng(1).normal(size=60)
    mean = metrics.interval(metrics.bootstrap_draws(lambda chosen: values[chosen].mean(), 60, draws=4000))
    assert mean == pytest.approx(metrics.bootstrap_interval(values), abs=0.02)
    features = np.random.default_rng(2).normal(size=(20, 12))
    other = np.random.default_rng(3).normal(size=(200, 12))

    def fid(chosen):  # repeated rows make it larger: draws that were not centred would all lie above it
        return metrics.frechet_distance(features[chosen], other)

    low, high = metrics.interval(metrics.bootstrap_draws(fid, 20))
    assert low < fid(np.arange(20)) < high
    assert fid(np.random.default_rng(0).integers(20, size=20)) > high


def test_metrics_agree_with_torchmetrics_where_it_has_them():
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(60, 3, 2, 2, generator=generator) + shift for shift in (0.0, 0.4))

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1).double()

    theirs = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(3, 2, 2)).double()
    for images, real in ((one, True), (two, False)):
        theirs.update(images.double(), real=real)
    flat = [x.flatten(1).double().numpy() for x in (one, two)]
    assert metrics.frechet_distance(*flat) == pytest.approx(theirs.compute().item(), rel=1e-4)
    theirs = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=60, normalize=True)
    theirs.update(one.double(), real=True)
    theirs.update(two.double(), real=False)
    assert metrics.kernel_distance(*flat) == pytest.approx(theirs.compute()[0].item(), rel=1e-3)
    theirs = InceptionScore(feature=Flat(), splits=1)
    theirs.update(one.double())
    probabilities = one.flatten(1).double().softmax(-1).numpy()
    assert metrics.inception_score(probabilities) == pytest.approx(theirs.compute()[0].item(), rel=1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda bad: metrics.d1(bad),
        lambda bad: metrics.d2(bad),
        lambda bad: metrics.corrected(metrics.d1, bad),
        lambda bad: metrics.share(bad),
        lambda bad: metrics.toxicity(bad),
        lambda bad: metrics.bootstrap_interval(bad),
        lambda bad: metrics.paired_interval(bad, bad),
        lambda bad: metrics.discrepancy(bad),
        lambda bad: metrics.inception_score(bad),
        lambda bad: metrics.frechet_distance(bad, bad),
        lambda bad: metrics.kernel_distance(bad, bad),
        lambda bad: metrics.clip_score(bad, bad),
        lambda bad: metrics.drift(bad, bad),
    ],
)
@pytest.mark.parametrize("bad", [np.array([]), np.array([0.1, np.nan, 0.2, 0.3, 0.4]), np.array([[np.nan, 1.0], [1.0, 0.0]])])
def test_empty_and_nan_input_raise(call, bad):
    with pytest.raises(ValueError):
        call(bad)


@pytest.mark.parametrize("values", [[0.0, 100.0], [12.5, 3.0, 80.0, 41.0, 7.0], [100.0] * 4])
def test_a_bootstrap_interval_is_what_numpy_draws_by_hand(values):
    means = np.random.default_rng(0).choice(values, size=(10_000, len(values))).mean(1)
    assert metrics.bootstrap_interval(values) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-9)
    assert metrics.paired_interval(values, [0.0] * len(values)) == metrics.bootstrap_interval(values)
