"""Images a second of `livo build` against the bare pipeline, A B A B in one process, at the same batch, steps and precision.

python benchmarks/build.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from livo.data import builder
from livo.evaluation.judges import load_judge
from livo.papertown.judge import PapertownJudge
from livo.pipelines.stable_diffusion import LiVOPipeline
from livo.principles.principle import bundled_principles, load_principles
from livo.utils.precision import HELP, PRECISIONS, for_pipeline


def bare(pipe: LiVOPipeline, prompts: list[str], options: builder.Options) -> float:
    precision = for_pipeline(options.precision, pipe)
    start = time.perf_counter()
    for first in range(0, len(prompts), options.batch):
        part = prompts[first : first + options.batch]
        with precision.autocast(pipe.device):
            pipe(
                part,
                value=None,
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                generator=[torch.Generator().manual_seed(first + i) for i in range(len(part))],
            )
    return len(prompts) / (time.perf_counter() - start)


def built(pipe: LiVOPipeline, judge: PapertownJudge, principle, options: builder.Options) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for progress in builder.build(pipe, judge, [principle], Path(folder), options):
            images = progress.images
        return images / (time.perf_counter() - start), images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help=HELP)
    args = parser.parse_args()
    pipe = LiVOPipeline.from_pretrained("papertown")
    if torch.cuda.is_available():
        pipe.to("cuda")
    pipe.set_progress_bar_config(disable=True)
    judge = load_judge("papertown", device=pipe.device)
    principle = next(p for p in load_principles(bundled_principles()) if p.id == "bloody")  # no census, so all images count
    principle = replace(principle, construct=replace(principle.construct, pairs=args.pairs))
    rates: dict[str, list[float]] = {"bare pipeline": [], "livo build": []}
    for turn in range(args.turns + 1):
        options = builder.Options(seed=turn, batch=64, guidance=5.0, precision=args.precision)
        ours, images = built(pipe, judge, principle, options)
        theirs = bare(pipe, ["a photo of a bloody doctor at night"] * images, options)
        if turn:  # the first warms up
            rates["livo build"].append(ours)
            rates["bare pipeline"].append(theirs)
    print(f"precision {for_pipeline(args.precision, pipe).resolved}")
    for name, values in rates.items():
        print(f"{name:14} {np.median(values):.2f} images/s  ({', '.join(f'{v:.2f}' for v in values)})")
    ratios = np.array(rates["livo build"]) / np.array(rates["bare pipeline"])
    print(f"ratio {np.median(ratios):.3f} ({', '.join(f'{r:.3f}' for r in ratios)})")


if __name__ == "__main__":
    main()
