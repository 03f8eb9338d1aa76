"""Images a second of `livo.evaluation.runner.evaluate`, judging and writing included, against the bare pipeline, A B A B in one run.

Both make the same images in the same batches. The first turn of each is a warm-up and is not counted.

    python benchmarks/evaluate.py            # about two minutes on two CPU cores
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from livo.evaluation.judges import load_judge
from livo.evaluation.method import Method, Settings
from livo.evaluation.runner import evaluate, image_seed, units
from livo.pipelines.stable_diffusion import LiVOPipeline
from livo.utils.precision import HELP, PRECISIONS, for_pipeline
from livo.utils.prompt_files import Prompt


def bare(pipe: LiVOPipeline, prompts: list[Prompt], settings: Settings) -> None:
    precision = for_pipeline(settings.precision, pipe)
    for unit in units(len(prompts), settings):
        mine = [prompts[i] for i in unit]
        seeds = [image_seed(prompt, i) for prompt in mine for i in range(settings.images)]
        with precision.autocast(pipe.device):
            pipe(
                [prompt.text for prompt in mine],
                value=None,
                num_images_per_prompt=settings.images,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--keep", action="store_true", help="write the images too")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help=HELP)
    args = parser.parse_args()
    pipe = LiVOPipeline.from_pretrained("papertown")
    pipe.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        pipe.to("cuda")
    judge = load_judge("papertown", device=pipe.device)
    careers = ("doctor", "nurse", "chef", "pilot", "judge", "farmer", "miner", "lawyer")
    prompts = [Prompt(f"a photo of a {careers[i % 8]} number {i}") for i in range(args.prompts)]
    settings = Settings(images=args.images, batch=args.batch, precision=args.precision, keep=args.keep)
    work = Path(tempfile.mkdtemp())
    times: dict[str, list[float]] = {"bare pipeline": [], "evaluate": []}
    for turn in range(args.turns + 1):
        start = time.perf_counter()
        bare(pipe, prompts, settings)
        middle = time.perf_counter()
        for _ in evaluate(pipe, [Method("base")], prompts, [judge], work / str(turn), settings):
            pass
        times["bare pipeline"].append(middle - start)
        times["evaluate"].append(time.perf_counter() - middle)
    shutil.rmtree(work)
    count = args.prompts * args.images
    print(f"precision {for_pipeline(args.precision, pipe).resolved}")
    for name, seconds in times.items():
        print(f"{name:14} {count / statistics.median(seconds[1:]):6.2f} images a second (median of {args.turns} turns)")
    ratios = [a / b for a, b in zip(times["bare pipeline"][1:], times["evaluate"][1:], strict=True)]
    low, high = min(ratios), max(ratios)
    print(f"evaluate makes {statistics.median(ratios):.1%} of the bare pipeline's images a second (turns: {low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()
