"""Bundled models and their judges: which pipelines draw with a bundled model's weights, and which judge reads their pictures."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from torch import nn

from livo.evaluation.judges.base import Judge, loading
from livo.utils.bundled import BundledModel, bundled, bundled_models, bundled_names


def load_bundled_judge(source: str, device: str | torch.device = "cpu") -> Judge:
    """The judge of a bundled model, in float32.

    Args:
        source: The model's name, or a folder with another judge of its class: its config.json names the model as `model`.
        device: Where it computes.

    Raises:
        ValueError: the folder names no bundled model, or the judge cannot be loaded.
    """
    model = bundled(source)
    if model is not None:
        folder = model.weights / "judge"
    else:
        folder = Path(source)
        with loading("folder", folder):
            config = json.loads((folder / "config.json").read_text())
        model = bundled(config.get("model")) if isinstance(config, dict) else None
        if model is None:
            raise ValueError(
                f"judge {source}: its config.json names no bundled model ({bundled_names()}), so it is no judge of one: "
                f"give clip:{source}, vlm:{source} or another KIND:SOURCE"
            )
    with loading(model.name, folder):
        return model.judge_class.from_pretrained(folder).float().to(device)


def bundled_model_of(pipe: DiffusionPipeline) -> BundledModel | None:
    """The bundled model whose weights a pipeline draws with, wherever they were loaded from and in whatever precision.

    Args:
        pipe: Any pipeline; one without a UNet and a VAE draws with no bundled model.
    """
    return next((m for m in bundled_models() if has_weights(pipe, m, "unet") and has_weights(pipe, m, "vae")), None)


def has_weights(pipe: DiffusionPipeline, model: BundledModel, part: str) -> bool:
    """Whether a component of a pipeline has a bundled model's weights.

    Args:
        pipe: Any pipeline.
        model: The bundled model.
        part: The component's name: "unet" or "vae".
    """
    module = getattr(pipe, part, None)
    if not isinstance(module, nn.Module):
        return False
    own = module.state_dict()
    with safe_open(model.weights / part / "diffusion_pytorch_model.safetensors", "pt") as stored:
        return set(stored.keys()) == set(own) and all(_equal(own[name], stored.get_tensor(name)) for name in own)


def _equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    """As bfloat16 numbers, the coarsest precision that a pipeline is loaded in."""
    return one.shape == two.shape and torch.equal(one.detach().cpu().bfloat16(), two.bfloat16())
