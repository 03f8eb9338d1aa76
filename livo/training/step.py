"""The loss of a training step: the adapter's errors and the frozen backbone's on a batch, through an objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from livo.training import objectives
from livo.training.adapters import Condition
from livo.training.config import TrainingConfig
from livo.training.loop import Record
from livo.training.noise import Noising
from livo.training.objectives import squared_error
from livo.training.sampler import Batches
from livo.value_encoder.token import value_text

if TYPE_CHECKING:
    from accelerate import Accelerator

_LOOK = 50  # steps for which one look at the hinges holds
_BUSY = 0.65  # share of pushing hinges from which a look costs more than it saves: 0.77 on a CPU, 0.5 where backward is cheap
_LOST = 4.0  # times the reference's error on aligned images: a model that is so far off no longer denoises


def objective_function(config: TrainingConfig, average=None) -> objectives.Objective:
    bounded = partial(objectives.livo, beta=config.beta, alpha=config.alpha, gamma_1=config.gamma_1, gamma_2=config.gamma_2)
    population = partial(objectives.popalign, centre=config.centre, average=average)
    if config.objective == "livo":
        return bounded
    if config.objective == "diffusion_dpo":
        return partial(objectives.diffusion_dpo, beta=config.beta)
    if config.objective == "distillation":
        return partial(objectives.distillation, beta=config.beta)
    if config.objective == "popalign":
        return partial(population, beta=config.beta)
    return objectives.mixed((1.0, bounded), (config.popalign_weight, partial(population, beta=config.popalign_beta)))


@dataclass
class _Rows:
    """Images of a batch, noised, with all that the UNet is told of them; `unconditional` is its prediction where guidance is."""

    noisy: torch.Tensor
    target: torch.Tensor
    t: torch.Tensor
    told: torch.Tensor
    condition: Condition
    texts: list[str]
    unconditional: torch.Tensor | None

    def at(self, rows: torch.Tensor) -> _Rows:
        texts = [self.texts[i] for i in rows.tolist()]
        unconditional = None if self.unconditional is None else self.unconditional[rows]
        tensors = (x[rows] for x in (self.noisy, self.target, self.t, self.told))
        return _Rows(*tensors, self.condition[rows], texts, unconditional)


class Loss:
    """`optimise`'s loss: errors of the adapter and of the frozen backbone on a batch, through the objective.

    A hinge beyond its bound has no gradient. With LiVO's objective, as long as many are idle, the batch is first looked at without
    one, and only the images whose hinge still pushes go through the UNet again with one. The mathematics is the same. How many push is
    found out every `_LOOK` steps, counted from a checkpoint, so that a resumed run takes the same way.
    """

    def __init__(self, config, pipe, adapter, batches: Batches, condition: dict[str, Condition], accelerator: Accelerator):
        self.config, self.adapter, self.batches, self.condition = config, adapter, batches, condition
        self.device = accelerator.device
        self.noising = Noising(pipe.scheduler)
        average = partial(accelerator.reduce, reduction="mean") if accelerator.num_processes > 1 else None
        self.objective = objective_function(config, average)
        if "popalign" in config.objective and config.batch * accelerator.num_processes == 1:
            raise ValueError(f"batch is 1: {config.objective} prefers populations, so give at least 2 pairs a micro-batch")
        self.idle = False

    def __call__(self, step: int, micro: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = self.batches.at(step, micro, self.noising.steps)
        count = len(batch.prompts)
        t = batch.t.to(self.device)
        noisy, target = self.noising(batch.latents.to(self.device), batch.noise.to(self.device), t)
        condition = self._condition(batch.prompts).repeat(2)
        texts = [value_text(value, prompt) for value, prompt in zip(batch.values, batch.read, strict=True)] * 2
        told = self.noising.timestep(t)
        if self.config.objective == "distillation":
            target = self.adapter.reference(noisy, told, self._condition(batch.made_from).repeat(2))
        rows = _Rows(noisy, target, t, told, condition, texts, self._unconditional(noisy, told))
        frozen = self.adapter.reference(noisy, told, condition)
        reference = self._error(frozen, rows)
        look = step % self.config.save_every % _LOOK == 0
        if self.config.objective == "livo" and (self.idle or look):
            with torch.no_grad():
                predicted = self._predict(rows)
                error = self._error(predicted, rows)
                _, statistics = self.objective(error[:count], reference[:count], error[count:], reference[count:])
            pushing = torch.cat([statistics["winner_active"], statistics["loser_active"]]).nonzero().flatten()
            self.idle = len(pushing) < _BUSY * 2 * count
            if len(pushing):
                some = rows.at(pushing)
                error = error.index_copy(0, pushing, self._error(self._predict(some), some))
            else:  # nothing to learn from; but zeros are no missing gradients, for which momentum and decay would stand still
                error = error + 0.0 * sum(p.sum() for _, p in self.adapter.trainable())
        else:
            predicted = self._predict(rows)
            error = self._error(predicted, rows)
        losses, statistics = self.objective(error[:count], reference[:count], error[count:], reference[count:])
        errors = {
            "error": error[:count].detach().mean(),
            "reference_error": reference[:count].mean(),
            "drift": squared_error(predicted.detach(), frozen).mean(),
        }
        return losses.mean(), errors | {name: values.mean() for name, values in statistics.items()}

    def _predict(self, rows: _Rows) -> torch.Tensor:
        return self.adapter.predict(rows.noisy, rows.told, rows.condition, rows.texts)

    def _error(self, predicted: torch.Tensor, rows: _Rows) -> torch.Tensor:
        if rows.unconditional is not None:
            predicted = rows.unconditional + self.config.guidance * (predicted.float() - rows.unconditional)
        weight = self.noising.min_snr(rows.t, self.config.min_snr) if self.config.min_snr else 1.0
        return weight * squared_error(predicted, rows.target)

    def _unconditional(self, noisy: torch.Tensor, told: torch.Tensor) -> torch.Tensor | None:
        if self.config.guidance == 1:
            return None
        empty = self._condition([""]).repeat(len(noisy))
        return self.adapter.reference(noisy, told, empty).float()

    def _condition(self, prompts: Sequence[str]) -> Condition:
        rows = [self.condition[prompt] for prompt in prompts]
        pooled = None if rows[0].pooled is None else torch.cat([row.pooled for row in rows])
        return Condition(torch.cat([row.embeds for row in rows]), pooled).to(self.device)


def lost(record: Record) -> str | None:
    """`optimise`'s guard: why training must stop, or None."""
    if record["error"] > _LOST * record["reference_error"]:
        return f"the error on aligned images is {record['error'] / record['reference_error']:.1f} times the frozen backbone's"
    return None
