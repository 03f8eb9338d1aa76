"""What pipelines in several threads share, used so that no call changes it for another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from threading import Condition, get_ident

import torch
from diffusers import DiffusionPipeline
from torch import nn

from livo.value_encoder.token import TOKENIZING


class PrivateTokenizer:
    """A view of a tokenizer for diffusers' `encode_prompt`: used by one thread at a time, and with a length of its own.

    Args:
        shared: The tokenizer, which stays as it is.
        model_max_length: Positions to which texts are cut and padded, by default the tokenizer's.
    """

    def __init__(self, shared, model_max_length: int | None = None):
        self._shared = shared
        self.model_max_length = model_max_length or shared.model_max_length

    def __getattr__(self, name: str):
        return getattr(self._shared, name)

    def __call__(self, *args, **kwargs):
        with TOKENIZING:
            return self._shared(*args, **kwargs)

    def tokenize(self, *args, **kwargs) -> list[str]:
        with TOKENIZING:
            return self._shared.tokenize(*args, **kwargs)


class PrivateTextEncoder:
    """A view of a CLIPTextModel that is its own `text_model`.

    diffusers asks for that attribute where `clip_skip` is given, and transformers 5.6 took it away.
    """

    def __init__(self, shared: nn.Module):
        self._shared = shared

    @property
    def text_model(self) -> nn.Module:
        return self._shared

    def __getattr__(self, name: str):
        return getattr(self._shared, name)

    def __call__(self, *args, **kwargs):
        return self._shared(*args, **kwargs)


def private_copy(pipe: DiffusionPipeline, length: int | None = None) -> DiffusionPipeline:
    """A copy of the pipeline for its `encode_prompt`, with views of the tokenizers, of `length` positions, and of the text encoder."""
    private = copy(pipe)
    for name in ("tokenizer", "tokenizer_2"):
        if (tokenizer := vars(pipe).get(name)) is not None:
            vars(private)[name] = PrivateTokenizer(tokenizer, length)
    if pipe.text_encoder is not None and not hasattr(pipe.text_encoder, "text_model"):
        vars(private)["text_encoder"] = PrivateTextEncoder(pipe.text_encoder)
    return private


_turn = Condition()
_users: dict[int, list[tuple[int, bool]]] = {}  # by an object's id: the threads whose calls use it, and whether they change it


@contextmanager
def using(reads: Iterable[object], changes: Iterable[object]) -> Iterator[None]:
    """Within this context no other thread changes what this one `reads`, or uses what it `changes`: calls wait for each other.

    Raises:
        ValueError: this thread's own call would have to wait for itself.
    """
    reads, changes, me = tuple(reads), tuple(changes), get_ident()  # held, so that their ids stay theirs
    wanted = {id(each): False for each in reads} | {id(each): True for each in changes}
    with _turn:
        while busy := [thread for key, own in wanted.items() for thread, other in _users.get(key, ()) if own or other]:
            if me in busy:
                raise ValueError(
                    "this pipeline, or one that shares its scheduler, is in the middle of a call of this thread (in a callback?): make the "
                    "inner call on another pipeline, with a scheduler of its own"
                )
            _turn.wait()
        for key, own in wanted.items():
            _users.setdefault(key, []).append((me, own))
    try:
        yield
    finally:
        with _turn:
            for key, own in wanted.items():
                _users[key].remove((me, own))
                if not _users[key]:
                    del _users[key]
            _turn.notify_all()


def one_call(pipe: DiffusionPipeline, given: Mapping[str, object]):
    """`using` what a call of the pipeline with the arguments `given` uses.

    diffusers changes the scheduler in each call, and besides: modules that are offloaded, LoRA layers where the call scales them, and a
    VAE that has to be upcast.
    """
    modules = [module for module in pipe.components.values() if isinstance(module, nn.Module)]
    vae = getattr(pipe, "vae", None)
    upcast = vae is not None and vae.dtype is torch.float16 and getattr(vae.config, "force_upcast", False)
    scaled = (given.get("cross_attention_kwargs") or {}).get("scale") not in (None, 1)
    changed = [module for module in modules if (module is vae and upcast) or (scaled and module is not vae) or _offloaded(module)]
    return using(modules, [pipe, getattr(pipe, "scheduler", None) or pipe, *changed])


def _offloaded(module: nn.Module) -> bool:
    return any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in module.modules())
