"""The value token: how it is worded, encoded, joined to the prompt embeddings and weighted in attention.

Training and inference both condition through this module, so they cannot drift apart. The layout is LiVO's (section 3.2):
c = [E_v(v, x); E(x)], one token in front of the prompt's 77; several principles on one prompt give several tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import RLock

import torch
from transformers import CLIPTextModel, CLIPTokenizer

TOKENIZING = RLock()  # a fast tokenizer keeps truncation and padding as its state, which threads would set for each other


def value_text(statement: str, prompt: str) -> str:
    """What the value encoder reads: "gender equality, a photo of a doctor"."""
    return f"{statement}, {prompt}"


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Token ids (N, 77), cut at the end and padded, as Stable Diffusion reads its prompts."""
    length = tokenizer.model_max_length
    with TOKENIZING:
        return tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def cut_off(tokenizer: CLIPTokenizer, text: str) -> str:
    """The end of `text` that does not fit the tokenizer's 77 positions; empty where all of it does."""
    room = tokenizer.model_max_length - 2  # between BOS and EOS
    with TOKENIZING:
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return str(tokenizer.decode(ids[room:])) if len(ids) > room else ""


def encode_value(
    value_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: Sequence[str], device: torch.device | None = None
) -> torch.Tensor:
    """Value tokens (N, width), one for each of `value_text`: the encoder's output at the first EOS; (N, K, width) of an encoder that
    projects it to K tokens.

    The position is looked up here, because CLIPTextModel's own pooling takes the largest token id when its configuration
    holds the legacy `eos_token_id` 2, which is the EOS in OpenAI's vocabulary alone. Words that textual inversion added to the
    tokenizer are left out, for the encoder does not know them. `device` is the encoder's by default.
    """
    ids = tokenize(tokenizer, texts)
    known = value_encoder.config.vocab_size
    if bool((ids >= known).any()):
        with TOKENIZING:
            rows = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        ids = torch.full_like(ids, tokenizer.pad_token_id)
        for row, words in zip(ids, rows, strict=True):
            words = [word for word in words if word < known][: len(row) - 2]
            row[: len(words) + 2] = torch.tensor([tokenizer.bos_token_id, *words, tokenizer.eos_token_id])
    ids = ids.to(value_encoder.device if device is None else device)
    hidden = value_encoder(ids).last_hidden_state
    eos = (ids == tokenizer.eos_token_id).int().argmax(dim=-1)
    pooled = hidden[torch.arange(len(ids), device=ids.device), eos]
    projection = getattr(value_encoder, "value_projection", None)
    if projection is None:
        return pooled
    tokens = getattr(value_encoder.config, "value_tokens", None) or 1
    return projection(pooled).unflatten(-1, (tokens, -1)) if tokens > 1 else projection(pooled)


def fuse(value_tokens: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
    """[value tokens ; prompt embeddings]: (N, width) or (N, K, width), and (N, 77, width) -> (N, K + 77, width)."""
    if value_tokens.dim() == 2:
        value_tokens = value_tokens.unsqueeze(1)
    return torch.cat([value_tokens.to(prompt_embeds), prompt_embeds], dim=1)
