"""The judge of Papertown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_model, save_model
from torch import nn

from livo.evaluation.judges import Judge, has_weights
from livo.papertown.render import SIZE
from livo.utils.bundled import bundled

NAME = "papertown"
_OTHERS = "use another judge, such as clip:openai/clip-vit-large-patch14 or vlm:llava-hf/llava-1.5-7b-hf"
_BATCH = 256


class PapertownJudge(Judge, nn.Module):
    """A small convolutional network that reads every attribute of a Papertown picture.

    `attributes` maps an attribute to its classes, in the order of the network's outputs. It stands where CLIP and LLaVA stand
    in the LiVO paper.
    """

    name = "papertown-judge"

    def __init__(self, attributes: dict[str, Sequence[str]]):
        nn.Module.__init__(self)
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
    def probabilities(self, images: Sequence[Image.Image], prompts: Sequence[str] | None) -> dict[str, torch.Tensor]:
        """See the base class."""
        parts = []
        for first in range(0, len(images), _BATCH):
            logits = self(self._pixels(images[first : first + _BATCH]))
            parts.append({attribute: values.softmax(-1).cpu() for attribute, values in logits.items()})
        return {attribute: torch.cat([part[attribute] for part in parts]) for attribute in self.attributes}

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Features (N, 128) of the last layer before the classes: what FID is measured on."""
        parts = [self.features(self._pixels(images[i : i + _BATCH])).cpu() for i in range(0, len(images), _BATCH)]
        return torch.cat(parts).numpy()

    def _pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        for i, image in enumerate(images):
            if image.size != (SIZE, SIZE):
                size = f"{image.width} x {image.height}"
                raise ValueError(
                    f"image {i} is {size}, and {self.name} reads Papertown's pictures of {SIZE} x {SIZE} alone: {_OTHERS}"
                )
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        return x.to(self.head.weight.device)

    def check_pipeline(self, pipe: DiffusionPipeline) -> None:
        sample = getattr(getattr(getattr(pipe, "unet", None), "config", None), "sample_size", None)
        side = sample * getattr(pipe, "vae_scale_factor", 1) if isinstance(sample, int) else SIZE
        what = f"{self.name} reads Papertown's pictures of {SIZE} x {SIZE} alone"
        if side != SIZE:
            raise ValueError(f"{what}, and this model draws {side} x {side}: {_OTHERS}")
        model = bundled(NAME)
        shipped = self.revision == PapertownJudge.from_pretrained(model.weights / "judge").revision
        if shipped and isinstance(getattr(pipe, "vae", None), nn.Module) and not has_weights(pipe, model, "vae"):
            raise ValueError(f"{what}, and this model has another decoder: {_OTHERS}")

    @property
    def revision(self) -> str:
        """A short hash of the weights: figures name it."""
        digest = hashlib.sha256()
        for tensor in self.state_dict().values():
            digest.update(tensor.half().cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps({"model": NAME, "attributes": self.attributes}, indent=2) + "\n")
        save_model(self, str(Path(folder) / "model.safetensors"))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PapertownJudge:
        judge = cls(json.loads((Path(folder) / "config.json").read_text())["attributes"])
        load_model(judge, str(Path(folder) / "model.safetensors"))
        return judge.eval()
