"""Papertown's Stable Diffusion in miniature: the parts, and how each is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from tokenizers import pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from livo.papertown import corpus
from livo.papertown.scene import LABELS
from livo.training.config import LoopConfig
from livo.training.loop import Autocast, training_loop


def new_vae() -> AutoencoderKL:
    """64 x 64 x 3 -> 16 x 16 x 4."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def train_vae(
    vae: AutoencoderKL, folder: Path, steps: int, autocast: Autocast = nullcontext, batch: int = 16
) -> Iterator[dict[str, float]]:
    """L1 and squared error, with a light pull towards a standard normal so that the latents are easy to diffuse."""

    def pictures(step: int, _micro: int):
        return _pictures_and_noise(step, batch, vae)

    def loss(pictures):
        x, noise = pictures
        posterior = vae.encode(x).latent_dist
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        return _reconstruction(decoded, x) + 5e-4 * kl, {"kl": kl.detach()}

    config = LoopConfig(steps, lr=2e-3, ema=0.998)
    return training_loop({"vae": vae}, pictures, loss, config, folder / "vae.checkpoints", autocast=autocast)


def train_decoder(
    vae: AutoencoderKL, folder: Path, steps: int, autocast: Autocast = nullcontext, batch: int = 16
) -> Iterator[dict[str, float]]:
    """The decoder alone, on latents as rough as a sampler leaves them; the encoder, and so the latents, stay as they are."""

    def pictures(step: int, _micro: int):
        roughness = 0.1 * torch.rand(batch, 1, 1, 1, generator=torch.Generator().manual_seed(step))
        return *_pictures_and_noise(step + 1_000_000, batch, vae), roughness

    def loss(pictures):
        x, noise, roughness = pictures
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mean
        roughness = roughness.to(z)
        return _reconstruction(vae.decode(z + roughness * z.std() * noise).sample.float(), x), {}

    modules = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}
    config = LoopConfig(steps, lr=1e-3, ema=0.998)
    return training_loop(modules, pictures, loss, config, folder / "decoder.checkpoints", autocast=autocast)


def _pictures_and_noise(step: int, batch: int, vae: AutoencoderKL) -> tuple[torch.Tensor, torch.Tensor]:
    x = corpus.pixels(np.stack([corpus.picture(i) for i in range(step * batch, (step + 1) * batch)]))
    noise = torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(step))
    return x.to(vae.device), noise.to(vae.device)


def _reconstruction(decoded: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.l1_loss(decoded, x) + 2 * F.mse_loss(decoded, x)


def new_tokenizer(vocabulary: int = 1536) -> CLIPTokenizer:
    """Byte-level BPE over Papertown's wordings: known words are one token, any other text falls back to bytes.

    EOS has the largest id, so that CLIP's pooling finds it both by its id and by the legacy argmax.
    """
    rng = np.random.default_rng(0)
    texts = [corpus.prompt(i, 0) for i in range(4000)]
    texts += [f"a photo of {word}" for word in _GENERAL_WORDS.split() for _ in range(int(rng.integers(20, 30)))]
    learner = CLIPTokenizer().backend_tokenizer
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{char}</w>" for char in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=77)


def save_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """vocab.json and merges.txt, from which transformers 4 makes its CLIPTokenizer."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges))


# Words of the value statements and of everyday prompts that the grammar does not contain.
_GENERAL_WORDS = """
gender racial equality nudity bloody content zombie considered inappropriate towards fairness safe respectful man woman people crowd
the with and of in on at by from style wearing holding standing sitting young old tall short happy sad big small beautiful realistic
cinematic illustration photograph artist light dark red green blue white black house tree street river mountain dog cat bird city
"""


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def train_text_encoder(
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    folder: Path,
    corpus_size: int,
    steps: int,
    autocast: Autocast = nullcontext,
    batch: int = 128,
) -> Iterator[dict[str, float]]:
    """What CLIP's pretraining is to Stable Diffusion: the EOS state learns to tell what a caption's picture shows.

    The pictures are the corpus's own, so the states also carry its skew (a caption of an engineer tells of a he-pin), as CLIP's do.
    """
    head = nn.Linear(text_encoder.config.hidden_size, sum(map(len, LABELS.values()))).to(text_encoder.device)

    def captions(step: int, _micro: int):
        epoch, first = divmod(step * batch, corpus_size)
        return epoch, [(first + i) % corpus_size for i in range(batch)]

    def loss(captions):
        epoch, indices = captions
        ids = tokenizer([corpus.prompt(i, epoch) for i in indices], padding=True, return_tensors="pt").input_ids
        logits = head(text_encoder(ids.to(text_encoder.device)).pooler_output).float()
        labels = [corpus.scene(i).labels() for i in indices]
        losses = [
            F.cross_entropy(part, torch.tensor([classes.index(label[name]) for label in labels]).to(part.device))
            for part, (name, classes) in zip(logits.split([len(c) for c in LABELS.values()], dim=-1), LABELS.items(), strict=True)
        ]
        return torch.stack(losses).sum(), {}

    modules = {"text_encoder": text_encoder, "head": head}
    config = LoopConfig(steps, lr=1e-3, ema=0.99)
    return training_loop(modules, captions, loss, config, folder / "text_encoder.checkpoints", autocast=autocast)


def new_unet() -> UNet2DConditionModel:
    """16 x 16 x 4 latents; attention at 8 x 8 alone, where it costs a quarter and still sees everything."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(96, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
    )


