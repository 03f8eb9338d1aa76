"""What an evaluation compares: methods and the settings that they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from diffusers import DiffusionPipeline

from livo.utils.prompt_files import Prompt

REFERENCE = "reference"
_OTHER_SEEDS = 0x5BD1E995  # far from any other image's seed; torch's generator on a CPU reads 32 bits of a seed


class Edit(Protocol):
    """A baseline, see `livo.baselines`."""

    def on(self, pipe: DiffusionPipeline): ...

    def record(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Method:
    """How images are made.

    Attributes:
        name: Unique in an evaluation. The method "base" is what the others are compared with.
        value: What `LiVOPipeline` gets as `value`: one for all prompts, or a mapping with one for each text.
        edit: A baseline, or None.
        prompts: Its own prompts, in place of the evaluation's: for a reference set.
        seeds: Added to every seed.
    """

    name: str
    value: object = None
    edit: Edit | None = None
    prompts: Sequence[Prompt] | None = None
    seeds: int = 0

    def values(self, texts: Sequence[str]) -> list:
        """The value of each text."""
        return [self.value.get(text) if isinstance(self.value, Mapping) else self.value for text in texts]

    def record(self) -> dict[str, Any]:
        """What a result stores of the method."""
        value = _plain(self.value)
        own = None if self.prompts is None else digest([[p.text, p.seed] for p in self.prompts])
        return {"name": self.name, "value": value, "edit": self.edit and self.edit.record(), "prompts": own, "seeds": self.seeds}


def reference(prompts: Sequence[Prompt] | None = None) -> Method:
    """The frozen backbone's images at seeds of their own: what FID and KID are measured against. They are never the evaluated ones.

    Args:
        prompts: The reference's own prompts; those of the evaluation by default.
    """
    return Method(REFERENCE, prompts=prompts, seeds=_OTHER_SEEDS)


@dataclass(frozen=True)
class Settings:
    """How images are drawn and judged.

    Attributes:
        images: Images of a prompt.
        batch: Images in one call of the pipeline.
        steps: Sampler steps.
        guidance: Guidance scale.
        seed: Added to the seed of each prompt.
        precision: As in `livo.utils.precision.resolve`.
        keep: Save the images as PNG too.
        group: Images in a group of Max and Prob.
        shown: Images of a prompt that the contact sheet shows.
    """

    images: int = 8
    batch: int = 32
    steps: int = 20
    guidance: float = 5.0
    seed: int = 0
    precision: str = "auto"
    keep: bool = False
    group: int = 5
    shown: int = 8

    def __post_init__(self):
        for name in ("images", "batch", "steps", "group", "shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")


def _plain(value: Any) -> Any:
    """A method's value as a record: principles by what their tokens depend on."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "statement"):
        return [value.id, value.statement, value.apply_rate, dict(value.directions), dict(value.target)]
    return value


def digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]
