"""The value token: how it is worded, encoded, joined to the prompt embeddings and weighted in attention.

Training and inference both condition through this module, so they cannot drift apart. The layout is LiVO's (section 3.2):
c = [E_v(v, x); E(x)], one token in front of the prompt's 77; several principles on one prompt give several tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import CLIPTextModel, CLIPTokenizer

MASKED = -10_000.0  # added to an attention score, removes the token exactly, in half precision too


def value_text(statement: str, prompt: str) -> str:
    """What the value encoder reads: "gender equality, a photo of a doctor"."""
    return f"{statement}, {prompt}"


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Token ids (N, 77), cut at the end and padded, as Stable Diffusion reads its prompts."""
    length = tokenizer.model_max_length
    return tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def cut_off(tokenizer: CLIPTokenizer, text: str) -> str:
    """The end of `text` that does not fit the tokenizer's 77 positions; empty where all of it does."""
    room = tokenizer.model_max_length - 2  # between BOS and EOS
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return tokenizer.decode(ids[room:]) if len(ids) > room else ""


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


def join(rows: Sequence[torch.Tensor], scales: Sequence[Sequence[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (length, width) of different lengths as one batch, and the bias (N, 1, longest) that hides what was filled up and gives the
    first tokens of each row its `scales`."""
    longest = max(map(len, rows))
    bias = torch.cat([attention_bias([row], longest) for row in scales])
    for row, embeds in zip(bias, rows, strict=True):
        row[:, len(embeds) :] = MASKED
    return torch.stack([nn.functional.pad(row, (0, 0, 0, longest - len(row))) for row in rows]), bias.to(rows[0])


_acting: ContextVar[BiasedCrossAttention | None] = ContextVar("acting", default=None)  # whose call runs in this thread, or context


@contextmanager
def acting(attention: BiasedCrossAttention | None) -> Iterator[None]:
    """Within this context the bias of `attention`, or none, acts on networks that several pipelines share."""
    before = _acting.set(attention)
    try:
        yield
    finally:
        _acting.reset(before)


class BiasedCrossAttention:
    """Adds a bias to the scores of every cross-attention of the networks it is put on, while one is held.

    The hooks stay where they are put and read the bias as data, so that `torch.compile` traces them once. While no bias is held they
    do nothing. Hooks do it because neither diffusers' pipelines nor its UNet pass a fractional bias on to attention.
    """

    def __init__(self):
        self.bias: torch.Tensor | None = None
        self._networks: list[nn.Module] = []
        self._hooks: list[RemovableHandle] = []

    def put_on(self, network: nn.Module, name: str = "the network") -> None:
        """Hook the cross-attentions of `network`; nothing where that was done.

        Raises:
            ValueError: it has none. RuntimeError: it was compiled before, so hooks would go unnoticed.
        """
        inner = getattr(network, "_orig_mod", network)  # what torch.compile wraps
        if any(inner is known for known in self._networks):
            return
        layers = [module for name, module in inner.named_modules() if name.endswith("attn2")]
        if not layers:
            raise ValueError(f"{name} ({type(inner).__name__}) has no cross-attention (attn2) for a value to act on")
        if inner is not network or any(module._compiled_call_impl is not None for module in inner.modules()):
            why = "was compiled before values were plugged in"
            raise RuntimeError(f"{name} {why}: plug them in first, into each pipeline that shares it, then torch.compile")
        self._hooks += [layer.register_forward_pre_hook(self._add, with_kwargs=True) for layer in layers]
        self._networks.append(inner)

    def remove(self) -> None:
        """Take every hook away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._networks = [], []

    @contextmanager
    def holding(self, bias: torch.Tensor | None) -> Iterator[None]:
        """Within this context `bias` (N, 1, length) is added; assign `self.bias` to change it on the way.

        It is for the largest batch; a batch of half the size takes the last rows, so the unconditional half, which comes first where
        there is one, may be absent.
        """
        self.bias = bias
        try:
            with acting(self):
                yield
        finally:
            self.bias = None

    def _add(self, module: nn.Module, args: tuple, kwargs: dict):
        bias, keys = self.bias, kwargs.get("encoder_hidden_states")
        if bias is None or keys is None:
            return None
        if not torch.compiler.is_compiling() and _acting.get() is not self:  # another pipeline's call on a network that both share
            return None
        queries = kwargs.get("hidden_states", args[0] if args else None)
        keys = keys[0] if isinstance(keys, tuple) else keys  # IP-Adapter's images come second
        rows = len(queries)
        if rows not in (len(bias), len(bias) // 2) or keys.shape[1] != bias.shape[-1]:
            raise ValueError(
                f"attention has {rows} rows of {keys.shape[1]} keys, the values were laid out for {len(bias)} of {bias.shape[-1]}: "
                "do not change the prompt embeddings on the way, or pass value=None"
            )
        return args, kwargs | {"attention_mask": bias[-rows:].to(queries)}
