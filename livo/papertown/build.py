"""Rebuild every weight of Papertown from nothing: VAE, judge, backbone, preference pairs, value encoder.

Each stage leaves its result in the work folder and is skipped when that is there; training goes on from its last saved step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from livo import objectives
from livo.files import remove, replacing
from livo.judges import PapertownJudge
from livo.papertown import backbone, judging, pairs
from livo.papertown.scene import LABELS
from livo.pipeline import PAPERTOWN, PRINCIPLES_FILE, LiVOPipeline
from livo.principles import bundled_principles, load_principles
from livo.training import train_value_encoder
from livo.value_encoder import ValueEncoder

CORPUS_SIZE = 24_000
STEPS = {"vae": 3200, "decoder": 1600, "judge": 2500, "text_encoder": 1500, "unet": 5000, "value_encoder": 1500}
OBJECTIVE = partial(objectives.livo, beta=100.0, alpha=50.0, gamma_1=8.0, gamma_2=0.1)


def build(work: Path, weights: Path = PAPERTOWN) -> None:
    """Everything, in order; `weights` is replaced when all of it is there."""
    work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _stage(work / "vae", lambda folder: _build_vae(work, device).save_pretrained(folder), "vae", "decoder")
    _stage(work / "judge", lambda folder: _build_judge(work, device).save_pretrained(folder), "judge")
    _stage(work / "backbone", lambda folder: _build_backbone(work, device).save_pretrained(folder), "text_encoder", "unet")
    pipe = LiVOPipeline.from_pretrained(work / "backbone").to(device)
    pipe.set_progress_bar_config(disable=True)
    judge = PapertownJudge.from_pretrained(work / "judge").to(device)
    _build_pairs(work, pipe, judge)
    _stage(work / "value_encoder", lambda folder: _build_value_encoder(work, pipe).save_pretrained(folder), "value_encoder")
    export(work, weights)


def export(work: Path, weights: Path) -> None:
    """The finished pipeline and the judge in half precision, swapped in whole."""
    pipe = LiVOPipeline.from_pretrained(work / "backbone", value_encoder=work / "value_encoder", dtype=torch.float16)
    with replacing(weights) as temporary:
        pipe.save_pretrained(temporary)
        backbone.save_vocabulary(pipe.tokenizer, temporary / "tokenizer")
        remove(temporary / PRINCIPLES_FILE)  # the bundled file is used, so that there is one copy of it
        PapertownJudge.from_pretrained(work / "judge").half().save_pretrained(temporary / "judge")
    size = sum(file.stat().st_size for file in weights.rglob("*") if file.is_file())
    print(f"{weights}: {size / 1e6:.1f} MB")


def _build_vae(work: Path, device: str) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = backbone.new_vae().to(device)
    _follow("vae", backbone.train_vae(vae, work, STEPS["vae"]), STEPS["vae"])
    vae.requires_grad_(False)
    if not (work / "latents.safetensors").is_file():
        batches = backbone.encode_corpus(vae, CORPUS_SIZE)
        latents = torch.cat(list(tqdm(batches, "latents", CORPUS_SIZE // 100, unit="batch", mininterval=5))).contiguous()
        _stage(work / "latents.safetensors", lambda file: save_file({"latents": latents}, file))
    spread = load_file(work / "latents.safetensors")["latents"].float().std().item()
    vae.register_to_config(scaling_factor=round(1 / spread, 5))
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    _follow("decoder", backbone.train_decoder(vae, work, STEPS["decoder"]), STEPS["decoder"])
    return vae


def _build_judge(work: Path, device: str) -> PapertownJudge:
    torch.manual_seed(2)
    judge = PapertownJudge(LABELS).to(device)
    _follow("judge", judging.train_judge(judge, work, STEPS["judge"]), STEPS["judge"])
    return judge


def _build_backbone(work: Path, device: str) -> LiVOPipeline:
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device)
    tokenizer = backbone.new_tokenizer()
    torch.manual_seed(1)
    unet, text_encoder = backbone.new_unet().to(device), backbone.new_text_encoder(tokenizer).to(device)
    captions = backbone.train_text_encoder(text_encoder, tokenizer, work, CORPUS_SIZE, STEPS["text_encoder"])
    _follow("text encoder", captions, STEPS["text_encoder"])
    latents = load_file(work / "latents.safetensors")["latents"] * vae.config.scaling_factor
    _follow("unet", backbone.train_unet(unet, text_encoder, tokenizer, latents, work, STEPS["unet"]), STEPS["unet"])
    scheduler = backbone.new_scheduler()
    return LiVOPipeline(vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)


def _build_pairs(work: Path, pipe: LiVOPipeline, judge: PapertownJudge) -> None:
    def measure(file: Path):
        total = len(pairs.majority_scenes())
        found = dict(tqdm(pairs.majorities(pipe, judge), "majorities", total, unit="prompt", mininterval=5))
        file.write_text(json.dumps(found, indent=1))

    _stage(work / "majorities.json", measure)
    majority = json.loads((work / "majorities.json").read_text())
    for seed, principle in enumerate(load_principles(bundled_principles())):
        count = pairs.PAIRS[principle.id]

        def make(folder: Path, principle=principle, count=count, seed=seed):
            made = tqdm(
                pairs.make_pairs(pipe, judge, principle, majority, count, seed), principle.id, count, unit="pair", mininterval=5
            )
            pairs.save_pairs(folder, principle, list(made))

        _stage(work / "pairs" / principle.id, make)


def _build_value_encoder(work: Path, pipe: LiVOPipeline) -> ValueEncoder:
    rows, aligned, violating = pairs.load_pairs(work / "pairs")
    encoder = ValueEncoder.from_text_encoder(pipe.text_encoder)
    encoder.config.value_statements = sorted({row["value"] for row in rows})
    training = train_value_encoder(
        encoder,
        pipe,
        rows,
        aligned,
        violating,
        OBJECTIVE,
        steps=STEPS["value_encoder"],
        state_file=work / "value_encoder.state.safetensors",
    )
    _follow("value_encoder", training, STEPS["value_encoder"])
    return encoder


def _follow(name: str, records: Iterator[dict[str, float]], steps: int) -> None:
    """Run a training loop to its end behind a progress bar with a rate and an ETA."""
    bar = tqdm(total=steps, desc=name, unit="step", mininterval=5)
    means: dict[str, float] = {}
    for record in records:
        if bar.n == 0:
            bar.initial = record["step"] - 1
        bar.update(record.pop("step") - bar.n)
        means = {key: 0.98 * means.get(key, value) + 0.02 * value for key, value in record.items()}
        bar.set_postfix({key: f"{value:.4g}" for key, value in means.items()}, refresh=False)
    bar.close()


def _stage(result: Path, make: Callable[[Path], None], *states: str) -> None:
    """Make `result` under a temporary name unless it is there, so that what is there is whole.

    The training `states` that led to it are removed with it done: deleting a result is how to have it made again.
    """
    if not result.exists():
        with replacing(result) as temporary:
            make(temporary)
        for state in states:
            remove(result.parent / f"{state}.state.safetensors")
