"""The record of an image: what was decided for it, what carried it out, and the image file that keeps both together."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, make_dataclass, replace
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from livo.retrieval.rules import ValueDecision
from livo.utils.files import check_file, load_json
from livo.utils.pictures import RECORD_FORMATS, read_metadata, save_picture


@dataclass(frozen=True)
class AssignedValue:
    """A value that was assigned to an image, and how it was carried out.

    Attributes:
        id: The principle's id; None for a statement that is no principle's.
        statement: The words that the value encoder read with the prompt.
        direction: The class that the image was moved towards, where the principle has directions.
        applied: Whether the image received the value token. It does not where the principle's `apply_rate` left it out, or at scale 0.
        scale: Strength of the token: 0 is the base, 1 is what was trained.
        start: Share of the sampler's steps after which the token acts, 0 to 1.
        end: Share of the sampler's steps after which it no longer acts, 0 to 1.
        reason: Why the value was assigned.
        score: Cosine similarity of the prompt to `nearest_exemplar`, -1 to 1; None where the retriever was not asked.
        threshold: The similarity from which exemplars alone decide.
        nearest_exemplar: The exemplar that is most similar to the prompt.
        probability: Calibrated probability that the principle applies; None where exemplars decided.
        facets: Probabilities of the facets that led to it.
        known: Whether the encoder was trained with the words: True, False (it may do nothing), or None (not recorded).
        encoder_name: Name of the value encoder, among those that the pipeline holds.
        encoder: Identifier of its weights (`livo.utils.hashing.weights_hash`).
        conflicts: What works against another value of the same image.
    """

    id: str | None
    statement: str
    direction: str | None = None
    applied: bool = False
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    reason: str = ""
    score: float | None = None
    threshold: float | None = None
    nearest_exemplar: str | None = None
    probability: float | None = None
    facets: Mapping[str, float] | None = None
    known: bool | None = None
    encoder_name: str | None = None
    encoder: str | None = None
    conflicts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The principle's id, or the statement where there is none."""
        return self.id or self.statement

    @classmethod
    def of(cls, decision: ValueDecision) -> AssignedValue:
        """The value of a retriever's decision, not carried out yet."""
        shared = {field.name for field in fields(cls)} & {field.name for field in fields(decision)}
        return cls(**{name: getattr(decision, name) for name in shared})


@dataclass(frozen=True)
class ImageDecision:
    """What was decided for one image, and what it was drawn with: `out.decisions` holds one for each image.

    Attributes:
        prompt: The image's prompt.
        values: The values that were assigned to the image, in the order of the principles; empty where none was.
        reason: Why no value was assigned; None where `values` holds any, which have their own.
        text: What the retriever read: the prompt after normalisation. None where it was not asked.
        seed: Seed of the image's generator, or of the global one where none was given.
        image: Number of the image among those that share the generator, from 0.
        settings: All else that the image depends on (`livo.pipelines.settings.settings_of`).
    """

    prompt: str
    values: tuple[AssignedValue, ...] = ()
    reason: str | None = None
    text: str | None = None
    seed: int | None = None
    image: int | None = None
    settings: Mapping[str, object] | None = None

    @property
    def applied_values(self) -> tuple[AssignedValue, ...]:
        """The values whose token the image received."""
        return tuple(value for value in self.values if value.applied)

    @property
    def summary(self) -> str:
        """One line: the values with the reason for each, or why there is none."""
        return "; ".join(f"{value.name}: {value.reason}" for value in self.values) or self.reason or ""

    def with_encoders(self, hashes: Mapping[str, str | None]) -> ImageDecision:
        """The decision with the identifier of each value's encoder, by `encoder_name`."""
        return replace(self, values=tuple(replace(value, encoder=hashes.get(value.encoder_name)) for value in self.values))

    def to_dict(self) -> dict:
        """The decision as JSON-ready data, as image files hold it."""
        return asdict(self)


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

    A record has the fields of ImageDecision. Records of older versions are converted.

    Args:
        file: The image file.

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
    return [current_record(entry) for entry in entries]


def current_record(entry: Mapping) -> dict:
    """A record with the fields of ImageDecision, also where an older version wrote it.

    Before version 0.2 a record was its first value, with the others in `also` and the reason in `why`.
    """
    if "values" in entry or "prompt" not in entry:
        return dict(entry)
    parts = [entry, *(entry.get("also") or ())]
    names = {field.name for field in fields(AssignedValue)}
    values = [
        {name: part[name] for name in part if name in names} | {"reason": part.get("why")}
        for part in parts
        if part.get("statement")
    ]
    kept = {name: value for name, value in entry.items() if name not in names | {"also", "why"}}
    return kept | {"values": values, "reason": None if values else entry.get("why")}


def _well_formed(entry: object) -> bool:
    """Whether an entry is an object whose parts have the types that readers rely on; parts may be null or missing."""
    if not isinstance(entry, dict):
        return False
    lists = {"values": list, "also": list, "conflicts": list}
    kinds = {"prompt": str, "settings": dict, "id": str, "statement": str, "direction": str, **lists}
    if any(entry.get(name) is not None and not isinstance(entry[name], kind) for name, kind in kinds.items()):
        return False
    return all(_well_formed(part) for name in ("values", "also") for part in entry.get(name) or ())
