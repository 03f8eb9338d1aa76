"""What values cost an image: LiVO against the bare diffusers pipeline, A B A B in one process, at guidance 7.5.

Four ways take turns on the same weights, prompts and seeds: the bare pipeline, LiVO with no value, with a value on every image, and with it
at half its strength. Each turn gives a ratio to the bare pipeline's time in the same turn; the median is printed with its bootstrap
interval. The bare pipeline is timed twice a turn, so that the ratio of the two shows what the machine's noise alone makes of nothing. On a
CPU the time is that of the processor, in one thread, which other programs on the machine cannot lengthen much. Retrieval is timed apart, on
prompts it has not seen; `--memory` measures peak memory, in a process for each.

    python benchmarks/overhead.py papertown                     # 64 x 64, the embedded checkpoint
    python benchmarks/overhead.py sd15 --steps 4 --turns 5      # random weights of Stable Diffusion 1.5's shape, small on a CPU
    python benchmarks/overhead.py sd15 --size 512 --half        # the same on a GPU
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from train_step import sd15

from livo import LiVOPipeline, ValueEncoder
from livo.principles.principle import bundled_principles
from livo.utils.memory import peak_memory, reset_peak_memory

WAYS = ("bare", "bare again", "no value", "a value", "half a value")


def pipelines(which: str, half: bool, encoder: bool = True) -> tuple[StableDiffusionPipeline, LiVOPipeline]:
    """The bare pipeline and LiVO, on the same modules."""
    if which == "papertown":
        pipe = LiVOPipeline.from_pretrained("papertown")
    else:
        pipe = sd15()
        pipe.load_value_principles(bundled_principles())
        if encoder:
            pipe.register_modules(value_encoder=ValueEncoder.from_text_encoder(pipe.text_encoder).eval())
    if not encoder:
        pipe.unload_value_encoder()
        gc.collect()
    pipe.to("cuda" if torch.cuda.is_available() else "cpu", torch.float16 if half else torch.float32)
    parts = {name: part for name, part in pipe.components.items() if name != "value_encoder"}
    bare = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    for each in (bare, pipe):
        each.set_progress_bar_config(disable=True)
    return bare, pipe


def timed(bare, pipe, way: str, batch: int, size: int, steps: int) -> float:
    """Seconds of one call."""
    options = {"num_inference_steps": steps, "guidance_scale": 7.5, "num_images_per_prompt": batch, "output_type": "np"}
    options |= {"height": size, "width": size, "generator": torch.Generator().manual_seed(0)}
    if way.endswith("value"):
        options["value"] = None if way == "no value" else "bloody considered inappropriate"
        options["value_scale"] = 0.5 if way == "half a value" else 1.0
    call = pipe if "value" in options else bare
    _wait()
    start = _now()
    call("a bloody warrior in a forest", **options)
    _wait()
    return _now() - start


def _now() -> float:
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(bare, pipe, batch: int, size: int, steps: int, turns: int) -> None:
    for way in WAYS:
        timed(bare, pipe, way, batch, size, steps)
    seconds = {way: [] for way in WAYS}
    for turn in range(turns):
        order = WAYS if turn % 2 == 0 else WAYS[::-1]  # what comes first pays for the pause before it
        for way in order:
            seconds[way].append(timed(bare, pipe, way, batch, size, steps))
    first = np.array(seconds["bare"])
    print(f"batch {batch}: bare {np.median(first):.3f} s a call, {turns} turns")
    for way in WAYS[1:]:
        ratios = np.array(seconds[way]) / first
        low, high = _interval(ratios)
        print(f"  {way:12} {100 * (np.median(ratios) - 1):+.2f}% [{100 * (low - 1):+.2f}, {100 * (high - 1):+.2f}]")


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (2000, len(values))), axis=1)
    return tuple(np.quantile(medians, (0.025, 0.975)))


def retrieval(pipe: LiVOPipeline) -> None:
    careers, places = ("doctor", "pilot", "chef", "lawyer", "farmer"), ("forest", "market", "castle", "desert", "office", "harbour")
    pipe.retriever.retrieve("a warm start")
    seconds = []
    for prompt in (f"a photo of a {career} in a {place}" for career in careers for place in places):
        start = _now()
        pipe.retriever.retrieve(prompt)
        seconds.append(_now() - start)
    low, high = np.quantile(seconds, (0.05, 0.95))
    print(f"retrieval: {1e3 * np.median(seconds):.1f} ms a prompt ({1e3 * low:.1f} to {1e3 * high:.1f} in nine of ten)")


def peak(args, way: str) -> float:
    run = [sys.executable, __file__, args.which, "--size", str(args.size), "--steps", str(args.steps), "--peak", way]
    run += ["--half"] * args.half
    return float(subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["papertown", "sd15"])
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=20, help="sampler steps")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--half", action="store_true", help="float16, for GPUs")
    parser.add_argument("--memory", action="store_true", help="measure peak memory in place of time")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    bare, pipe = pipelines(args.which, args.half, encoder=args.peak != "bare")
    if args.peak:
        reset_peak_memory(pipe.device)
        timed(bare, pipe, args.peak, 1, args.size, args.steps)
        print(peak_memory(pipe.device) / 1e6)
        return
    if not args.memory:
        for batch in args.batch:
            compare(bare, pipe, batch, args.size, args.steps, args.turns)
        retrieval(pipe)
        return
    encoder = sum(p.numel() * p.element_size() for p in pipe.value_encoder.parameters()) / 1e6
    base, ours = peak(args, "bare"), peak(args, "a value")
    print(f"peak memory: bare {base:.0f} MB, with a value {ours:.0f} MB; the encoder is {encoder:.0f} MB")
    print(f"above the bare pipeline and the encoder: {100 * (ours - base - encoder) / base:+.2f}%")


if __name__ == "__main__":
    main()
