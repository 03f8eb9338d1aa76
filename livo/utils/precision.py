"""The precision of a computation: one setting, resolved from what the device can do, reported once and recorded with the result.

On a CPU without bfloat16 instructions bfloat16 autocast takes over ten times as long as float32; on a CPU with them, half as long.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from livo.utils.files import write_json
from livo.utils.logs import warn_once

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
HELP = "auto is the fastest that this device computes well in; the others are autocast of float32 weights"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_INSTRUCTIONS = {  # torch.cpu's names; oneDNN emulates bfloat16 with AVX-512 alone, which takes 1.5 times as long as float32
    "bf16": ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
_FASTER = 0.9  # share of float32's time below which a measured precision is fast: instructions give about 0.7
_SECONDS = 0.25  # of a probe, beside its first calls

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """What was asked for, and what it is here: fp32, bf16 or fp16. `weights` is the precision that the weights are stored in."""

    asked: str
    resolved: str
    weights: str = "fp32"

    def autocast(self, device) -> AbstractContextManager:
        """The context to compute in. Weights that are stored in this precision need none."""
        import torch

        if self.resolved == self.weights:
            return nullcontext()
        return torch.autocast(torch.device(device).type, getattr(torch, DTYPES[self.resolved]))

    def record(self) -> dict[str, str]:
        """What a run and a result say of it."""
        return {"asked": self.asked, "resolved": self.resolved}


def resolve(asked: str, device, *, weights: str = "fp32", fp16: bool = True, file: Path | None = None) -> Precision:
    """The precision to use on `device`.

    Args:
        asked: auto, fp32, bf16 or fp16. auto is what `file` records, else that of half-precision weights, else the fastest.
        device: Where the computation runs: a torch.device or its name.
        weights: The precision that the weights are stored in.
        fp16: Whether auto may choose fp16, whose range is too small for gradients and for some VAEs.
        file: A JSON file that records the precision of what was made so far, if it is there: precisions are never mixed.

    Raises:
        ValueError: `asked` is no precision, differs from what `file` records, or cannot be had with these weights.
    """
    import torch

    if asked not in PRECISIONS:
        raise ValueError(f"precision is {asked!r}: choose one of {', '.join(PRECISIONS)}")
    if asked == "fp32" and weights != "fp32":
        raise ValueError(f"precision is fp32, but the weights are {weights}: load them in float32, or leave precision at auto")
    device = torch.device(device)
    before = recorded(file) if file is not None else None
    chosen = asked
    if asked == "auto":
        own = weights if weights != "fp32" else fastest(device, fp16)
        chosen = before or own
    if file is not None and before is not None and chosen != before:
        raise ValueError(f"{file.parent} was started in {before}, not {asked}: give precision auto or {before}, or another folder")
    if asked == "auto":
        _report(chosen, str(device), resumed=chosen != own)
    warn_if_slow(chosen, device)
    return Precision(asked, chosen, weights)


def for_pipeline(asked: str, pipe, *, file: Path | None = None) -> Precision:
    """`resolve` for images from a diffusers pipeline, from its device and the weights of its denoiser.

    Args:
        asked: As for `resolve`.
        pipe: The pipeline that draws.
        file: As for `resolve`.

    Raises:
        ValueError: see `resolve`.
    """
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    dtype = str(getattr(denoiser, "dtype", "torch.float32")).removeprefix("torch.")
    weights = next((name for name, known in DTYPES.items() if known == dtype), "fp32")
    config = getattr(getattr(pipe, "vae", None), "config", None)
    overflows = bool(getattr(config, "force_upcast", False))  # SDXL's VAE: its activations exceed what fp16 holds
    return resolve(asked, pipe.device, weights=weights, fp16=not overflows, file=file)


def settle(folder: Path, asked: str, device, *, fp16: bool = True) -> Precision:
    """`resolve` for all that is made below `folder`, whose precision.json keeps it.

    Args:
        folder: What is made lies below it.
        asked: As for `resolve`.
        device: Where the work runs.
        fp16: Whether float16 may be chosen.

    Raises:
        ValueError: see `resolve`.
    """
    file = folder / "precision.json"
    found = resolve(asked, device, fp16=fp16, file=file)
    write_json(file, {"precision": found.record()})
    return found


def recorded(file: Path) -> str | None:
    """The resolved precision that a JSON file records, or None. Runs from before `precision` say bf16 or mixed_precision.

    Args:
        file: A JSON file, which may be missing.
    """
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(found := content.get("precision"), dict):
        return found["resolved"]
    if "mixed_precision" in content:
        return content["mixed_precision"].replace("no", "fp32")
    return {True: "bf16", False: "fp32"}.get(content.get("bf16"))


def fast(device) -> tuple[str, ...]:
    """The precisions in which `device` is at least as fast as in float32.

    Args:
        device: A torch device or its name.
    """
    import torch

    device = torch.device(device)
    if device.type == "cpu":
        return ("fp32", *(name for name in ("bf16", "fp16") if _computes_in(name)))
    if device.type == "cuda":  # is_bf16_supported() is True where bfloat16 is emulated
        major = 9 if torch.version.hip else torch.cuda.get_device_capability(device)[0]
        return ("fp32", *["bf16"] * (major >= 8), *["fp16"] * (major >= 7))
    return ("fp32",)  # on mps fp16 gives black images with some versions, and bf16 needs macOS 14


@lru_cache
def slowdown(name: str) -> float:
    """How many times as long as in float32 a small UNet block takes on one thread of this CPU, measured in less than half a second.

    Args:
        name: A precision.
    """
    import torch

    block, threads = _block(), torch.get_num_threads()
    times = {"fp32": float("inf"), name: float("inf")}
    torch.set_num_threads(1)  # several wait for each other where the machine is busy
    try:
        for each in times:  # the first call prepares kernels
            _timed(block, each)
        end = time.perf_counter() + _SECONDS
        while times[name] == float("inf") or time.perf_counter() < end:  # by turns, and the fastest of each counts
            for each, best in times.items():
                times[each] = min(best, _timed(block, each))
    finally:
        torch.set_num_threads(threads)
    return times[name] / times["fp32"]


def warn_if_slow(name: str, device) -> None:
    """Warn once, with the factor measured on this machine, where `device` is slower in this precision than in float32.

    Args:
        name: A precision.
        device: Where the work runs.
    """
    import torch

    device = torch.device(device)
    if name in fast(device):
        return
    if device.type != "cpu":
        warn_once(logger, "%s may be slow on %s, which is not known to have instructions for it", name, device.type)
    elif (factor := slowdown(name)) > 1:
        warn_once(logger, "%s takes %.1f times as long as fp32 on this CPU, which has no instructions for it", name, factor)


def fastest(device, fp16: bool = True) -> str:
    """What auto is on `device`: bf16 before fp16, whose range is smaller. On a CPU fp16 is never chosen: hardly any computes in it.

    Args:
        device: A torch device or its name.
        fp16: Whether float16 may be chosen.
    """
    import torch

    names = fast(device)
    if "bf16" in names:
        return "bf16"
    return "fp16" if fp16 and torch.device(device).type == "cuda" and "fp16" in names else "fp32"


@lru_cache
def _computes_in(name: str) -> bool:
    """Whether this CPU has instructions for it and the build uses them; measured where PyTorch cannot tell."""
    import torch

    try:
        if not getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")():
            return False
        known = None if "ONEDNN_MAX_CPU_ISA" in os.environ else torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):  # a build without oneDNN, or PyTorch below 2.10
        known = None
    if known is None:
        return slowdown(name) < _FASTER
    return any(known.get(instruction) for instruction in _INSTRUCTIONS[name])


@lru_cache
def _report(chosen: str, device: str, resumed: bool) -> None:
    logger.info("precision auto is %s on %s%s", chosen, device, ", as in the run that is resumed" if resumed else "")


def _block():
    """A convolution, attention and a feed-forward layer, at a small UNet's size."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    image, kernel, wide, narrow = (
        torch.randn(shape, generator=generator) for shape in ((2, 128, 8, 8), (128, 128, 3, 3), (512, 128), (128, 512))
    )

    def block():
        hidden = F.conv2d(F.silu(F.group_norm(image, 8)), kernel, padding=1)
        hidden = hidden.flatten(2).transpose(1, 2)
        heads = hidden.unflatten(2, (4, -1)).transpose(1, 2)
        hidden = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        return F.linear(F.gelu(F.linear(F.layer_norm(hidden, (128,)), wide)), narrow)

    return block


def _timed(block, name: str) -> float:
    """Seconds of this thread alone, where the clock is fine enough: what other processes take of the CPU does not count."""
    import torch

    clock = time.perf_counter if os.name == "nt" else time.thread_time
    start = clock()
    with torch.no_grad(), torch.autocast("cpu", getattr(torch, DTYPES[name]), enabled=name != "fp32"):
        block()
    return clock() - start
