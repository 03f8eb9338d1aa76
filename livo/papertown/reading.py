"""Papertown's pictures as its judge reads them: generated at the settings of the figures, and judged once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from livo.evaluation import metrics
from livo.papertown import world
from livo.papertown.judge import PapertownJudge
from livo.papertown.scene import Scene
from livo.pipelines.stable_diffusion import LiVOPipeline
from livo.principles.principle import ValuePrinciple
from livo.utils.files import write_json
from livo.utils.hashing import weights_hash
from livo.utils.precision import settle

IMAGES, STEPS, GUIDANCE = 50, 20, 5.0
Reading = dict[str, str]
Value = ValuePrinciple | tuple[ValuePrinciple, ...] | None


class Reader:
    """Generates a prompt's images and has them judged, once: readings are kept in `cache`, so an interrupted run resumes.

    `precision` as in `livo.utils.precision.resolve`.
    """

    def __init__(self, pipe: LiVOPipeline, judge: PapertownJudge, cache: Path, images: int = IMAGES, precision: str = "auto"):
        self.pipe, self.judge, self.cache, self.images = pipe, judge, cache, images
        self.precision = settle(cache, precision, pipe.device)
        self.base = "-".join([judge.revision, *(weights_hash(module) for module in (pipe.unet, pipe.text_encoder, pipe.vae))])
        self.encoder = weights_hash(pipe.value_encoder)

    def read(self, prompt: str, value: Value, images: int = 0) -> list[Reading]:
        """Readings of the prompt's images. The seed depends on the prompt alone, so methods are compared at equal seeds."""
        principles = value if isinstance(value, tuple) else (value,) if value else ()
        what = [self.encoder, *([p.statement, p.apply_rate, p.directions, p.target] for p in principles)] if principles else None
        images = images or self.images
        how = [dict(self.pipe.scheduler.config), images, STEPS, GUIDANCE, self.precision.resolved]
        key = json.dumps([self.base, how, prompt, what], default=str)
        file = self.cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        if not file.is_file():
            seed = int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16)
            write_json(file, self.judge.read(self.sample(prompt, seed, value=value, num_images_per_prompt=images)))
        return json.loads(file.read_text())

    def sample(self, prompt: str | list[str], seed: int, **kwargs) -> list[Image.Image]:
        """Images at the settings of the figures."""
        generator = torch.Generator().manual_seed(seed)
        with self.precision.autocast(self.pipe.device):
            return self.pipe(prompt, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator, **kwargs).images

    def read_all(self, prompts: Sequence[str], value: Value, what: str) -> list[list[Reading]]:
        return [self.read(prompt, value) for prompt in tqdm(prompts, what, unit="prompt", mininterval=5)]


def scenes(careers: Sequence[str], rounds: int = 1, **stated) -> list[Scene]:
    """Each career in `rounds` held-out places."""
    places = world.PLACES.held_out
    return [
        Scene(career=career, **stated).stating(place=places[(i + r) % len(places)])
        for r in range(rounds)
        for i, career in enumerate(careers)
    ]


def bias(readings: list[list[Reading]], principle: str, metric=metrics.d1) -> list[float]:
    name, classes = world.DEBIASED[principle]
    return [metric(metrics.counts([r[name] for r in rows], classes)) for rows in readings]


def kept(readings: list[list[Reading]], wanted: Sequence[Scene], name: str) -> list[float]:
    """Percentage of a prompt's images that show the career (or place, ...) of its scene."""
    return [metrics.share([r[name] == scene.labels()[name] for r in rows]) for rows, scene in zip(readings, wanted, strict=True)]


def unread(readings: list[list[Reading]], principle: str) -> list[float]:
    """Percentage of a prompt's images that show none of the classes."""
    name, classes = world.DEBIASED[principle]
    return [metrics.share([r[name] not in classes for r in rows]) for rows in readings]
