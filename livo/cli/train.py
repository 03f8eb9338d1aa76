"""`livo train`"""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path

from livo.training.config import TrainingConfig, add_options, check_run
from livo.utils.extras import installed, require

HELP = "Train a value encoder or a LoRA on preference data."
EXAMPLE = "livo train --data data/gender --output runs/gender --steps 600 --lr 4e-4 --beta 100 --alpha 50 --gamma-1 5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", choices=["latest"], help="resume from the newest checkpoint in --output")
    add_options(parser, TrainingConfig)


def run(args) -> None:
    values = {option.name: getattr(args, option.name) for option in fields(TrainingConfig)}
    config = TrainingConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    _check(config, args.resume is not None)
    from livo.training.trainer import train
    from livo.utils.progress import follow_training

    main = int(os.environ.get("RANK", 0)) == 0
    records = train(config, resume=args.resume is not None)
    shown = ("loss", "accuracy", "winner_active", "loser_active", "grad_norm", "drift")
    follow_training(records, config.adapter, config.steps, shown, disable=not main)
    if main:
        tensorboard = config.tracker == "tensorboard" and installed("tensorboard")
        beside = "curves.png, metrics.jsonl and TensorBoard's files" if tensorboard else "curves.png and metrics.jsonl"
        print(f"wrote {config.output}/{config.adapter}; {beside} are next to it")


def _check(config: TrainingConfig, resume: bool) -> None:
    """Check what can be checked before torch is imported."""
    from livo.cli.checks import check_judges, check_model, check_value_encoder
    from livo.data.manifest import check_folder
    from livo.utils.files import check_output

    check_output(Path(config.output), folder=True)
    check_run(config, resume)
    check_folder(Path(config.data))
    check_model(config.model)
    check_value_encoder(config.value_encoder or None)
    if config.judge:
        check_judges(config.model, [config.judge], None)
    require("training", "accelerate", "matplotlib", *["peft"] * (config.adapter == "lora"))
    require("tracker wandb", *["wandb"] * (config.tracker == "wandb"))
