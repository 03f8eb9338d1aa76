"""Plug values into any pipeline of the Stable Diffusion family that is there already, and take them out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from diffusers import DiffusionPipeline
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from livo.pipelines.detached import accept_values, refuse_values
from livo.pipelines.mixin import ValueMixin
from livo.pipelines.stable_diffusion import LiVOPipeline, LiVOXLPipeline
from livo.principles.principle import ValuePrinciple, bundled_principles
from livo.utils.arguments import strict


@strict
@cache
def aligned(cls: type[DiffusionPipeline]) -> type[DiffusionPipeline]:
    """The pipeline class with values: `aligned(StableDiffusionImg2ImgPipeline).from_pretrained(...)`, or `.from_pipe(pipe)`.

    Raises:
        ValueError: what `encode_prompt` returns does not reach a UNet in calls of this class, so values would do nothing; or it is no
            pipeline class.
    """
    if not (isinstance(cls, type) and issubclass(cls, DiffusionPipeline)):
        raise ValueError(f"{cls!r} is no pipeline class: give one such as StableDiffusionPipeline; for a pipeline use livo.attach")
    if issubclass(cls, ValueMixin):
        return cls
    for known in (LiVOPipeline, LiVOXLPipeline):
        if cls is known.base_class:
            return known
    about = f"A {cls.__name__} with a value encoder and a retriever in front of it."
    return type(f"LiVO{cls.__name__}", (ValueMixin, cls), {"__module__": __name__, "__doc__": about})


@strict
def attach(
    pipe: DiffusionPipeline,
    value_encoder: str | Path | CLIPTextModel | Mapping[str, str | Path | CLIPTextModel] | None = None,
    value_principles: str | Path | Sequence[ValuePrinciple] | None = None,
    value_scale: float = 1.0,
    prompt_padding: str = "max_length",
) -> DiffusionPipeline:
    """Give the pipeline `pipe` itself values, and return it. From then on it takes `value=` and all that LiVOPipeline takes.

    Args:
        value_encoder: Hub id, folder, .safetensors file, or a CLIPTextModel; a mapping gives several by name.
        value_principles: File, folder, bundled name ("livo", "safety"), or list; by default the paper's five.

    Raises:
        ValueError: it has values already, or is of another family, or the encoder does not fit; it is then as it was.
    """
    if not isinstance(pipe, DiffusionPipeline):
        raise ValueError(f"{pipe!r} is no pipeline: give one that was loaded, as by StableDiffusionPipeline.from_pretrained")
    if isinstance(pipe, ValueMixin):
        raise ValueError(f"{type(pipe).__name__} has values already: use load_value_encoder, or livo.detach it first")
    needed = {"text_encoder": CLIPTextModel, "tokenizer": PreTrainedTokenizerBase, "unet": object, "vae": object}
    lacking = [name for name, kind in needed.items() if not isinstance(getattr(pipe, name, None), kind)]
    if lacking or pipe.unet is None:
        what = " and no ".join(lacking or ["unet"])
        raise ValueError(f"{type(pipe).__name__} has no {what} of Stable Diffusion's kind: values plug into SD 1.x, 2.x and SDXL")
    pipe.__class__ = aligned(type(pipe))
    accept_values(pipe)
    try:
        pipe.plug_in(None, value_scale, prompt_padding)
        if value_encoder is not None:
            pipe._load_all(value_encoder)
        pipe.load_value_principles(bundled_principles() if value_principles is None else value_principles)
    except BaseException:
        pipe.unplug()
        raise
    return pipe


@strict
def detach(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Take the values out of `pipe`: its class, hooks, modules and configuration are what they were before `attach`. Returns it.

    From then on, a call of `pipe` with `value=` or another argument for values is an error.

    Raises:
        ValueError: it has no values.
    """
    if not isinstance(pipe, ValueMixin):
        raise ValueError(f"{type(pipe).__name__} has no values to take out")
    pipe.unplug()
    refuse_values(pipe)
    return pipe
