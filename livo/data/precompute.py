"""Encodes preference data once, before training: latents of the images and embeddings of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers import DiffusionPipeline

from livo.data.embedding_cache import EmbeddingCache
from livo.data.latent_cache import LatentCache
from livo.data.manifest import Sample
from livo.data.preference_dataset import PreferenceDataset
from livo.utils.files import sweep

if TYPE_CHECKING:
    from accelerate import Accelerator


def encode_dataset(
    samples: Sequence[Sample],
    pipe: DiffusionPipeline,
    resolution: int,
    folder: Path,
    accelerator: Accelerator,
    *,
    source_prompts: bool = False,
) -> PreferenceDataset:
    """Encode the samples, or read what an earlier run or another process has encoded. The pipeline is left as it was.

    Args:
        samples: The judged images.
        pipe: The pipeline whose VAE and text encoders encode them, on the accelerator's device.
        resolution: The side of the images in pixels.
        folder: The cache folder. All runs on the same data can share it.
        accelerator: Its processes share the work.
        source_prompts: Whether the prompts that the images were generated from are encoded too.

    Raises:
        PreferenceError: An image cannot be read, or its latents are not finite.
    """
    if accelerator.is_main_process and folder.is_dir():
        sweep(folder)
    dtype = pipe.vae.dtype
    latents = LatentCache(folder, pipe.vae.float(), resolution)  # SDXL's VAE overflows in half precision
    accelerator.wait_for_everyone()
    latents.fill(samples, rank=accelerator.process_index, world=accelerator.num_processes)
    pipe.vae.to(dtype)
    sources = {sample.source_prompt for sample in samples if source_prompts}
    prompts = ["", *sorted({sample.prompt for sample in samples} | sources - {""})]
    embeddings = EmbeddingCache(folder, pipe, prompts)
    if accelerator.is_main_process:
        embeddings.fill(accelerator.device)
    accelerator.wait_for_everyone()
    return PreferenceDataset(samples, latents.load(samples), embeddings.load())
