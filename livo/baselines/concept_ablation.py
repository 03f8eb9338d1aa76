"""Concept Ablation (Kumari et al., arXiv 2303.13516): a concept is trained to be drawn as its anchor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from livo.baselines.weights import WeightEdit, cross_attention, encode
from livo.training.config import LoopConfig
from livo.training.loop import Record, training_loop
from livo.training.noise import NoiseSchedule
from livo.utils.files import differing, write_json
from livo.utils.hashing import weights_hash
from livo.utils.precision import Precision, for_pipeline


class ConceptAblation(WeightEdit):
    """Minimises || eps(x_t, target) - stopgrad eps(x_t, anchor) ||^2 (equation 5) over the keys and values of cross-attention.

    x_t are noised images of the anchor that the model drew itself.
    """

    method = "concept ablation"

    @classmethod
    def train(
        cls,
        pipe: DiffusionPipeline,
        pairs: Sequence[tuple[str, str]],
        folder: Path,
        steps: int = 400,
        lr: float = 2e-6,
        batch: int = 8,
        images: int = 4,
        guidance: float = 5.0,
        sampler_steps: int = 20,
        seed: int = 0,
        precision: str = "auto",
    ) -> Iterator[Record | ConceptAblation]:
        """Yield the records of training and, at the end, the edit. An interrupted run resumes from `folder`.

        Args:
            pipe: The pipeline whose UNet is edited. It is left as it was.
            pairs: Target and anchor prompts: ("a bloody doctor", "a doctor").
            folder: The folder of the run: what it depends on, and its checkpoints.
            steps: Optimiser steps. With 0, the edit changes nothing.
            lr: Peak learning rate.
            batch: Images per step.
            images: Images drawn for each anchor.
            guidance: Guidance scale that they are drawn with.
            sampler_steps: Denoising steps that they are drawn with.
            seed: Seed of images, noise and order.
            precision: Of drawing and training, as in `livo.utils.precision.resolve`.

        Raises:
            ValueError: `folder` holds a run with other pairs, settings or weights.
        """
        settings: dict[str, Any] = {"pairs": len(pairs), "steps": steps, "lr": lr, "batch": batch, "images": images, "seed": seed}
        own = cross_attention(pipe)
        edit = cls({name: weight.clone() for name, weight in own.items()}, settings)
        if not steps or not pairs:
            yield edit
            return
        drawing = {"pairs": [list(pair) for pair in pairs], "guidance": guidance, "sampler_steps": sampler_steps}
        resolved = _claim(folder, pipe, settings | drawing, precision)
        edit.settings["precision"] = resolved.record()
        autocast = partial(resolved.autocast, pipe.unet.device)
        with autocast():
            latents = _images(pipe, sorted({anchor for _, anchor in pairs}), images, guidance, sampler_steps, seed)
        ablation = _Ablation(pipe, pairs, latents, images, batch, seed)
        config = LoopConfig(steps, lr, warmup=1)
        with edit.on(pipe), _training_only(pipe.unet, own):
            yield from training_loop(
                {"unet": pipe.unet}, ablation.sample, ablation.loss, config, folder / "checkpoints", autocast=autocast
            )
            edit.weights = {name: p.detach().clone() for name, p in pipe.unet.named_parameters() if name in own}
        yield edit


@dataclass
class _Batch:
    """Noisy latents of anchors, their timesteps, and the rows of target and anchor among the embeddings."""

    noisy: torch.Tensor
    t: torch.Tensor
    target: torch.Tensor
    anchor: torch.Tensor


class _Ablation:
    """Batches of noised anchor images, and the loss of equation 5 on them."""

    def __init__(self, pipe: DiffusionPipeline, pairs, latents: torch.Tensor, images: int, batch: int, seed: int):
        self.pipe, self.latents, self.batch, self.seed = pipe, latents, batch, seed
        self.noise, self.device = NoiseSchedule(pipe.scheduler), pipe.unet.device
        texts = sorted({text for pair in pairs for text in pair})
        self.embeds, self.pooled = encode(pipe, texts)
        row = {text: i for i, text in enumerate(texts)}
        drawn = {anchor: range(i * images, (i + 1) * images) for i, anchor in enumerate(sorted({anchor for _, anchor in pairs}))}
        self.rows = torch.tensor([[row[target], row[anchor], image] for target, anchor in pairs for image in drawn[anchor]])

    def sample(self, step: int, _micro: int) -> _Batch:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        target, anchor, image = self.rows[torch.randint(len(self.rows), (self.batch,), generator=generator)].T
        t = torch.randint(self.noise.num_timesteps, (self.batch,), generator=generator).to(self.device)
        noise = torch.randn((self.batch, *self.latents.shape[1:]), generator=generator).to(self.device)
        noisy = self.noise.add_noise(self.latents[image].to(self.device), noise, t)
        return _Batch(noisy, self.noise.model_timestep(t), target.to(self.device), anchor.to(self.device))

    def loss(self, batch: _Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.no_grad():
            wanted = self._predict(batch, batch.anchor)
        return (self._predict(batch, batch.target) - wanted).square().mean(), {}

    def _predict(self, batch: _Batch, rows: torch.Tensor) -> torch.Tensor:
        pipe, extra = self.pipe, {}
        if self.pooled is not None:
            side = float(pipe.default_sample_size * pipe.vae_scale_factor)
            ids = batch.noisy.new_tensor([[side, side, 0, 0, side, side]]).expand(len(batch.noisy), -1)
            extra = {"added_cond_kwargs": {"text_embeds": self.pooled[rows], "time_ids": ids}}
        return pipe.unet(batch.noisy.to(pipe.unet.dtype), batch.t, self.embeds[rows], **extra).sample.float()


def _claim(folder: Path, pipe: DiffusionPipeline, settings: Mapping[str, Any], precision: str) -> Precision:
    """Write what the run depends on into its folder, and resolve its precision; refuse to resume with other inputs."""
    file, inputs = folder / "ablation.json", dict(settings) | {"unet": weights_hash(pipe.unet)}
    if changed := differing(file, inputs):
        raise ValueError(f"{folder} holds an ablation with other {', '.join(changed)}: give another folder")
    resolved = for_pipeline(precision, pipe, file=file)
    write_json(file, inputs | {"precision": resolved.record()})
    return resolved


@contextmanager
def _training_only(unet: torch.nn.Module, names: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within this context, only the named parameters require a gradient."""
    before = {name: p.requires_grad for name, p in unet.named_parameters()}
    try:
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None


def _images(pipe, prompts: Sequence[str], images: int, guidance: float, steps: int, seed: int) -> torch.Tensor:
    """Latents (prompts x images, C, h, w) that the model generates, scaled as the UNet expects them."""
    parts = []
    together = max(1, 32 // images)
    for i in range(0, len(prompts), together):
        options = {"num_images_per_prompt": images, "num_inference_steps": steps, "guidance_scale": guidance}
        generator = torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**32)
        value = {"value": None} if hasattr(pipe, "value_encoder") else {}
        out = pipe(list(prompts[i : i + together]), output_type="latent", generator=generator, **options, **value)
        parts.append(out.images.float().cpu())
    return torch.cat(parts)
