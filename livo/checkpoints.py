"""CheckedLoading: what diffusers loads with a warning at most, or from a pickle, is loaded whole and from safetensors, or refused."""

from __future__ import annotations

from pathlib import Path

import torch

from livo.lora import load_lora
from livo.weights import check_tensors, refuse_pickle


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
        """See the base class."""
        given = pretrained_model_name_or_path
        for source in given if isinstance(given, list) else [given]:
            refuse_pickle(kwargs.get("weight_name") or source)
            if isinstance(source, (dict, torch.Tensor)):
                tensors = source if isinstance(source, dict) else {"embedding": source}
                check_tensors({k: v for k, v in tensors.items() if isinstance(v, torch.Tensor)}, "the textual inversion")
        super().load_textual_inversion(given, *args, **{**kwargs, "use_safetensors": True})

    def load_ip_adapter(self, pretrained_model_name_or_path_or_dict, *args, **kwargs) -> None:
        """See the base class."""
        names = kwargs.get("weight_name") or (args[1] if len(args) > 1 else None)
        for name in names if isinstance(names, list) else [names]:
            refuse_pickle(name)
        super().load_ip_adapter(pretrained_model_name_or_path_or_dict, *args, **kwargs)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **kwargs):
        """See the base class."""
        refuse_pickle(pretrained_model_link_or_path)
        return super().from_single_file(pretrained_model_link_or_path, **kwargs)
