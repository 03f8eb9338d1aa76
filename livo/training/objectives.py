"""Preference objectives: tensors in, one loss per pair and detached statistics out. Nothing here knows the trainer.

Every objective takes the same four tensors, one number per pair:

    winner            l(x_w)      squared error of the trained model on the aligned image
    winner_reference  l_ref(x_w)  the same of the frozen backbone, at the same noise and timestep
    loser             l(x_l)      squared error of the trained model on the violating image, at the winner's noise and timestep
    loser_reference   l_ref(x_l)  the same of the frozen backbone

They return the losses, (N,), and statistics, (N,) each and without gradient: `winner_gain` and `loser_push` (or `loser_gain`), how far
each error moved in the wanted direction; `accuracy`, whether they moved that way together; and some of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import logsigmoid

Statistics = dict[str, torch.Tensor]
Objective = Callable[..., tuple[torch.Tensor, Statistics]]


# ------------------------------------------------------------------------------------------------------------------------
# (1)  l(x) = mean over C, h, w of ( model(x_t, t, c) - target )^2


def squared_error(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample, in float32.

    Args:
        predicted: Predictions, (N, ...).
        target: Noise, velocity or flow, of the same shape.
    """
    return (predicted.float() - target.float()).square().flatten(1).mean(dim=1)


# ------------------------------------------------------------------------------------------------------------------------
# (2)  LiVO (Wang et al., arXiv 2410.12700, section 3.3)
#
#      L = max(0, gamma_1 + beta ( l(x_w) - l_ref(x_w) ))  +  max(0, gamma_2 + alpha ( l_ref(x_l) - l(x_l) ))


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
    """LiVO's bounded preference loss.

    Each hinge is flat once the error has moved by gamma / scale away from the frozen backbone's. This bound keeps the image quality.
    The defaults are the authors' recipe for Stable Diffusion 1.5.

    Args:
        winner, winner_reference, loser, loser_reference: The errors, (N,) each.
        beta: Scale of the winners' hinge.
        alpha: Scale of the losers' hinge.
        gamma_1: Bound of the winners' hinge.
        gamma_2: Bound of the losers' hinge.

    Returns:
        Losses and statistics; `winner_active` and `loser_active` are 1 where a hinge has a gradient.
    """
    winner_hinge = gamma_1 + beta * (winner - winner_reference)
    loser_hinge = gamma_2 + alpha * (loser_reference - loser)
    statistics = _moves(winner, winner_reference, loser, loser_reference) | {
        "winner_active": (winner_hinge > 0).float().detach(),
        "loser_active": (loser_hinge > 0).float().detach(),
    }
    return winner_hinge.clamp(min=0) + loser_hinge.clamp(min=0), statistics


# ------------------------------------------------------------------------------------------------------------------------
# (3)  Diffusion-DPO (Wallace et al., arXiv 2311.12908, equation 14, with the timestep weight as a part of beta)
#
#      L = -log sigmoid( -beta/2 [ ( l(x_w) - l_ref(x_w) ) - ( l(x_l) - l_ref(x_l) ) ] )


def diffusion_dpo(
    winner: torch.Tensor,
    winner_reference: torch.Tensor,
    loser: torch.Tensor,
    loser_reference: torch.Tensor,
    *,
    beta: float = 5000.0,
) -> tuple[torch.Tensor, Statistics]:
    """Diffusion-DPO; log 2 where the trained model equals the reference.

    Args:
        winner, winner_reference, loser, loser_reference: The errors, (N,) each.
        beta: Scale of the implicit reward.
    """
    margin = (winner - winner_reference) - (loser - loser_reference)
    return -logsigmoid(-0.5 * beta * margin), _moves(winner, winner_reference, loser, loser_reference)


# ------------------------------------------------------------------------------------------------------------------------
# (4)  PopAlign (Li, Singh, Grover, arXiv 2406.19668): one population of images is preferred to another
#
#      L = 1/2 [ -log sigmoid( beta ( g(x_w) - m ) ) - log sigmoid( -beta ( g(x_l) - m ) ) ],    g(x) = l_ref(x) - l(x)
#      m = stopgrad( 1/2 mean g(x_w) + 1/2 mean g(x_l) ) over both populations


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
    """PopAlign; log 2 where the trained model equals the reference.

    The populations are paired, not their members: the winner and the loser of a row need not be related.

    Args:
        winner, winner_reference, loser, loser_reference: The errors, (N,) each.
        beta: Scale of the implicit reward.
        centre: "mean" for m as in the paper, or "clipped" for max(0, m) as in KTO.
        average: Averages a scalar over all processes, so that m is that of the whole batch.

    Raises:
        ValueError: `centre` is neither.
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


# ------------------------------------------------------------------------------------------------------------------------
# (5)  Distillation, our own, after the model-based variant of Concept Ablation (Kumari et al., arXiv 2303.13516)
#
#      L = 1/2 sum over x in {x_w, x_l} of  beta l(x) / ( 1 + beta l_ref(x) )
#      where the target in (1) is the frozen backbone's own prediction for the prompt that x_w was generated from


def distillation(
    winner: torch.Tensor,
    winner_reference: torch.Tensor,
    loser: torch.Tensor,
    loser_reference: torch.Tensor,
    *,
    beta: float = 1000.0,
) -> tuple[torch.Tensor, Statistics]:
    """Regression on the frozen backbone's prediction for the aligned image's own prompt.

    l_ref is the gap to close. Where it is well above 1 / beta, the loss is the remaining share of the gap, so that a small mark counts
    as much as a whole scene; where it is below, the loss fades out.

    Args:
        winner, winner_reference, loser, loser_reference: The errors against that prediction, (N,) each.
        beta: Scale of the gap.
    """
    left = [beta * error / (1 + beta * gap) for error, gap in ((winner, winner_reference), (loser, loser_reference))]
    statistics = {
        "winner_gain": (winner_reference - winner).detach(),
        "loser_gain": (loser_reference - loser).detach(),
        "accuracy": ((winner < winner_reference) & (loser < loser_reference)).float(),
    }
    return 0.5 * (left[0] + left[1]), statistics


# ------------------------------------------------------------------------------------------------------------------------
# (6)  L = sum over i of  w_i L_i


def mixed(*parts: tuple[float, Objective]) -> Objective:
    """The weighted sum of objectives. Statistics that several of them report have the same value in each.

    Args:
        parts: Weights and objectives.
    """

    def objective(*errors: torch.Tensor) -> tuple[torch.Tensor, Statistics]:
        losses = torch.zeros_like(errors[0])
        statistics: Statistics = {}
        for weight, part in parts:
            values, more = part(*errors)
            losses, statistics = losses + weight * values, statistics | more
        return losses, statistics

    return objective


def _moves(winner, winner_reference, loser, loser_reference) -> Statistics:
    gain, push = (winner_reference - winner).detach(), (loser - loser_reference).detach()
    return {"winner_gain": gain, "loser_push": push, "accuracy": (gain + push > 0).float()}
