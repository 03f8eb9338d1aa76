"""`livo papertown`"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Show the embedded world."
EXAMPLE = "livo papertown grid -o papertown.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["grid"], help="grid: every career, place, risk and thing, as the renderer draws it")
    parser.add_argument("-o", "--output", type=Path, default=Path("papertown.png"))


def run(args) -> None:
    from livo.papertown.show import world_sheet
    from livo.utils.pictures import save_picture

    save_picture(world_sheet(), args.output, {"what": "Papertown, rendered"})
    print(f"{args.output} written")
