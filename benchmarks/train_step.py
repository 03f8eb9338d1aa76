"""Training steps a second, A B A B in one process: the published recipe's step against `livo train`'s.

The published step encodes both images and both texts each time and calls the UNet four times (aligned and violating, trained and
frozen); ours reads cached latents and embeddings and calls it twice, on both images together. Same weights, pairs, noise, batch and
precision: the first losses and gradients are compared before anything is timed. Peak memory is measured in a process for each.

    python benchmarks/train_step.py papertown                       # the first steps: every hinge pushes
    python benchmarks/train_step.py papertown --trained             # late steps: Papertown's encoder on Papertown's own pairs
    python benchmarks/train_step.py sd15 --batch 1 --size 256        # random weights of Stable Diffusion 1.5's shape
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from livo.data import build_folder, builder
from livo.data.manifest import read_samples
from livo.data.precompute import encode_dataset
from livo.evaluation.judges import load_judge
from livo.papertown.build import GENERATION, TRAINING
from livo.papertown.world import WEIGHTS
from livo.pipelines.stable_diffusion import LiVOPipeline
from livo.principles.principle import bundled_principles, load_principles
from livo.training.adapters import ValueEncoderAdapter
from livo.training.config import TrainingConfig
from livo.training.noise import NoiseSchedule
from livo.training.objectives import squared_error
from livo.training.sampler import PreferenceBatch, PreferenceSampler
from livo.training.step import TrainingStep, make_objective
from livo.utils.memory import peak_memory, reset_peak_memory
from livo.utils.precision import HELP, PRECISIONS, Precision, resolve
from livo.value_encoder.token import encode_value, fuse, tokenize, value_text


def sd15() -> LiVOPipeline:
    """Stable Diffusion 1.5's shapes with random weights, and Papertown's tokenizer."""
    torch.manual_seed(0)
    tokenizer = LiVOPipeline.from_pretrained(WEIGHTS).tokenizer
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    )
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text_encoder = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **ends)
    )
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    return LiVOPipeline(vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)


def preferences(folder: Path, size: int, count: int = 16) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(2 * count):
        Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append(
            {"prompt": f"a photo of a doctor {i // 2}", "value": "gender equality", "label": i % 2, "file_name": f"{i}.png"}
        )
        rows[-1]["scene"] = str(i // 2)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Published:
    """The published recipe's loss, on the same draws as ours."""

    def __init__(self, config, pipe, adapter, sampler: PreferenceSampler, device, unet):
        self.pipe, self.adapter, self.sampler, self.device = pipe, adapter, sampler, device
        self.unet, self.vae, self.text_encoder = unet, pipe.vae, pipe.text_encoder
        self.noise, self.count, self.objective = NoiseSchedule(pipe.scheduler), config.batch, make_objective(config)
        size = config.resolution
        self.pixels = torch.stack([_pixels(sample.file, size) for sample in sampler.dataset.samples]).to(device)

    def __call__(self, batch: PreferenceBatch):
        pipe, count, device = self.pipe, self.count, self.device
        rows = [(draw.winner, draw.loser) for draw in self.sampler.draws(batch.step)]
        x = []
        for part in (0, 1):
            with torch.no_grad():
                latents = self.vae.encode(self.pixels[[row[part] for row in rows]]).latent_dist.mode()
            x.append(latents.float() * self.vae.config.scaling_factor)
        with torch.no_grad():
            embeds = self.text_encoder(tokenize(pipe.tokenizer, batch.backbone_prompts).to(device)).last_hidden_state
        texts = [value_text(value, prompt) for value, prompt in zip(batch.values, batch.encoder_prompts, strict=True)]
        fused = fuse(encode_value(self.adapter.encoder, pipe.tokenizer, texts), embeds)
        errors, references = [], []
        t = batch.t[:count].to(device)
        for latents in x:
            noise = batch.noise[:count].to(device)
            noisy, target = self.noise.add_noise(latents, noise, t), self.noise.target(latents, noise, t)
            errors.append(squared_error(self.unet(noisy, t, fused).sample, target))
            with torch.no_grad():
                references.append(squared_error(self.unet(noisy, t, embeds).sample, target))
        losses, statistics = self.objective(errors[0], references[0], errors[1], references[1])
        return losses.mean(), {name: values.mean().item() for name, values in statistics.items()}


