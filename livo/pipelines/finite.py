"""Images that are not finite: found before they turn black, and reported with their likely cause."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers import DiffusionPipeline
from torch import nn

from livo.utils.weights import check_module

logger = logging.getLogger(__name__)


class _Watched:
    """An image processor that notes which of the pictures it is given are finite; nothing waits for the device."""

    def __init__(self, processor, finite: list[torch.Tensor]):
        self._processor, self._finite = processor, finite

    def __getattr__(self, name: str):
        return getattr(self._processor, name)

    def postprocess(self, image, *args, **kwargs):
        if isinstance(image, torch.Tensor):
            self._finite.append(_finite(image))
        return self._processor.postprocess(image, *args, **kwargs)


@contextmanager
def watching(pipe: DiffusionPipeline) -> Iterator[list[torch.Tensor]]:
    """Within this context the pictures of the pipeline are seen while they are tensors: as PIL images NaN is black.

    Gives a list, whose last entry says for each image whether it is finite.
    """
    finite: list[torch.Tensor] = []
    processor = vars(pipe).get("image_processor")
    if processor is None:
        yield finite
        return
    pipe.image_processor = _Watched(processor, finite)  # the pipeline's own; no pipeline shares it
    try:
        yield finite
    finally:
        pipe.image_processor = processor


def check_tokens(value_encoder: nn.Module, tokens: torch.Tensor) -> None:
    """Raise ValueError where value tokens are not finite."""
    if not bool(torch.isfinite(tokens).all()):
        raise ValueError(f"the value token is not finite (NaN or infinity): {_likely_cause({'value_encoder': value_encoder})}")


def check_images(pipe: DiffusionPipeline, finite: list[torch.Tensor], images, with_values: bool) -> None:
    """Raise ValueError where `images` are not finite; where no value was applied they are the base's, and only warned of."""
    if isinstance(images, torch.Tensor):
        finite = [*finite, _finite(images)]
    broken = [i for i, fine in enumerate(finite[-1].tolist()) if not fine] if finite else []
    if not broken:
        return
    which = f"image {broken[0]} is" if len(broken) == 1 else f"{len(broken)} images are"
    what = f"{which} not finite (NaN or infinity): {_likely_cause(pipe.components)}"
    if with_values:
        raise ValueError(what)
    logger.warning(what)


def _likely_cause(components: Mapping[str, object]) -> str:
    """Why what these components computed is not finite, and what to do."""
    modules = {name: module for name, module in components.items() if isinstance(module, nn.Module)}
    for name, module in modules.items():
        try:
            check_module(module, f"the pipeline's {name}")
        except ValueError as error:
            return str(error)
    half = [name for name, module in modules.items() if getattr(module, "dtype", None) is torch.float16]
    if half:
        where = half[0] if len(half) == 1 else f"one of {', '.join(half)}"
        return f"float16 overflowed in {where}: load the pipeline with dtype=torch.bfloat16 or torch.float32"
    return "look for NaN in what the call was given (latents, embeddings, images, scales) and in its callbacks"


def _finite(images: torch.Tensor) -> torch.Tensor:
    return torch.isfinite(images).flatten(1).all(1)
