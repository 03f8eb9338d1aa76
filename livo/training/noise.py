"""Noise, targets and timestep weights of epsilon, velocity and flow-matching backbones, in one place."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin


class Noising:
    """The training side of a scheduler: how latents are noised, and what the backbone predicts from them.

    Raises:
        ValueError: the scheduler's `prediction_type` is none that preference training can use.
    """

    def __init__(self, scheduler: SchedulerMixin):
        self.flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
        self.steps: int = scheduler.config.num_train_timesteps
        if self.flow:
            self.kind = "flow"
            self.sigmas = torch.linspace(1 / self.steps, 1, self.steps)
            shift = scheduler.config.shift
            self.sigmas = shift * self.sigmas / (1 + (shift - 1) * self.sigmas)
            self.alphas = 1 - self.sigmas
            return
        self.kind = scheduler.config.prediction_type
        if self.kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"the scheduler predicts {self.kind!r}: training knows epsilon, v_prediction and flow matching")
        products = DDPMScheduler.from_config(scheduler.config).alphas_cumprod
        self.alphas, self.sigmas = products.sqrt(), (1 - products).sqrt()

    def __call__(self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents and the target, both (N, C, H, W), for timesteps t (N,) in 0..steps - 1."""
        alpha, sigma = (_column(values.to(x.device)[t.to(x.device)], x) for values in (self.alphas, self.sigmas))
        noisy = alpha * x + sigma * noise
        if self.kind == "epsilon":
            return noisy, noise
        return noisy, noise - x if self.flow else alpha * noise - sigma * x

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        """What the backbone is told for the timesteps t: a flow backbone is told its sigma, times `steps`."""
        return self.sigmas.to(t.device)[t] * self.steps if self.flow else t

    def min_snr(self, t: torch.Tensor, gamma: float) -> torch.Tensor:
        """Weights (N,) of the squared errors (Hang et al., arXiv 2303.09556): min(SNR, gamma) on the clean image's error."""
        alpha, sigma = self.alphas.to(t.device)[t], self.sigmas.to(t.device)[t].clamp(min=1e-4)
        snr = (alpha / sigma) ** 2
        to_clean = {"epsilon": 1 / snr.clamp(min=1e-8), "v_prediction": sigma**2, "flow": sigma**2}[self.kind]
        return snr.clamp(max=gamma) * to_clean


def _column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
