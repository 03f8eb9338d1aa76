"""The prompt embeddings of the frozen text encoders, computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from livo.utils.files import replacing
from livo.utils.hashing import weights_hash
from livo.value_encoder.token import tokenize

_BATCH = 64


@dataclass(frozen=True)
class PromptEmbeddings:
    """What the frozen text encoders make of N prompts.

    Args:
        embeds: Hidden states, (N, length, width).
        pooled: The pooled embeddings of SDXL, (N, width); None for a model without them.
    """

    embeds: torch.Tensor
    pooled: torch.Tensor | None = None

    @classmethod
    def cat(cls, parts: Sequence[PromptEmbeddings]) -> PromptEmbeddings:
        """The rows of all parts, in order.

        Args:
            parts: At least one; all of one model.
        """
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(torch.cat([part.embeds for part in parts]), torch.cat(pooled) if pooled else None)

    def __getitem__(self, rows) -> PromptEmbeddings:
        return PromptEmbeddings(self.embeds[rows], None if self.pooled is None else self.pooled[rows])

    def repeat(self, times: int) -> PromptEmbeddings:
        """All rows, `times` times one after another.

        Args:
            times: How often; at least 1.
        """
        return PromptEmbeddings(self.embeds.repeat(times, 1, 1), None if self.pooled is None else self.pooled.repeat(times, 1))

    def to(self, device: torch.device | str) -> PromptEmbeddings:
        """The same embeddings on a device.

        Args:
            device: The device, as of `torch.Tensor.to`.
        """
        return PromptEmbeddings(self.embeds.to(device), None if self.pooled is None else self.pooled.to(device))


@torch.no_grad()
def encode_prompts(pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device) -> PromptEmbeddings:
    """Encode prompts as the pipeline itself does, padded to the full length.

    Args:
        pipe: A Stable Diffusion or SDXL pipeline.
        prompts: The N prompts.
        device: Where the text encoders are.
    """
    if isinstance(pipe, StableDiffusionXLPipeline):
        texts: Any = list(prompts)  # the type of the argument leaves lists out, its documentation does not
        embeds, _, pooled, _ = pipe.encode_prompt(texts, device=device, do_classifier_free_guidance=False)
        return PromptEmbeddings(embeds, pooled)
    return PromptEmbeddings(pipe.text_encoder(tokenize(pipe.tokenizer, prompts).to(device)).last_hidden_state)


class EmbeddingCache:
    """The embeddings of a set of prompts, in one safetensors file that is named after the prompts and the text encoders' weights.

    Args:
        folder: The cache folder.
        pipe: The pipeline whose text encoders are used.
        prompts: All prompts of the set. Their order is part of the file's name.
    """

    def __init__(self, folder: Path, pipe: DiffusionPipeline, prompts: Sequence[str]):
        self.pipe, self.prompts = pipe, prompts
        encoders = [module for name in ("text_encoder", "text_encoder_2") if (module := getattr(pipe, name, None)) is not None]
        content = [prompts, *([weights_hash(module), str(module.dtype)] for module in encoders)]
        self.file = folder / f"texts-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}.safetensors"

    def fill(self, device: torch.device) -> None:
        """Encode the prompts, unless the file exists. Only one process may do this; the others wait for it before `load`.

        Args:
            device: Where the text encoders are.
        """
        if self.file.is_file():
            return
        groups = [self.prompts[i : i + _BATCH] for i in range(0, len(self.prompts), _BATCH)]
        encoded = PromptEmbeddings.cat([encode_prompts(self.pipe, group, device).to("cpu") for group in groups])
        tensors = {"embeds": encoded.embeds} | ({} if encoded.pooled is None else {"pooled": encoded.pooled})
        with replacing(self.file) as temporary:
            save_file(tensors, temporary)

    def load(self) -> dict[str, PromptEmbeddings]:
        """The embeddings of each prompt, one row each, on the CPU."""
        tensors = load_file(self.file)
        stored = PromptEmbeddings(tensors["embeds"], tensors.get("pooled"))
        return {prompt: stored[i : i + 1] for i, prompt in enumerate(self.prompts)}
