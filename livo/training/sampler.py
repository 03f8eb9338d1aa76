"""Which batch a training step sees: a function of the seed and the step alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from livo.data.embedding_cache import PromptEmbeddings
from livo.data.manifest import PreferenceError, Sample, form_pairs
from livo.data.preference_dataset import PreferenceDataset
from livo.training.config import TrainingConfig


@dataclass
class PreferenceBatch:
    """B pairs. Tensors hold 2B rows: the B aligned images, then the B violating ones, which share noise and timestep with them.

    Args:
        step: The training step that the batch belongs to, counted from 0.
        latents: Latents of the images, (2B, C, h, w).
        noise: The noise to add, (2B, C, h, w).
        t: Indices of timesteps, (2B,).
        values: The B statements.
        backbone_prompts: The B prompts that the backbone is conditioned on.
        encoder_prompts: The B prompts that the value encoder reads.
        source_prompts: The B prompts that the aligned images were generated from; "" if the data do not name them.
        embeddings: The text encoders' embeddings of `backbone_prompts`, B rows.
        source_embeddings: Those of `source_prompts`; None if the objective does not use them.
    """

    step: int
    latents: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    values: list[str]
    backbone_prompts: list[str]
    encoder_prompts: list[str]
    source_prompts: list[str]
    embeddings: PromptEmbeddings
    source_embeddings: PromptEmbeddings | None


class Draw(NamedTuple):
    """One pair of a batch, as it was drawn.

    Args:
        winner: The index of the aligned sample.
        loser: The index of the violating sample.
        mirrored: 1 if both images are mirrored, else 0.
        dropped: Whether the pair is trained without its prompt.
        generator: The source of the remaining random numbers of this pair.
    """

    winner: int
    loser: int
    mirrored: int
    dropped: bool
    generator: torch.Generator


class PreferenceSampler:
    """`sampler(step, micro)` is the batch of a micro-batch of a step, the same whenever and wherever it is called.

    The pairs come in a new order in each epoch. Position p of this endless list has its own random generator. So a resumed run sees
    what an uninterrupted one sees, and a step of two processes sees what a step of one process with twice the batch size sees.

    Args:
        dataset: The encoded data.
        config: The run's options: seed, batch size and how pairs are varied.
        num_timesteps: Timesteps are drawn from 0..num_timesteps - 1.
        rank: The number of this process.
        world: How many processes share each step.
    """

    def __init__(self, dataset: PreferenceDataset, config: TrainingConfig, num_timesteps: int, rank: int = 0, world: int = 1):
        self.dataset, self.config, self.num_timesteps, self.rank, self.world = dataset, config, num_timesteps, rank, world
        self._alike: dict[tuple[str, str], list[str]] = defaultdict(list)  # prompts of winners, by statement and class
        for winner, _ in dataset.pairs:
            sample = dataset.samples[winner]
            self._alike[sample.value, sample.class_name].append(sample.prompt)
        self._order: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def __call__(self, step: int, micro: int = 0) -> PreferenceBatch:
        """The batch of this process.

        Args:
            step: The step, counted from 0.
            micro: The micro-batch of the step, counted from 0.
        """
        latents, samples = self.dataset.latents, self.dataset.samples
        winners, losers, noise, t, backbone_prompts, encoder_prompts = ([] for _ in range(6))
        drawn = list(self.draws(step, micro))
        for draw in drawn:
            winners.append(latents[draw.winner, draw.mirrored])
            losers.append(latents[draw.loser, draw.mirrored])
            t.append(torch.randint(self.num_timesteps, (), generator=draw.generator))
            noise.append(torch.randn(latents.shape[2:], generator=draw.generator))
            backbone_prompt, encoder_prompt = self._prompts(draw)
            backbone_prompts.append(backbone_prompt)
            encoder_prompts.append(encoder_prompt)
        source_prompts = [samples[draw.winner].source_prompt for draw in drawn]
        return PreferenceBatch(
            step,
            torch.stack(winners + losers),
            torch.stack(noise).repeat(2, 1, 1, 1),
            torch.stack(t).repeat(2),
            [samples[draw.winner].value for draw in drawn],
            backbone_prompts,
            encoder_prompts,
            source_prompts,
            self.dataset.embed(backbone_prompts),
            self.dataset.embed(source_prompts) if self.config.objective == "distillation" else None,
        )

    def draws(self, step: int, micro: int = 0) -> Iterator[Draw]:
        """The pairs of the batch.

        Args:
            step, micro: As in `__call__`.
        """
        config = self.config
        block = (step * config.accumulation + micro) * self.world + self.rank
        for position in range(block * config.batch, (block + 1) * config.batch):
            generator = torch.Generator().manual_seed(_seed(config.seed, position))
            winner, losers = self.dataset.pairs[self._pair_at(position)]
            u = torch.rand(3, generator=generator).tolist()
            loser = losers[int(u[0] * len(losers))]
            yield Draw(winner, loser, int(config.flip and u[1] < 0.5), u[2] < config.caption_dropout, generator)

    def _prompts(self, draw: Draw) -> tuple[str, str]:
        """What the backbone is conditioned on, and what the value encoder reads."""
        sample = self.dataset.samples[draw.winner]
        shares = torch.tensor([self.config.contrary_prompt, self.config.prompt_swap])
        contrary, swapped = torch.rand(2, generator=draw.generator) < shares
        backbone_prompt = encoder_prompt = sample.prompt
        if sample.class_name and contrary:
            backbone_prompt = self.dataset.samples[draw.loser].source_prompt
        if sample.class_name and swapped:
            alike = self._alike[sample.value, sample.class_name]
            encoder_prompt = alike[int(torch.randint(len(alike), (), generator=draw.generator))]
        return ("", "") if draw.dropped else (backbone_prompt, encoder_prompt)

    def _pair_at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.dataset.pairs))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_seed(self.config.seed, epoch))
            self._order = (epoch, torch.randperm(len(self.dataset.pairs), generator=generator))
        return int(self._order[1][place])


def check_fields(config: TrainingConfig, samples: Sequence[Sample]) -> None:
    """Check that the data have the classes and source prompts that the run reads.

    Args:
        config: The run's options.
        samples: The samples of the data folder.

    Raises:
        PreferenceError: They do not.
    """
    paired = form_pairs(samples)
    readers: dict[str, list[Sample]] = {}
    if config.objective == "distillation":
        readers["distillation"] = [samples[winner] for winner, _ in paired]
    with_class = [losers for winner, losers in paired if samples[winner].class_name]
    for name in ("contrary_prompt", "prompt_swap"):
        if getattr(config, name) and not with_class:
            raise PreferenceError(
                f"{name} is {getattr(config, name)}, but no aligned image of {config.data} has a class: set it to 0"
            )
    if config.contrary_prompt:
        readers["contrary_prompt"] = [samples[loser] for losers in with_class for loser in losers]
    for reader, needed in readers.items():
        for sample in needed:
            if not sample.source_prompt:
                raise PreferenceError(
                    f"{sample.where}: image_prompt, the prompt that the image was generated from, is missing, but {reader} reads it: "
                    "build the data with `livo build`, or leave the option out"
                )


def _seed(seed: int, number: int) -> int:
    """A seed for the `number`-th thing that is drawn. The streams of different seeds start far apart."""
    return (seed * 0x9E3779B97F4A7C15 + number) % 2**63
