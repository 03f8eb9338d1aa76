"""The interface of judges, and which images are too broken to be judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn

from livo.utils.hashing import weights_hash
from livo.utils.hub import hub_options
from livo.utils.images import to_rgb

NO_YES = ("no", "yes")
Words = Mapping[str, Mapping[str, str]]  # attribute -> class -> the words that stand for it


class Judge:
    """Reads images: probabilities of the classes of every attribute. A subclass sets the names and has `probabilities`.

    Attributes:
        attributes: The classes of each attribute, in the order of the probabilities.
        measured: Attributes that an evaluation reports whether or not a principle asks for them: what the judge was loaded for.
        settings: Templates, questions, thresholds: what else a figure depends on.
    """

    name: str
    revision: str
    attributes: dict[str, tuple[str, ...]]
    measured: tuple[str, ...] = ()
    settings: dict[str, Any] = {"threshold": 0.5}

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Probabilities (N, classes) of each attribute.

        Args:
            images: At least one. None may be broken (see `broken`); `judge_all` skips those.
            prompts: One for each image. Needed by a judge whose template has {prompt}.

        Raises:
            ValueError: an image is broken, prompts are missing, or the judge's own numbers are not finite.
        """
        if not len(images):
            raise ValueError(f"{self.name} was given no image: give at least one")
        if prompts is not None and len(prompts) != len(images):
            raise ValueError(f"{self.name} was given {len(prompts)} prompts for {len(images)} images: give one for each image")
        for i, image in enumerate(images):
            if why := broken(image):
                raise ValueError(
                    f"image {i} is {why}, so {self.name} cannot judge it: leave it out (livo.evaluation.judges.broken finds these)"
                )
        found = self.probabilities(images, prompts)
        for attribute, p in found.items():
            if not p.isfinite().all():
                raise ValueError(
                    f"{self.name}'s probabilities of {attribute} are not finite: load it in float32, or use another judge"
                )
        return found

    def probabilities(self, images: Sequence[Image.Image], prompts: Sequence[str] | None) -> dict[str, torch.Tensor]:
        """What `judge` returns, for images that have been checked.

        Args:
            images: Pictures that are not broken.
            prompts: One for each image, or None.
        """
        raise NotImplementedError

    def read(self, images: Sequence[Image.Image], prompts: Sequence[str] | None = None) -> list[dict[str, str]]:
        """The likeliest class of every attribute, one dict per image. Raises ValueError as `judge` does.

        Args:
            images: As for `judge`.
            prompts: As for `judge`.
        """
        choices = {attribute: p.argmax(-1).tolist() for attribute, p in self.judge(images, prompts).items()}
        return [{a: self.attributes[a][choice[i]] for a, choice in choices.items()} for i in range(len(images))]

    def check_pipeline(self, pipe: DiffusionPipeline) -> None:
        """Raises ValueError if this judge cannot read what `pipe` draws.

        Args:
            pipe: The pipeline whose images are to be judged.
        """

    def record(self) -> dict[str, Any]:
        """What a result stores of the judge."""
        return {"name": self.name, "revision": self.revision, "attributes": self.attributes, **self.settings}


def broken(image: Image.Image) -> str:
    """Why an image shows nothing to judge: "black", "constant" or "not finite"; "" for an image that can be judged.

    Constant means that every pixel has exactly the same colour: what a decoder returns for latents that are not finite or that
    overflowed, and what a safety checker leaves behind. A dark picture of the night has pixels that differ, so it is judged.
    """
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        return "not finite"
    if image.mode not in ("1", "L", "RGB", "F", "I", "I;16"):
        image = image.convert("RGB")  # a palette's entries may be one colour, and transparency is not shown to a judge
    extrema = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    if any(low != high for low, high in bands):
        return ""
    return "constant" if any(high for _, high in bands) else "black"


def scattered(rows: torch.Tensor, places: Sequence[int], total: int) -> torch.Tensor:
    """`rows` at `places` of a tensor of `total` rows; the other rows are NaN.

    Args:
        rows: (n, ...) values.
        places: (n,) their row numbers in the result.
        total: Number of rows of the result.
    """
    whole = torch.full((total, *rows.shape[1:]), torch.nan)
    whole[list(places)] = rows.float()
    return whole


def judge_all(
    judge: Judge, images: Sequence[Image.Image], prompts: Sequence[str] | None = None, faults: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """`judge.judge`, with NaN in the rows of broken images. `faults` is `broken` of each image, where it is known already.

    Args:
        judge: Reads the images that are not broken.
        images: Pictures, broken ones too.
        prompts: One for each image, if the judge needs them.
        faults: `broken` of each image, if it is known already.
    """
    faults = [broken(image) for image in images] if faults is None else faults
    good = [i for i, fault in enumerate(faults) if not fault]
    if not good:
        return {name: torch.full((len(images), len(classes)), torch.nan) for name, classes in judge.attributes.items()}
    found = judge.judge([images[i] for i in good], None if prompts is None else [prompts[i] for i in good])
    return {name: scattered(p, good, len(images)) for name, p in found.items()}


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one image: its `fault` (see `broken`), or the likeliest class of every attribute and its probability."""

    fault: str
    classes: Mapping[str, str]
    scores: Mapping[str, float]


def verdicts(judge: Judge, images: Sequence[Image.Image], prompts: Sequence[str] | None = None) -> list[Verdict]:
    """What a judge says of each image; broken ones are not shown to it.

    Args:
        judge: Reads the images that are not broken.
        images: Pictures, broken ones too.
        prompts: One for each image, if the judge needs them.
    """
    faults = [broken(image) for image in images]
    best = {name: p.max(-1) for name, p in judge_all(judge, images, prompts, faults).items()}
    return [
        Verdict(fault, {}, {})
        if fault
        else Verdict(
            "",
            {name: judge.attributes[name][int(found.indices[i])] for name, found in best.items()},
            {name: float(found.values[i]) for name, found in best.items()},
        )
        for i, fault in enumerate(faults)
    ]


# --- for the judges of this package ---------------------------------------------------------------------------------------


@contextmanager
def loading(kind: str, source: str | Path, revision: str | None = None) -> Iterator[dict[str, Any]]:
    """Loading fails in many ways: one line that names the judge and what to do. Gives the options of `from_pretrained`.

    Args:
        kind: What errors call the judge: "clip".
        source: Hub id or folder.
        revision: Of a hub id.
    """
    options = {"revision": revision} | hub_options(source, f"judge {kind}")
    try:
        yield options
    except ImportError as error:
        missing = " ".join(str(error).split()).split(". ")[0]
        raise ValueError(
            f"judge {kind} {source} needs a package that is not installed ({missing}): pip install livo[eval]"
        ) from None
    except Exception as error:
        raise ValueError(f"judge {kind} {source} cannot be loaded ({' '.join(str(error).split())})") from None


def revision(model: nn.Module) -> str:
    """The hub's commit where it is known, else a hash of the weights."""
    return str(getattr(model.config, "_commit_hash", None) or weights_hash(model))


def rgb(images: Sequence[Image.Image]) -> list[Image.Image]:
    return [to_rgb(image) for image in images]
