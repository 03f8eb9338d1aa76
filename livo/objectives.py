"""Preference objectives: tensors in, one loss per sample and detached statistics out. Nothing here knows of a trainer."""

from __future__ import annotations

import torch


def squared_error(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample, (N, ...) -> (N,), in float32: the `l` of the objectives below."""
    return (predicted.float() - target.float()).square().flatten(1).mean(dim=1)


def livo(
    winner: torch.Tensor,
    winner_reference: torch.Tensor,
    loser: torch.Tensor,
    loser_reference: torch.Tensor,
    *,
    beta: float = 1000.0,
    alpha: float = 500.0,
    gamma_1: float = 1.0,
    gamma_2: float = 0.5,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """LiVO's bounded preference loss (arXiv 2410.12700, section 3.3).

        max(0, gamma_1 + beta (l_w - l_w_ref)) + max(0, gamma_2 + alpha (l_l_ref - l_l))

    Each hinge is flat once the error has moved by gamma / scale from the frozen backbone's: the push is bounded, and that is
    what keeps image quality. The defaults are the authors' recipe for Stable Diffusion 1.5.

    Args:
        winner, winner_reference: errors (N,) on the aligned images, with the value token and without.
        loser, loser_reference: the same on the violating images, at the same noise and timestep.

    Returns:
        Losses (N,), and statistics (N,): how far each error moved in the wanted direction, and whether each hinge
        still pushes.
    """
    towards = gamma_1 + beta * (winner - winner_reference)
    away = gamma_2 + alpha * (loser_reference - loser)
    statistics = {
        "winner_gain": (winner_reference - winner).detach(),
        "loser_push": (loser - loser_reference).detach(),
        "winner_active": (towards > 0).float().detach(),
        "loser_active": (away > 0).float().detach(),
    }
    return towards.clamp(min=0) + away.clamp(min=0), statistics
