"""The word lists beside this file: `[section]`, items separated by |, the variants of one wording family by ;"""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def _all() -> dict[str, tuple[tuple[str, ...], ...]]:
    texts: dict[str, list[str]] = {}
    for file in sorted(Path(__file__).parent.glob("*.txt")):
        name = ""
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                name = line.strip().strip("[]")
            elif name and not line.startswith("#"):
                texts.setdefault(name, []).append(line)
            if name and line.startswith("["):
                texts.setdefault(name, []).append("|")  # a section may be continued further down
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
    """The items of a section, each a tuple of variants."""
    return _all()[name]


def sections() -> tuple[str, ...]:
    """The names of all sections."""
    return tuple(_all())
