"""`livo train`"""

from __future__ import annotations

import argparse
import os
from dataclasses import fields

from livo.config import TrainingConfig, add_options

HELP = "Train a value encoder or a LoRA on preference data."
EXAMPLE = "livo train --data data/gender --output runs/gender --steps 600 --lr 4e-4 --beta 100 --alpha 50 --gamma-1 5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", choices=["latest"], help="go on from the newest checkpoint in --output")
    add_options(parser, TrainingConfig)


def run(args) -> None:
    values = {option.name: getattr(args, option.name) for option in fields(TrainingConfig)}
    config = TrainingConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    from livo.progress import follow_training
    from livo.training import train

    main = int(os.environ.get("RANK", 0)) == 0
    records = train(config, resume=args.resume is not None)
    shown = ("loss", "accuracy", "winner_active", "loser_active", "grad_norm", "drift")
    follow_training(records, config.adapter, config.steps, shown, disable=not main)
    if main:
        print(f"{config.output}/{config.adapter} written; curves.png, metrics.jsonl and TensorBoard's files lie beside it")
