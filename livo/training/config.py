"""The options of a training run. The command line and config.json in the run folder are made from this one class.

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
TRACKERS = ("tensorboard", "wandb", "none")
_FREE = ("precision", "tracker")  # options that a resumed run may change


def option(default, help: str, **more):
    """A field of a class of options.

    Args:
        default: Its default value, which also gives the type.
        help: Its description on the command line.
        more: `choices`, the values that it may have.
    """
    return field(default=default, metadata={"help": help, **more})


def flag(name: str) -> str:
    """The name of a field on the command line.

    Args:
        name: The field's name.
    """
    return "--" + name.replace("_", "-")


def add_options(parser: ArgumentParser, options: type, whole: Callable[[str], int] = int) -> None:
    """Add a flag for each field of a class of options.

    Args:
        parser: The parser.
        options: A dataclass whose fields are made by `option`.
        whole: Parses whole numbers.
    """
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
class LoopConfig:
    """How `livo.training.loop.training_loop` updates, records and saves weights.

    Args:
        steps: Optimiser steps.
        lr: Peak learning rate.
        warmup: Steps of linear warm-up before the cosine.
        weight_decay: Weight decay of AdamW.
        max_grad_norm: Gradients are clipped to this norm.
        accumulation: Micro-batches per step.
        ema: Decay of the averaged weights that the modules hold at the end; 0 keeps no average.
        optimizer: One of OPTIMIZERS.
        log_every: Steps between two records.
        save_every: Steps between two checkpoints.
        keep: How many checkpoints are kept, the newest.
    """

    steps: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    accumulation: int = 1
    ema: float = 0.0
    optimizer: str = "adamw"
    log_every: int = 10
    save_every: int = 250
    keep: int = 1


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a run depends on; config.json in the run folder holds the same fields. `livo train --help` describes each.

    Raises:
        ValueError: A value is out of its range, or two options contradict each other.
    """

    data: str = option("", "folder of preference data, from `livo build` or in the papers' layout")
    output: str = option("", "folder of the run")
    model: str = option(bundled_models()[0].name, f"{bundled_names()}, or a Stable Diffusion model: hub id or folder")
    value_encoder: str = option(
        "", "value encoder to start from: hub id, folder or .safetensors file; default: a copy of the text encoder"
    )
    adapter: str = option("value_encoder", "what is trained", choices=ADAPTERS)
    objective: str = option("livo", "the loss", choices=OBJECTIVES)
    beta: float = option(
        1000.0, "scale of the winners' term (livo), the implicit reward (popalign, diffusion_dpo) or the gap (distillation)"
    )
    alpha: float = option(500.0, "livo: scale of the losers' term")
    gamma_1: float = option(1.0, "livo: bound of the winners' term")
    gamma_2: float = option(0.5, "livo: bound of the losers' term")
    popalign_weight: float = option(1.0, "livo+popalign: weight of the popalign term")
    popalign_beta: float = option(5000.0, "livo+popalign: beta of the popalign term")
    centre: str = option("mean", "popalign: what each gain is compared with", choices=("mean", "clipped"))
    guidance: float = option(1.0, "guidance scale of the predictions whose errors are measured; 1 is the papers' loss")
    min_snr: float = option(0.0, "gamma of min-SNR weighting; 0 weights all timesteps alike")
    steps: int = option(15000, "optimiser steps")
    batch: int = option(8, "pairs per process and micro-batch")
    accumulation: int = option(1, "micro-batches per step; popalign compares within each")
    lr: float = option(1e-6, "peak learning rate")
    warmup: int = option(100, "steps of linear warm-up before the cosine")
    weight_decay: float = option(0.01, "weight decay of AdamW")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    ema: float = option(0.0, "decay of the averaged weights that are saved; 0 saves the last weights")
    interpolate: float = option(
        1.0,
        "save weights interpolated between the start (0) and the end of training (1), as in WiSE-FT; below 1, words that were not "
        "trained keep more of their meaning",
    )
    optimizer: str = option("adamw", "adamw_8bit needs bitsandbytes", choices=OPTIMIZERS)
    lora_rank: int = option(4, "rank of the LoRA")
    freeze_embeddings: bool = option(
        False, "value encoder: train its layers only, so that words that were not trained keep their meaning"
    )
    caption_dropout: float = option(0.0, "share of pairs that are trained without their prompt")
    prompt_swap: float = option(
        0.0,
        "share of debias pairs whose value encoder reads the prompt of another pair with the same statement and class, so that the token "
        "carries the class and not the prompt",
    )
    contrary_prompt: float = option(
        0.0,
        "share of debias pairs whose backbone gets the violating image's prompt, which states another class, so that the token also works "
        "for prompts whose words imply a class",
    )
    flip: bool = option(False, "mirror pairs at random")
    resolution: int = option(0, "side of the images in pixels; 0 is the backbone's own")
    precision: str = option("auto", HELP, choices=PRECISIONS)
    backbone_dtype: str = option("float32", "dtype of the frozen backbone", choices=("float32", "bfloat16", "float16"))
    gradient_checkpointing: bool = option(False, "recompute the UNet's activations: less memory, more time")
    seed: int = option(0, "seed of everything that is drawn at random")
    log_every: int = option(10, "steps between two records")
    save_every: int = option(250, "steps between two checkpoints; a multiple of log_every")
    keep: int = option(2, "number of checkpoints that are kept, the newest")
    tracker: str = option("tensorboard", "where records go besides metrics.jsonl; wandb needs its package", choices=TRACKERS)
    validate_every: int = option(0, "steps between two validation grids; 0 makes none")
    validation_prompts: tuple[str, ...] = option((), "default: the first four prompts of the data")
    validation_images: int = option(8, "images per validation prompt")
    judge: str = option(
        "",
        f"measures D1 and R at each validation: {bundled_names()} or such a folder, clip:, vlm:, gender:, ... as in livo evaluate",
    )
    cache: str = option("", "folder of cached latents and text embeddings; default: .cache in the data folder")

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if f.metadata.get("choices") and value not in f.metadata["choices"]:
                raise ValueError(f"{f.name} is {value!r}: choose one of {', '.join(f.metadata['choices'])}")
        for name in ("data", "output"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name a folder")
        self._check_ranges()
        self._check_combinations()

    def _check_ranges(self) -> None:
        for name in ("steps", "batch", "accumulation", "log_every", "save_every", "keep", "lora_rank", "validation_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("lr", "guidance", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        scales = ("beta", "alpha", "gamma_1", "gamma_2", "popalign_weight", "popalign_beta")
        for name in (*scales, "min_snr", "warmup", "weight_decay", "resolution", "validate_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be below 0")
        for name in ("ema", "caption_dropout", "prompt_swap", "contrary_prompt"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        if not 0 < self.interpolate <= 1:
            raise ValueError(f"interpolate is {self.interpolate}: it must be above 0 and at most 1")

    def _check_combinations(self) -> None:
        lora = self.adapter == "lora"
        if self.value_encoder and lora:
            raise ValueError(
                f"value_encoder is {self.value_encoder}, but a LoRA cannot start from one: leave it out, or set adapter to value_encoder"
            )
        if self.judge and not self.validate_every:
            raise ValueError(f"judge is {self.judge}, but validate_every is 0, so no image is judged: set validate_every too")
        if self.judge and lora:
            raise ValueError(f"judge is {self.judge}, but a LoRA is validated without a principle to measure: leave it out")
        if self.prompt_swap and lora:
            raise ValueError(f"prompt_swap is {self.prompt_swap}, but a LoRA has no value encoder to read a prompt: set it to 0")
        if self.freeze_embeddings and lora:
            raise ValueError("freeze_embeddings is set, but a LoRA trains no embeddings: leave it out")
        if self.objective == "distillation" and self.guidance != 1:
            raise ValueError(f"guidance is {self.guidance}: distillation compares unguided predictions, so leave it at 1")
        if self.objective == "distillation" and self.caption_dropout:
            why = "pairs without a prompt would still learn what the image's own prompt says: set it to 0"
            raise ValueError(f"caption_dropout is {self.caption_dropout}, but the objective is distillation: {why}")
        if self.save_every % self.log_every:
            raise ValueError(f"save_every is {self.save_every}: make it a multiple of log_every, {self.log_every}")
        if self.backbone_dtype == "float16" and self.precision == "fp32":
            raise ValueError("backbone_dtype is float16: gradients through it need precision fp16 (scaled) or bf16")

    @property
    def loop(self) -> LoopConfig:
        """The options of the training loop."""
        return LoopConfig(**{f.name: getattr(self, f.name) for f in fields(LoopConfig)})

    @property
    def reads_source_prompts(self) -> bool:
        """Whether the run depends on the prompts that its images were generated from."""
        return self.objective == "distillation" or self.contrary_prompt > 0

    @property
    def reads_classes(self) -> bool:
        """Whether the run depends on the classes of its pairs."""
        return self.contrary_prompt > 0 or self.prompt_swap > 0

    def changed(self, before: Mapping) -> list[str]:
        """The names of the options that differ from those of an earlier run, except those that may.

        Precision may differ, because auto keeps the precision that the run was started in (`livo.utils.precision`).

        Args:
            before: The content of the run's config.json. An option that is newer than the run counts as its default.
        """
        compared = [f for f in fields(self) if f.name not in _FREE]
        return [f.name for f in compared if _plain(before.get(f.name, f.default)) != _plain(getattr(self, f.name))]


def check_run(config: TrainingConfig, resume: bool) -> None:
    """Check that the run folder fits what is asked.

    Args:
        config: The run's options.
        resume: Whether the run in `config.output` is resumed.

    Raises:
        FileNotFoundError: There is no run to resume.
        FileExistsError: The folder holds a run, which would be overwritten.
        ValueError: The run was started with other options.
    """
    run = Path(config.output)
    file = run / "config.json"
    if not file.is_file():
        if resume:
            raise FileNotFoundError(f"{run} holds no run to resume; leave out --resume")
        return
    if not resume:
        raise FileExistsError(f"{run} already holds a run: resume it with --resume latest, or give another --output")
    if changed := [name for name in config.changed(json.loads(file.read_text())) if name != "output"]:
        raise ValueError(
            f"{run} was started with another {', '.join(changed)}: resume it with the same options, or give another --output"
        )


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
