"""Judges: images -> class probabilities for each attribute they can tell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_model, save_model
from torch import nn


class PapertownJudge(nn.Module):
    """A small convolutional network that reads every attribute of a Papertown picture.

    `attributes` maps an attribute to its classes, in the order of the network's outputs. It stands where CLIP and LLaVA stand
    in the LiVO paper.
    """

    name = "papertown-judge"

    def __init__(self, attributes: dict[str, Sequence[str]]):
        super().__init__()
        self.attributes = {attribute: tuple(classes) for attribute, classes in attributes.items()}
        widths = (3, 32, 64, 96, 128)
        layers = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.GroupNorm(8, n_out), nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, 128), nn.LayerNorm(128), nn.SiLU())
        self.head = nn.Linear(128, sum(map(len, self.attributes.values())))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pixels (N, 3, 64, 64) in -1..1 -> logits (N, classes) for each attribute."""
        logits = self.head(self.features(pixels))
        sizes = [len(classes) for classes in self.attributes.values()]
        return dict(zip(self.attributes, logits.split(sizes, dim=-1), strict=True))

    @torch.no_grad()
    def judge(self, images: Sequence[Image.Image], batch: int = 256) -> dict[str, torch.Tensor]:
        """Probabilities (N, classes) for each attribute."""
        parts = []
        for first in range(0, len(images), batch):
            logits = self(self._pixels(images[first : first + batch]))
            parts.append({attribute: values.softmax(-1).cpu() for attribute, values in logits.items()})
        return {attribute: torch.cat([part[attribute] for part in parts]) for attribute in self.attributes}

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image], batch: int = 256) -> np.ndarray:
        """Features (N, 128) of the last layer before the classes: what FID is measured on."""
        parts = [self.features(self._pixels(images[i : i + batch])).cpu() for i in range(0, len(images), batch)]
        return torch.cat(parts).numpy()

    def _pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = np.stack([np.asarray(image.convert("RGB").resize((64, 64))) for image in images])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        return x.to(self.head.weight.device)

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """The likeliest class of every attribute, one dict per image."""
        choices = {attribute: p.argmax(-1).tolist() for attribute, p in self.judge(images).items()}
        return [{a: self.attributes[a][choice[i]] for a, choice in choices.items()} for i in range(len(images))]

    @property
    def revision(self) -> str:
        """A short hash of the weights: figures name it."""
        digest = hashlib.sha256()
        for tensor in self.state_dict().values():
            digest.update(tensor.half().cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps({"attributes": self.attributes}, indent=2) + "\n")
        save_model(self, str(Path(folder) / "model.safetensors"))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PapertownJudge:
        judge = cls(json.loads((Path(folder) / "config.json").read_text())["attributes"])
        load_model(judge, str(Path(folder) / "model.safetensors"))
        return judge.eval()
