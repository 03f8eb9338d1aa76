"""LiVOPipeline and LiVOXLPipeline: Stable Diffusion that keeps to stated values, with its backbone frozen."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from diffusers import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn

from livo.pipelines.checked_loading import refuse_single_file
from livo.pipelines.loading import HUB_OPTIONS, PRINCIPLES_FILE
from livo.pipelines.mixin import ValueMixin
from livo.utils.bundled import bundled
from livo.utils.hub import hub_options
from livo.utils.logs import warn_once
from livo.utils.weights import check_module

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from livo.pipelines.call_arguments import StableDiffusionArguments, StableDiffusionXLArguments, ValueOutput

__all__ = ["PRINCIPLES_FILE", "LiVOPipeline", "LiVOXLPipeline", "load_pipeline", "refuse_safety_checker"]

logger = logging.getLogger(__name__)


class LiVOPipeline(ValueMixin, StableDiffusionPipeline):
    """A StableDiffusionPipeline with a value encoder and a retriever in front of it.

    Every argument of StableDiffusionPipeline is there and means the same; with no value in play the images are the same, bit
    for bit. Create it with `from_pretrained`.
    """

    if TYPE_CHECKING:  # so that type checkers report misspelt arguments

        def __call__(  # type: ignore[override]
            self, prompt: str | list[str] | None = None, **kwargs: Unpack[StableDiffusionArguments]
        ) -> ValueOutput:
            """See `ValueMixin.__call__`."""


class LiVOXLPipeline(ValueMixin, StableDiffusionXLPipeline):
    """The same for Stable Diffusion XL. The value encoder reads what the first text encoder reads and projects to the width of both
    together; the pooled embeddings stay the prompt's."""

    if TYPE_CHECKING:  # so that type checkers report misspelt arguments

        def __call__(  # type: ignore[override]
            self, prompt: str | list[str] | None = None, **kwargs: Unpack[StableDiffusionXLArguments]
        ) -> ValueOutput:
            """See `ValueMixin.__call__`."""


def load_pipeline(model: str, keep_safety_checker: bool = False, **kwargs) -> LiVOPipeline | LiVOXLPipeline:
    """What `model` is, by its own model_index.json: a bundled model's name, a folder or a hub id; `kwargs` are those of `from_pretrained`.

    A safety checker is left out with a warning, unless it is kept: a judge would take the images that it blackens for clean ones.
    """
    xl = False
    if bundled(model) is None:
        refuse_single_file(model, "LiVOPipeline")
        kwargs |= hub_options(model, "model", **kwargs)
        where = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        xl = "XL" in DiffusionPipeline.load_config(model, **where)["_class_name"]
    bars = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()  # loading takes less time than reading its bar
    try:
        pipe = (LiVOXLPipeline if xl else LiVOPipeline).from_pretrained(model, **kwargs)
    finally:
        if bars:
            diffusers_logging.enable_progress_bar()
    for name, module in pipe.components.items():
        if isinstance(module, nn.Module):
            check_module(module, f"{model}/{name}")
    if not keep_safety_checker and getattr(pipe, "safety_checker", None) is not None:
        pipe.register_modules(safety_checker=None)
        warn_once(logger, "the safety checker of %s is left out: a judge would take what it blackens for clean images", model)
    return pipe


def refuse_safety_checker(pipe: DiffusionPipeline) -> None:
    """Raises ValueError where the images of `pipe` may be blackened, so that judging them means nothing."""
    if getattr(pipe, "safety_checker", None) is not None:
        raise ValueError(
            "the pipeline has a safety checker, and a judge would take what it blackens for clean images: load it with safety_checker=None"
        )
