"""A LoRA of the trainer (Diffusion-DPO, PopAlign, SafetyDPO), or any other that diffusers reads."""

from __future__ import annotations

from pathlib import Path

from diffusers import DiffusionPipeline

from livo.baselines.weights import WeightEdit
from livo.pipelines.lora import load_lora, lora_modules


class LoRA(WeightEdit):
    """W = W0 + B A for the layers that the LoRA names."""

    method = "LoRA"

    @classmethod
    def read(cls, pipe: DiffusionPipeline, source: str | Path, scale: float = 1.0) -> LoRA:
        """The merged weights of a LoRA for this pipeline, which is left as it was.

        Args:
            pipe: The pipeline that the LoRA was made for.
            source: A .safetensors file, a folder, or a hub id, in any layout that diffusers reads.
            scale: Strength of the update; 1 is the strength that it was trained with.

        Raises:
            ValueError: The LoRA is pickled, damaged or not finite, was made for another model, changes no weight, or also changes a text
                encoder; or the pipeline already holds a LoRA.
        """
        if held := lora_modules(pipe):
            component, names = next(iter(held.items()))
            raise ValueError(
                f"{source}: the pipeline's {component} holds the LoRA {', '.join(names)} already: call unload_lora_weights first"
            )
        own = {name: parameter.data.clone() for name, parameter in pipe.unet.named_parameters()}
        try:
            load_lora(pipe, source)
            if any(component.startswith("text_encoder") for component in lora_modules(pipe)):
                raise ValueError(
                    f"{source}: this LoRA changes the text encoder too; use pipe.load_lora_weights in place of a baseline"
                )
            pipe.fuse_lora(lora_scale=scale)
            merged = {
                name.replace(".base_layer", ""): p.data.clone() for name, p in pipe.unet.named_parameters() if "lora_" not in name
            }
        finally:
            pipe.unload_lora_weights()
            for name, parameter in pipe.unet.named_parameters():
                parameter.data = own[name]
        changed = {name: weight for name, weight in merged.items() if not weight.equal(own[name])}
        if not changed:
            raise ValueError(f"{source}: this LoRA changes no weight: it was not trained, or its scale ({scale:g}) is 0")
        edit = cls(changed, {"source": str(source), "scale": scale})
        edit.check(pipe, str(source))
        return edit
