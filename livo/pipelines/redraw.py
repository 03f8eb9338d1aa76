"""Draw a recorded image again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from livo.pipelines.decision_record import current_record, read_record
from livo.pipelines.settings import generator_of, settings_of
from livo.pipelines.stable_diffusion import load_pipeline
from livo.principles.principle import ValuePrinciple
from livo.utils.hashing import weights_hash


def redraw(source: str | Path | Mapping, pipe: DiffusionPipeline | None = None, **inputs) -> Image.Image:
    """The image of a record, drawn again. On the same machine and versions it has the same pixels.

    Args:
        source: A file that LiVO wrote, or the record of one image.
        pipe: Pipeline with the recorded model, encoder, LoRA and baselines. Default: loaded by the recorded model's name.
        **inputs: Images and tensors that the call was given; the record holds hashes of them.

    Raises:
        ValueError: the record is too old to tell, the pipeline differs from it, or an input is missing; the message names it.
    """
    record = current_record(source) if isinstance(source, Mapping) else read_record(source)[0]
    settings = record.get("settings")
    if not settings:
        raise ValueError("the record does not hold the settings of the call; it was written by an older LiVO")
    model, how = settings["model"], settings["precision"]
    if pipe is None:
        kwargs = {"revision": model["revision"]} if "revision" in model else {}
        pipe = load_pipeline(model["name"], dtype=getattr(torch, how["weights"]), **kwargs).to(how["device"])
    call = dict(settings["call"])
    wanted = [name for name, value in call.items() if isinstance(value, Mapping) and "sha256" in value and name not in inputs]
    if wanted:
        raise ValueError(f"the image was drawn with {', '.join(wanted)}, of which the record holds a hash: give the same again")
    with _scheduler(pipe, settings["scheduler"]), _autocast(how):
        _check(pipe, record, call | inputs)
        values = _values(record, pipe)
        first = next(iter(_applied(record)), {})
        out = pipe(
            record["prompt"],
            value=tuple(values) or None,
            value_scale={principle.id: scale for principle, scale in values.items()},
            value_start=first.get("start", 0.0),
            value_end=first.get("end", 1.0),
            num_images_per_prompt=settings["generator"]["images"],
            generator=generator_of(record),
            **call | inputs,
        )
    return out.images[record["image"]]


def _values(record: Mapping, pipe: DiffusionPipeline) -> dict[_Value, float]:
    """The values that acted on the image, each with the strength to ask for."""
    values = {}
    for i, applied in enumerate(_applied(record)):
        name = applied.get("encoder_name")
        value = _Value(applied.get("id") or f"value_{i}", applied["statement"], apply_rate=1.0, encoder=name)
        values[value] = applied["scale"] / pipe.value_encoder_scales.get(name, 1.0)  # the pipeline multiplies by it
    return values


def _applied(record: Mapping) -> list[Mapping]:
    """The values whose token the image received."""
    return [value for value in record["values"] if value.get("applied")]


class _Value(ValuePrinciple):
    """A principle that every image receives, by the statement that acted."""

    def __hash__(self) -> int:
        return hash(self.id)


@contextmanager
def _scheduler(pipe: DiffusionPipeline, config: Mapping):
    """Within this context the pipeline samples as recorded."""
    config = {name: float(value) if value in ("inf", "-inf", "nan") else value for name, value in config.items()}
    before, pipe.scheduler = pipe.scheduler, getattr(diffusers, config.pop("class")).from_config(config)
    try:
        yield
    finally:
        pipe.scheduler = before


def _autocast(precision: Mapping):
    dtype = precision["autocast"]
    return torch.autocast(precision["device"], getattr(torch, dtype)) if dtype else nullcontext()


def _check(pipe: DiffusionPipeline, record: Mapping, given: Mapping) -> None:
    """Raises ValueError where the pipeline would draw with something else than was recorded."""
    here = settings_of(pipe, given, 1)[0]
    settings = record["settings"]
    names = ("pipeline", "model", "prompt_padding", "precision", "lora", "baselines", "call", "scheduler")
    differing = [name for name in names if here[name] != settings[name]]
    hashes = {name: weights_hash(encoder) for name, encoder in pipe.value_encoders.items() if pipe.value_encoder_scales[name]}
    wanted = {value["encoder_name"]: value["encoder"] for value in _applied(record)}
    if any(hashes.get(name) != encoder for name, encoder in wanted.items()):
        differing.append("value encoder")
    if differing:
        name = differing[0]
        recorded = ", ".join(f"{name} {encoder}" for name, encoder in wanted.items()) if name == "value encoder" else settings[name]
        raise ValueError(f"the pipeline differs from the record in {', '.join(differing)}: recorded is {name} {recorded}")
