"""`weights_hash`: the one identifier of a module's weights, used by every record, result, cache and model card.

It is the first 16 hex digits of SHA-256 over the sorted parameter names and their values as float32. Half precision widens to float32
exactly, so weights that were stored in half precision have one identifier in every dtype that holds them. The prefix `text_model.`, which
depends on the version of transformers, and an unfused LoRA do not count. Every changed weight changes it.

A `ValueEncoder` that is loaded in, or converted to, a narrower dtype than its file keeps the identifier of the file; the record of an image
names the dtype beside it. A copy that is saved in the narrower dtype has an identifier of its own, unless the rounding was exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import nn

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_KEPT = 8  # identifiers remembered of one module: an edit of its weights comes and goes with every batch
_known: WeakKeyDictionary[nn.Module, dict[int, str]] = WeakKeyDictionary()  # identifiers by checksum, the latest last


def weights_hash(module: nn.Module) -> str | None:
    """The identifier of the module's weights; None where they are offloaded and it was not known before.

    It is computed once, and again when a checksum of all weights changes: writing through `parameter.data` is seen too.
    """
    inner = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    tensors = dict(_named(inner.state_dict()))
    known = _known.get(inner, {})
    if any(tensor.is_meta for tensor in tensors.values()):
        return next(reversed(known.values()), None)
    checksum = _checksum(tensors)
    return _remember(inner, checksum, known.get(checksum) or tensors_hash(tensors))


def keep_hash(module: nn.Module, identifier: str) -> None:
    """Make `weights_hash` return this identifier until the weights change.

    Args:
        module: Any module.
        identifier: As `weights_hash` gave it for the weights that were loaded.
    """
    _remember(module, _checksum(dict(_named(module.state_dict()))), identifier)


def _remember(module: nn.Module, checksum: int, identifier: str) -> str:
    before = {key: value for key, value in _known.get(module, {}).items() if key != checksum}
    _known[module] = dict([*before.items(), (checksum, identifier)][-_KEPT:])
    return identifier


def stored_hash(module: nn.Module) -> str:
    """The identifier that a copy of the module has when it is saved now: another one where the module was narrowed."""
    return tensors_hash(dict(_named(module.state_dict())))


def lora_hash(modules: Mapping[str, nn.Module], adapter: str) -> str:
    """The same for the weights of the LoRA `adapter` in modules by component name; the adapter's name does not count.

    Args:
        modules: Modules by component name.
        adapter: The LoRA's name in them.
    """
    found = {}
    for component, module in modules.items():
        for name, tensor in module.state_dict().items():
            layer, _, rest = name.partition(".lora_")
            kind, *owner = rest.split(".")
            if owner[:1] == [adapter]:
                found[f"{component}.{layer}.lora_{kind}"] = tensor
    return tensors_hash(found)


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """The same for tensors by name.

    Args:
        tensors: Tensors by name.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _named(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a state dict, a backbone's without the LoRA that stands beside them."""
    for name, tensor in state.items():
        if ".lora_" not in name:
            yield name.removeprefix("text_model.").replace(".base_layer", ""), tensor


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    """A sum over the bits of all weights, weighted by row: one pass over memory, and one number from each device."""
    parts: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors.values():
        rows = tensor.detach().reshape(len(tensor) if tensor.dim() else 1, -1).contiguous()
        whole = rows.shape[1] * rows.element_size() % 8 == 0  # sums of int64 are fast, those of narrower integers are not
        sums = rows.view(torch.int64 if whole else _BITS[rows.element_size()]).sum(-1, dtype=torch.int64)
        parts.setdefault(tensor.device, []).append((sums * torch.arange(1, len(sums) + 1, device=sums.device)).sum())
    return hash(tuple(number for sums in parts.values() for number in torch.stack(sums).tolist()))
