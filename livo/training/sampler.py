"""What a training step sees: pairs, noise and timesteps by seed and step alone, and the caches of latents and text embeddings."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from livo.data.latent_cache import LatentCache
from livo.data.preference_dataset import PreferenceError, Sample, pairs
from livo.training.adapters import Condition, encode_texts
from livo.training.config import TrainingConfig
from livo.utils.files import replacing, sweep
from livo.utils.hashing import weights_hash


@dataclass
class Batch:
    """2B rows: B winners, then the B losers of the same pairs, which share noise and timestep.

    The backbone is told `prompts`; a value encoder reads `read`; `made_from` are the aligned images' own prompts.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    prompts: list[str]
    values: list[str]
    read: list[str]
    made_from: list[str]


class Batches:
    """Which pairs a step sees, and with which noise: a function of the seed and the step alone, however many processes share it.

    The pairs come in a new order each epoch. Position p in that endless list has its own generator, so a step of two processes sees
    what a step of one process with twice the batch sees.
    """

    def __init__(self, config: TrainingConfig, samples: Sequence[Sample], latents: torch.Tensor, rank: int = 0, world: int = 1):
        self.config, self.samples, self.latents, self.rank, self.world = config, samples, latents, rank, world
        self.pairs = pairs(samples)
        content = [
            [s.prompt, s.value, s.label, s.scene] + [s.kind] * config.reads_classes + [s.made_from] * config.reads_sources
            for s in samples
        ]
        digest = hashlib.sha256(json.dumps(content).encode() + latents.numpy().tobytes())
        self.digest = digest.hexdigest()[:16]
        self._alike: dict[tuple[str, str], list[str]] = defaultdict(list)  # prompts of winners by statement and class
        for winner, _ in self.pairs:
            self._alike[samples[winner].value, samples[winner].kind].append(samples[winner].prompt)
        self._order: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def at(self, step: int, micro: int, timesteps: int) -> Batch:
        """The batch of this process; `timesteps` are drawn from 0..timesteps - 1."""
        winners, losers, noise, t, prompts, values, read, made_from = ([] for _ in range(8))
        shares = torch.tensor([self.config.contrary_prompt, self.config.prompt_swap])
        for winner, loser, side, dropped, generator in self.draws(step, micro):
            sample = self.samples[winner]
            winners.append(self.latents[winner, side])
            losers.append(self.latents[loser, side])
            t.append(torch.randint(timesteps, (), generator=generator))
            noise.append(torch.randn(self.latents.shape[2:], generator=generator))
            values.append(sample.value)
            contrary, swapped = torch.rand(2, generator=generator) < shares
            told, heard = sample.prompt, sample.prompt
            if sample.kind and contrary:
                told = self.samples[loser].made_from
            if sample.kind and swapped:
                alike = self._alike[sample.value, sample.kind]
                heard = alike[int(torch.randint(len(alike), (), generator=generator))]
            prompts.append("" if dropped else told)
            read.append("" if dropped else heard)
            made_from.append(sample.made_from)
        images, noise, t = torch.stack(winners + losers), torch.stack(noise).repeat(2, 1, 1, 1), torch.stack(t).repeat(2)
        return Batch(images, noise, t, prompts, values, read, made_from)

    def draws(self, step: int, micro: int) -> Iterator[tuple[int, int, int, bool, torch.Generator]]:
        """Aligned and violating sample, whether mirrored, whether without its prompt, and the generator for the rest."""
        config = self.config
        block = (step * config.accumulation + micro) * self.world + self.rank
        for position in range(block * config.batch, (block + 1) * config.batch):
            generator = torch.Generator().manual_seed(_mixed(config.seed, position))
            winner, others = self.pairs[self._index(position)]
            u = torch.rand(3, generator=generator).tolist()
            loser = others[int(u[0] * len(others))]
            yield winner, loser, int(config.flip and u[1] < 0.5), u[2] < config.caption_dropout, generator

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.pairs))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mixed(self.config.seed, epoch))
            self._order = (epoch, torch.randperm(len(self.pairs), generator=generator))
        return int(self._order[1][place])


def check_sources(config: TrainingConfig, samples: Sequence[Sample]) -> None:
    """Whether the pairs have the classes, and the prompts that their images were made from, that the run reads.

    Raises:
        PreferenceError: they do not.
    """
    paired = pairs(samples)
    readers: dict[str, list[Sample]] = {}
    if config.objective == "distillation":
        readers["distillation"] = [samples[winner] for winner, _ in paired]
    directed = [losers for winner, losers in paired if samples[winner].kind]
    for name in ("contrary_prompt", "prompt_swap"):
        if getattr(config, name) and not directed:
            raise PreferenceError(
                f"{name} is {getattr(config, name)}, but no aligned image of {config.data} has a class: make it 0"
            )
    if config.contrary_prompt:
        readers["contrary_prompt"] = [samples[loser] for losers in directed for loser in losers]
    for reader, wanted in readers.items():
        for sample in wanted:
            if not sample.made_from:
                raise PreferenceError(
                    f"{sample.where}: no image_prompt, the prompt that the image was made from, which {reader} reads: "
                    "build the data with `livo build`, or leave it out"
                )


def _mixed(seed: int, number: int) -> int:
    """A seed for the `number`-th thing that is drawn: streams of different seeds start far apart."""
    return (seed * 0x9E3779B97F4A7C15 + number) % 2**63


def cached(config, pipe, resolution, samples, accelerator) -> tuple[torch.Tensor, dict[str, Condition]]:
    """Latents of all samples, and the condition of every prompt: computed once, shared between runs and processes."""
    folder = Path(config.cache or Path(config.data) / ".cache")
    dtype = pipe.vae.dtype
    cache = LatentCache(folder, pipe.vae.float(), resolution)  # in half precision SDXL's VAE overflows
    if accelerator.is_main_process and folder.is_dir():
        sweep(folder)
    accelerator.wait_for_everyone()
    cache.fill(samples, rank=accelerator.process_index, world=accelerator.num_processes)
    sources = {sample.made_from for sample in samples if config.reads_sources}
    texts = ["", *sorted({sample.prompt for sample in samples} | sources - {""})]
    encoders = [module for name in ("text_encoder", "text_encoder_2") if (module := getattr(pipe, name, None)) is not None]
    key = hashlib.sha256(json.dumps([texts, *([weights_hash(m), str(m.dtype)] for m in encoders)]).encode()).hexdigest()[:32]
    file = folder / f"texts-{key}.safetensors"
    if accelerator.is_main_process and not file.is_file():
        parts = [encode_texts(pipe, texts[i : i + 64], accelerator.device) for i in range(0, len(texts), 64)]
        tensors = {"embeds": torch.cat([part.embeds.cpu() for part in parts])}
        if parts[0].pooled is not None:
            tensors["pooled"] = torch.cat([part.pooled.cpu() for part in parts])
        with replacing(file) as temporary:
            save_file(tensors, temporary)
    accelerator.wait_for_everyone()
    stored = Condition(*(load_file(file).get(name) for name in ("embeds", "pooled")))
    condition = {text: stored[i : i + 1] for i, text in enumerate(texts)}
    latents = cache.load(samples)
    for name in ("vae", "text_encoder", "text_encoder_2"):  # not needed again but to look at pictures
        if config.validate_every and hasattr(pipe, name):
            getattr(pipe, name).to("cpu", dtype)
        elif hasattr(pipe, name):
            setattr(pipe, name, None)
    return latents, condition
