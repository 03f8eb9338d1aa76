"""The record of an image: what was decided for it, what carried it out, and the PNG that keeps both together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from livo.deciding import ValueDecision
from livo.pictures import METADATA_KEY, save_png


@dataclass(frozen=True)
class ImageDecision(ValueDecision):
    """A ValueDecision as it was carried out on one image.

    `encoder` is the hash of the value encoder's weights (`livo.hashing.weights_hash`), `seed` that of the image's generator when it
    was made, `image` the number of the image among those that share it; `start` and `end` are the part of the sampler's steps in which
    the token acted, 0 to 1. `conflicts` says what works against another value on the same image. Fields are None where there is
    nothing to tell: no value, or no generator.
    """

    encoder: str | None = None
    seed: int | None = None
    image: int | None = None
    start: float | None = None
    end: float | None = None
    conflicts: tuple[str, ...] = ()

    @classmethod
    def of(cls, decision: ValueDecision) -> ImageDecision:
        """The decision, and nothing known yet of how it was carried out."""
        return cls(**{field.name: getattr(decision, field.name) for field in fields(decision)})


def save_images(out, folder: str | Path) -> list[Path]:
    """Write each image of a pipeline's output as `folder/000.png`, ..., with its decision in the metadata.

    Raises:
        ValueError: the images are not PIL images, or a file is there already.
    """
    if not all(isinstance(image, Image.Image) for image in out.images):
        raise ValueError("the images are not pictures: call the pipeline with output_type='pil'")
    files = [Path(folder) / f"{i:03}.png" for i in range(len(out.images))]
    for file in files:
        if file.exists():
            raise ValueError(f"{file} is there already: name an empty folder")
    for file, image, decision in zip(files, out.images, out.decisions, strict=True):
        save_png(image, file, [decision.to_dict()])
    return files


def read_record(file: str | Path) -> list[dict]:
    """The decisions in a PNG that LiVO wrote, as dictionaries.

    Raises:
        FileNotFoundError: no such file. ValueError: it is no picture, or holds no record.
    """
    try:
        with Image.open(file) as image:
            text = getattr(image, "text", {}).get(METADATA_KEY)
    except UnidentifiedImageError:
        raise ValueError(f"{file}: not a picture that can be read") from None
    if text is None:
        raise ValueError(
            f"{file}: no record of LiVO in it; it was not written by LiVO, or was saved again by a program that drops it"
        )
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: its record cannot be read ({error})") from None
    return record if isinstance(record, list) else [record]


def describe(record: Sequence[dict]) -> str:
    """A few lines for each image of a record."""
    lines = []
    for i, entry in enumerate(record):
        if "prompt" not in entry:
            lines.append("; ".join(f"{name}: {value}" for name, value in entry.items()))
            continue
        lines.append(f"image {i}: {entry['prompt']}")
        for decision in (entry, *entry.get("also", ())):
            received = "received the token" if decision.get("applied") else "without the token"
            name = decision.get("id") or decision.get("statement") or "no value"
            lines.append(f"  {name}: {received}; {decision.get('why')}")
            told = ("statement", "direction", "scale", "start", "end", "score", "threshold", "nearest_exemplar", "encoder", "seed")
            facts = [f"{key} {decision[key]}" for key in told if decision.get(key) is not None]
            lines += [f"    {', '.join(facts)}"] * bool(facts)
            lines += [f"    conflict: {conflict}" for conflict in decision.get("conflicts", ())]
    return "\n".join(lines)
