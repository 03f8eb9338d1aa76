"""Prompt files: plain text, CSV or JSON lines, as the papers and benchmarks publish them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_TEXT = ("prompt", "text", "caption")
_SEED = ("seed", "sd_seed", "evaluation_seed")
_GROUP = ("group", "categories", "category", "type")


@dataclass(frozen=True)
class Prompt:
    """One prompt to evaluate.

    Attributes:
        seed: Of its first image; the next image has the next one. None: it follows from the text.
        group: Figures are given for each group too (I2P's `categories`); it may be in several, parted by commas.
        stated: Classes that it states, by attribute: {"gender": "female"}. What is not given is found in the text.
    """

    text: str
    seed: int | None = None
    group: str = ""
    stated: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def groups(self) -> tuple[str, ...]:
        """Those that it belongs to."""
        return tuple(part.strip() for part in self.group.split(",") if part.strip())


def read_prompts(file: str | Path) -> list[Prompt]:
    """The prompts of a file, in order.

    `.jsonl`: an object with `prompt` a line, or a plain string. `.csv` (or `.tsv`): a column `prompt`, `text` or `caption`, in any
    case. Anything else is text, one prompt a line. Columns `seed` (I2P's `sd_seed`) and `group` (`categories`; several are parted by
    commas) are used where they are; other columns become what the prompt states.

    Raises:
        ValueError: a line is broken, or there is no prompt; the message names file and line.
    """
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    rows = {".jsonl": _json_lines, ".csv": _table, ".tsv": _table}.get(file.suffix.lower(), _lines)(file, text)
    prompts = [_prompt(row, where) for row, where in rows]
    if not prompts:
        raise ValueError(f"{file}: no prompt in it; write one a line")
    return prompts


def _lines(file: Path, text: str) -> Iterator[tuple[dict, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield {"prompt": line.strip()}, f"{file}:{number}"


def _json_lines(file: Path, text: str) -> Iterator[tuple[dict, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not a line of JSON ({error}); mend or delete it") from None
        row = {"prompt": row} if isinstance(row, str) else row
        if not isinstance(row, dict):
            raise ValueError(f"{where}: {line.strip()[:60]!r} is neither an object with a prompt nor a string; mend or delete it")
        yield row, where


def _table(file: Path, text: str) -> Iterator[tuple[dict, str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        if not {name.strip().lower() for name in reader.fieldnames or ()} & set(_TEXT):
            known = ", ".join(reader.fieldnames or ()) or "none"
            raise ValueError(f"{file}: no column named {' or '.join(_TEXT)}; there are {known}")
        for row in reader:
            if None in row:
                raise ValueError(f"{file}:{reader.line_num}: more cells than columns; put a prompt that has a comma in quotes")
            yield row, f"{file}:{reader.line_num}"
    except csv.Error as error:
        raise ValueError(f"{file}:{reader.line_num}: not a row of CSV ({error}); mend or delete it") from None


def _prompt(row: dict, where: str) -> Prompt:
    row = {str(key).strip().lower(): value for key, value in row.items()}
    text = next((row.pop(name) for name in _TEXT if name in row), None)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: prompt is {text!r}: give a text, or delete the line")
    seed = next((row.pop(name) for name in _SEED if row.get(name) not in (None, "")), None)
    group = next((row.pop(name) for name in _GROUP if row.get(name)), "")
    try:
        if isinstance(seed, float) and not seed.is_integer():
            raise ValueError
        seed = None if seed is None else int(seed)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: seed is {seed!r}: give a whole number, or leave it out") from None
    stated = {key: value.strip() for key, value in row.items() if isinstance(value, str) and value.strip()}
    return Prompt(text.strip(), seed, str(group), stated)
