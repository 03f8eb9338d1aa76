"""Preference objectives: tensors in, one loss per pair and detached statistics out. Nothing here knows of a trainer.

Every objective takes the same four tensors (N,): the squared errors of the trained model on the aligned ("winner") and on the
violating ("loser") image of each pair, and those of the frozen reference at the same noise and timestep.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import logsigmoid

Statistics = dict[str, torch.Tensor]
Objective = Callable[..., tuple[torch.Tensor, Statistics]]


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
) -> tuple[torch.Tensor, Statistics]:
    """LiVO's bounded preference loss (arXiv 2410.12700, section 3.3).

        max(0, gamma_1 + beta (l_w - l_w_ref)) + max(0, gamma_2 + alpha (l_l_ref - l_l))

    Each hinge is flat once the error has moved by gamma / scale from the frozen backbone's: the push is bounded, and that is
    what keeps image quality. The defaults are the authors' recipe for Stable Diffusion 1.5.

    Args:
        winner, winner_reference: errors (N,) on the aligned images, with the value token and without.
        loser, loser_reference: the same on the violating images, at the same noise and timestep.

    Returns:
        Losses (N,), and statistics (N,): how far each error moved in the wanted direction, whether the pair is ranked
        right, and whether each hinge still pushes.
    """
    towards = gamma_1 + beta * (winner - winner_reference)
    away = gamma_2 + alpha * (loser_reference - loser)
    statistics = _moves(winner, winner_reference, loser, loser_reference) | {
        "winner_active": (towards > 0).float().detach(),
        "loser_active": (away > 0).float().detach(),
    }
    return towards.clamp(min=0) + away.clamp(min=0), statistics


def diffusion_dpo(
    winner: torch.Tensor,
    winner_reference: torch.Tensor,
    loser: torch.Tensor,
    loser_reference: torch.Tensor,
    *,
    beta: float = 5000.0,
) -> tuple[torch.Tensor, Statistics]:
    """Diffusion-DPO (Wallace et al., arXiv 2311.12908, equation 14, the timestep weight absorbed into beta).

        -log sigmoid( -beta/2 [ (l_w - l_w_ref) - (l_l - l_l_ref) ] )

    It is log 2 where the trained model equals the reference.
    """
    margin = (winner - winner_reference) - (loser - loser_reference)
    return -logsigmoid(-0.5 * beta * margin), _moves(winner, winner_reference, loser, loser_reference)


def popalign(
    winner: torch.Tensor,
    winner_reference: torch.Tensor,
    loser: torch.Tensor,
    loser_reference: torch.Tensor,
    *,
    beta: float = 5000.0,
    centre: str = "mean",
    average: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, Statistics]:
    """PopAlign (Li, Singh, Grover, arXiv 2406.19668): one population of images preferred to another.

    With g = l_ref - l of a sample and m the mean of g over both populations, no gradient through m:

        1/2 [ -log sigmoid( beta (g_w - m) ) - log sigmoid( -beta (g_l - m) ) ]

    Only the populations are paired, not their members: `winner` and `loser` of a row need have nothing to do with each other.
    It is log 2 where the trained model equals the reference.

    Args:
        centre: "mean" as in the paper, or "clipped", max(0, m), as in KTO.
        average: Averages a scalar over all processes, so that m is that of the whole batch.
    """
    gain, loser_gain = winner_reference - winner, loser_reference - loser
    m = 0.5 * (gain.mean() + loser_gain.mean()).detach()
    if average is not None:
        m = average(m)
    if centre == "clipped":
        m = m.clamp(min=0)
    elif centre != "mean":
        raise ValueError(f"centre is {centre!r}: choose mean or clipped")
    losses = -0.5 * (logsigmoid(beta * (gain - m)) + logsigmoid(-beta * (loser_gain - m)))
    return losses, _moves(winner, winner_reference, loser, loser_reference) | {"centre": m.expand(len(winner))}


def distillation(
    winner: torch.Tensor,
    winner_reference: torch.Tensor,
    loser: torch.Tensor,
    loser_reference: torch.Tensor,
    *,
    beta: float = 1000.0,
) -> tuple[torch.Tensor, Statistics]:
    """Regression on what the frozen backbone itself predicts for the prompt that the aligned image was made from.

        1/2 sum over both images of  beta l / (1 + beta l_ref)

    Here all errors are measured against that prediction, not against the noise, as in Concept Ablation (Kumari et al., arXiv
    2303.13516, its model-based variant); the reference's are then the gap that is to be closed. Where the gap is well above 1 / beta,
    the loss is the share of it that is left, so that a small mark counts as much as a whole scene; below, it fades.
    """
    left = [beta * error / (1 + beta * gap) for error, gap in ((winner, winner_reference), (loser, loser_reference))]
    statistics = {
        "winner_gain": (winner_reference - winner).detach(),
        "loser_gain": (loser_reference - loser).detach(),
        "accuracy": ((winner < winner_reference) & (loser < loser_reference)).float(),
    }
    return 0.5 * (left[0] + left[1]), statistics


def mixed(*parts: tuple[float, Objective]) -> Objective:
    """The weighted sum of objectives; where two report the same statistic, they report the same figure."""

    def objective(*errors: torch.Tensor) -> tuple[torch.Tensor, Statistics]:
        losses, statistics = 0.0, {}
        for weight, part in parts:
            values, more = part(*errors)
            losses, statistics = losses + weight * values, statistics | more
        return losses, statistics

    return objective


def _moves(winner, winner_reference, loser, loser_reference) -> Statistics:
    gain, push = (winner_reference - winner).detach(), (loser - loser_reference).detach()
    return {"winner_gain": gain, "loser_push": push, "accuracy": (gain + push > 0).float()}
