"""`python -m livo.papertown build | calibrate | figures`"""

from __future__ import annotations

import argparse
from pathlib import Path

from livo.utils.precision import HELP, PRECISIONS

parser = argparse.ArgumentParser(prog="python -m livo.papertown", description="Rebuild Papertown's weights, or measure them.")
parser.add_argument("what", choices=["build", "calibrate", "figures"])
parser.add_argument(
    "--work", type=Path, default=Path("build/papertown"), help="folder of intermediate results (default build/papertown)"
)
parser.add_argument(
    "-o", "--output", type=Path, default=Path("out/figures.json"), help="figures as JSON (default out/figures.json)"
)
parser.add_argument("--precision", choices=PRECISIONS, default="auto", help=f"{HELP} (default auto)")
args = parser.parse_args()

if args.what == "build":
    from livo.papertown.build import build

    build(args.work, precision=args.precision)
elif args.what == "calibrate":
    from livo.papertown.figures import calibrate

    calibrate(args.work / "readings", args.precision)
else:
    from livo.papertown.figures import figures

    figures(args.work / "readings", args.output, args.precision)
