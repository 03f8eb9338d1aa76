"""Noise, targets and timestep weights of epsilon, velocity and flow-matching backbones."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin


class NoiseSchedule:
    """The training side of a scheduler: how latents are noised, and what the backbone predicts from them.

    Diffusion backbones use `add_noise` and `get_velocity` of diffusers. Flow matching is computed here, because its scheduler's
    `scale_noise` looks timesteps up by exact equality of floating-point numbers, which timesteps drawn by index do not satisfy. The
    min-SNR weights are computed here as well: `diffusers.training_utils.compute_snr` knows neither flow matching nor a signal of zero.

    Args:
        scheduler: The pipeline's scheduler. It is not changed.

    Raises:
        ValueError: The scheduler's `prediction_type` is none that preference training supports.
    """

    def __init__(self, scheduler: SchedulerMixin):
        self.num_timesteps: int = scheduler.config.num_train_timesteps
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            self.prediction, self.scheduler = "flow", None
            sigmas = torch.linspace(1 / self.num_timesteps, 1, self.num_timesteps)
            shift = scheduler.config.shift
            self.sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
            self.alphas = 1 - self.sigmas
            return
        self.prediction = scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"the scheduler predicts {self.prediction!r}: training supports epsilon, v_prediction and flow matching"
            )
        self.scheduler = DDPMScheduler.from_config(scheduler.config)
        products = self.scheduler.alphas_cumprod
        self.alphas, self.sigmas = products.sqrt(), (1 - products).sqrt()

    def add_noise(self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Noisy latents alpha_t x + sigma_t noise, (N, C, h, w).

        Args:
            x: Latents, (N, C, h, w).
            noise: Standard normal noise of the same shape.
            t: Indices of timesteps, (N,), in 0..num_timesteps - 1.
        """
        if self.scheduler is not None:
            return self.scheduler.add_noise(x, noise, t)
        alpha, sigma = (values.to(x)[t.to(x.device)].view(-1, 1, 1, 1) for values in (self.alphas, self.sigmas))
        return alpha * x + sigma * noise

    def target(self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the backbone should predict: the noise, the velocity, or the flow noise - x; (N, C, h, w).

        Args:
            x, noise, t: As in `add_noise`.
        """
        if self.prediction == "epsilon":
            return noise
        return noise - x if self.scheduler is None else self.scheduler.get_velocity(x, noise, t)

    def model_timestep(self, t: torch.Tensor) -> torch.Tensor:
        """The timesteps in the backbone's own unit: for a flow model sigma_t times num_timesteps, else t itself.

        Args:
            t: Indices of timesteps, (N,).
        """
        return self.sigmas.to(t.device)[t] * self.num_timesteps if self.scheduler is None else t

    def min_snr_weight(self, t: torch.Tensor, gamma: float) -> torch.Tensor:
        """Weights (N,) of the squared errors: min(SNR, gamma) on the error of the clean image (Hang et al., arXiv 2303.09556).

        Args:
            t: Indices of timesteps, (N,).
            gamma: The largest weight of the clean image's error; above 0.
        """
        alpha, sigma = self.alphas.to(t.device)[t], self.sigmas.to(t.device)[t].clamp(min=1e-4)
        snr = (alpha / sigma) ** 2
        to_clean = {"epsilon": 1 / snr.clamp(min=1e-8), "v_prediction": sigma**2, "flow": sigma**2}[self.prediction]
        return snr.clamp(max=gamma) * to_clean
