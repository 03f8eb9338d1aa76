"""`livo benchmark`"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from livo.cli import positive
from livo.papertown.budget import Budget
from livo.training.config import add_options

HELP = "Replay the LiVO paper's table and figures in the embedded world; resumable."
EXAMPLE = "livo benchmark papertown --images 50 --work build/benchmark --docs docs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=["papertown"], help="papertown: the LiVO paper's main table and figures, every baseline included"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/benchmark"), help="folder of all that is made; a second start goes on there"
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the report and its pictures (default docs)")
    add_options(parser, Budget, positive)


def run(args) -> None:
    from livo.utils.extras import require
    from livo.utils.files import check_output

    for option in ("work", "docs"):
        check_output(getattr(args, option), folder=True, option=f"--{option}")
    require("the benchmark", "accelerate", "matplotlib", "peft")
    from livo.papertown.benchmark import benchmark

    report = benchmark(args.work, args.docs, Budget(**{amount.name: getattr(args, amount.name) for amount in fields(Budget)}))
    print(report.read_text(encoding="utf-8"))
    print(f"{report} written; its pictures and benchmark.json lie beside it")
