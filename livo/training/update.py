"""How gradients change the weights: AdamW with a cosine schedule, clipping, loss scaling and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from livo.training.config import OPTIMIZERS, LoopConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


class Update:
    """The optimiser of the trainable parameters of some modules, with everything that a checkpoint of it holds.

    Args:
        modules: Modules by name. Their parameters with `requires_grad` are trained.
        config: Learning rate, schedule, clipping, EMA.
        accelerator: Its processes average their gradients; its scaler, if it has one, scales the loss.

    Raises:
        ValueError: The optimiser is unknown, or its package is missing.
    """

    def __init__(self, modules: Mapping[str, nn.Module], config: LoopConfig, accelerator: Accelerator | None = None):
        self.config, self.accelerator = config, accelerator
        self.names, self.parameters = zip(
            *((f"{m}.{n}", p) for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad),
            strict=True,
        )
        self.optimizer = _optimizer(config, self.parameters)
        self.scaler = getattr(accelerator, "scaler", None)
        self.average = [p.detach().clone() for p in self.parameters] if config.ema else []

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a micro-batch.

        Args:
            loss: The micro-batch's share of the step's loss, a scalar.
        """
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()

    def step(self, step: int) -> torch.Tensor:
        """Change the weights with the gradients that were added, clear the gradients, and return their norm before clipping.

        Args:
            step: The step, counted from 0.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        self._average_gradients()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            decay = min(self.config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        return norm

    def is_finite(self) -> bool:
        """Whether all trained weights are finite."""
        return all(torch.isfinite(p).all() for p in self.parameters)

    @torch.no_grad()
    def use_average(self) -> None:
        """Replace the weights by their average, if one is kept."""
        for parameter, mean in zip(self.parameters, self.average, strict=bool(self.average)):
            parameter.copy_(mean)

    def _average_gradients(self) -> None:
        """One message for all gradients, so that the modules need no wrapper."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = self.accelerator.reduce(nn.utils.parameters_to_vector(gradients), "mean")
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, multiplied by a cosine from 1 to 0 over all steps.

    Args:
        config: Peak rate, warm-up and number of steps.
        step: The step, counted from 0.
    """
    return config.lr * min(1.0, (step + 1) / max(1, config.warmup)) * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _optimizer(config: LoopConfig, parameters) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": config.lr, "betas": (0.9, 0.99), "weight_decay": config.weight_decay}
    if config.optimizer == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise ValueError(
                "optimizer adamw_8bit needs the package bitsandbytes: pip install bitsandbytes, or choose adamw"
            ) from None
        return AdamW8bit(parameters, **settings)
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {config.optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")
    return torch.optim.AdamW(parameters, fused=config.optimizer == "adamw_fused", **settings)
