"""CheckedLoading: what diffusers loads with a warning at most, or from a pickle, is loaded whole and from safetensors, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from livo.pipelines.lora import load_lora, lora_modules
from livo.utils.weights import check_tensors, read_tensors, refuse_pickle


class CheckedLoading:
    """Adapters for a pipeline with values. Each method raises ValueError for pickled files; the rest is the base class's own code."""

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict, adapter_name: str | None = None, hotswap: bool = False, **kwargs
    ) -> None:
        """See the base class. All of the LoRA must arrive.

        Raises:
            ValueError: a key of it belongs to no layer of this pipeline, or a weight is not finite; the pipeline is as it was.
        """
        load_lora(self, pretrained_model_name_or_path_or_dict, adapter_name, hotswap=hotswap, **kwargs)

    def load_textual_inversion(self, pretrained_model_name_or_path, *args, **kwargs) -> None:
        """See the base class. Raises ValueError also where an embedding is not finite."""
        given = pretrained_model_name_or_path
        for source in given if isinstance(given, list) else [given]:
            refuse_pickle(kwargs.get("weight_name") or source)
            if isinstance(source, (dict, torch.Tensor)):
                tensors = source if isinstance(source, dict) else {"embedding": source}
                check_tensors({k: v for k, v in tensors.items() if isinstance(v, torch.Tensor)}, "the textual inversion")
                continue
            file = Path(source)
            if file.is_dir():
                file = file / (kwargs.get("subfolder") or "") / (kwargs.get("weight_name") or "learned_embeds.safetensors")
            if file.is_file():
                read_tensors(file)
        super().load_textual_inversion(given, *args, **{**kwargs, "use_safetensors": True})

    def load_ip_adapter(self, pretrained_model_name_or_path_or_dict, *args, **kwargs) -> None:
        """See the base class."""
        names = kwargs.get("weight_name") or (args[1] if len(args) > 1 else None)
        for name in names if isinstance(names, list) else [names]:
            refuse_pickle(name)
        super().load_ip_adapter(pretrained_model_name_or_path_or_dict, *args, **kwargs)

    def _refuse_lora(self, what: str) -> None:
        """Raise ValueError where layers are wrapped for a LoRA: the backbone's weights would have names that no loader knows."""
        for component, names in lora_modules(self).items():
            raise ValueError(
                f"the pipeline's {component} holds the LoRA {', '.join(names)}, and {what} now it would load with random weights: call "
                "fuse_lora and then unload_lora_weights to keep its effect, or unload_lora_weights alone to leave it out"
            )

    def _check_texts(self, given: Mapping[str, object]) -> None:
        """Raise ValueError where `given`, the arguments of `encode_prompt`, hold texts that no text encoder is there to read."""
        if self.text_encoder is not None or getattr(self, "text_encoder_2", None) is not None:
            return
        needed = ["prompt_embeds"] + ["negative_prompt_embeds"] * bool(given.get("do_classifier_free_guidance"))
        if lacking := [name for name in needed if given.get(name) is None]:
            raise ValueError(
                f"the pipeline has no text_encoder: pass {' and '.join(lacking)}, or load the pipeline with its text encoder"
            )


def refuse_single_file(source: str | Path, loader: str) -> None:
    """Raise ValueError where `source` is one file: it holds no configuration, as a folder or a hub repository does."""
    if Path(source).is_dir():
        return
    refuse_pickle(source)
    if Path(source).is_file() or str(source).endswith(".safetensors"):
        raise ValueError(
            f"{source} is a single file: load it with {loader}.from_single_file; its save_pretrained makes a folder of it"
        )
