"""ValueCall: all that one call of a pipeline needs while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from livo.pipelines.decision_record import ImageDecision
from livo.utils.arguments import method_arguments
from livo.value_encoder.attention import AttentionState, Blend, Rows, blend
from livo.value_encoder.token import value_text


class ValueCall(AttentionState):
    """The values of one call: their tokens, the steps in which they act, and the masks of the present step.

    `ValueMixin.__call__` creates it and holds it with `ValueAttention.holding` while the base class's call runs. `encode_prompt` reads
    the tokens and says which rows they are in (`begin`), a callback sets the masks of each step (`enter`), and the attention hooks follow
    them. No other thread sees it. N is the number of images; the 2 N rows of attention are the unconditional half and the conditional one.

    Attributes:
        values: For each image the values whose token it receives.
        tokens: Value tokens (N, K, width), zero where an image has fewer than K.
        sizes: For each image the number of tokens of each of its values.
        counts: For each image the number of its tokens.
        limited: Whether any value acts in only a part of the steps.
    """

    def __init__(self, decisions: Sequence[ImageDecision], encoded: Mapping[tuple[str, str], torch.Tensor]):
        """
        Args:
            decisions: One for each image.
            encoded: The tokens (k, width) of each (encoder name, value text); k is the encoder's own.
        """
        super().__init__()
        self.values = [decision.applied_values for decision in decisions]
        found = [[encoded[v.encoder_name or "", value_text(v.statement, d.prompt)] for v in d.applied_values] for d in decisions]
        self.sizes = [[len(tokens) for tokens in row] for row in found]
        self.counts = [sum(sizes) for sizes in self.sizes]
        first = next(iter(encoded.values()))
        self.tokens = first.new_zeros(len(found), max(self.counts), first.shape[-1])
        for i, row in enumerate(found):
            if row:
                self.tokens[i, : self.counts[i]] = torch.cat([tokens.to(first) for tokens in row])
        self.limited = any((value.start, value.end) != (0, 1) for row in self.values for value in row)

    def begin(self, embeds: torch.Tensor, first: Blend | None) -> None:
        """The embeddings are known: attend by `first` from now on. `embeds` is what the 2 N rows begin with (2 N, any length, width)."""
        labels = [tuple((value.scale, value.start, value.end) for value in row) for row in self.values]
        self.rows = Rows(embeds, [()] * len(labels) + labels)
        self.follow(first, None if first is None else self._live(0.0))

    def enter(self, step: int, steps: int) -> None:
        """Attend as in this step, 1 for the second, of `steps`.

        Raises:
            ValueError: a value acts in a part of the steps that holds none of them.
        """
        if step == 1:  # how many steps there are is known from the first on
            self._check_steps(steps)
        if self.blend is not None:
            bias = self.blend.bias
            self.follow(self.blend_at(step / steps, bias.shape[-1]).to(bias), self._live(step / steps))

    def step_arguments(self, pipe: DiffusionPipeline, given: Mapping[str, object]) -> dict[str, object]:
        """Arguments for the base class's call, in place of those in `given`, which have `enter` called before each step but the first.

        Raises:
            ValueError: the class does not report steps, so that a value cannot begin or end between them.
        """
        if not self.limited:
            return {}
        if "callback_on_step_end" not in method_arguments(pipe.base_class, "__call__"):
            raise ValueError(
                f"value_start and value_end need a pipeline with callback_on_step_end, which {type(pipe).__name__} lacks: leave them out"
            )
        callback = given.get("callback_on_step_end")

        def on_step_end(pipe, step, timestep, inputs):
            self.enter(step + 1, pipe.num_timesteps)
            return callback(pipe, step, timestep, inputs) if callback is not None else {}

        arguments: dict[str, object] = {"callback_on_step_end": on_step_end}
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            arguments["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs
        return arguments

    def scales(self, image: int, share: float) -> list[float]:
        """The scale of each of the image's K tokens after `share` of the steps; 0 where it has none."""
        pairs = zip(self.values[image], self.sizes[image], strict=True)
        found = [value.scale if value.start <= share < value.end else 0.0 for value, size in pairs for _ in range(size)]
        return found + [0.0] * (self.tokens.shape[1] - len(found))

    def blend_at(self, share: float, length: int) -> Blend:
        """The masks of the 2 N rows, of `length` positions, after `share` of the steps."""
        conditional = [self.scales(image, share) for image in range(len(self.values))]
        unconditional = [[0.0] * len(row) for row in conditional]  # never sees a token
        return blend(unconditional + conditional, length)

    def check_acted(self, name: str) -> None:
        """Raise ValueError where a token never acted in attention, so that its value did nothing; `name` is the pipeline's class."""
        unseen = [i for i, row in enumerate(self.values) if row and not self.acted(len(self.values) + i)]
        if unseen:
            early = "ended before value_start, or " if any(value.start > 0 for i in unseen for value in self.values[i]) else ""
            raise ValueError(
                f"{name}: the value token of image {', '.join(map(str, unseen))} reached no attention layer, so it did nothing: the call "
                f"{early}does not pass on what encode_prompt returns. Pass value=None, or change the class"
            )

    def _live(self, share: float) -> set[int]:
        """The rows, of 2 N, whose tokens act after `share` of the steps."""
        return {len(self.values) + i for i in range(len(self.values)) if any(self.scales(i, share))}

    def _check_steps(self, steps: int) -> None:
        """Raise ValueError where a value acts in a part of the `steps` that holds none of them."""
        for value in (value for row in self.values for value in row):
            if not any(value.start <= step / steps < value.end for step in range(steps)):
                raise ValueError(
                    f"value_start {value.start:g} and value_end {value.end:g} hold none of the {steps} steps, so "
                    f"{value.statement!r} would do nothing: widen them, or take more steps"
                )
