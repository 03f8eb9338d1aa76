"""Loading a LoRA so that all of it arrives: diffusers leaves out what it does not know, with a warning at most."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_peft_available, logging
from huggingface_hub import hf_hub_download, list_repo_files
from torch import nn

from livo.utils.weights import check_tensors, read_tensors, refuse_pickle

_DEFAULT = "pytorch_lora_weights.safetensors"
_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")  # where a file is found


def load_lora(
    pipe: DiffusionPipeline, source: str | Path | Mapping[str, torch.Tensor], adapter_name: str | None = None, **kwargs
) -> str:
    """`load_lora_weights` of the pipeline's diffusers class, and the name of the adapter.

    Args:
        source: A .safetensors file, a folder, a hub id, or a state dict, in any layout that diffusers reads.
        **kwargs: Those of `load_lora_weights`.

    Raises:
        ValueError: it is pickled, damaged or not finite, or some of its keys belong to no layer of the pipeline; the pipeline is as it was.
    """
    if not is_peft_available():
        raise ValueError("a LoRA needs the package peft: pip install livo[train]")
    file, state = _read(source, kwargs)
    where = "the LoRA" if file is None else str(file)
    before = lora_modules(pipe)
    known = {name for names in before.values() for name in names}
    number = next(i for i in range(len(known) + 1) if f"default_{i}" not in known)
    name = adapter_name or f"default_{number}"
    if name in known and not kwargs.get("hotswap"):
        raise ValueError(f"adapter_name is {name!r}, and the pipeline has that LoRA already: give another name")
    _check_pairs(state, where)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what it warns of is an error here
    try:
        _base(pipe).load_lora_weights(pipe, dict(state) if file is None else str(file), adapter_name=name, **kwargs)
        _check_arrived(pipe, state, name, where)
    except Exception as error:  # diffusers' converters raise whatever a malformed key leads to
        if not kwargs.get("hotswap"):
            _take_out(pipe, name, alone=not before)
        if isinstance(error, ValueError) and str(error).startswith(where):
            raise
        if (stray := _stray(pipe, state)) is not None:
            raise ValueError(_no_layer(pipe, where, stray)) from error
        reason = str(error).strip().splitlines() or [""]
        what = f"{type(error).__name__}: {reason[-1].strip():.200}"
        raise ValueError(f"{where}: this LoRA was made for another model, or diffusers cannot read it ({what})") from error
    finally:
        logging.set_verbosity(verbosity)
    return name


def lora_modules(pipe: DiffusionPipeline) -> dict[str, list[str]]:
    """By component, the names of the adapters that its layers are wrapped for, fused, disabled or active; empty where there are none."""
    if not is_peft_available():
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        component: sorted(getattr(module, "peft_config", None) or {})
        for component, module in pipe.components.items()
        if isinstance(module, nn.Module) and any(isinstance(layer, BaseTunerLayer) for layer in module.modules())
    }


def _read(source, kwargs: dict) -> tuple[Path | None, Mapping[str, torch.Tensor]]:
    """The file that `source` stands for, None for a state dict, and its tensors. Takes out of `kwargs` what says where it is."""
    where = {key: kwargs.pop(key) for key in (*_HUB, "subfolder", "weight_name", "use_safetensors", "proxies") if key in kwargs}
    if where.get("use_safetensors") is False:
        raise ValueError("use_safetensors is False: weights are safetensors here, never pickle")
    if isinstance(source, Mapping):
        if not source:
            raise ValueError("the LoRA: it holds no weights, so it would do nothing")
        check_tensors(source, "the LoRA")
        return None, source
    refuse_pickle(where.get("weight_name") or source)
    path, weight_name = Path(source), where.get("weight_name")
    if path.is_dir():
        path = path / (where.get("subfolder") or "")
        refuse_pickle(path)
        there = sorted(file.name for file in path.glob("*.safetensors"))
        file = path / (weight_name or _only(there, str(path)))
    elif path.exists() or path.suffix == ".safetensors" or path.is_absolute():
        file = path
    else:
        hub = {key: where[key] for key in _HUB if key in where}
        if weight_name is None:
            weight_name = _only([name for name in list_repo_files(str(source)) if name.endswith(".safetensors")], str(source))
        file = Path(hf_hub_download(str(source), weight_name, subfolder=where.get("subfolder"), **hub))
    return file, read_tensors(file)


def _only(names: list[str], where: str) -> str:
    if _DEFAULT in names:
        return _DEFAULT
    if len(names) != 1:
        what = f"several .safetensors files ({', '.join(names[:3])})" if names else "no .safetensors file"
        raise ValueError(f"{where}: holds {what}; name one with weight_name, or give its path")
    return names[0]


def _base(pipe: DiffusionPipeline) -> type[DiffusionPipeline]:
    """The diffusers class of a pipeline with values or without."""
    return getattr(pipe, "base_class", type(pipe))


def _no_layer(pipe: DiffusionPipeline, where: str, key: str) -> str:
    return f"{where}: {key} belongs to no layer of this {_base(pipe).__name__}: use a LoRA that was made for this model"


_HALVES = (
    ("lora_down", "lora_up"),
    ("lora_A", "lora_B"),
    ("lora.down", "lora.up"),
    ("lora_linear_layer.down", "lora_linear_layer.up"),
)


def _check_pairs(state: Mapping[str, torch.Tensor], where: str) -> None:
    for key in state:
        for pair in _HALVES:
            for one, other in (pair, pair[::-1]):
                if one in key and (partner := key.replace(one, other)) not in state:
                    raise ValueError(f"{where}: {key} is there and {partner} is not: save or download it again")


def _stray(pipe: DiffusionPipeline, state: Mapping[str, torch.Tensor]) -> str | None:
    """The first key that names no layer of the pipeline, as far as its layout spells the names of diffusers."""
    known = {
        f"{component}.{name}".replace(".", "_")
        for component, module in pipe.components.items()
        if isinstance(module, nn.Module)
        for name, _ in module.named_modules()
    }
    for key in state:
        stem = key.split(".")[0].removeprefix("lora_") if key.startswith("lora_") else key.split(".lora")[0].replace(".", "_")
        if any(block in stem for block in ("input_blocks", "middle_block", "output_blocks", "processor")):
            return None
        stem = stem.replace("te_text_model", "text_encoder").replace("text_encoder_text_model", "text_encoder")
        if stem not in known and not stem.startswith(("te1", "te2", "text_encoder")):
            return key
    return None


def _check_arrived(pipe: DiffusionPipeline, state: Mapping[str, torch.Tensor], name: str, where: str) -> None:
    """Raise ValueError unless every weight of the file is in the adapter `name`, and nothing else is.

    Weights are compared by content, because diffusers renames the keys of every layout that it reads.
    """
    loaded = {
        f"{component}.{key}": parameter.detach()
        for component, module in pipe.components.items()
        if isinstance(module, nn.Module)
        for key, parameter in module.named_parameters()
        if f".{name}." in f"{key}." and ("lora_" in key or "lokr_" in key)
    }
    contents = Counter(_digest(parameter) for parameter in loaded.values() if not parameter.is_meta)
    dtypes = {parameter.dtype for parameter in loaded.values()}
    for key, tensor in state.items():
        if key.endswith((".alpha", "_alpha")):
            continue
        found = next((digest for dtype in dtypes if contents[digest := _digest(tensor.to(dtype))]), None)
        if found is None and key.endswith("dora_scale"):
            raise ValueError(
                f"{where}: {key}: diffusers leaves the scales of a DoRA out and draws something else: use a LoRA without them"
            )
        if found is None:
            raise ValueError(_no_layer(pipe, where, key))
        contents[found] -= 1
    if any(contents.values()) or any(parameter.is_meta for parameter in loaded.values()):
        raise ValueError(f"{where}: the pipeline has layers for it that the file does not fill: save or download it again")
    check_tensors(loaded, f"{where} in the pipeline's precision")


def _digest(tensor: torch.Tensor) -> bytes:
    values = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha1(values.view(torch.uint8).numpy().tobytes() + str(values.dtype).encode()).digest()


def _take_out(pipe: DiffusionPipeline, name: str, alone: bool) -> None:
    """Remove what was loaded of the adapter `name`; with `alone` there was no other, and no layer stays wrapped."""
    if alone:
        pipe.unload_lora_weights()
        return
    for component, names in lora_modules(pipe).items():
        if name in names:
            module = getattr(pipe, component)
            (getattr(module, "delete_adapters", None) or module.delete_adapter)(name)
