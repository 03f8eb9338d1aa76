"""What a bug report needs: versions, devices, what they can compute in, and combinations that are known to be bad."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Mapping, Sequence

from packaging.version import Version

PACKAGES = (
    "livo",
    "torch",
    "diffusers",
    "transformers",
    "huggingface-hub",
    "sentence-transformers",
    "faiss-cpu",
    "safetensors",
    "accelerate",
    "peft",
    "numpy",
    "pillow",
)


def versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The installed version of each package, or "not installed".

    Args:
        names: Names of distributions, as pip calls them.
    """
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def devices() -> list[tuple[str, str]]:
    """Each device with what it can compute in, tried out on it, and how fast that is compared with float32."""
    import torch

    found = [("cpu", f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads", torch.device("cpu"))]
    found += [
        (
            f"cuda:{i}",
            f"{torch.cuda.get_device_name(i)}, {torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB",
            torch.device("cuda", i),
        )
        for i in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple", torch.device("mps")))
    return [(name, f"{what}; {', '.join(_dtypes(device))}") for name, what, device in found]


def _dtypes(device) -> list[str]:
    import torch

    from livo.utils.precision import DTYPES, fast, slowdown

    names = []
    for name, dtype in DTYPES.items():
        try:
            x = torch.ones(8, 8, device=device, dtype=getattr(torch, dtype))
            torch.nn.functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None])
        except (RuntimeError, NotImplementedError):
            continue
        speed = ""
        if name != "fp32" and torch.device(device).type == "cpu":
            speed = f" ({slowdown(name):.1f} times as long as float32)"
        elif name not in fast(device):
            speed = " (not known to be fast)"
        names.append(f"{dtype}{speed}")
    return names


def automatic() -> str:
    """What precision auto is on the device that the commands use."""
    import torch

    from livo.utils.precision import fastest

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"auto is {fastest(device)} on {device}"


def known_bad(found: dict[str, str], system: str | None = None, environment: Mapping[str, str] | None = None) -> list[str]:
    """One sentence for each combination that is known to fail, with the remedy.

    `found` is as `versions` gives it; `system` and `environment` are this machine's by default.

    Args:
        found: As `versions` gives it.
        system: As `platform.system` gives it; this machine's by default.
        environment: Environment variables; this process's by default.
    """
    system = system or platform.system()
    environment = os.environ if environment is None else environment
    problems = []

    def has(name: str, below: str | None = None, at_least: str | None = None) -> bool:
        version = found.get(name, "not installed")
        if version == "not installed":
            return False
        release = Version(Version(version).base_version)  # a development version of 0.43 counts as 0.43
        return (below is None or release < Version(below)) and (at_least is None or release >= Version(at_least))

    if has("transformers", below="4.50"):
        problems.append("transformers below 4.50 is not supported: pip install -U transformers")
    if has("diffusers", below="0.42"):
        problems.append("diffusers below 0.42 is not supported: pip install -U diffusers")
    if has("transformers", below="5.0") and has("diffusers", at_least="0.42"):
        problems.append(
            "transformers 4 and diffusers 0.42 ask for different versions of huggingface-hub (below 1.0, and 1.32 or later), so one of "
            "them does not import: pip install -U transformers"
        )
    if has("transformers", at_least="5.6") and has("diffusers", below="0.43"):
        problems.append(
            "clip_skip fails in diffusers' own SD 1.x pipelines beside transformers 5.6 and later (text_model is gone); it works in LiVO's"
        )
    if system == "Darwin" and has("faiss-cpu") and has("torch") and environment.get("OMP_NUM_THREADS") != "1":
        problems.append(
            "faiss-cpu and torch may load two OpenMP runtimes on macOS and crash (faiss#3624): set OMP_NUM_THREADS=1, or install both "
            "from conda-forge"
        )
    if has("peft", below="0.18") and has("transformers", at_least="5.0"):
        problems.append("peft below 0.18 does not import beside transformers 5 (HybridCache, peft#3333): pip install -U peft")
    if has("torchmetrics") and has("transformers", at_least="5.0"):
        problems.append("torchmetrics' CLIPScore fails beside transformers 5 (torchmetrics#3407); LiVO does not use it")
    if has("numpy", at_least="2.0") and has("torch", below="2.3"):
        problems.append("torch below 2.3 was built for numpy 1: pip install -U torch, or 'numpy<2'")
    return problems
