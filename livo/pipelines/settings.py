"""What a call of a pipeline draws with: all that is needed to draw its images again, beside the decisions about values."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, wraps
from inspect import signature
from numbers import Integral
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn

from livo.utils.bundled import bundled_models
from livo.utils.hashing import lora_hash, weights_hash
from livo.utils.versions import versions

PACKAGES = ("livo", "torch", "diffusers", "transformers")  # whose versions a record holds
_APART = {"prompt", "generator", "output_type", "return_dict", "callback_on_step_end_tensor_inputs", "num_images_per_prompt"}
_active: WeakKeyDictionary[DiffusionPipeline, list] = WeakKeyDictionary()  # baselines, each within its `on`


def settings_of(pipe: DiffusionPipeline, given: Mapping[str, object], prompts: int) -> list[dict]:
    """For each prompt what its images are drawn with: model, scheduler, arguments, precision, LoRA, baselines and versions.

    `given` are the arguments of the call by name. Images and tensors among them are recorded by a hash of their contents: to draw again,
    give them again.
    """
    arguments = _arguments(type(pipe).base_class, given)
    common = {
        "pipeline": type(pipe).base_class.__name__,
        "model": model_record(pipe),
        "scheduler": scheduler_settings(pipe.scheduler),
        "prompt_padding": pipe.config.prompt_padding,
        "precision": _precision(pipe),
        "lora": lora_record(pipe),
        "baselines": [plain(baseline.record()) for baseline in _active.get(pipe, ())],
        "versions": _versions(),
    }
    return [common | {"call": {name: _for_prompt(value, i, prompts) for name, value in arguments.items()}} for i in range(prompts)]


def checked_draw(given: Mapping[str, object]) -> tuple[int, torch.Generator | list[torch.Generator] | None]:
    """The images of each prompt and the generator that a call's arguments ask for. Raises ValueError where they are none."""
    number, generator = given.get("num_images_per_prompt"), given.get("generator")
    if number is not None and (isinstance(number, bool) or not isinstance(number, Integral) or number < 1):
        raise ValueError(f"num_images_per_prompt is {number!r}: give a whole number from 1 upwards")
    each = generator if isinstance(generator, list) else [] if generator is None else [generator]
    if not all(isinstance(one, torch.Generator) for one in each):
        raise ValueError(f"generator is {generator!r}: give torch.Generator().manual_seed(seed), or a list with one for each image")
    return int(number or 1), generator


def draw_seed(generator: torch.Generator | None, device: torch.device) -> int:
    """A digest of the generator's state, or of the global one's on `device`. Neither is advanced, but each call's noise advances it."""
    read_global = getattr(getattr(torch, device.type), "get_rng_state", torch.get_rng_state)
    state = read_global() if generator is None else generator.get_state()
    return int.from_bytes(hashlib.sha256(state.cpu().numpy().tobytes()).digest()[:8], "little")


def noise_of(generator, images: int, device: torch.device) -> list[dict]:
    """For each image what its noise is drawn from: `seed`, `image` (its number among those that share the generator), and `generator`.

    The latter holds the generator's device, the number of `images` that share it, and its `state` where the seed alone would not give it.
    Without a generator it is the global one of `device`, which is read and not advanced.
    """
    if isinstance(generator, (list, tuple)):
        return [noise_of(one, 1, device)[0] for one in generator]
    generator = _global(device) if generator is None else generator
    seed, state = generator.initial_seed(), generator.get_state()
    fresh = torch.Generator(generator.device).manual_seed(seed).get_state()
    packed = None if state.equal(fresh) else base64.b64encode(zlib.compress(state.cpu().numpy().tobytes(), 9)).decode()
    about = {"device": generator.device.type, "images": images, "state": packed}
    return [{"seed": seed, "image": i, "generator": about} for i in range(images)]


def size_of(image, factor: int) -> list[int]:
    """Width and height in pixels of an image of any `output_type`; a latent has a pixel for each `factor`."""
    if isinstance(image, Image.Image):
        return list(image.size)
    if isinstance(image, np.ndarray):
        return [image.shape[1], image.shape[0]]
    scale = factor if image.shape[0] > 3 else 1
    return [scale * image.shape[2], scale * image.shape[1]]


def generator_of(record: Mapping) -> torch.Generator:
    """The generator of a recorded image, in the state in which its call began."""
    about = record["settings"]["generator"]
    generator = torch.Generator(about["device"]).manual_seed(record["seed"])
    if about["state"] is not None:
        state = zlib.decompress(base64.b64decode(about["state"]))
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    return generator


def noted(
    on: Callable[[Any, DiffusionPipeline], AbstractContextManager[None]],
) -> Callable[[Any, DiffusionPipeline], AbstractContextManager[None]]:
    """For a baseline's `on`: within it, the records of the pipeline's images name the baseline."""

    @wraps(on)
    @contextmanager
    def both(self, pipe: DiffusionPipeline) -> Iterator[None]:
        with on(self, pipe):
            _active.setdefault(pipe, []).append(self)
            try:
                yield
            finally:
                _active[pipe].remove(self)

    return both


