"""Cross-attention with value tokens: who sees which token, and how strongly."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

MASKED = -10_000.0  # added to an attention score, removes the token exactly, in half precision too


class Blend(NamedTuple):
    """What cross-attention gives under L masks, added up by weight: `bias` (L, N, 1, length) on the scores, `weights` (L, N)."""

    bias: torch.Tensor
    weights: torch.Tensor

    def to(self, like: torch.Tensor) -> Blend:
        return Blend(self.bias.to(like), self.weights.to(like))


def blend(scales: Sequence[Sequence[float]], length: int) -> Blend:
    """How rows of value tokens with these scales attend; `scales` holds a row's K scales, 0 or more.

    1 leaves a token as it was trained; 0 removes it, which gives the output without a token (a zero-valued token would not: it dilutes
    the softmax). In between, the output goes that share of the way from the one to the other, and above 1 beyond: a token's attention
    weight is multiplied by its scale, and the others share what is left. (To multiply it before normalisation would be a switch, not a
    dial: a trained token's score is so large that a thousandth of it still takes all.) Of tokens with several scales, the way leads over
    the masks that keep the strongest: sum over i of (s_i - s_(i+1)) output(tokens of at least s_i).
    """
    rows = [_masks(row) for row in scales]
    count = max(map(len, rows), default=1)
    bias, weights = torch.zeros(count, len(scales), 1, length), torch.zeros(count, len(scales))
    for row, masks in enumerate(rows):
        for level in range(count):  # a row that needs fewer masks repeats its last with the weight 0
            weight, kept = masks[level] if level < len(masks) else (0.0, masks[-1][1])
            weights[level, row] = weight
            for column, keep in enumerate(kept):
                bias[level, row, 0, column] = 0.0 if keep else MASKED
    return Blend(bias, weights)


def _masks(scales: Sequence[float]) -> list[tuple[float, list[bool]]]:
    """The weight of each mask, and the tokens that it keeps."""
    steps = sorted({scale for scale in scales if scale > 0}, reverse=True)
    nothing = 1 - steps[0] if steps else 1.0
    masks = [(scale - below, [s >= scale for s in scales]) for scale, below in zip(steps, [*steps, 0.0][1:], strict=True)]
    return masks + [(nothing, [False] * len(scales))] * (nothing != 0)


def join(rows: Sequence[torch.Tensor], scales: Sequence[Sequence[float]]) -> tuple[torch.Tensor, Blend]:
    """Rows (length, width) of different lengths as one batch, and the blend that hides what was filled up and gives the first tokens of
    each row its `scales`."""
    longest = max(map(len, rows))
    found = blend(scales, longest)
    for row, embeds in enumerate(rows):
        found.bias[:, row, :, len(embeds) :] = MASKED
    return torch.stack([nn.functional.pad(row, (0, 0, 0, longest - len(row))) for row in rows]), found.to(rows[0])


class Rows(NamedTuple):
    """The rows that a blend is for, the unconditional half first: the `embeds` that they begin with, (2 N, any length, width), and a
    label of what each does. A layer's rows are told apart by them, whatever the order in which a pipeline lays them out."""

    embeds: torch.Tensor
    labels: Sequence[tuple]

    def places(self, text: torch.Tensor) -> slice | list[int] | None:
        """Which of these rows each row of `text` is; None where it cannot be told."""
        known = self.embeds.to(text)
        count, most = len(text), len(known)
        begin = text[:, : known.shape[1]]
        for first in (
            {most - count, 0} if count in (most, most // 2) else ()
        ):  # both halves, the conditional or the unconditional one
            if torch.equal(begin, known[first : first + count]):
                return slice(first, first + count)
        places: list[int] = []
        for row in begin:
            same = (known == row).flatten(1).all(1).nonzero().flatten().tolist()
            if len({self.labels[i] for i in same}) != 1:
                return None
            places.append(min(same, key=places.count))  # equal rows take turns
        return places


_acting: ContextVar[ValueAttention | None] = ContextVar("acting", default=None)  # whose call runs in this thread, or context


@contextmanager
def acting(attention: ValueAttention | None) -> Iterator[None]:
    """Within this context the blend of `attention`, or none, acts on networks that several pipelines share."""
    before = _acting.set(attention)
    try:
        yield
    finally:
        _acting.reset(before)


class ValueAttention:
    """Has every cross-attention of the networks it is put on attend as a `Blend` says, while one is held.

    The hooks stay where they are put and read the blend as data, so that `torch.compile` traces them once (and once more where scales
    between call for several masks). While none is held they do nothing. A layer sees its rows once for each mask, in one batch.
    """

    def __init__(self):
        self._networks: list[nn.Module] = []
        self._hooks: list[RemovableHandle] = []
        self._forget()

    def _forget(self) -> None:
        self.blend = self.rows = self.live = self._text = None
        self._places: slice | list[int] = []  # of the rows of `_text`, the last that a layer was given
        self._acted: set[int] = set()
        self.traced = False  # whether compiled code ran, which cannot say which rows it saw

    def follow(self, blend: Blend | None, live: Container[int] | None = None) -> None:
        """From now on attend by `blend`, in which the tokens of the rows `live` act; None stands for all rows."""
        self.blend, self.live, self._text = blend, live, None

    def acted(self, row: int) -> bool:
        """Whether a layer saw this row since `holding` began, while its tokens acted."""
        return self.traced or row in self._acted

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
        for layer in layers:
            self._hooks.append(layer.register_forward_pre_hook(self._mask, with_kwargs=True))
            self._hooks.append(layer.register_forward_hook(self._add_up, with_kwargs=True))
        self._networks.append(inner)

    def remove(self) -> None:
        """Take every hook away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._networks = [], []

    @contextmanager
    def holding(self, blend: Blend | None) -> Iterator[None]:
        """Within this context attention follows `blend`, of N rows; `follow` changes it on the way.

        It is for the largest batch. Where `self.rows` says which rows these are, a layer's rows are found among them. Otherwise, and in
        compiled code, a batch of half the size takes the last rows, so the unconditional half, which comes first where there is one,
        may be absent.
        """
        self._forget()
        self.blend = blend
        try:
            with acting(self):
                yield
        finally:
            self._forget()

    def _meant(self, kwargs: dict) -> bool:
        """Whether a layer's call is a cross-attention of the call that holds a blend, not another pipeline's that shares the network."""
        if (self.blend is None and self.rows is None) or kwargs.get("encoder_hidden_states") is None:
            return False
        return torch.compiler.is_compiling() or _acting.get() is self

    def _find(self, text: torch.Tensor) -> slice | list[int]:
        """Which rows of the blend those of a layer are."""
        if torch.compiler.is_compiling():
            self.traced = True
        elif self.rows is not None:
            if text is not self._text:  # most pipelines hand the same tensor to all layers in all steps
                places = self.rows.places(text)
                if places is None:
                    raise ValueError(
                        "attention has rows of other texts than the values were laid out for: do not change the prompt embeddings "
                        "on the way, or pass value=None"
                    )
                self._text, self._places = text, places
                seen = range(*places.indices(len(self.rows.labels))) if isinstance(places, slice) else places
                self._acted.update(row for row in seen if self.live is None or row in self.live)
            return self._places
        return slice(-len(text), None)

    def _mask(self, module: nn.Module, args: tuple, kwargs: dict):
        if not self._meant(kwargs):
            return None
        queries, keys = kwargs.get("hidden_states", args[0] if args else None), kwargs["encoder_hidden_states"]
        text = keys[0] if isinstance(keys, tuple) else keys  # IP-Adapter's images come second
        held = self.blend
        if held is not None:
            times, most, _, length = held.bias.shape
            halves = self.rows is None or torch.compiler.is_compiling()
            if text.shape[1] != length or (halves and len(queries) not in (most, most // 2)):
                raise ValueError(
                    f"attention has {len(queries)} rows of {text.shape[1]} keys, the values were laid out for {most} of {length}: "
                    "do not change the prompt embeddings on the way, or pass value=None"
                )
        places = self._find(text)
        if held is None:
            return None
        if times > 1:
            kwargs = kwargs | {"hidden_states": _repeated(queries, times), "encoder_hidden_states": _repeated(keys, times)}
            args = args[1:]
        return args, kwargs | {"attention_mask": held.bias[:, places].flatten(0, 1).to(queries)}

    def _add_up(self, module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor):
        held = self.blend
        if held is None or len(held.bias) == 1 or not self._meant(kwargs):
            return None
        parts = output.unflatten(0, (len(held.bias), -1))
        halves = self.rows is None or torch.compiler.is_compiling()
        weights = held.weights[:, slice(-parts.shape[1], None) if halves else self._places].to(output)
        return (weights.reshape(*weights.shape, *[1] * (output.dim() - 1)) * parts).sum(0)


def _repeated(value, times: int):
    """A tensor's rows `times` over; a list or tuple of tensors likewise."""
    if isinstance(value, (list, tuple)):
        return type(value)(_repeated(part, times) for part in value)
    return value.repeat(times, *[1] * (value.dim() - 1))
