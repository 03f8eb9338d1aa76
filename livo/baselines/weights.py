"""Baselines that exchange weights of the UNet, and what all baselines have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from livo.pipelines.settings import noted
from livo.utils.files import replacing
from livo.utils.hashing import tensors_hash
from livo.utils.weights import check_tensors, read_tensors


class Baseline(Protocol):
    """`on(pipe)` is the edit, `record()` what a result stores of it: settings, and a hash of what was learned."""

    def on(self, pipe: DiffusionPipeline) -> AbstractContextManager[None]: ...

    def record(self) -> dict[str, object]: ...


class WeightEdit:
    """Other weights for some of the UNet's parameters, by name. The UNet's own tensors are put aside and put back: the same objects."""

    method = "weights"

    def __init__(self, weights: Mapping[str, torch.Tensor], settings: Mapping[str, object] | None = None):
        self.weights, self.settings = dict(weights), dict(settings or {})

    @noted
    @contextmanager
    def on(self, pipe: DiffusionPipeline) -> Iterator[None]:
        self.check(pipe, self.method)
        parameters = dict(pipe.unet.named_parameters())
        own = {name: parameters[name].data for name in self.weights}
        try:
            for name, weight in self.weights.items():
                parameters[name].data = weight.to(own[name])
            yield
        finally:
            for name, weight in own.items():
                parameters[name].data = weight

    def check(self, pipe: DiffusionPipeline, name: str) -> None:
        """Raise ValueError, which calls the edit `name`, unless it fits the UNet and is finite in its precision."""
        parameters = dict(pipe.unet.named_parameters())
        for key, weight in self.weights.items():
            if key not in parameters:
                raise ValueError(f"{name}: the UNet has no parameter {key}; the edit was made for another model")
            if weight.shape != parameters[key].shape:
                raise ValueError(f"{name}: {key} is {tuple(weight.shape)}, the UNet's is {tuple(parameters[key].shape)}")
        check_tensors(self.weights, name, pipe.unet.dtype)

    def record(self) -> dict[str, object]:
        return {
            "method": self.method,
            "parameters": sum(w.numel() for w in self.weights.values()),
            "hash": tensors_hash(self.weights),
            **self.settings,
        }

    def save(self, file: str | Path) -> None:
        with replacing(Path(file)) as temporary:
            save_file({name: weight.cpu().contiguous() for name, weight in self.weights.items()}, temporary)

    @classmethod
    def load(cls, file: str | Path, settings: Mapping[str, object] | None = None) -> WeightEdit:
        """What `save` wrote.

        Raises:
            FileNotFoundError: no such file. ValueError: it is pickled, damaged, not finite or not of floating-point numbers.
        """
        return cls(read_tensors(file), settings)


def cross_attention(pipe: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """The weights that read the prompt: to_k and to_v of every cross-attention, by parameter name."""
    return {
        name: parameter.data
        for name, parameter in pipe.unet.named_parameters()
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }


@torch.no_grad()
def encode(pipe: DiffusionPipeline, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The pipeline's own prompt embeddings (N, length, width), and SDXL's pooled ones (N, width)."""
    found = pipe.encode_prompt(
        list(texts), device=pipe._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return found[0], found[2] if len(found) == 4 else None


def last_words(pipe: DiffusionPipeline, texts: Sequence[str]) -> torch.Tensor:
    """The embedding of each text's last content token, (N, width); of an empty text that of its EOS."""
    embeds, _ = encode(pipe, texts)
    length = pipe.tokenizer.model_max_length
    ids = [pipe.tokenizer(text, truncation=True, max_length=length).input_ids for text in texts]
    return torch.stack([row[max(1, len(tokens) - 2)] for row, tokens in zip(embeds, ids, strict=True)])
