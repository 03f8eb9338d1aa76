"""The options of a training run: the command line and config.json in the run folder are made from this one class.

`option`, `flag` and `add_options` do the same for any other class of options.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from livo.utils.bundled import bundled_models, bundled_names
from livo.utils.precision import HELP, PRECISIONS

OPTIMIZERS = ("adamw", "adamw_fused", "adamw_8bit")
OBJECTIVES = ("livo", "popalign", "diffusion_dpo", "livo+popalign", "distillation")
ADAPTERS = ("value_encoder", "lora")


def option(default, help: str, **more):
    return field(default=default, metadata={"help": help, **more})


def flag(name: str) -> str:
    """A field's name on the command line."""
    return "--" + name.replace("_", "-")


def add_options(parser: ArgumentParser, options: type, whole: Callable[[str], int] = int) -> None:
    """One flag for each `option` of the class `options`; `whole` reads whole numbers."""
    for each in fields(options):
        default = each.default
        about = each.metadata["help"] + ("" if default in ("", ()) else f" (default {default})")
        about = about.replace("%", "%%")
        if isinstance(default, bool):
            parser.add_argument(flag(each.name), action="store_true", help=about)
        elif isinstance(default, tuple):
            parser.add_argument(flag(each.name), nargs="+", default=default, help=about)
        else:
            kind = whole if isinstance(default, int) else type(default)
            parser.add_argument(flag(each.name), type=kind, default=default, choices=each.metadata.get("choices"), help=about)


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a run depends on. The command line is made from this class, and config.json in the run folder is it."""

    data: str = option("", "folder of preference data, from `livo build` or in the papers' layout")
    output: str = option("", "the run's folder")
    model: str = option(bundled_models()[0].name, f"{bundled_names()}, or a Stable Diffusion: hub id or folder")
    value_encoder: str = option(
        "", "value encoder to go on from: hub id, folder or .safetensors file; default: a copy of the text encoder"
    )
    adapter: str = option("value_encoder", "what is trained", choices=ADAPTERS)
    objective: str = option("livo", "what it is trained with", choices=OBJECTIVES)
    beta: float = option(
        1000.0, "scale of the winners' term (livo), of the implicit reward (popalign, diffusion_dpo), or of the gap (distillation)"
    )
    alpha: float = option(500.0, "livo: scale of the losers' term")
    gamma_1: float = option(1.0, "livo: bound of the winners' push")
    gamma_2: float = option(0.5, "livo: bound of the losers' push")
    popalign_weight: float = option(1.0, "livo+popalign: weight of the second term")
    popalign_beta: float = option(5000.0, "livo+popalign: beta of the second term")
    centre: str = option("mean", "popalign: what a sample's gain is measured against", choices=("mean", "clipped"))
    guidance: float = option(1.0, "measure errors on the prediction guided at this scale; 1 is the papers' loss")
    min_snr: float = option(0.0, "gamma of min-SNR weighting; 0 weights all timesteps alike")
    steps: int = option(15000, "optimiser steps")
    batch: int = option(8, "pairs a process and micro-batch")
    accumulation: int = option(1, "micro-batches a step; popalign centres each by itself")
    lr: float = option(1e-6, "peak learning rate")
    warmup: int = option(100, "steps of linear warm-up before the cosine")
    weight_decay: float = option(0.01, "AdamW's")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    ema: float = option(0.0, "decay of the averaged weights that are saved; 0 saves the last ones")
    interpolate: float = option(1.0, "share of the way from start to end of training that is saved; below 1 spares unseen words")
    optimizer: str = option("adamw", "adamw_8bit needs bitsandbytes", choices=OPTIMIZERS)
    lora_rank: int = option(4, "rank of the LoRA")
    freeze_embeddings: bool = option(
        False, "value encoder: train its layers alone, so that words it was not trained on keep their meaning"
    )
    caption_dropout: float = option(0.0, "share of pairs trained without their prompt")
    prompt_swap: float = option(
        0.0,
        "share of debias pairs whose value encoder reads the prompt of any pair of the same statement and class, so that the token "
        "carries the class and nothing of the prompt that it was trained on",
    )
    contrary_prompt: float = option(
        0.0,
        "share of debias pairs whose backbone is told the violating image's prompt, which states another class, so that the token holds "
        "where the prompt's own words speak for one",
    )
    flip: bool = option(False, "mirror pairs at random")
    resolution: int = option(0, "side of the images in pixels; 0 is the backbone's own")
    precision: str = option("auto", HELP, choices=PRECISIONS)
    backbone_dtype: str = option("float32", "of the frozen backbone", choices=("float32", "bfloat16", "float16"))
    gradient_checkpointing: bool = option(False, "recompute the UNet's activations: less memory, more time")
    seed: int = option(0, "of everything that is drawn")
    log_every: int = option(10, "steps between two records")
    save_every: int = option(250, "steps between two checkpoints")
    keep: int = option(2, "checkpoints that are kept, the newest")
    validate_every: int = option(0, "steps between two validation grids; 0 makes none")
    validation_prompts: tuple[str, ...] = option((), "default: the first four of the data")
    validation_images: int = option(8, "images a validation prompt")
    judge: str = option(
        "",
        f"for D1 and R at each validation: {bundled_names()} or a folder of such a judge, clip:, vlm:, gender:, ... as of livo evaluate",
    )
    cache: str = option("", "folder of latents and text embeddings; default: .cache in the data folder")

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if f.metadata.get("choices") and value not in f.metadata["choices"]:
                raise ValueError(f"{f.name} is {value!r}: choose one of {', '.join(f.metadata['choices'])}")
        for name in ("data", "output"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name a folder")
        if self.value_encoder and self.adapter == "lora":
            raise ValueError(
                f"value_encoder is {self.value_encoder}, which a LoRA cannot go on from: leave it out, or make adapter value_encoder"
            )
        if self.judge and not self.validate_every:
            raise ValueError(f"judge is {self.judge}, but validate_every is 0, so no image is judged: give validate_every too")
        if self.judge and self.adapter == "lora":
            raise ValueError(f"judge is {self.judge}, but a LoRA is validated without a principle to measure: leave it out")
        if self.prompt_swap and self.adapter == "lora":
            raise ValueError(f"prompt_swap is {self.prompt_swap}, but a LoRA reads no prompt for its value: make it 0")
        if self.objective == "distillation" and self.guidance != 1:
            raise ValueError(f"guidance is {self.guidance}: distillation compares predictions as they are, so leave it at 1")
        if self.objective == "distillation" and self.caption_dropout:
            why = "without their prompt, pairs would still learn what it says from the image's: make it 0"
            raise ValueError(f"caption_dropout is {self.caption_dropout}, but the objective is distillation: {why}")
        if self.freeze_embeddings and self.adapter == "lora":
            raise ValueError("freeze_embeddings is set, but a LoRA trains no embeddings: leave it out")
        for name in ("steps", "batch", "accumulation", "log_every", "save_every", "keep", "lora_rank", "validation_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.save_every % self.log_every:
            raise ValueError(f"save_every is {self.save_every}: make it a multiple of log_every, {self.log_every}")
        if self.backbone_dtype == "float16" and self.precision == "fp32":
            raise ValueError("backbone_dtype is float16: gradients through it need precision fp16 (scaled) or bf16")
        for name in ("lr", "guidance", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        scales = ("beta", "alpha", "gamma_1", "gamma_2", "popalign_weight", "popalign_beta")
        for name in (*scales, "min_snr", "warmup", "weight_decay", "resolution", "validate_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be below 0")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}: it is a decay from 0 to below 1")
        if not 0 < self.interpolate <= 1:
            raise ValueError(f"interpolate is {self.interpolate}: it is a share above 0 and at most 1")
        for name in ("caption_dropout", "prompt_swap", "contrary_prompt"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it is a share from 0 to below 1")

    @property
    def reads_sources(self) -> bool:
        """Whether the run depends on the prompts that its images were made from."""
        return self.objective == "distillation" or self.contrary_prompt > 0

    @property
    def reads_classes(self) -> bool:
        """Whether the run depends on the classes of its pairs."""
        return self.contrary_prompt > 0 or self.prompt_swap > 0

    def changed(self, before: Mapping) -> list[str]:
        """The options that have another value in `before`, a run's config.json. An option that is newer than the run had its default.

        `precision` is not compared: auto is what the run was begun in, see `livo.utils.precision`.
        """
        compared = [f for f in fields(self) if f.name != "precision"]
        return [f.name for f in compared if _plain(before.get(f.name, f.default)) != _plain(getattr(self, f.name))]


def check_run(config: TrainingConfig, resume: bool) -> None:
    """Raises OSError or ValueError where `config.output` holds no run that could be resumed, or one that would be overwritten."""
    run = Path(config.output)
    file = run / "config.json"
    if not file.is_file():
        if resume:
            raise FileNotFoundError(f"{run} holds no run to resume; leave --resume out")
        return
    if not resume:
        raise FileExistsError(f"{run} holds a run already: resume it with --resume latest, or give another --output")
    if changed := [name for name in config.changed(json.loads(file.read_text())) if name != "output"]:
        raise ValueError(f"{run} was started with another {', '.join(changed)}: resume it as it was, or give another --output")


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
