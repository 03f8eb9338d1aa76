"""Safe Latent Diffusion (Schramowski et al., arXiv 2211.05105): guidance away from a safety concept where the prompt is close to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from livo.baselines.guidance import GuidanceEdit

SETTINGS = {  # the authors' four (table 1): warm-up, s_S, lambda, s_m, beta_m
    "weak": (15, 200.0, 0.0, 0.0, 0.0),
    "medium": (10, 1000.0, 0.01, 0.3, 0.4),
    "strong": (7, 2000.0, 0.025, 0.5, 0.7),
    "max": (0, 5000.0, 1.0, 0.5, 0.7),
}


@dataclass(frozen=True)
class SafeLatentDiffusion(GuidanceEdit):
    """eps = eps_empty + s_g (eps_p - eps_empty - gamma), equations 3 to 8 of the paper:

        mu    = min(1, |s_S (eps_p - eps_S)|) where eps_p - eps_S < lambda, else 0
        gamma = mu (eps_S - eps_empty) + s_m nu;    nu <- beta_m nu + (1 - beta_m) gamma

    During the warm-up, gamma only updates nu. The paper prints max(1, .); the authors' code and this one bound mu by 1.

    Args:
        concept: What images are guided away from; "" changes nothing.
        warmup: Steps without an edit.
        scale: s_S, the strength; 0 changes nothing.
        threshold: lambda.
        momentum_scale: s_m.
        momentum: beta_m, from 0 to below 1.
    """

    concept: str
    warmup: int = 7
    scale: float = 2000.0
    threshold: float = 0.025
    momentum_scale: float = 0.5
    momentum: float = 0.7

    method = "safe latent diffusion"

    @classmethod
    def preset(cls, concept: str, name: str = "strong") -> SafeLatentDiffusion:
        """One of the authors' settings.

        Args:
            concept: What images are guided away from.
            name: weak, medium, strong or max.
        """
        return cls(concept, *SETTINGS[name])

    def texts(self) -> list[str]:
        return [self.concept] if self.concept else []

    def idle(self) -> bool:
        return not self.concept or self.scale == 0

    def concepts(self, row: int) -> list[str]:
        return [self.concept]

    def term(self, step, empty, prompt, concepts, scale, memory, rows) -> torch.Tensor:
        unsafe = concepts[:, 0]
        mu = (self.scale * (prompt - unsafe)).abs().clamp(max=1.0) * (prompt - unsafe < self.threshold)
        nu = memory.get("nu", 0.0)
        gamma = mu * (unsafe - empty) + self.momentum_scale * nu
        memory["nu"] = self.momentum * nu + (1 - self.momentum) * gamma
        return -scale * gamma if step >= self.warmup else torch.zeros_like(gamma)
