"""A plain negative prompt: the unconditional branch of guidance reads what is unwanted (Liu et al., arXiv 2206.01714)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from inspect import Signature, signature
from typing import Any

from diffusers import DiffusionPipeline

from livo.pipelines.settings import noted


@dataclass(frozen=True)
class NegativePrompt:
    """A negative prompt for every call that has none of its own.

    Args:
        words: The negative prompt; "" changes nothing.
    """

    words: str

    def record(self) -> dict[str, Any]:
        """The method and its settings, for results."""
        return {"method": "negative prompt", **asdict(self)}

    @noted
    @contextmanager
    def on(self, pipe: DiffusionPipeline) -> Iterator[None]:
        """A context in which the pipeline generates with this negative prompt.

        Args:
            pipe: A Stable Diffusion or SDXL pipeline.

        Raises:
            ValueError: A call has no classifier-free guidance.
        """
        if not self.words:
            yield
            return
        encode_prompt = pipe.encode_prompt
        parameters = next(found for cls in type(pipe).__mro__ if "negative_prompt" in (found := _parameters(cls)).parameters)

        def encode(*args, **kwargs):
            call = parameters.bind(pipe, *args, **kwargs)
            given = call.arguments
            own = any(given.get(name) is not None for name in ("negative_prompt", "negative_prompt_embeds"))
            if not given.get("do_classifier_free_guidance", True):
                raise ValueError("a negative prompt acts through classifier-free guidance: set guidance_scale above 1")
            if not own:
                many = given.get("prompt")
                given["negative_prompt"] = [self.words] * len(many) if isinstance(many, (list, tuple)) else self.words
            return encode_prompt(*call.args[1:], **call.kwargs)

        pipe.encode_prompt = encode
        try:
            yield
        finally:
            del pipe.encode_prompt


def _parameters(cls: type) -> Signature:
    """The parameters of the class's own encode_prompt; a subclass may only take *args and pass them on."""
    return signature(vars(cls).get("encode_prompt", lambda: None))
