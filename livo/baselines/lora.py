"""A LoRA of the trainer (Diffusion-DPO, PopAlign, SafetyDPO), or any other that diffusers reads."""

from __future__ import annotations

from pathlib import Path

from diffusers import DiffusionPipeline

from livo.baselines.weights import WeightEdit


class LoRA(WeightEdit):
    """W = W0 + B A for the layers that the LoRA names."""

    method = "LoRA"

    @classmethod
    def read(cls, pipe: DiffusionPipeline, folder: str | Path, scale: float = 1.0) -> LoRA:
        """The merged weights of `load_lora_weights(folder)` for this pipeline, which is left as it was.

        Raises:
            ValueError: it changes a text encoder too, which an edit of the UNet cannot hold, or it was made for another UNet.
        """
        own = {name: parameter.data.clone() for name, parameter in pipe.unet.named_parameters()}
        try:
            pipe.load_lora_weights(folder)
            encoders = [
                module for name, module in pipe.components.items() if name.startswith("text_encoder") and module is not None
            ]
            if any("lora_" in name for module in encoders for name, _ in module.named_parameters()):
                raise ValueError(
                    f"{folder}: this LoRA changes the text encoder too; use pipe.load_lora_weights in place of a baseline"
                )
            pipe.fuse_lora(lora_scale=scale)
            merged = {
                name.replace(".base_layer", ""): p.data.clone() for name, p in pipe.unet.named_parameters() if "lora_" not in name
            }
        except RuntimeError as error:
            raise ValueError(f"{folder}: this LoRA was made for another UNet ({str(error).splitlines()[-1].strip()})") from None
        finally:
            pipe.unload_lora_weights()
            for name, parameter in pipe.unet.named_parameters():
                parameter.data = own[name]
        changed = {name: weight for name, weight in merged.items() if not weight.equal(own[name])}
        return cls(changed, {"source": str(folder), "scale": scale})
