"""Baselines that replace weights of the UNet, and what all baselines have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from livo.pipelines.settings import noted
from livo.utils.files import replacing
from livo.utils.hashing import tensors_hash
from livo.utils.weights import check_tensors, read_tensors


class Baseline(Protocol):
    """What an evaluation can compare."""

    def on(self, pipe: DiffusionPipeline) -> AbstractContextManager[None]:
        """A context in which the pipeline generates with the baseline.

        Args:
            pipe: A Stable Diffusion or SDXL pipeline. It is left as it was.
        """
        ...

    def record(self) -> dict[str, Any]:
        """What a result stores: the method, its settings, and a hash of learned weights."""
        ...


class WeightEdit:
    """New weights for some parameters of the UNet. The UNet's own tensors are restored afterwards, as the same objects.

    Args:
        weights: The new weights by parameter name.
        settings: How they were made, for `record`.
    """

    method = "weights"

    def __init__(self, weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any] | None = None):
        self.weights, self.settings = dict(weights), dict(settings or {})

    @noted
    @contextmanager
    def on(self, pipe: DiffusionPipeline) -> Iterator[None]:
        """A context in which the UNet has the new weights.

        Args:
            pipe: A pipeline with the UNet that they were made for.

        Raises:
            ValueError: The weights do not fit the UNet, or are not finite in its precision.
        """
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
        """Check that the weights fit the UNet and are finite in its precision.

        Args:
            pipe: The pipeline to edit.
            name: What errors call the edit.

        Raises:
            ValueError: They do not, or are not.
        """
        parameters = dict(pipe.unet.named_parameters())
        for key, weight in self.weights.items():
            if key not in parameters:
                raise ValueError(f"{name}: the UNet has no parameter {key}; the edit was made for another model")
            if weight.shape != parameters[key].shape:
                raise ValueError(f"{name}: {key} is {tuple(weight.shape)}, the UNet's is {tuple(parameters[key].shape)}")
        check_tensors(self.weights, name, pipe.unet.dtype)

    def record(self) -> dict[str, Any]:
        """The method, the number and hash of the new weights, and the settings, for results."""
        return {
            "method": self.method,
            "parameters": sum(w.numel() for w in self.weights.values()),
            "hash": tensors_hash(self.weights),
            **self.settings,
        }

    def save(self, file: str | Path) -> None:
        """Write the weights.

        Args:
            file: A .safetensors file.
        """
        with replacing(Path(file)) as temporary:
            save_file({name: weight.cpu().contiguous() for name, weight in self.weights.items()}, temporary)

    @classmethod
    def load(cls, file: str | Path, settings: Mapping[str, Any] | None = None) -> WeightEdit:
        """Read what `save` wrote.

        Args:
            file: A .safetensors file.
            settings: How the weights were made, for `record`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is pickled or damaged, or its values are not finite floating-point numbers.
        """
        return cls(read_tensors(file), settings)


def cross_attention(pipe: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """The weights that read the prompt: to_k and to_v of every cross-attention, by parameter name.

    Args:
        pipe: A Stable Diffusion or SDXL pipeline.
    """
    return {
        name: parameter.data
        for name, parameter in pipe.unet.named_parameters()
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }


@torch.no_grad()
def encode(pipe: DiffusionPipeline, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The pipeline's own prompt embeddings, (N, length, width), and those pooled by SDXL, (N, width), or None.

    Args:
        pipe: A Stable Diffusion or SDXL pipeline.
        texts: The N prompts.
    """
    found = pipe.encode_prompt(
        list(texts), device=pipe._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return found[0], found[2] if len(found) == 4 else None


def last_words(pipe: DiffusionPipeline, texts: Sequence[str]) -> torch.Tensor:
    """The embedding of the last content token of each text, (N, width); for an empty text that of its EOS.

    Args:
        pipe: A Stable Diffusion or SDXL pipeline.
        texts: The N texts.
    """
    embeds, _ = encode(pipe, texts)
    length = pipe.tokenizer.model_max_length
    ids = [pipe.tokenizer(text, truncation=True, max_length=length).input_ids for text in texts]
    return torch.stack([row[max(1, len(tokens) - 2)] for row, tokens in zip(embeds, ids, strict=True)])
