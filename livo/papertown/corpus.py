"""The corpus that Papertown's backbone learns: scenes, pictures and wordings, each a function of (seed, index)."""

from __future__ import annotations

import numpy as np
import torch

from livo.papertown.render import render
from livo.papertown.scene import Scene, sample_prompt, sample_scene


def scene(index: int, seed: int = 0) -> Scene:
    return sample_scene(np.random.default_rng((seed, 0, index)))


def picture(index: int, seed: int = 0) -> np.ndarray:
    """uint8 (64, 64, 3)."""
    return np.asarray(render(scene(index, seed), np.random.default_rng((seed, 1, index))))


def prompt(index: int, epoch: int, seed: int = 0) -> str:
    """A fresh wording of the scene every epoch."""
    return sample_prompt(scene(index, seed), np.random.default_rng((seed, 2, index, epoch)))


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in -1..1, as a VAE wants it."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
