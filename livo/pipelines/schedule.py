"""Plan: what one call applies to each of its images, and how attention treats it at each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from livo.pipelines.decision_record import ImageDecision
from livo.utils.arguments import method_arguments
from livo.value_encoder.attention import Blend, blend
from livo.value_encoder.token import value_text


class Plan:
    """What a call applies to each image: value tokens (N, K, width), and at each step the scale of each of them."""

    def __init__(self, decisions: Sequence[ImageDecision], encoded: Mapping[tuple[str, str], torch.Tensor]):
        """`encoded` holds the tokens (k, width) of each (encoder name, value text); k is the encoder's own."""
        self.rows = rows = [decision.applied_values for decision in decisions]
        found = [[encoded[v.encoder_name, value_text(v.statement, d.prompt)] for v in d.applied_values] for d in decisions]
        self.sizes = [[len(tokens) for tokens in row] for row in found]
        self.counts = [sum(sizes) for sizes in self.sizes]
        first = next(iter(encoded.values()))
        self.tokens = first.new_zeros(len(rows), max(self.counts), first.shape[-1])
        for i, row in enumerate(found):
            if row:
                self.tokens[i, : self.counts[i]] = torch.cat([tokens.to(first) for tokens in row])
        self.changes = any((d.start, d.end) != (0, 1) for row in rows for d in row)

    @property
    def labels(self) -> list[tuple]:
        """What attention does with each of the 2 N rows: rows of the same embeddings and label may stand for one another."""
        return [()] * len(self.rows) + [tuple((d.scale, d.start, d.end) for d in row) for row in self.rows]

    def check(self, steps: int) -> None:
        """Raises ValueError where a value was to act in a part of the `steps` that holds none of them."""
        for decision in (d for row in self.rows for d in row):
            if not any(decision.start <= step / steps < decision.end for step in range(steps)):
                raise ValueError(
                    f"value_start {decision.start:g} and value_end {decision.end:g} hold none of the {steps} steps, so "
                    f"{decision.statement!r} would do nothing: widen them, or take more steps"
                )

    def check_acted(self, acted: Callable[[int], bool], name: str) -> None:
        """Raises ValueError where a token that was planned for an image never acted in attention. `acted` says it of a row."""
        unseen = [i for i, row in enumerate(self.rows) if row and not acted(len(self.rows) + i)]
        if unseen:
            early = "ended before value_start, or " if any(d.start > 0 for i in unseen for d in self.rows[i]) else ""
            raise ValueError(
                f"{name}: the value token of image {', '.join(map(str, unseen))} reached no attention layer, so it did nothing: the call "
                f"{early}does not pass on what encode_prompt returns. Pass value=None, or change the class"
            )

    def live(self, share: float) -> set[int]:
        """The rows, of 2 N, whose tokens act after `share` of the steps."""
        return {len(self.rows) + i for i in range(len(self.rows)) if any(self.scales(i, share))}

    def scales(self, image: int, share: float) -> list[float]:
        """The scale of each of the image's K tokens after `share` of the steps; 0 where it has none."""
        pairs = zip(self.rows[image], self.sizes[image], strict=True)
        found = [d.scale if d.start <= share < d.end else 0.0 for d, size in pairs for _ in range(size)]
        return found + [0.0] * (self.tokens.shape[1] - len(found))

    def blend(self, share: float, length: int) -> Blend:
        """Of 2 N rows, the unconditional half and the conditional one, after `share` of the steps."""
        conditional = [self.scales(image, share) for image in range(len(self.rows))]
        unconditional = [[0.0] * len(row) for row in conditional]  # never sees a token
        return blend(unconditional + conditional, length)


def before_each_step(pipe: DiffusionPipeline, given: dict, enter: Callable[[int], None]) -> None:
    """Have `enter` called with the number of each step but the first; `given` holds a pipeline call's arguments, and its callback.

    Raises:
        ValueError: the class tells nobody when a step ends, so that a value cannot begin or cease in between.
    """
    if "callback_on_step_end" not in method_arguments(pipe.base_class, "__call__"):
        raise ValueError(
            f"value_start and value_end need a pipeline with callback_on_step_end, which {type(pipe).__name__} lacks: leave them out"
        )
    callback = given.get("callback_on_step_end")
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        given["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs

    def on_step_end(pipe, step, timestep, inputs):
        enter(step + 1)
        return callback(pipe, step, timestep, inputs) if callback is not None else {}

    given["callback_on_step_end"] = on_step_end
