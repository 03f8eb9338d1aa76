"""Training of Papertown's judge on fresh renders, roughened so that it also reads generated pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from livo.papertown import corpus
from livo.papertown.judge import PapertownJudge
from livo.papertown.render import render
from livo.papertown.scene import LABELS, Scene
from livo.training.config import LoopConfig
from livo.training.loop import Autocast, training_loop

TRAIN_SEED, TEST_SEED = 1, 2  # the backbone's corpus is seed 0


def targets(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    labels = [scene.labels() for scene in scenes]
    return {a: torch.tensor([classes.index(label[a]) for label in labels]) for a, classes in LABELS.items()}


def train_judge(
    judge: PapertownJudge, folder: Path, steps: int = 2500, autocast: Autocast = nullcontext, batch: int = 64
) -> Iterator[dict[str, float]]:
    """Cross-entropy summed over the attributes."""

    def pictures(step: int, _micro: int):
        generator = torch.Generator().manual_seed(step)
        indices = range(step * batch, (step + 1) * batch)
        x = corpus.pixels(np.stack([corpus.picture(i, TRAIN_SEED) for i in indices]))
        x = _roughen(x, generator).to(judge.head.weight.device)
        return x, targets([corpus.scene(i, TRAIN_SEED) for i in indices])

    def loss(pictures):
        x, truth = pictures
        logits = judge(x)
        losses = [F.cross_entropy(logits[a].float(), t.to(x.device), label_smoothing=0.02) for a, t in truth.items()]
        return torch.stack(losses).sum(), {}

    config = LoopConfig(steps, lr=2e-3, ema=0.998)
    return training_loop({"judge": judge}, pictures, loss, config, folder / "judge.checkpoints", autocast=autocast)


def _roughen(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur and noise of a random strength a picture: what a decoder and a sampler leave behind."""
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(len(x), 1, 1, 1, generator=generator)
    noise = torch.randn(x.shape, generator=generator) * 0.15 * torch.rand(len(x), 1, 1, 1, generator=generator)
    shift = 0.05 * torch.randn(len(x), 3, 1, 1, generator=generator)
    return x.lerp(blurred, share) + noise + shift


def accuracy(judge: PapertownJudge, count: int = 2000) -> dict[str, float]:
    """Share of fresh renders that are read correctly, for each attribute."""
    scenes = [corpus.scene(i, TEST_SEED) for i in range(count)]
    images = [render(scene, np.random.default_rng((TEST_SEED, 1, i))) for i, scene in enumerate(scenes)]
    truth = targets(scenes)
    return {a: (p.argmax(-1) == truth[a]).float().mean().item() for a, p in judge.judge(images).items()}
