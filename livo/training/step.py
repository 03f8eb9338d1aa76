"""The training step: from a batch to its loss, through the adapter, the frozen backbone and the objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from livo.data.embedding_cache import PromptEmbeddings
from livo.training import objectives
from livo.training.adapters import Adapter
from livo.training.config import TrainingConfig
from livo.training.loop import Record
from livo.training.noise import NoiseSchedule
from livo.training.objectives import Statistics, squared_error
from livo.training.sampler import PreferenceBatch
from livo.value_encoder.token import value_text

if TYPE_CHECKING:
    from accelerate import Accelerator

_PROBE_EVERY = 50  # steps for which the number of idle hinges is taken to be the same
_BUSY = 0.65  # share of active hinges above which a pass without gradient costs more than it saves: 0.77 on a CPU, 0.5 on a GPU
_LOST = 4.0  # times the reference's error on aligned images: a model that is so far off no longer denoises


def make_objective(config: TrainingConfig, average: Callable[[torch.Tensor], torch.Tensor] | None = None) -> objectives.Objective:
    """The objective that a run's options name.

    Args:
        config: The run's options.
        average: Averages a scalar over all processes; None if there is one process.
    """
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
class _Inputs:
    """What the UNet gets for each of 2B images, what it should predict, and its unconditional prediction if errors are guided."""

    noisy: torch.Tensor
    target: torch.Tensor
    t: torch.Tensor
    model_t: torch.Tensor
    embeddings: PromptEmbeddings
    texts: list[str]
    unconditional: torch.Tensor | None

    def __getitem__(self, rows: torch.Tensor) -> _Inputs:
        texts = [self.texts[i] for i in rows.tolist()]
        unconditional = None if self.unconditional is None else self.unconditional[rows]
        tensors = (x[rows] for x in (self.noisy, self.target, self.t, self.model_t))
        return _Inputs(*tensors, self.embeddings[rows], texts, unconditional)


class TrainingStep:
    """`step(batch)` is the loss of a batch and its statistics.

    A hinge of LiVO's objective that is beyond its bound has no gradient. As long as many hinges are idle, the adapter first predicts the
    whole batch without a gradient, and then only the images with an active hinge with one; the mathematics is the same. How many are
    active is measured every 50 steps, counted from a checkpoint, so that a resumed run does the same.

    Args:
        config: The run's options.
        adapter: The model that is trained, and the frozen one.
        noise: The noise schedule of the backbone.
        empty: The embeddings of the empty prompt, one row, for guided errors.
        accelerator: Its device computes; its processes share PopAlign's mean.

    Raises:
        ValueError: The objective compares populations, but a step has a single pair.
    """

    def __init__(
        self,
        config: TrainingConfig,
        adapter: Adapter,
        noise: NoiseSchedule,
        empty: PromptEmbeddings,
        accelerator: Accelerator,
    ):
        self.config, self.adapter, self.noise = config, adapter, noise
        self.device = accelerator.device
        self.empty = empty.to(self.device)
        average = partial(accelerator.reduce, reduction="mean") if accelerator.num_processes > 1 else None
        self.objective = make_objective(config, average)
        if "popalign" in config.objective and config.batch * accelerator.num_processes == 1:
            raise ValueError(f"batch is 1: {config.objective} compares populations, so give at least 2 pairs per micro-batch")
        self.idle = False

    def __call__(self, batch: PreferenceBatch) -> tuple[torch.Tensor, Statistics]:
        """The mean loss, a scalar, and the means of the statistics.

        Args:
            batch: B pairs.
        """
        inputs = self._inputs(batch)
        frozen = self.adapter.reference(inputs.noisy, inputs.model_t, inputs.embeddings)
        reference = self._error(frozen, inputs)
        probe = batch.step % self.config.save_every % _PROBE_EVERY == 0
        if self.config.objective == "livo" and (self.idle or probe):
            predicted, error = self._active_error(inputs, reference)
        else:
            predicted = self._predict(inputs)
            error = self._error(predicted, inputs)
        losses, statistics = self._losses(error, reference)
        winners = len(batch.values)
        errors = {
            "error": error[:winners].detach().mean(),
            "reference_error": reference[:winners].mean(),
            "drift": squared_error(predicted.detach(), frozen).mean(),
        }
        return losses.mean(), errors | {name: values.mean() for name, values in statistics.items()}

    def _inputs(self, batch: PreferenceBatch) -> _Inputs:
        latents, noise, t = (x.to(self.device) for x in (batch.latents, batch.noise, batch.t))
        noisy, target = self.noise.add_noise(latents, noise, t), self.noise.target(latents, noise, t)
        model_t = self.noise.model_timestep(t)
        texts = [value_text(value, prompt) for value, prompt in zip(batch.values, batch.encoder_prompts, strict=True)]
        if batch.source_embeddings is not None:  # distillation: the target is the backbone's own prediction for the source prompt
            target = self.adapter.reference(noisy, model_t, batch.source_embeddings.to(self.device).repeat(2))
        unconditional = None
        if self.config.guidance != 1:
            unconditional = self.adapter.reference(noisy, model_t, self.empty.repeat(len(noisy))).float()
        return _Inputs(noisy, target, t, model_t, batch.embeddings.to(self.device).repeat(2), texts * 2, unconditional)

    def _active_error(self, inputs: _Inputs, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prediction and errors, with a gradient only for the images whose hinge is active."""
        with torch.no_grad():
            predicted = self._predict(inputs)
            error = self._error(predicted, inputs)
            _, statistics = self._losses(error, reference)
        active = torch.cat([statistics["winner_active"], statistics["loser_active"]]).nonzero().flatten()
        self.idle = len(active) < _BUSY * len(error)
        if len(active):
            some = inputs[active]
            return predicted, error.index_copy(0, active, self._error(self._predict(some), some))
        # Zero gradients, not missing ones, for which momentum and weight decay would stand still
        return predicted, error + 0.0 * sum(p.sum() for _, p in self.adapter.trainable())

    def _losses(self, error: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, Statistics]:
        (winner, loser), (winner_reference, loser_reference) = error.chunk(2), reference.chunk(2)
        return self.objective(winner, winner_reference, loser, loser_reference)

    def _predict(self, inputs: _Inputs) -> torch.Tensor:
        return self.adapter.predict(inputs.noisy, inputs.model_t, inputs.embeddings, inputs.texts)

    def _error(self, predicted: torch.Tensor, inputs: _Inputs) -> torch.Tensor:
        if inputs.unconditional is not None:
            predicted = inputs.unconditional + self.config.guidance * (predicted.float() - inputs.unconditional)
        weight = self.noise.min_snr_weight(inputs.t, self.config.min_snr) if self.config.min_snr else 1.0
        return weight * squared_error(predicted, inputs.target)


def no_longer_denoises(record: Record) -> str | None:
    """A guard of `training_loop`: what is wrong with the model, or None.

    Args:
        record: A record with `error` and `reference_error`.
    """
    if record["error"] > _LOST * record["reference_error"]:
        return f"the error on aligned images is {record['error'] / record['reference_error']:.1f} times the frozen backbone's"
    return None
