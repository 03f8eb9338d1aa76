"""The record of an image: what was decided for it, what carried it out, and the image file that keeps both together."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, make_dataclass, replace
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from livo.retrieval.rules import ValueDecision
from livo.utils.files import check_file, load_json
from livo.utils.pictures import RECORD_FORMATS, read_metadata, save_picture


@dataclass(frozen=True)
class ImageDecision(ValueDecision):
    """A ValueDecision as it was carried out on one image.

    `encoder` is the identifier of the value encoder's weights (`livo.utils.hashing.weights_hash`). `seed` is that of the image's generator,
    of the global one where none was given, and `image` the number of the image among those that share it. `start` and `end` are the part
    of the sampler's steps in which the token acted, 0 to 1. `conflicts` says what works against another value on the same image.
    `settings` holds what else the image was drawn with (`livo.pipelines.settings.settings_of`). Fields are None where there is
    nothing to tell.

    `known` with `applied` says what can be expected: applied with words that the encoder was trained with (True), applied with words
    that it was not trained with (False, it may do nothing) or whose training is not recorded (None), or not applied. `encoder_name`
    is the name of the encoder among those loaded.
    """

    known: bool | None = None
    encoder_name: str | None = None
    encoder: str | None = None
    seed: int | None = None
    image: int | None = None
    start: float | None = None
    end: float | None = None
    conflicts: tuple[str, ...] = ()
    settings: Mapping[str, object] | None = None

    @classmethod
    def of(cls, decision: ValueDecision) -> ImageDecision:
        """The decision, and nothing known yet of how it was carried out."""
        return cls(**{field.name: getattr(decision, field.name) for field in fields(decision)})

    def with_all(self, **found) -> ImageDecision:
        """It and those beside it, with what was found out about the image."""
        return replace(self, **found, also=tuple(other.with_all(**found) for other in self.also))

    def with_encoder(self, hashes: Mapping[str, str | None]) -> ImageDecision:
        """It and those beside it, each with the hash of the encoder of its `encoder_name`."""
        return replace(self, encoder=hashes.get(self.encoder_name), also=tuple(other.with_encoder(hashes) for other in self.also))


@cache
def with_decisions(output: type) -> type:
    """The base's output class with `decisions` behind its fields."""
    return make_dataclass(f"LiVO{output.__name__}", [("decisions", list, None)], bases=(output,))


def save_images(out, folder: str | Path, format: str = "png") -> list[Path]:
    """Write each image of a pipeline's output as `folder/000.png`, ..., with its record in the metadata.

    Args:
        format: "png", "jpg" (quality 95) or "webp" (lossless): the formats that hold a record.

    Raises:
        ValueError: the images are not PIL images, the format holds no record, or a file is there already.
    """
    if not all(isinstance(image, Image.Image) for image in out.images):
        raise ValueError("the images are not pictures: call the pipeline with output_type='pil'")
    if format not in RECORD_FORMATS:
        raise ValueError(f"format is {format!r}: choose one of {', '.join(RECORD_FORMATS)}, which hold a record")
    files = [Path(folder) / f"{i:03}.{format}" for i in range(len(out.images))]
    for file in files:
        if file.exists():
            raise ValueError(f"{file} is there already: name an empty folder")
    for file, image, decision in zip(files, out.images, out.decisions, strict=True):
        save_picture(image, file, [decision.to_dict()])
    return files


def read_record(file: str | Path) -> list[dict]:
    """The records in a PNG, JPEG or WebP that LiVO wrote, one for each image that it shows.

    Raises:
        FileNotFoundError, PermissionError: it cannot be opened.
        ValueError: it is no picture, or holds no record that can be read.
    """
    file = Path(file)
    check_file(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # no pixel is read
            with Image.open(file) as image:
                text = read_metadata(image)
    except UnidentifiedImageError:
        raise ValueError(f"{file}: not a picture that can be read") from None
    except PermissionError:
        raise PermissionError(f"{file}: no permission to read it") from None
    except (SyntaxError, ValueError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: its metadata cannot be read ({error}); the file is damaged") from None
    if text is None:
        raise ValueError(
            f"{file}: no record of LiVO in it; it was not written by LiVO, or was saved again by a program that drops it"
        )
    record = load_json(text, f"{file}: its record")
    entries = record if isinstance(record, list) else [record]
    try:
        json.dumps(entries, ensure_ascii=False, allow_nan=False).encode()
        sound = bool(entries) and all(map(_well_formed, entries))
    except (ValueError, RecursionError):  # NaN, half of a character, nested too deeply
        sound = False
    if not sound:
        raise ValueError(f"{file}: its record is not one that LiVO writes")
    return entries


def _well_formed(entry: object) -> bool:
    """Whether an entry is an object whose parts have the types that readers rely on; parts may be null or missing."""
    if not isinstance(entry, dict):
        return False
    kinds = {"prompt": str, "also": list, "conflicts": list, "settings": dict, "id": str, "statement": str, "direction": str}
    if any(entry.get(name) is not None and not isinstance(entry[name], kind) for name, kind in kinds.items()):
        return False
    return all(map(_well_formed, entry.get("also") or ()))
