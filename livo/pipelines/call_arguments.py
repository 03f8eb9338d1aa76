"""What a call of a pipeline takes and returns, as type checkers and editors see it. Nothing imports this at run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from livo.pipelines.decision_record import ImageDecision
from livo.pipelines.ledger import ValueLedger

Value = str | tuple[str, ...] | None
Scale = float | Mapping[str, float]


@dataclass
class ValueOutput(StableDiffusionPipelineOutput):
    """The output of diffusers with a decision for each image."""

    decisions: list[ImageDecision]


class ValueArguments(TypedDict, total=False):
    """The arguments that values bring; see `ValueMixin.__call__`."""

    value: Value | Sequence[Value]
    value_scale: Scale | Sequence[Scale] | None
    value_start: float | Sequence[float]
    value_end: float | Sequence[float]
    ledger: ValueLedger | None


class StableDiffusionArguments(ValueArguments, total=False):
    """Those, and diffusers' for Stable Diffusion."""

    height: int | None
    width: int | None
    num_inference_steps: int
    timesteps: list[int] | None
    sigmas: list[float] | None
    guidance_scale: float
    negative_prompt: str | list[str] | None
    num_images_per_prompt: int | None
    eta: float
    generator: torch.Generator | list[torch.Generator] | None
    latents: torch.Tensor | None
    prompt_embeds: torch.Tensor | None
    negative_prompt_embeds: torch.Tensor | None
    ip_adapter_image: Any
    ip_adapter_image_embeds: list[torch.Tensor] | None
    output_type: str | None
    return_dict: bool
    cross_attention_kwargs: dict[str, Any] | None
    guidance_rescale: float
    clip_skip: int | None
    callback_on_step_end: Callable[..., dict] | None
    callback_on_step_end_tensor_inputs: list[str]


class StableDiffusionXLArguments(StableDiffusionArguments, total=False):
    """Those, and diffusers' for Stable Diffusion XL."""

    prompt_2: str | list[str] | None
    negative_prompt_2: str | list[str] | None
    denoising_end: float | None
    pooled_prompt_embeds: torch.Tensor | None
    negative_pooled_prompt_embeds: torch.Tensor | None
    original_size: tuple[int, int] | None
    crops_coords_top_left: tuple[int, int]
    target_size: tuple[int, int] | None
    negative_original_size: tuple[int, int] | None
    negative_crops_coords_top_left: tuple[int, int]
    negative_target_size: tuple[int, int] | None
