"""Checks of weight files: only safetensors, only floating-point numbers, and finite in the precision in which they are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_FLOATS = {"F64", "F32", "F16", "BF16"}  # as a safetensors header names them
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


def refuse_pickle(source: str | Path | object) -> None:
    """Raise ValueError where `source` names a pickled file, or is a folder whose weights are all pickled. Reading one can run code.

    Args:
        source: A file or folder; anything else passes.
    """
    if not isinstance(source, (str, Path)):
        return
    path = Path(source)
    there = list(path.iterdir()) if path.is_dir() else [path]
    pickled = sorted(file.name for file in there if file.suffix.lower() in PICKLED)
    if pickled and not any(file.suffix == ".safetensors" for file in there):
        what = f"{source}: {pickled[0]} is" if path.is_dir() else f"{source} is"
        raise ValueError(
            f"{what} pickled, and reading a pickle can run code: give a .safetensors file (convert one that you trust with "
            "safetensors.torch.save_file)"
        )


def read_tensors(file: str | Path, name: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, checked by `check_tensors`. `name` is what errors call it, by default the file.

    Args:
        file: A safetensors file.
        name: What errors call it; the file by default.

    Raises:
        FileNotFoundError: no such file. ValueError: it is pickled or damaged, or holds weights that no image can be drawn with.
    """
    name = name or str(file)
    refuse_pickle(file)
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such file; give a .safetensors file")
    check_header(file, name)
    tensors = load_file(file)
    check_tensors(tensors, name)
    return tensors


def check_readable(file: str | Path, name: str) -> dict[str, str]:
    """The dtypes of a safetensors file by tensor, as its header names them. Raises ValueError unless the file is whole.

    Args:
        file: A safetensors file.
        name: What errors call it.
    """
    try:
        with safe_open(file, framework="pt") as header:
            kinds = {key: header.get_slice(key).get_dtype() for key in header.keys()}  # noqa: SIM118 (it is not a mapping)
    except SafetensorError as error:
        with open(file, "rb") as content:
            pointer = content.read(40).startswith(b"version https://git-lfs")
        why = (
            "a Git LFS pointer, not the weights: run git lfs pull"
            if pointer
            else f"no safetensors file, or a damaged one ({error})"
        )
        raise ValueError(f"{name}: {why}" + ("" if pointer else "; save or download it again")) from None
    if not kinds:
        raise ValueError(f"{name}: holds no weights; save or download it again")
    return kinds


def check_header(file: str | Path, name: str) -> None:
    """Raise ValueError unless `file` is a whole safetensors file of floating-point weights; the tensors are not read.

    Args:
        file: A safetensors file.
        name: What errors call it.
    """
    for key, kind in check_readable(file, name).items():
        if kind not in _FLOATS and not key.endswith("position_ids"):
            raise ValueError(_not_floating(name, key, kind))


def check_tensors(tensors: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype | None = None) -> None:
    """Raise ValueError unless the tensors are finite floating-point numbers, and stay finite in `dtype`. Offloaded ones are passed over.

    Args:
        tensors: Tensors by name.
        name: What errors call them.
        dtype: The precision that they are used in, if it is another one.
    """
    for key, tensor in tensors.items():
        if key.endswith("position_ids") or tensor.is_meta or not tensor.numel():
            continue
        if tensor.dtype not in _DTYPES:
            raise ValueError(_not_floating(name, key, str(tensor.dtype).removeprefix("torch.")))
        low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))  # one pass, and NaN comes through
        if not (low > -float("inf") and high < float("inf")):
            raise ValueError(
                f"{name}: {key} is not finite (NaN or infinity), so no image can be drawn with it: train or download it again"
            )
        if dtype is not None and max(-low, high) > torch.finfo(dtype).max:
            what = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"{name}: {key} holds {max(-low, high):.3g}, and {what} ends at {torch.finfo(dtype).max:.3g}, so it would become "
                "infinite: load the pipeline with dtype=torch.bfloat16 or torch.float32"
            )


def check_module(module: nn.Module, name: str, dtype: torch.dtype | None = None) -> None:
    """`check_tensors` of a module's parameters; a quantised one is passed over.

    Args:
        module: Any module.
        name: What errors call it.
        dtype: As for `check_tensors`.
    """
    if getattr(module, "hf_quantizer", None) is None:
        check_tensors(dict(module.named_parameters()), name, dtype)


def _not_floating(name: str, key: str, kind: str) -> str:
    return f"{name}: {key} is {kind}, not floating point: save the weights as float32, float16 or bfloat16 (quantised ones are not read)"
