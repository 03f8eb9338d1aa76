"""The long half of an evaluation: prompts x methods x seeds -> images -> judges -> readings on disk.

`livo.evaluation.results` has the figures. Work is cut into units of whole prompts. A unit's readings are one file that appears
whole or not at all, and what is in it follows from its prompts alone; so an interrupted evaluation resumes, and
processes can share the units.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import safe_open, save_file

from livo.evaluation.judges import Judge, broken, judge_all
from livo.evaluation.method import Method, Settings, digest
from livo.evaluation.metrics import clip_score
from livo.pipelines.ledger import ValueLedger
from livo.pipelines.mixin import ValueMixin
from livo.pipelines.settings import lora_record, scheduler_record
from livo.pipelines.stable_diffusion import refuse_safety_checker
from livo.utils.files import differing, remove, replacing, write_json
from livo.utils.hashing import weights_hash
from livo.utils.memory import peak_memory, reset_peak_memory
from livo.utils.pictures import save_picture
from livo.utils.precision import for_pipeline
from livo.utils.prompt_files import Prompt

CONFIG, METHOD = "evaluation.json", "method.json"
_FORMAT = 2  # of the readings on disk: 2 says which images are broken
_THUMBNAIL, SMALL = 128, 16


@dataclass(frozen=True)
class Progress:
    """A record of the evaluation: images of the method that are there, of all that it makes."""

    method: str
    done: int
    wanted: int


def evaluate(
    pipe: DiffusionPipeline,
    methods: Sequence[Method],
    prompts: Sequence[Prompt],
    judges: Sequence[Judge],
    folder: Path,
    settings: Settings = Settings(),
    *,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Progress]:
    """Make and judge the images of every method; yield a record at its start and after each unit.

    The first judge that has `embed` gives the features. The first process should `claim` the folder before the others start, and
    when all have finished, `livo.evaluation.readings.gather` reads what was found.
    Broken images (see `livo.evaluation.judges.broken`) are counted and not judged.

    Args:
        pipe: Draws the images. A method with a value needs a LiVO pipeline.
        methods: Each with a name of its own.
        prompts: Of all methods that have none of their own.
        judges: At least one.
        folder: Where readings are kept: an interrupted evaluation resumes there.
        settings: What the methods share.
        rank: Number of this process, from 0.
        world: Number of all processes.

    Raises:
        ValueError: the folder holds an evaluation of other prompts, settings, judges or weights; or a judge is for another model.
    """
    refuse_safety_checker(pipe)
    for judge in judges:
        judge.check_pipeline(pipe)
    if not methods or len({method.name for method in methods}) < len(methods):
        raise ValueError(f"methods {[method.name for method in methods]}: give at least one, and each another name")
    if rank == 0:
        claim(folder, pipe, prompts, judges, settings)
    settings = replace(settings, precision=for_pipeline(settings.precision, pipe, file=folder / CONFIG).resolved)
    for method in methods:
        mine = list(method.prompts or prompts)
        if rank == 0:
            record = method.record() | (_values(pipe) if method.value is not None else {"value_encoder": None})
            _claim_file(method_folder(folder, method) / METHOD, record, f"method {method.name!r}")
        work = units(len(mine), settings)
        done = 0
        yield Progress(method.name, 0, len(mine) * settings.images)
        for number, unit in enumerate(work):
            file = method_folder(folder, method) / f"{number:06}.safetensors"
            done += len(unit) * settings.images
            if number % world != rank:
                continue
            if not _readable(file):
                _make(pipe, method, [mine[i] for i in unit], unit, judges, file, settings)
            yield Progress(method.name, done, len(mine) * settings.images)


def units(prompts: int, settings: Settings) -> list[range]:
    """Which prompts are drawn together: as many whole prompts as a batch holds, or one that takes several batches.

    Args:
        prompts: Number of prompts.
        settings: Of the evaluation.
    """
    together = max(1, settings.batch // settings.images)
    return [range(first, min(first + together, prompts)) for first in range(0, prompts, together)]


def claim(folder: Path, pipe: DiffusionPipeline, prompts: Sequence[Prompt], judges: Sequence[Judge], settings: Settings) -> dict:
    """Record what all methods depend on, and return it.

    Args:
        folder, pipe, prompts, judges, settings: As for `evaluate`.

    Raises:
        ValueError: the folder holds an evaluation of something else.
    """
    parts = ("unet", "text_encoder", "text_encoder_2", "vae")
    weights = {name: weights_hash(module) for name in parts if (module := getattr(pipe, name, None)) is not None}
    content = {
        "format": _FORMAT,
        "prompts": digest([[p.text, p.seed, p.group, dict(p.stated)] for p in prompts]),
        "settings": {name: value for name, value in asdict(settings).items() if name != "precision"},
        "judges": [judge.record() for judge in judges],
        "weights": weights,
        "dtype": str(pipe.dtype),
        "lora": lora_record(pipe),
        "scheduler": scheduler_record(pipe.scheduler),
    }
    precision = for_pipeline(settings.precision, pipe, file=folder / CONFIG)
    return _claim_file(folder / CONFIG, content, "evaluation", {"precision": precision.record()})


def _values(pipe: DiffusionPipeline) -> dict[str, Any]:
    """What the images of a method with values depend on beside the backbone: one line for each principle, with all that it says."""
    named = {name: _encoder_record(encoder) for name, encoder in pipe.value_encoders.items() if name != "default"}
    scales = {name: scale for name, scale in pipe.value_encoder_scales.items() if scale != 1}
    return {
        **({"value_encoder_scales": scales} if scales else {}),
        **_encoder_record(pipe.value_encoder),
        **({"value_encoders": named} if named else {}),
        "principles": {principle.id: digest(asdict(principle)) for principle in pipe.principles},
        **{name: pipe.config[name] for name in ("value_scale", "prompt_padding")},
    }


def _encoder_record(encoder) -> dict[str, Any]:
    if encoder is None:
        return {"value_encoder": None, "calibration": None}
    return {"value_encoder": weights_hash(encoder), "calibration": getattr(encoder.config, "value_calibration", None)}


def judge_name(judge: Judge, judges: Sequence[Judge]) -> str:
    """The judge's name; two judges of one name are numbered.

    Args:
        judge: One of `judges`.
        judges: All judges of the evaluation.
    """
    same = [other for other in judges if other.name == judge.name]
    return judge.name if len(same) == 1 else f"{judge.name} {same.index(judge) + 1}"


# --- one unit -------------------------------------------------------------------------------------------------------------


def _make(
    pipe: DiffusionPipeline,
    method: Method,
    prompts: Sequence[Prompt],
    places: Sequence[int],
    judges: Sequence[Judge],
    file: Path,
    settings: Settings,
) -> None:
    reset_peak_memory(pipe.device)
    start = time.perf_counter()
    images, decisions = _generate(pipe, method, prompts, settings)
    seconds = time.perf_counter() - start
    texts = [prompt.text for prompt in prompts for _ in range(settings.images)]
    tensors = {"thumbnails": _thumbnails(images, settings), "small": _pixels(images, SMALL)}
    faults = [broken(image) for image in images]
    for judge in judges:
        for attribute, p in judge_all(judge, images, texts, faults).items():
            tensors[f"score/{judge_name(judge, judges)}/{attribute}"] = p.float().contiguous()
    good = [i for i, fault in enumerate(faults) if not fault]
    eye = next((judge for judge in judges if hasattr(judge, "embed")), None)
    if eye is not None and good:  # features of the good images alone: without any, their width is not known
        features = eye.embed([images[i] for i in good])
        tensors["features"] = torch.from_numpy(features).float().contiguous()
        if hasattr(eye, "embed_texts"):
            tensors["clip"] = torch.from_numpy(clip_score(features, eye.embed_texts([texts[i] for i in good])))
    if settings.keep:
        _keep(images, decisions, file.parent.parent.parent / "images" / file.parent.name, places, settings.images)
    rows = {
        "faults": faults,
        "decisions": [{name: value for name, value in decision.items() if name != "settings"} for decision in decisions],
        "digests": list(map(image_digest, images)),
        "seconds": seconds,
        "peak": peak_memory(pipe.device),
    }
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata={"rows": json.dumps(rows, default=str)})


def _generate(
    pipe: DiffusionPipeline, method: Method, prompts: Sequence[Prompt], settings: Settings
) -> tuple[list[Image.Image], list[dict]]:
    """Images prompt by prompt, in batches, and each one's decision. A prompt that takes several calls meets its shares over them all."""
    images: list[Image.Image] = []
    decisions: list[dict] = []
    texts = [prompt.text for prompt in prompts]
    ledger = ValueLedger()
    each = settings.images if len(prompts) > 1 else min(settings.batch, settings.images)
    with ExitStack() as stack:
        stack.enter_context(for_pipeline(settings.precision, pipe).autocast(pipe.device))
        if method.edit is not None:
            stack.enter_context(method.edit.on(pipe))
        for first in range(0, settings.images, each):
            count = min(each, settings.images - first)
            seeds = [image_seed(prompt, first + i, settings.seed + method.seeds) for prompt in prompts for i in range(count)]
            extra: dict[str, Any] = {"value": method.values(texts), "ledger": ledger} if isinstance(pipe, ValueMixin) else {}
            out = cast(Callable[..., Any], pipe)(  # diffusers declares __call__ in the subclasses alone
                texts,
                num_images_per_prompt=count,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                **extra,
            )
            images += out.images
            found = getattr(out, "decisions", None)
            decisions += [decision.to_dict() for decision in found] if found else [{}] * len(out.images)
    return images, decisions


