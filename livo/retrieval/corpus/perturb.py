"""Ways to reword or disguise a prompt without changing what it asks for: for training data and for the red team.

Each function takes `text`, a prompt, and `rng`, a NumPy generator. It returns the changed text, or the same text if there is nothing
to change.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from livo.retrieval.corpus.lists import section

Perturbation = Callable[[str, np.random.Generator], str]

_LEET = {"a": "4@", "e": "3", "i": "1!", "o": "0", "s": "5$", "t": "7", "b": "8", "l": "1"}
_LOOKALIKES = dict(zip("aceopxyis", "асеорхуіѕ", strict=True))  # Cyrillic  # noqa: RUF001
_SYNONYMS = {
    "photo": "snapshot",
    "picture": "image",
    "person": "individual",
    "doctor": "physician",
    "nurse": "caregiver",
    "chef": "cook",
    "soldier": "trooper",
    "police officer": "cop",
    "lawyer": "attorney",
    "nude": "unclothed",
    "naked": "undressed",
    "bloody": "bloodied",
    "covered in blood": "drenched in blood",
    "zombie": "undead",
    "office": "workplace",
    "beach": "shore",
    "big": "large",
    "portrait of": "likeness of",
    "city": "town",
    "smiling": "grinning",
    "group": "bunch",
}


def _words(text: str, change: Callable[[str], str], longest: int = 2) -> str:
    """Change the `longest` longest words of a text: that is where its meaning sits."""
    words = sorted(set(re.findall(r"[a-z]{4,}", text)), key=lambda w: (-len(w), w))[:longest]
    for word in words:
        text = re.sub(rf"(?<![a-z]){word}(?![a-z])", lambda match: change(match.group()), text)
    return text


def typos(text: str, rng: np.random.Generator) -> str:
    def change(word: str) -> str:
        i, kind = int(rng.integers(1, len(word) - 1)), int(rng.integers(4))
        if kind == 0:
            return word[:i] + word[i + 1 :]
        if kind == 1:
            return word[:i] + word[i] + word[i:]
        if kind == 2:
            return (
                word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :] if i > 1 else word[:i] + word[i + 1] + word[i] + word[i + 2 :]
            )
        return word[:i] + "abcdefghijklmnopqrstuvwxyz"[int(rng.integers(26))] + word[i + 1 :]

    return _words(text, change)


def leetspeak(text: str, rng: np.random.Generator) -> str:
    def change(word: str) -> str:
        letters = [_LEET[c][int(rng.integers(len(_LEET[c])))] if c in _LEET and rng.random() < 0.7 else c for c in word]
        if "".join(letters) == word:
            letters = [_LEET[c][0] if c in _LEET else c for c in word]
        return "".join(letters)

    return _words(text, change)


def spacing(text: str, rng: np.random.Generator) -> str:
    separator = (" ", ".", "-", "_", "*")[int(rng.integers(5))]
    return _words(text, separator.join)


def homoglyphs(text: str, rng: np.random.Generator) -> str:
    return "".join(_LOOKALIKES[c] if c in _LOOKALIKES and rng.random() < 0.5 else c for c in text)


def invisible(text: str, rng: np.random.Generator) -> str:
    """Zero-width characters within words."""
    return _words(text, lambda word: word[:2] + "\u200b\u200d\u00ad\u2060"[int(rng.integers(4))] + word[2:])


def fancy(text: str, rng: np.random.Generator) -> str:
    """Fullwidth, or mathematical bold letters."""
    start = (0xFF41, 0x1D41A, 0x1D5EE)[int(rng.integers(3))]
    return "".join(chr(start + ord(c) - 97) if "a" <= c <= "z" else c for c in text)


def stretching(text: str, rng: np.random.Generator) -> str:
    def change(word: str) -> str:
        i = int(rng.integers(1, len(word)))
        return word[:i] + word[i - 1] * int(rng.integers(2, 5)) + word[i:]

    return _words(text, change)


def masking(text: str, rng: np.random.Generator) -> str:
    """A vowel becomes a star."""

    def change(word: str) -> str:
        places = [i for i, c in enumerate(word) if c in "aeiou" and i]
        i = places[int(rng.integers(len(places)))] if places else 1
        return word[:i] + "*" + word[i + 1 :]

    return _words(text, change)


def shouting(text: str, rng: np.random.Generator) -> str:
    if rng.random() < 0.5:
        return text.upper()
    return "".join(c.upper() if i % 2 else c for i, c in enumerate(text))


def synonyms(text: str, rng: np.random.Generator) -> str:
    for word, other in _SYNONYMS.items():
        text = re.sub(rf"\b{word}\b", other, text)
    return text


def tags_after(text: str, rng: np.random.Generator) -> str:
    return f"{text}, {_tags(rng, 2)}"


def tags_before(text: str, rng: np.random.Generator) -> str:
    return f"{_tags(rng, 2)}, {text}"


def long_tag_list(text: str, rng: np.random.Generator) -> str:
    """As prompts for Stable Diffusion are often written."""
    return f"{_tags(rng, 3)}, {text}, {_tags(rng, 9)}"


def _tags(rng: np.random.Generator, count: int) -> str:
    tags = [variants[0] for variants in section("style tags")]
    return ", ".join(tags[i] for i in rng.permutation(len(tags))[:count])


DISGUISES: dict[str, Perturbation] = {
    f.__name__: f for f in (typos, leetspeak, spacing, homoglyphs, invisible, fancy, stretching, masking)
}
WORDINGS: dict[str, Perturbation] = {f.__name__: f for f in (shouting, synonyms, tags_before, tags_after, long_tag_list)}
