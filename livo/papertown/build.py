"""Rebuild all weights of Papertown from scratch: VAE, judge, backbone, preference data, value encoder.

Each stage leaves its result in the work folder and is skipped when that is there; training goes on from its last saved step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from livo.data import build_folder, builder
from livo.papertown import backbone, judging
from livo.papertown.judge import PapertownJudge
from livo.papertown.scene import LABELS
from livo.papertown.world import WEIGHTS
from livo.pipelines.stable_diffusion import PRINCIPLES_FILE, LiVOPipeline
from livo.principles.principle import bundled_principles, load_principles
from livo.training.config import TrainingConfig
from livo.training.loop import Autocast
from livo.training.trainer import train
from livo.utils.files import remove, replacing
from livo.utils.precision import settle
from livo.utils.progress import follow_build, follow_training

CORPUS_SIZE = 24_000
STEPS = {"vae": 3200, "decoder": 1600, "judge": 2500, "text_encoder": 1500, "unet": 5000}
GENERATION = builder.Options(batch=64, guidance=5.0)
TRAINING = TrainingConfig(
    data="-",
    output="-",
    beta=100.0,
    alpha=50.0,
    gamma_1=5.0,
    gamma_2=0.5,
    steps=1500,
    batch=16,
    lr=4e-4,
    freeze_embeddings=True,
)
REFINING = {  # the second run
    "objective": "distillation",
    "beta": 1000.0,
    "contrary_prompt": 0.5,
    "prompt_swap": 0.9,
    "steps": 1500,
    "lr": 2e-4,
    "interpolate": 0.85,
}


def build(work: Path, weights: Path = WEIGHTS, precision: str = "auto") -> None:
    """Everything, in order; `weights` is replaced when all of it is there.

    `precision` as in `livo.utils.precision.resolve`, but not fp16.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = settle(work, precision, device, fp16=False)
    if found.resolved == "fp16":
        raise ValueError("precision is fp16, whose range is too small for these gradients: choose auto, bf16 or fp32")
    autocast = partial(found.autocast, device)
    _stage(work / "vae", lambda folder: _build_vae(work, device, autocast).save_pretrained(folder), "vae", "decoder")
    _stage(work / "judge", lambda folder: _build_judge(work, device, autocast).save_pretrained(folder), "judge")
    _stage(
        work / "backbone", lambda folder: _build_backbone(work, device, autocast).save_pretrained(folder), "text_encoder", "unet"
    )
    pipe = LiVOPipeline.from_pretrained(work / "backbone").to(device)
    pipe.set_progress_bar_config(disable=True)
    judge = PapertownJudge.from_pretrained(work / "judge").to(device)
    _build_preferences(work, pipe, judge, found.resolved)
    _train_value_encoder(work, found.resolved)
    export(work, weights)


def export(work: Path, weights: Path) -> None:
    """The finished pipeline and the judge in half precision, swapped in whole."""
    pipe = LiVOPipeline.from_pretrained(
        work / "backbone", value_encoder=work / "training/refined/value_encoder", dtype=torch.float16
    )
    with replacing(weights) as temporary:
        pipe.save_pretrained(temporary)
        backbone.save_vocabulary(pipe.tokenizer, temporary / "tokenizer")
        remove(temporary / PRINCIPLES_FILE)  # the bundled file is used, so that there is one copy of it
        remove(temporary / "README.md")  # the project's own says more than a model card
        PapertownJudge.from_pretrained(work / "judge").half().save_pretrained(temporary / "judge")
    size = sum(file.stat().st_size for file in weights.rglob("*") if file.is_file())
    print(f"{weights}: {size / 1e6:.1f} MB")


def _build_vae(work: Path, device: str, autocast: Autocast) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = backbone.new_vae().to(device)
    follow_training(backbone.train_vae(vae, work, STEPS["vae"], autocast), "vae", STEPS["vae"], ("loss",))
    vae.requires_grad_(False)
    if not (work / "latents.safetensors").is_file():
        batches = backbone.encode_corpus(vae, CORPUS_SIZE)
        latents = torch.cat(list(tqdm(batches, "latents", CORPUS_SIZE // 100, unit="batch", mininterval=5))).contiguous()
        _stage(work / "latents.safetensors", lambda file: save_file({"latents": latents}, file))
    spread = load_file(work / "latents.safetensors")["latents"].float().std().item()
    vae.register_to_config(scaling_factor=round(1 / spread, 5))
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    follow_training(backbone.train_decoder(vae, work, STEPS["decoder"], autocast), "decoder", STEPS["decoder"], ("loss",))
    return vae


def _build_judge(work: Path, device: str, autocast: Autocast) -> PapertownJudge:
    torch.manual_seed(2)
    judge = PapertownJudge(LABELS).to(device)
    follow_training(judging.train_judge(judge, work, STEPS["judge"], autocast), "judge", STEPS["judge"], ("loss",))
    return judge


def _build_backbone(work: Path, device: str, autocast: Autocast) -> LiVOPipeline:
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device)
    tokenizer = backbone.new_tokenizer()
    torch.manual_seed(1)
    unet, text_encoder = backbone.new_unet().to(device), backbone.new_text_encoder(tokenizer).to(device)
    captions = backbone.train_text_encoder(text_encoder, tokenizer, work, CORPUS_SIZE, STEPS["text_encoder"], autocast)
    follow_training(captions, "text encoder", STEPS["text_encoder"], ("loss",))
    latents = load_file(work / "latents.safetensors")["latents"] * vae.config.scaling_factor
    records = backbone.train_unet(unet, text_encoder, tokenizer, latents, work, STEPS["unet"], autocast)
    follow_training(records, "unet", STEPS["unet"], ("loss",))
    scheduler = backbone.new_scheduler()
    return LiVOPipeline(vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)


def _build_preferences(work: Path, pipe: LiVOPipeline, judge: PapertownJudge, precision: str) -> None:
    principles, options = load_principles(bundled_principles()), replace(GENERATION, precision=precision)
    folder = work / "preferences"
    builder.prepare(folder, pipe, judge, principles, options)
    follow_build(builder.build(pipe, judge, principles, folder, options))
    build_folder.finish(folder, principles)


def _train_value_encoder(work: Path, precision: str) -> None:
    """Two runs: the paper's loss makes tokens that work; distillation then leaves them the value alone, and not what came with it.

    Of its way 85% is kept: careers that training never saw then keep their clothes where a risk is removed.
    """
    folders = {"data": str(work / "preferences"), "model": str(work / "backbone"), "output": str(work / "training" / "livo")}
    first = replace(TRAINING, precision=precision, **folders)
    second = replace(first, output=str(work / "training" / "refined"), value_encoder=f"{first.output}/value_encoder", **REFINING)
    for number, run in enumerate((first, second), 1):
        records = train(run, resume=Path(run.output, "config.json").is_file())
        follow_training(records, f"value encoder, run {number} of 2", run.steps, ("loss", "accuracy", "winner_gain"))


def _stage(result: Path, make: Callable[[Path], None], *states: str) -> None:
    """Make `result` under a temporary name unless it is there, so that what is there is whole.

    The training `states` that led to it are removed with it done: deleting a result is how to have it made again.
    """
    if not result.exists():
        with replacing(result) as temporary:
            make(temporary)
        for state in states:
            remove(result.parent / f"{state}.checkpoints")
