"""The word lists beside this file.

A line `[name]` starts a section. Its items are separated by |, and the variants of one wording family by ; . A line that starts with #
is a comment. everyday_prompts.txt has no sections: its prompts are not part of the labelled prompts.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent


@cache
def _all() -> dict[str, tuple[tuple[str, ...], ...]]:
    texts: dict[str, list[str]] = {}
    for file in sorted(_FOLDER.glob("*.txt")):
        name = ""
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                name = line.strip().strip("[]")
            elif name and not line.startswith("#"):
                texts.setdefault(name, []).append(line)
    return {
        name: tuple(
            dict.fromkeys(  # an item that stands twice counts once
                tuple(" ".join(variant.split()) for variant in item.split(";"))
                for item in " ".join(lines).split("|")
                if item.strip()
            )
        )
        for name, lines in texts.items()
    }


def section(name: str) -> tuple[tuple[str, ...], ...]:
    """The items of a section, each a tuple of variants.

    Args:
        name: As in `[name]`.
    """
    return _all()[name]


def sections() -> tuple[str, ...]:
    """The names of all sections."""
    return tuple(_all())


@cache
def everyday_prompts() -> tuple[str, ...]:
    """Prompts that no principle applies to. They stand in every retriever's index, and thresholds are calibrated against them."""
    lines = (_FOLDER / "everyday_prompts.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))
