import pytest
import torch

from livo.objectives import livo, squared_error


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
