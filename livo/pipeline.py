"""LiVOPipeline and LiVOXLPipeline: Stable Diffusion that keeps to stated values, with its backbone frozen."""

from __future__ import annotations

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from livo.mixin import ValueMixin
from livo.saving import PAPERTOWN, PRINCIPLES_FILE

__all__ = ["PAPERTOWN", "PRINCIPLES_FILE", "LiVOPipeline", "LiVOXLPipeline"]


class LiVOPipeline(ValueMixin, StableDiffusionPipeline):
    """A StableDiffusionPipeline with a value encoder and a retriever in front of it.

    Every argument of StableDiffusionPipeline is there and means the same; with no value in play the images are the same, bit
    for bit. Create it with `from_pretrained`.
    """


class LiVOXLPipeline(ValueMixin, StableDiffusionXLPipeline):
    """The same for Stable Diffusion XL. The value encoder reads what the first text encoder reads and projects to the width of both
    together; the pooled embeddings stay the prompt's."""
