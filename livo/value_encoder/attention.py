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


class AttentionState:
    """What cross-attention does while one call of a pipeline runs, and which rows it saw.

    Attributes:
        blend: The masks of the present step, for the largest batch; None leaves attention as it is.
        rows: Which rows these are. Without it, and in compiled code, a batch of half the size takes the last rows, so the unconditional
            half, which comes first where there is one, may be absent.
        live: The rows whose tokens act in the present step; None stands for all rows.
        traced: Whether compiled code ran, which cannot say which rows it saw.
    """

    def __init__(self, blend: Blend | None = None):
        self.blend = blend
        self.rows: Rows | None = None
        self.live: Container[int] | None = None
        self.traced = False
        self._text: torch.Tensor | None = None  # the last rows that a layer was given, and their places
        self._places: slice | list[int] = []
        self._acted: set[int] = set()

    def follow(self, blend: Blend | None, live: Container[int] | None = None) -> None:
        """From now on attend by `blend`, in which the tokens of the rows `live` act; None stands for all rows."""
        self.blend, self.live, self._text = blend, live, None

    def acted(self, row: int) -> bool:
        """Whether a layer saw this row while its tokens acted."""
        return self.traced or row in self._acted

    @property
    def halves(self) -> bool:
        """Whether a layer's rows are found by their number, not by their contents."""
        return self.rows is None or torch.compiler.is_compiling()

    def find(self, text: torch.Tensor) -> slice | list[int]:
        """Which rows of the blend the rows `text` of a layer are.

        Raises:
            ValueError: they are other texts than those of `rows`.
        """
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

    def last_places(self, count: int) -> slice | list[int]:
        """The rows of the blend that a layer was last given, `count` of them."""
        return slice(-count, None) if self.halves else self._places


_running: ContextVar[AttentionState | None] = ContextVar(
    "running", default=None
)  # of the call that runs in this thread, or context


@contextmanager
def running(state: AttentionState | None) -> Iterator[None]:
    """Within this context `state`, or none, is that of the call which runs in this thread."""
    token = _running.set(state)
    try:
        yield
    finally:
        _running.reset(token)


class ValueAttention:
    """Has every cross-attention of the networks it is put on attend as an `AttentionState` says, while one is held.

    The hooks stay where they are put and read the state as data, so that `torch.compile` traces them once (and once more where scales
    between call for several masks). While none is held they do nothing. A layer sees its rows once for each mask, in one batch.
    """

    def __init__(self) -> None:
        self._networks: list[nn.Module] = []
        self._hooks: list[RemovableHandle] = []
        self._state: AttentionState | None = None  # the same as in `_running`, which compiled code cannot read

    @property
    def state(self) -> AttentionState | None:
        """The state that is held by this thread; None for other threads."""
        return self._state if self._state is _running.get() else None

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
    def holding(self, state: AttentionState) -> Iterator[None]:
        """Within this context attention follows `state`, for calls of the networks in this thread."""
        self._state = state
        try:
            with running(state):
                yield
        finally:
            self._state = None

    def _state_for(self, kwargs: dict) -> AttentionState | None:
        """The state that a layer's call follows; None where another pipeline that shares the network calls it, or attends to itself."""
        state = self._state
        if state is None or (state.blend is None and state.rows is None) or kwargs.get("encoder_hidden_states") is None:
            return None
        return state if torch.compiler.is_compiling() or _running.get() is state else None

    def _mask(self, module: nn.Module, args: tuple, kwargs: dict):
        state = self._state_for(kwargs)
        if state is None:
            return None
        queries: torch.Tensor = args[0] if args else kwargs["hidden_states"]
        keys = kwargs["encoder_hidden_states"]
        text = keys[0] if isinstance(keys, tuple) else keys  # IP-Adapter's images come second
        blend = state.blend
        if blend is None:
            state.find(text)
            return None
        times, most, _, length = blend.bias.shape
        if text.shape[1] != length or (state.halves and len(queries) not in (most, most // 2)):
            raise ValueError(
                f"attention has {len(queries)} rows of {text.shape[1]} keys, the values were laid out for {most} of {length}: "
                "do not change the prompt embeddings on the way, or pass value=None"
            )
        places = state.find(text)
        if times > 1:
            kwargs = kwargs | {"hidden_states": _repeated(queries, times), "encoder_hidden_states": _repeated(keys, times)}
            args = args[1:]
        return args, kwargs | {"attention_mask": blend.bias[:, places].flatten(0, 1).to(queries)}

    def _add_up(self, module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor):
        state = self._state_for(kwargs)
        if state is None or state.blend is None or len(state.blend.bias) == 1:
            return None
        parts = output.unflatten(0, (len(state.blend.bias), -1))
        weights = state.blend.weights[:, state.last_places(parts.shape[1])].to(output)
        return (weights.reshape(*weights.shape, *[1] * (output.dim() - 1)) * parts).sum(0)


def _repeated(value, times: int):
    """A tensor's rows `times` over; a list or tuple of tensors likewise."""
    if isinstance(value, (list, tuple)):
        return type(value)(_repeated(part, times) for part in value)
    return value.repeat(times, *[1] * (value.dim() - 1))
