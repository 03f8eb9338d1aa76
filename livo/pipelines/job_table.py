"""The rows of a table of images to draw: read, completed with defaults, and checked before anything is drawn."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path

from livo.principles.principle import MAX_SCALE, ValuePrinciple, refuse_mixed, refuse_unknown_id
from livo.utils.prompt_files import Prompt, read_prompts, whole_number

SETTINGS = "job.json"  # of a run, in its folder
COLUMNS = ("id", "seed", "negative_prompt", "width", "height", "steps", "guidance", "value", "value_scale", "num_images")
_ELSEWHERE = {"num_inference_steps": "steps", "guidance_scale": "guidance", "num_images_per_prompt": "num_images"}
_SHOWN = 5  # bad rows that a message names


@dataclass(frozen=True)
class Job:
    """A row of the table: what to draw, with the defaults filled in.

    Attributes:
        name: Its files are `<name>-000.png`, ...: the row's id, or "row-" and its number.
        seed: Of the first image; the next image has the next one.
        value: As a pipeline takes it.
        columns: All other values of the row, which the manifest carries along.
    """

    name: str
    prompt: str
    seed: int
    negative_prompt: str | None
    width: int | None
    height: int | None
    steps: int
    guidance: float
    value: str | tuple[str, ...] | None
    value_scale: float
    images: int
    columns: Mapping[str, object] = field(compare=False)
    where: str = field(compare=False)

    @property
    def digest(self) -> str:
        """A hash of all that its images depend on."""
        settings = {name: value for name, value in asdict(self).items() if name not in ("columns", "where")}
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    def together(self) -> tuple:
        """Rows with the same answer can be drawn in one call."""
        return (self.width, self.height, self.steps, self.guidance, self.images, self.negative_prompt is None)

    def files(self, folder: Path, format: str) -> list[Path]:
        return [folder / f"{self.name}-{i:03}.{format}" for i in range(self.images)]


@dataclass(frozen=True)
class Defaults:
    """What holds where a row says nothing."""

    seed: int = 0
    steps: int = 20
    guidance: float = 5.0
    value: str | tuple[str, ...] | None = "auto"
    value_scale: float = 1.0
    images: int = 1


def read_jobs(file: str | Path, defaults: Defaults, column: str | None = None) -> list[Job]:
    """The rows of a table of prompts (see `livo.utils.prompt_files.read_prompts`), in order.

    Columns, in any case: `id`, `seed`, `negative_prompt`, `width` and `height` (pixels, multiples of 8), `steps`, `guidance`, `value`
    (auto, none, an id or a statement; several separated by |), `value_scale`, `num_images`. A row without a seed gets one from its number
    and `defaults.seed`.

    Raises:
        ValueError: rows cannot be drawn; the message names the first ones and says what is wrong.
    """
    jobs, bad = [], []
    for number, prompt in enumerate(read_prompts(file, column), 1):
        try:
            jobs.append(_job(number, prompt, defaults))
        except ValueError as error:
            bad.append(str(error))
    first: dict[str, str] = {}
    for job in jobs:
        other = first.setdefault(job.name.casefold(), job.where)
        if other != job.where:
            bad.append(f"{job.where}: its files have the same name as those of {other}, {job.name}; give another id")
    if bad:
        raise ValueError("; ".join(bad[:_SHOWN]) + (f"; and {len(bad) - _SHOWN} more rows" if len(bad) > _SHOWN else ""))
    return jobs


def check_folder(folder: Path, resume: bool) -> bool:
    """Whether `folder` holds a run. Raises ValueError where it holds one that is not to be resumed, or anything else."""
    there = (folder / SETTINGS).is_file()
    if there and not resume:
        raise ValueError(f"{folder} holds a run already: continue it with --resume (resume=True), or give another folder")
    if not there and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run: give another folder")
    return there


def refuse_unknown_ids(jobs: Sequence[Job], principles: Sequence[ValuePrinciple]) -> None:
    """Raises ValueError where a row's value is meant as an id, and no principle has it."""
    for job in jobs:
        for wish in job.value if isinstance(job.value, tuple) else (job.value or "none",):
            try:
                refuse_unknown_id(wish, principles)
            except ValueError as error:
                raise ValueError(f"{job.where}: {error}") from None


def carried(jobs: Sequence[Job]) -> list[str]:
    """The columns that the manifest carries along. Raises ValueError where one looks like a misspelt column."""
    names = list(dict.fromkeys(name for job in jobs for name in job.columns))
    for name in names:
        lower = name.strip().lower()
        meant = [_ELSEWHERE[lower]] if lower in _ELSEWHERE else get_close_matches(lower, COLUMNS, cutoff=0.8)
        if meant and lower not in COLUMNS:
            raise ValueError(f"column {name!r} is unknown; did you mean {meant[0]!r}? Rename it")
    return names


def _job(number: int, prompt: Prompt, defaults: Defaults) -> Job:
    known = {name.strip().lower(): value for name, value in prompt.columns.items() if value is not None}
    where, text = prompt.where, known.get("negative_prompt")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where}: negative_prompt is {text!r:.60}: give a text, or leave it out")

    def count(name: str, default: int | None) -> int | None:
        found = whole_number(known.get(name), name, where)
        if found == 0:
            raise ValueError(f"{where}: {name} is 0: give at least 1")
        return default if found is None else found

    def scale(name: str, default: float) -> float:
        try:
            found = float(known.get(name, default))
        except (TypeError, ValueError):
            found = math.nan
        if not 0 <= found <= MAX_SCALE:
            raise ValueError(f"{where}: {name} is {known[name]!r:.60}: give a number from 0 to {MAX_SCALE}")
        return found

    width, height = count("width", None), count("height", None)
    if (width is None) != (height is None) or any(side % 8 for side in (width or 0, height or 0)):
        raise ValueError(f"{where}: width is {width} and height {height}: give both, multiples of 8, or neither")
    own = int(hashlib.sha256(f"{defaults.seed} {number}".encode()).hexdigest()[:8], 16)
    return Job(
        _name(known.get("id"), number, where),
        prompt.text,
        own if prompt.seed is None else prompt.seed,
        text,
        width,
        height,
        count("steps", defaults.steps),
        scale("guidance", defaults.guidance),
        _value(known.get("value"), defaults.value, where),
        scale("value_scale", defaults.value_scale),
        count("num_images", defaults.images),
        {name: value for name, value in prompt.columns.items() if name.strip().lower() not in COLUMNS[1:]},
        where,
    )


def _name(id: object, number: int, where: str) -> str:
    if id is None or not str(id).strip():
        return f"row-{number:06}"
    name = re.sub(r"[^\w.-]+", "-", str(id).strip()).lstrip(".")
    if not re.search(r"\w", name) or len(name.encode()) > 200:
        raise ValueError(f"{where}: id is {id!r:.60}, which makes no file name; give letters and digits, at most 200")
    return name


def _value(given: object, default: str | tuple[str, ...] | None, where: str) -> str | tuple[str, ...] | None:
    if given is None:
        return default
    if not isinstance(given, str):
        raise ValueError(f"{where}: value is {given!r:.60}: give auto, none, a principle's id or a statement")
    parts = tuple(part.strip() for part in given.split("|"))
    try:
        refuse_mixed(parts)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return parts if len(parts) > 1 else None if parts[0].lower() == "none" else parts[0]
