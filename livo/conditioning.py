"""The value token: how it is worded, encoded, joined to the prompt embeddings and weighted in attention.

Training and inference both condition through this module, so they cannot drift apart. The layout is LiVO's (section 3.2):
c = [E_v(v, x); E(x)], one token in front of the prompt's 77; several principles on one prompt give several tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

MASKED = -10_000.0  # added to an attention score, removes the token exactly, in half precision too


def value_text(statement: str, prompt: str) -> str:
    """What the value encoder reads: "gender equality, a photo of a doctor"."""
    return f"{statement}, {prompt}"


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Token ids (N, 77), cut at the end and padded, as Stable Diffusion reads its prompts."""
    length = tokenizer.model_max_length
    return tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def encode_value(
    value_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: Sequence[str], device: torch.device | None = None
) -> torch.Tensor:
    """Value tokens (N, width), one for each of `value_text`: the encoder's output at the first EOS.

    The position is looked up here, because CLIPTextModel's own pooling takes the largest token id when its configuration
    holds the legacy `eos_token_id` 2, which is the EOS in OpenAI's vocabulary alone. `device` is the encoder's by default.
    """
    ids = tokenize(tokenizer, texts).to(value_encoder.device if device is None else device)
    hidden = value_encoder(ids).last_hidden_state
    eos = (ids == tokenizer.eos_token_id).int().argmax(dim=-1)
    return hidden[torch.arange(len(ids), device=ids.device), eos]


def fuse(value_tokens: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
    """[value tokens ; prompt embeddings]: (N, width) or (N, K, width), and (N, 77, width) -> (N, K + 77, width)."""
    if value_tokens.dim() == 2:
        value_tokens = value_tokens.unsqueeze(1)
    return torch.cat([value_tokens.to(prompt_embeds), prompt_embeds], dim=1)


def attention_bias(scales: Sequence[Sequence[float]], length: int) -> torch.Tensor:
    """Bias (N, 1, length) that multiplies each value token's attention weight by its scale before normalisation.

    `scales` holds a row's K scales. 1 leaves a token as it was trained; 0 removes it, which gives the output without a token (a
    zero-valued token would not: it dilutes the softmax). In between and above, the log of the scale is added to the score.
    """
    bias = torch.zeros(len(scales), 1, length)
    for row, tokens in enumerate(scales):
        for column, scale in enumerate(tokens):
            bias[row, 0, column] = max(math.log(scale), MASKED) if scale > 0 else MASKED
    return bias


@contextmanager
def biased_cross_attention(unet: nn.Module, bias: torch.Tensor) -> Iterator[None]:
    """Within this context every cross-attention of `unet` adds `bias` to its scores; afterwards the UNet is as it was.

    `bias` (N, 1, length) is for the largest batch; a smaller one takes the last rows, so the unconditional half, which comes
    first where there is one, may be absent. Hooks do it because neither diffusers' pipelines nor its UNet pass a fractional
    bias on to attention.
    """

    def add_bias(module, args, kwargs):
        if kwargs.get("encoder_hidden_states") is None:
            return None
        queries = kwargs.get("hidden_states", args[0] if args else None)
        return args, kwargs | {"attention_mask": bias[-len(queries) :].to(queries)}

    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    hooks = [layer.register_forward_pre_hook(add_bias, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