def model_record(pipe: DiffusionPipeline) -> dict:
    """The model's hub id and commit; without a commit, the last part of its path and the hash of each component's weights."""
    name = str(pipe.config.get("_name_or_path") or "")
    modules = {
        name: module
        for name, module in pipe.components.items()
        if isinstance(module, nn.Module) and not name.startswith(("value_encoder", "safety_checker"))
    }
    known = {_commit(name, module) for module in modules.values()}
    if len(known) == 1 and None not in known and not getattr(pipe, "fused_loras", None):
        return {"name": name, "revision": known.pop()}
    weights = {component: weights_hash(module) for component, module in modules.items()}
    return {"name": name if _hub_id(name) else _short(name), "weights": weights}


def lora_record(pipe: DiffusionPipeline) -> list[dict]:
    """The LoRAs that act: the name of each, its scale (a list where layers differ), and the hash of its weights."""
    scales: dict[str, set[float]] = {}
    modules = {name: module for name, module in pipe.components.items() if hasattr(module, "peft_config")}
    for layer in (layer for module in modules.values() for layer in module.modules() if hasattr(layer, "lora_A")):
        for name in () if layer.disable_adapters else layer.active_adapters:
            if name in layer.scaling:
                rank = layer.r[name] ** 0.5 if layer.use_rslora.get(name) else layer.r[name]
                scales.setdefault(name, set()).add(round(layer.scaling[name] * rank / layer.lora_alpha[name], 6))
    fused = getattr(pipe, "fused_loras", None) or ()
    found = [
        {"name": name, "scale": min(scale) if len(scale) == 1 else sorted(scale), "weights": lora_hash(modules, name)}
        for name, scale in sorted(scales.items())
    ]
    return found + [{"name": name, "fused": True} for name in sorted(fused) if name not in scales]


def plain(value: object) -> object:
    """`value` as JSON has it; images and arrays as a hash of their contents, other objects as the name of their class."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (torch.Tensor, np.ndarray, Image.Image)):
        array = value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        return {"sha256": hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16], "shape": list(array.shape)}
    if isinstance(value, (Sequence, set, frozenset)):
        return [plain(item) for item in value]
    return getattr(value, "__name__", type(value).__name__)


def _arguments(base: type[DiffusionPipeline], given: Mapping[str, object]) -> dict[str, object]:
    defaults = {name: p.default for name, p in _parameters(base).items() if p.default is not p.empty}
    chosen = {name: value for name, value in (defaults | dict(given)).items() if name not in _APART and value is not None}
    return {name: plain(value) for name, value in chosen.items()}


def _for_prompt(value: object, i: int, prompts: int) -> object:
    """A text of its own for each prompt is that prompt's."""
    own = isinstance(value, list) and len(value) == prompts and all(isinstance(item, str) for item in value)
    return value[i] if own else value


def scheduler_settings(scheduler) -> dict[str, object]:
    """Its class and what differs from the class's defaults."""
    defaults = {name: p.default for name, p in signature(type(scheduler).__init__).parameters.items()}
    config = {name: value for name, value in scheduler.config.items() if name in defaults and value != defaults[name]}
    return {"class": type(scheduler).__name__, **plain(config)}


def _precision(pipe: DiffusionPipeline) -> dict[str, str | None]:
    device = pipe._execution_device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    names = [None if dtype is None else str(dtype).removeprefix("torch.") for dtype in (pipe.unet.dtype, autocast)]
    return {"device": device, "weights": names[0], "autocast": names[1]}


def _global(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.mps._get_default_mps_generator() if device.type == "mps" else torch.default_generator


def _commit(model: str, module: nn.Module) -> str | None:
    """The commit of the hub repository `model` that the module was loaded from."""
    config = getattr(module, "config", None)
    path = str(getattr(module, "name_or_path", "") or (config.get("_name_or_path", "") if isinstance(config, Mapping) else ""))
    found = re.search(rf"models--{re.escape(model.replace('/', '--'))}/snapshots/([0-9a-f]{{40}})(/|$)", path)
    return found[1] if found and Path(path).is_dir() else None


def _hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _short(path: str) -> str:
    """A local path means nothing to others: its last part, or the bundled model's name."""
    return next((model.name for model in bundled_models() if model.weights == Path(path)), Path(path).name)


@cache
def _parameters(base: type[DiffusionPipeline]) -> Mapping:
    return {name: p for name, p in signature(base.__call__).parameters.items() if name not in ("self", "kwargs")}


@cache
def _versions() -> dict[str, str]:
    return versions(PACKAGES)


def scheduler_record(scheduler) -> dict[str, str]:
    """A scheduler's class and settings, plain: images and losses depend on them as on weights."""
    settings = {name: str(value) for name, value in scheduler.config.items() if not name.startswith("_")}  # -inf is no JSON
    return {"class": type(scheduler).__name__} | settings