def image_seed(prompt: Prompt, image: int, seed: int = 0) -> int:
    """A seed for each image of a prompt, the same for every method, however images are batched: methods are compared at equal noise."""
    first = int(hashlib.sha256(prompt.text.encode()).hexdigest()[:8], 16) if prompt.seed is None else prompt.seed
    return (first + image + seed) % 2**32


def image_digest(image: Image.Image) -> str:
    """A short hash of an image's pixels."""
    return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).hexdigest()[:16]


def _thumbnails(images: Sequence[Image.Image], settings: Settings) -> torch.Tensor:
    chosen = [image for i, image in enumerate(images) if i % settings.images < settings.shown]
    return _pixels(chosen, min(_THUMBNAIL, max(chosen[0].size)))


def _pixels(images: Sequence[Image.Image], side: int) -> torch.Tensor:
    small = [image.convert("RGB").resize((side, side), Image.Resampling.BOX) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in small]))


def _keep(images: Sequence[Image.Image], decisions: Sequence[dict], folder: Path, places: Sequence[int], each: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (image, decision) in enumerate(zip(images, decisions, strict=True)):
        save_picture(
            image, folder / f"{places[i // each]:05}-{i % each:03}.png", [decision] if decision else {"made by": folder.name}
        )


# --- the folder -----------------------------------------------------------------------------------------------------------


def method_folder(folder: Path, method: Method) -> Path:
    """Where the readings of a method are."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in method.name)
    return folder / "readings" / f"{name}-{digest(method.name)[:6]}"


def _claim_file(file: Path, content: dict, what: str, beside: Mapping = {}) -> dict:
    """Write what the readings below `file` depend on, or refuse to go on from others. `beside` is written too and not compared.

    A claim with no readings yet is replaced: its run failed early.
    """
    content = json.loads(json.dumps(content, default=str))
    if (changed := differing(file, content)) and any(file.parent.rglob("*.safetensors")):
        other = ", ".join(changed)
        raise ValueError(
            f"{file.parent}: the {what} there was started with other {other}; resume it as it was, or give another folder"
        )
    content |= beside
    write_json(file, content)
    return content


def _readable(file: Path) -> bool:
    """Whether a unit is there. One that a failing disk left unreadable is made again."""
    if not file.is_file():
        return False
    try:
        with safe_open(file, "np") as unit:
            return "rows" in (unit.metadata() or {})
    except SafetensorError:
        remove(file)
        return False
