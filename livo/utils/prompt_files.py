"""Prompt files in the formats of people, papers and benchmarks."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from livo.utils.files import refuse_half
from livo.utils.tables import read_table, text_column

_SEED = ("seed", "sd_seed", "evaluation_seed")
_GROUP = ("group", "categories", "category", "type")
_NAMED = 3  # empty rows that a warning names
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """One prompt of a file.

    Attributes:
        seed: Of its first image; the next image has the next one. None: it follows from the text.
        group: Figures are given for each group too (I2P's `categories`); it may be in several, separated by commas.
        stated: Classes that it states, by attribute: {"gender": "female"}. What is not given is found in the text.
        columns: All other values of its row as the file has them, seed and group too: what outputs carry along.
        where: Its place in the file, for messages.
    """

    text: str
    seed: int | None = None
    group: str = ""
    stated: Mapping[str, str] = field(default_factory=dict, hash=False)
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    where: str = field(default="", compare=False)

    @property
    def groups(self) -> tuple[str, ...]:
        """Those that it belongs to."""
        return tuple(part.strip() for part in self.group.split(",") if part.strip())

    def stating(self, attributes: Collection[str]) -> Prompt:
        """The prompt, with those columns as `stated` that are named like one of `attributes`, in any case.

        Args:
            attributes: Classes of each attribute, to find those that a prompt states.
        """
        known = {name.lower(): name for name in attributes}
        told = {known[name.lower()]: value for name, value in self.columns.items() if name.lower() in known}
        return replace(self, stated={name: value.strip() for name, value in told.items() if isinstance(value, str)})


def read_prompts(file: str | Path, column: str | None = None) -> list[Prompt]:
    """The prompts of a file in order. A row without a prompt is skipped with a warning.

    Args:
        file: `.txt`, `.csv`, `.tsv`, `.json`, `.jsonl`, `.ndjson`, `.yaml` or `.parquet`, see `livo.utils.tables.read_table`.
            Columns `seed` (I2P's `sd_seed`) and `group` (`categories`; several are separated by commas) are used where they are there.
        column: Name of the column with the prompt. Default: `prompt`, `prompts`, `text` or `caption`, in any case.

    Raises:
        FileNotFoundError, PermissionError: the file cannot be opened.
        ValueError: a row is broken, or there is no prompt; the message names file and row.
    """
    prompts, empty = [], []
    for row, where in read_table(file, column):
        name = text_column(list(row), column, where)
        text = row.pop(name)
        if text is None or text == "nan":
            empty.append(where)
        else:
            prompts.append(_prompt(text, row, where))
    if empty:
        more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
        places = ", ".join([empty[0], *(where.removeprefix(f"{file}:").strip() for where in empty[1:_NAMED])])
        logger.warning("%s%s: empty, skipped", places, more)
    if not prompts:
        raise ValueError(f"{file}: no prompt in it")
    return prompts


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each prompt once (text, seed, group and what it states), with a warning that says how many are left out.

    Args:
        prompts: Prompts as they were read.
    """
    once = list(dict.fromkeys(prompts))
    if len(once) < len(prompts):
        logger.warning("%d rows repeat a prompt and are left out", len(prompts) - len(once))
    return once


@dataclass(frozen=True)
class Labelled:
    """A prompt with the principles' ids or the facets that a user gave it."""

    prompt: str
    labels: frozenset[str]
    family: str


def read_labelled(file: Path, column: str | None = None) -> list[Labelled]:
    """Labelled prompts from any file that `read_prompts` reads: a column labels (separated by |, or a list) and perhaps family.

    Args:
        column: Name of the column with the prompt, see `read_prompts`.

    Raises:
        FileNotFoundError, PermissionError, ValueError: see `read_prompts`, or it has no labels; the message names the row.
    """
    found = []
    for prompt in read_prompts(file, column):
        row = {name.lower(): value for name, value in prompt.columns.items()}
        if "labels" not in row:
            there = ", ".join(name or "(no name)" for name in row) or "none"
            raise ValueError(f"{prompt.where}: no column labels, there are {there}; leave its cells empty where nothing applies")
        labels = row["labels"] or ()
        labels = labels.split("|") if isinstance(labels, str) else labels
        if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"{prompt.where}: labels are {labels!r:.60}: give ids or facets separated by |, or a list of them")
        wanted = frozenset(label.strip() for label in labels if label.strip() and label.strip() != "none")
        found.append(Labelled(prompt.text, wanted, str(row.get("family") or prompt.text)))
    return found


def _prompt(text: object, columns: dict[str, Any], where: str) -> Prompt:
    if not isinstance(text, str):
        raise ValueError(f"{where}: prompt is {text!r:.60}, not a text; put it in quotes, or delete the row")
    refuse_half(f"{where}: prompt", text)
    for name, value in columns.items():
        refuse_half(f"{where}: {name}", value)
    lower = {name.lower(): value for name, value in columns.items() if value is not None}
    seed = next((lower[name] for name in _SEED if name in lower), None)
    group = next((lower[name] for name in _GROUP if name in lower), "")
    group = ", ".join(map(str, group)) if isinstance(group, (list, tuple)) else str(group)
    return Prompt(text.strip(), whole_number(seed, "seed", where), group, columns=columns, where=where)


def whole_number(value: object, name: str, where: str) -> int | None:
    """A count from a cell. pandas writes 42 as "42.0" in a column that also has empty cells, and those as "nan".

    Args:
        value: What a file holds.
        name: Of the column, for the error.
        where: File and row, for the error.

    Raises:
        ValueError: it is no whole number from 0 to 2**63 - 1.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan", "none", "null")):
        return None
    whole = re.fullmatch(r"(\d+)(\.0*)?", str(value).strip())
    if not whole or isinstance(value, bool) or int(whole[1]) >= 2**63:
        raise ValueError(f"{where}: {name} is {value!r:.60}: give a whole number from 0 to 2**63 - 1, or leave it out")
    return int(whole[1])