def new_scheduler() -> DPMSolverMultistepScheduler:
    """Velocity prediction down to zero terminal SNR: tones and places are low frequencies, which a residue of signal gives away."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # Stable Diffusion's, and without effect on trailing steps
    )


@torch.no_grad()
def encode_corpus(vae: AutoencoderKL, size: int, batch: int = 100) -> Iterator[torch.Tensor]:
    """Latent means (unscaled) of the first `size` pictures, in batches."""
    for first in range(0, size, batch):
        x = corpus.pixels(np.stack([corpus.picture(i) for i in range(first, min(first + batch, size))]))
        yield vae.encode(x.to(vae.device)).latent_dist.mean.half().cpu()


def train_unet(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    latents: torch.Tensor,
    folder: Path,
    steps: int,
    autocast: Autocast = nullcontext,
    batch: int = 32,
) -> Iterator[dict[str, float]]:
    """The UNet, on (scaled) corpus latents and the frozen text encoder; one caption in ten is dropped for guidance."""
    schedule = DDPMScheduler.from_config(new_scheduler().config)
    device = unet.device

    def sample(step: int, _micro: int):
        rng = np.random.default_rng((3, step))
        order = np.random.default_rng((4, step * batch // len(latents))).permutation(len(latents))
        indices = order[(step * batch + np.arange(batch)) % len(latents)]
        epoch = step * batch // len(latents)
        prompts = ["" if rng.random() < 0.1 else corpus.prompt(int(i), epoch) for i in indices]
        ids = tokenizer(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        generator = torch.Generator().manual_seed(step)
        x = latents[indices].float()
        noise = torch.randn(x.shape, generator=generator)
        t = (torch.randperm(batch, generator=generator) + torch.rand(batch, generator=generator)) / batch  # stratified
        t = (t * schedule.config.num_train_timesteps).long().clamp(max=schedule.config.num_train_timesteps - 1)
        return schedule.add_noise(x, noise, t), schedule.get_velocity(x, noise, t), t, ids

    def loss(sample):
        noisy, target, t, ids = sample
        with torch.no_grad():
            hidden = text_encoder(ids.to(device)).last_hidden_state
        predicted = unet(noisy.to(device), t.to(device), hidden).sample
        return F.mse_loss(predicted.float(), target.to(device)), {}

    config = LoopConfig(steps, lr=1.2e-3, ema=0.999)
    return training_loop({"unet": unet}, sample, loss, config, folder / "unet.checkpoints", autocast=autocast)
