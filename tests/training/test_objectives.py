import math
from functools import partial

import pytest
import torch

from livo.training.objectives import diffusion_dpo, distillation, livo, mixed, popalign, squared_error

POINT = (torch.tensor([0.10, 0.20]), torch.tensor([0.12, 0.21]), torch.tensor([0.30, 0.32]), torch.tensor([0.29, 0.35]))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_livo_loss_equals_the_hand_computed_number():
    losses, statistics = livo(
        torch.tensor([0.10, 0.20]),
        torch.tensor([0.10, 0.21]),
        torch.tensor([0.30, 0.30]),
        torch.tensor([0.30, 0.29]),
        beta=100.0,
        alpha=50.0,
        gamma_1=0.5,
        gamma_2=0.2,
    )
    # first: 0.5 + 100 * 0 and 0.2 + 50 * 0; second: max(0, 0.5 - 1) and max(0, 0.2 - 0.5)
    assert torch.allclose(losses, torch.tensor([0.7, 0.0]), atol=1e-5)
    assert torch.allclose(statistics["winner_gain"], torch.tensor([0.0, 0.01]), atol=1e-6)
    assert statistics["loser_active"].tolist() == [1.0, 0.0]


def test_each_hinge_is_flat_beyond_its_bound_and_pushes_before_it():
    winner, loser = torch.tensor([0.1, 0.1]).requires_grad_(), torch.tensor([0.1, 0.1]).requires_grad_()
    far, near = 0.01, 0.0001  # beyond and before gamma / scale = 0.001
    losses, _ = livo(winner, torch.tensor([0.1 + far, 0.1 + near]), loser, torch.tensor([0.1 - far, 0.1 - near]))
    losses.sum().backward()
    assert winner.grad.tolist() == [0.0, 1000.0] and loser.grad.tolist() == [0.0, -500.0]


def test_squared_error_is_a_mean_per_sample():
    predicted = torch.arange(12.0).reshape(2, 3, 2, 1)
    assert squared_error(predicted, torch.zeros_like(predicted)).tolist() == pytest.approx([55 / 6, 451 / 6])


@pytest.mark.parametrize(
    ("objective", "expected"),
    [(partial(livo, gamma_1=0.7, gamma_2=0.2), 0.9), (diffusion_dpo, math.log(2)), (popalign, math.log(2))],
)
def test_at_the_reference_the_loss_is_known(objective, expected):
    same = torch.rand(5, generator=torch.Generator().manual_seed(0))
    losses, statistics = objective(same, same, same, same)
    assert losses.tolist() == pytest.approx([expected] * 5)
    assert statistics["accuracy"].tolist() == [0.0] * 5 and statistics["winner_gain"].tolist() == [0.0] * 5


def test_diffusion_dpo_equals_the_hand_computed_number_and_gradient():
    winner = POINT[0].clone().requires_grad_()
    losses, statistics = diffusion_dpo(winner, *POINT[1:], beta=100.0)
    margins = [(0.10 - 0.12) - (0.30 - 0.29), (0.20 - 0.21) - (0.32 - 0.35)]  # -0.03, 0.02
    assert losses.tolist() == pytest.approx([-math.log(sigmoid(-50 * m)) for m in margins], rel=1e-4)
    losses.sum().backward()
    assert winner.grad.tolist() == pytest.approx([50 * (1 - sigmoid(-50 * m)) for m in margins], rel=1e-4)
    assert statistics["accuracy"].tolist() == [1.0, 0.0]


def test_popalign_equals_the_hand_computed_number_and_gradient():
    winner = POINT[0].clone().requires_grad_()
    losses, statistics = popalign(winner, *POINT[1:], beta=100.0)
    gain, loser_gain = [0.02, 0.01], [-0.01, 0.03]
    m = (0.5 * (0.02 + 0.01) + 0.5 * (-0.01 + 0.03)) / 2  # 0.0125
    expected = [
        -0.5 * (math.log(sigmoid(100 * (g - m))) + math.log(sigmoid(-100 * (h - m)))) for g, h in zip(gain, loser_gain, strict=True)
    ]
    assert losses.tolist() == pytest.approx(expected, rel=1e-4) and statistics["centre"].tolist() == pytest.approx([m, m])
    losses.sum().backward()  # the centre carries no gradient
    assert winner.grad.tolist() == pytest.approx([50 * (1 - sigmoid(100 * (g - m))) for g in gain], rel=1e-4)


def test_popaligns_centre_is_averaged_over_processes_and_may_be_clipped():
    _, statistics = popalign(*POINT, average=lambda m: m + 1)
    assert statistics["centre"].tolist() == pytest.approx([1.0125, 1.0125])
    worse = (POINT[1], POINT[0], POINT[2] + 1, POINT[3])
    assert popalign(*worse, centre="clipped")[1]["centre"].tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="centre is 'median'"):
        popalign(*POINT, centre="median")


def test_popalign_bounds_the_preference_between_populations_from_below():
    """Concavity of log sigmoid: the loss is at least that of the populations' mean difference."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        errors = torch.rand(4, 6, generator=generator)
        losses, _ = popalign(*errors, beta=3.0)
        difference = (errors[1] - errors[0]).mean() - (errors[3] - errors[2]).mean()
        assert losses.mean() >= -torch.nn.functional.logsigmoid(3.0 * difference / 2) - 1e-6


def test_distillation_is_the_remaining_share_of_the_gap():
    winner = torch.tensor([0.02, 0.0001]).requires_grad_()
    gaps, loser = torch.tensor([0.04, 0.0]), torch.tensor([0.01, 0.0])
    losses, statistics = distillation(winner, gaps, loser, gaps, beta=1000.0)
    # first: 20 / 41 and 10 / 41; second: 0.1 / 1 and 0
    assert losses.tolist() == pytest.approx([15 / 41, 0.05])
    assert statistics["winner_gain"].tolist() == pytest.approx([0.02, -0.0001]) and statistics["accuracy"].tolist() == [1.0, 0.0]
    assert statistics["loser_gain"].tolist() == pytest.approx([0.03, 0.0])
    losses.sum().backward()
    assert winner.grad.tolist() == pytest.approx([500 / 41, 500.0])


def test_mixed_objectives_add_up():
    parts = ((1.0, livo), (0.25, partial(popalign, beta=10.0)))
    losses, statistics = mixed(*parts)(*POINT)
    torch.testing.assert_close(losses, sum(weight * part(*POINT)[0] for weight, part in parts))
    assert {"winner_active", "centre", "accuracy"} <= statistics.keys()
