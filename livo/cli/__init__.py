"""The commands of `livo`, one file each: HELP, EXAMPLE, `add_arguments` and `run`.

Bad input is a ValueError or an OSError, printed as one line with exit code 2. What takes long to import is imported in `run`.
"""

from __future__ import annotations

import argparse

from livo.principles.principle import MAX_SCALE
from livo.utils.precision import HELP, PRECISIONS

DEVICES = ("auto", "cpu", "cuda", "mps")
PROMPTS = "prompts as .txt (one a line), .csv, .tsv, .json, .jsonl, .ndjson, .yaml or .parquet"


def positive(text: str) -> int:
    """A count on the command line."""
    number = _number(text, int, "a whole number")
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def guidance(text: str) -> float:
    """A guidance scale on the command line."""
    number = _number(text, float, "a number")
    if not abs(number) <= MAX_SCALE:
        raise argparse.ArgumentTypeError(f"{text} is not from -{MAX_SCALE} to {MAX_SCALE}")
    return number


def strength(text: str) -> float:
    """A strength of the value token on the command line."""
    number = _number(text, float, "a number")
    if not 0 <= number <= MAX_SCALE:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 (the base) to {MAX_SCALE}; 1 is what was trained")
    return number


def seed(text: str) -> int:
    """A seed on the command line: what torch.Generator takes."""
    number = _number(text, int, "a whole number")
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 2**63 - 1")
    return number


def _number(text: str, kind: type, what: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not {what}") from None


def add_column(parser: argparse.ArgumentParser) -> None:
    """For files of prompts."""
    parser.add_argument("--column", metavar="NAME", help="column of the prompts (default: prompt, prompts, text or caption)")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """What every command that draws images takes."""
    parser.add_argument("--steps", type=positive, default=20, help="sampler steps (default 20)")
    parser.add_argument("--guidance", type=guidance, default=5.0, help="guidance scale (default 5)")
    parser.add_argument("--seed", type=seed, default=0, help="of the noise and of everything else that is drawn (default 0)")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help=f"{HELP} (default auto)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto is a GPU (cuda) where there is one, else cpu")


def add_judge(parser: argparse.ArgumentParser, help: str = "", **more) -> None:
    """For commands that judge images."""
    about = (
        "papertown or the folder of such a judge; clip:, vlm:, nsfw:, safety:, gender:, ... and a hub id or folder "
        "(default: papertown, for Papertown's own weights; any other model needs one)"
    )
    parser.add_argument("--judge", metavar="JUDGE", help=about + help, **more)


def device_of(args: argparse.Namespace) -> str:
    """What --device is here. Raises ValueError where there is no such device."""
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = ("cuda" if there["cuda"] else "cpu") if args.device == "auto" else args.device
    if not there[device]:
        raise ValueError(f"--device {device}: PyTorch finds none here; leave it out, or give cpu")
    return device
