"""`livo inspect`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "Read back from a PNG what was decided for its images, and why."
EXAMPLE = "livo inspect doctor.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", nargs="+", type=Path, metavar="IMAGE", help="PNG that livo generate or save_images wrote")
    parser.add_argument("--json", action="store_true", help="one JSON list an image file, for programs")


def run(args) -> None:
    from livo.record import describe, read_record

    for file in args.image:
        record = read_record(file)
        print(json.dumps(record, ensure_ascii=False) if args.json else f"{file}\n{describe(record)}")