def _pixels(file: Path, size: int) -> torch.Tensor:
    image = Image.open(file).convert("RGB").resize((size, size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def papertown_pairs(pipe: LiVOPipeline, folder: Path) -> Path:
    """Six pairs for each statement and direction of the paper's principles, made by the backbone itself."""
    judge = load_judge("papertown")
    principles = load_principles(bundled_principles())
    principles = [replace(p, construct=replace(p.construct, pairs=6, direction_pairs=6)) for p in principles]
    list(builder.build(pipe, judge, principles, folder, GENERATION))
    build_folder.finish(folder, principles)
    return folder


def setup(which: str, batch: int, micro: int, size: int, precision: Precision, trained: bool, folder: Path):
    pipe: StableDiffusionPipeline = LiVOPipeline.from_pretrained("papertown") if which == "papertown" else sd15()
    pipe.set_progress_bar_config(disable=True)
    data = papertown_pairs(pipe, folder) if trained else preferences(folder, size)
    config = replace(TRAINING, save_every=250) if trained else TrainingConfig(data="-", output="-")
    config = replace(config, data=str(data), batch=batch, precision=precision.resolved, resolution=size)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    pipe.to(accelerator.device)
    samples = read_samples(folder)
    torch.manual_seed(0)
    plain = copy.deepcopy(pipe.unet).requires_grad_(False)  # our adapter eases the way back through its own
    adapter = ValueEncoderAdapter(pipe, size, ["gender equality"])
    if trained:
        adapter.encoder.load_state_dict(pipe.value_encoder.state_dict())
    dataset, noise = encode_dataset(samples, pipe, size, folder / ".cache", accelerator), NoiseSchedule(pipe.scheduler)
    sampler = PreferenceSampler(dataset, config, noise.num_timesteps)
    theirs = Published(config, pipe, adapter, sampler, accelerator.device, plain)
    config = replace(config, batch=batch // micro, accumulation=micro)
    ours = TrainingStep(config, adapter, noise, dataset.embed([""]), accelerator)
    in_parts = PreferenceSampler(dataset, config, noise.num_timesteps)
    return {"published": Method(sampler, theirs, 1), "livo": Method(in_parts, ours, micro)}, adapter, accelerator


@dataclass
class Method:
    """A sampler and the loss of its batches, in `parts` micro-batches."""

    sampler: PreferenceSampler
    loss: Callable[[PreferenceBatch], tuple[torch.Tensor, dict]]
    parts: int


def backward(method: Method, autocast, number: int) -> float:
    """The loss of a step, whose gradient is left in the weights."""
    total = 0.0
    for micro in range(method.parts):
        batch = method.sampler(number, micro)
        with autocast():
            value, _ = method.loss(batch)
        (value / method.parts).backward()
        total += value.item() / method.parts
    return total


def step(loss, adapter, optimizer, autocast, number: int) -> float:
    value = backward(loss, autocast, number)
    torch.nn.utils.clip_grad_norm_(adapter.encoder.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return value


def agreement(losses, adapter) -> None:
    """First losses and gradients of both, in float32."""
    found = {}
    for name, loss in losses.items():
        values = [backward(loss, nullcontext, number) for number in range(3)]
        found[name] = values, torch.cat([p.grad.flatten() for p in adapter.encoder.parameters() if p.grad is not None])
        adapter.encoder.zero_grad()
    (a, ga), (b, gb) = found["published"], found["livo"]
    print(f"first losses, published {np.round(a, 5).tolist()}, ours {np.round(b, 5).tolist()}")
    print(f"gradients: relative difference {float((ga - gb).norm() / ga.norm()):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["papertown", "sd15"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--micro", type=int, default=1, help="micro-batches in which our step takes the batch (livo train's accumulation)"
    )
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--trained", action="store_true", help="start from Papertown's value encoder, on Papertown's own pairs")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help=HELP)
    parser.add_argument("--steps", type=int, default=20, help="steps a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peak", choices=["published", "livo"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    precision = resolve(args.precision, "cuda" if torch.cuda.is_available() else "cpu", fp16=False)
    with tempfile.TemporaryDirectory() as folder:
        losses, adapter, accelerator = setup(args.which, args.batch, args.micro, args.size, precision, args.trained, Path(folder))
        optimizer = torch.optim.AdamW(adapter.encoder.parameters(), lr=1e-6)
        autocast = partial(precision.autocast, accelerator.device)
        if args.peak:
            losses = {args.peak: losses[args.peak]}
            if args.peak == "published":  # it has a UNet of its own
                adapter.unet = adapter.pipe.unet = None
            gc.collect()
            reset_peak_memory(accelerator.device)  # what was cached before training, in a run of its own perhaps, does not count
            before = peak_memory(accelerator.device)
            for number in range(3):
                step(losses[args.peak], adapter, optimizer, autocast, number)
            peak = peak_memory(accelerator.device)
            print(peak / 1e6, (peak - before) / 1e6)
            return
        print(f"precision {precision.resolved}")
        agreement(losses, adapter)
        rates: dict[str, list[float]] = {"published": [], "livo": []}
        for name in losses:
            step(losses[name], adapter, optimizer, autocast, 0)
        for turn in range(args.turns):
            for name, loss in losses.items():
                start = time.perf_counter()
                for number in range(args.steps):
                    step(loss, adapter, optimizer, autocast, turn * args.steps + number)
                rates[name].append(args.steps / (time.perf_counter() - start))
        for name, values in rates.items():
            print(f"{name:10} {np.median(values):.3f} steps/s  ({', '.join(f'{v:.3f}' for v in values)})")
        ratios = np.array(rates["livo"]) / np.array(rates["published"])
        print(f"ratio {np.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})")
    peaks = {}
    for name in ("published", "livo"):
        run = [sys.executable, __file__, args.which, "--peak", name, "--batch", str(args.batch), "--size", str(args.size)]
        run += ["--micro", str(args.micro)] + ["--trained"] * args.trained
        out = subprocess.run([*run, "--precision", precision.resolved], capture_output=True, text=True, check=True)
        peaks[name] = [float(number) for number in out.stdout.split()[-2:]]
    for i, what in enumerate(("peak memory", "of it by the steps themselves")):
        theirs, ours = peaks["published"][i], peaks["livo"][i]
        print(f"{what}: published {theirs:.0f} MB, ours {ours:.0f} MB, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
