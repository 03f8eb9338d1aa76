"""Find the words of a prompt behind generators' syntax, tags and disguises: Unicode tricks, homoglyphs, leetspeak, spacing, typos.

The normalised text is only what the retriever reads; the images are made from the prompt as it was written.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from livo.principles.principle import RISKS
from livo.retrieval.corpus import section, sections
from livo.retrieval.prompt_syntax import without_parameters, without_weights
from livo.retrieval.shorthand import in_words
from livo.utils.logs import warn_once

logger = logging.getLogger(__name__)

LONGEST = 10_000  # characters that are read, more than any text encoder reads
# Cyrillic, Greek and phonetic letters, each with the Latin one it looks like.
_HOMOGLYPHS = str.maketrans(
    dict(
        (pair[0], pair[1])
        for pair in (  # noqa: SIM905
            "аa еe оo рp сc уy хx іi їi јj ѕs һh ԁd ԛq ԝw кk мm тt вb нh АA ВB ЕE КK МM НH ОO РP СC ТT УY ХX"  # noqa: RUF001
            " ІI ЈJ ЅS αa οo εe νv ρp τt υu ιi κk ΑA ΒB ΕE ΖZ ΗH ΙI ΚK ΜM ΝN ΟO ΡP ΤT ΥY ΧX ɑa ɡg ıi ʏy ɴn ᴀa ᴅd ᴇe ᴋk ᴏo ᴜu ᴢz ʙb ʟl"  # noqa: RUF001
        ).split()
    )
)
_LEET = {"0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "6": "gb", "7": "t", "8": "b", "9": "g", "@": "a", "$": "s", "!": "il"}
_LEET |= {"|": "il", "€": "e", "+": "t", "*": "aeiouy", "#": "aeiou", "(": "c", "2": "z"}
_JOINERS = r"[ .\-_*·|/,~]"
_SPACED = re.compile(rf"(?<!\w)(?:[^\W\d_]{_JOINERS}){{2,}}[^\W\d_](?!\w)")
_BROKEN = re.compile(r"(?<!\w)[^\W\d_]{1,5}(?:[.\-_*·|~][^\W\d_]{1,5})+(?!\w)")
_PAIR = re.compile(r"(?<!\w)[^\W\d_]{2,6} [^\W\d_]{2,6}(?!\w)")
_ODD_CASE = re.compile(r"\b[^\W\d_]*[a-z][A-Z][^\W\d_]*|\b[A-Z]{2,}\b")
_TOKEN = re.compile(r"[\w@$!|€+*#(]*\w[\w@$!|€+*#(]*")
_TRAILING = "!|+*#("


class Normaliser:
    """Restores hidden words among those that it knows.

    Args:
        words: Ordinary words, such as the whole words of an embedding model's vocabulary. The words of the labelled set are always known.
    """

    def __init__(self, words: Iterable[str] = ()):
        self.words = _listed_words() | {word.lower() for word in words if len(word) > 2 and word.isalpha()}
        self.risky = _risky_words()

    def __call__(self, text: str) -> str:
        """`text` with hidden words restored; at most `LONGEST` characters of it, with a warning where it has more."""
        given = text
        text = unicodedata.normalize("NFKC", text[: 4 * LONGEST])
        text = without_syntax(text)
        text = "".join(_plain(c) for c in text)
        text = "".join(c for c in unicodedata.normalize("NFD", text) if not _overlay(c))
        text = unicodedata.normalize("NFC", text)
        if len(text) > LONGEST or len(given) > 4 * LONGEST:
            rest = text[LONGEST:] or given[4 * LONGEST :]
            warn_once(logger, "only the first %d characters of a prompt are read for values; not read: %.60r...", LONGEST, rest)
        text = text[:LONGEST]
        text = " ".join(self._latin(word) for word in text.split())
        if len(_ODD_CASE.findall(text)) > 0.3 * len(re.findall(r"[^\W\d_]{2,}", text)):
            text = text.lower()
        text = _SPACED.sub(self._join, text)
        text = _BROKEN.sub(self._mend, text)
        text = _PAIR.sub(self._mend, text)
        return _TOKEN.sub(lambda match: self._restore(match.group()), text)

    def _latin(self, word: str) -> str:
        """Letters of other alphabets that look Latin, where they stand in a word of Latin letters or spell a known one."""
        plain = word.translate(_HOMOGLYPHS)
        if plain == word:
            return word
        mixed = any("a" <= c.lower() <= "z" for c in word)
        return plain if mixed or re.sub(r"\W", "", plain).lower() in self.words else word

    def _join(self, match: re.Match) -> str:
        """Letters that stand alone: "n u d e", "z.o.m.b.i.e"."""
        letters = re.sub(_JOINERS, "", match.group())
        return " ".join(self._segments(letters.lower()) or [letters])

    def _mend(self, match: re.Match) -> str:
        """A word of risk that is broken: "blo-ody", "na.ked", "zom bie"."""
        letters = re.sub(_JOINERS, "", match.group()).lower()
        return letters if letters in self.risky else match.group()

    def _segments(self, letters: str) -> list[str] | None:
        """Run-together letters split into the fewest known words."""
        best: dict[int, list[str]] = {0: []}
        for end in range(1, min(len(letters), 60) + 1):
            for start in range(max(0, end - 20), end):
                piece = letters[start:end]
                known = piece in self.words or piece in ("a", "i", "of", "in", "on", "at", "an")
                if start in best and known and (end not in best or len(best[end]) > len(best[start]) + 1):
                    best[end] = [*best[start], piece]
        return best.get(len(letters))

    def _restore(self, token: str) -> str:
        starred = _spelling(token.lower(), self.risky) if token[-1] in "*#" else None
        if starred:
            return starred
        ending = len(token) - len(token.rstrip(_TRAILING))
        stem, tail = (token[:-ending], token[-ending:]) if ending else (token, "")
        word = stem.lower()
        if len(word) < 4 or word in self.words:
            return token
        if "_" in word:
            return " ".join(self._restore(part) for part in stem.split("_") if part) + tail
        restored = self._spelt(word) if not word.isalpha() else self._squeezed(word) or self._two_words(word) or self._typo(word)
        return restored + tail if restored else token

    def _squeezed(self, word: str) -> str | None:
        """Stretched letters: "zooombie"."""
        return next((s for s in _single_letters(word) if s in self.risky), None) or (
            next((s for s in _single_letters(word) if s in self.words), None) if re.search(r"(.)\1\1", word) else None
        )

    def _two_words(self, word: str) -> str | None:
        """A word of risk run together with a person: "nakedwoman"."""
        for i in range(4, len(word) - 2):
            first, second = word[:i], word[i:]
            if (first in self.risky and second in _person_words()) or (second in self.risky and first in _person_words()):
                return f"{first} {second}"
        return None

    def _typo(self, word: str) -> str | None:
        """An unknown word that is a letter away from a word of risk."""
        return next(
            (risk for risk in sorted(self.risky) if _one_edit(word, risk) and (len(risk) > 4 or sorted(risk) == sorted(word))), None
        )

    def _spelt(self, word: str) -> str | None:
        """The known word behind digits and symbols that stand for letters; words of risk first."""
        if not any(c.isalpha() for c in word) and not any(c in "013457" for c in word):
            return None
        if (sum(c.isdigit() for c in word) == len(word) and len(word) < 5) or re.fullmatch(r"\d+[a-z]{1,2}", word):
            return None  # 85mm, 1920s
        return _spelling(word, self.risky) or _spelling(word, self.words) or next(iter(self._masked(word)), None)

    def _masked(self, word: str) -> list[str]:
        """Words of risk that fit around stars: "z**bie"."""
        if not re.fullmatch(r"[a-z]+[*#]{2,}[a-z]*", word):
            return []
        pattern = re.compile(re.sub(r"[*#]", ".", word))
        return [risk for risk in sorted(self.risky) if pattern.fullmatch(risk)]


def without_syntax(text: str) -> str:
    """A prompt in plain language: generators' syntax removed, tags and emoji of people in words; the same text where it has none.

    Args:
        text: A prompt as people type it.
    """
    plain = without_weights(in_words(without_parameters(text)))
    return text if plain == text else re.sub(r"\s*,(?:\s*,)*\s*", ", ", plain).strip(" ,\n")


def _plain(char: str) -> str:
    """Spaces for what separates, nothing for what is invisible, words for pictures."""
    kind = unicodedata.category(char)
    if char.isspace():
        return " "
    if kind[0] == "C":
        return ""
    if kind == "So" and ord(char) > 0x2600:
        return f" {unicodedata.name(char, '').lower()} "
    return char


def _overlay(mark: str) -> bool:
    """Marks that strike through, enclose or pile up rather than spell: accents stay, so that other languages read as they are."""
    if unicodedata.category(mark) == "Me":
        return True
    return (
        unicodedata.category(mark) == "Mn"
        and "\u0300" <= mark <= "\u036f"
        and mark not in "\u0300\u0301\u0302\u0303\u0306\u0307\u0308\u030a\u030b\u030c\u0327\u0328"
    )


def _spelling(word: str, words: frozenset[str] | set[str]) -> str | None:
    spellings = [""]
    for char in word:
        options = _LEET.get(char, char)
        spellings = [s + option for s in spellings for option in options][:2000]
    return next((s for s in spellings if s in words), None)


def _single_letters(word: str) -> list[str]:
    """Runs of a letter cut to two, to one, and each run on its own to one."""
    two, one = re.sub(r"(.)\1{2,}", r"\1\1", word), re.sub(r"(.)\1+", r"\1", word)
    each = [two[: m.start()] + m.group(1) + two[m.end() :] for m in re.finditer(r"(.)\1", two)]
    return [s for s in dict.fromkeys([two, *each, one]) if s != word]


def _one_edit(a: str, b: str) -> bool:
    """One letter inserted, left out, changed, or two neighbours swapped; the first letter is right."""
    if a == b or abs(len(a) - len(b)) > 1 or a[0] != b[0]:
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[start:], b[start:]
    return rest_a[1:] == rest_b or rest_a == rest_b[1:] or rest_a[1:] == rest_b[1:] or rest_a[:2][::-1] + rest_a[2:] == rest_b


_FRAMING = re.compile(
    r"^(?:(?:please|can you|could you|i want to see|i want|i'd like to see|show me|give me|imagine|let's|let us|try to)[ ,]+)*"
    r"(?:(?:paint|draw|generate|create|make|render|sketch|illustrate|picture|design|photograph) (?:me |us )?"
    r"(?=an? |the |some |two |\w+ of ))?"
    r"(?:(?:an?|the|some) )?(?:[\w\u00e9-]+ ){0,5}?"
    r"(?:photo|photograph|photography|picture|image|portrait|painting|drawing|sketch|illustration|render|rendering|shot|close-up|"
    r"closeup|snapshot|polaroid|still|mural|watercolou?r|cartoon|print|view|poster|artwork|likeness|depiction|engraving|selfie|headshot|panel)s?"
    r" (?:of|with|showing|depicting)(?: |$)",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"^(?:please|can you|could you|i want to see|show me|give me|imagine)[ ,]+(?:(?:paint|draw|generate|create|make|render|sketch) )?",
    re.IGNORECASE,
)
_MANNER = re.compile(
    r",? (?:in the style of|in the manner of|inspired by|by)(?= [A-Z]| greg| studio) [\w. ]+(?: and [A-Z][\w.]+(?: [A-Z][\w.]+)*)?(?=,|$)"
    r"|,? [\w ]{3,20} style(?=,|$)"
)


def subject(text: str) -> str:
    """A normalised prompt without what it says about the kind of picture: "a photo of a doctor, 8k, digital art" is "a doctor".

    Args:
        text: A normalised prompt.
    """
    parts = [part.strip() for part in _MANNER.sub("", text).split(",")]
    kept = [part for part in parts if part and not _is_style(part)]
    rest = ", ".join(kept) or text
    framed = _FRAMING.match(rest)
    words = framed.group().lower() if framed else ""
    if framed and "," not in words and not set(re.findall(r"[\w-]+", words)) - _framing_words():
        rest = rest[framed.end() :]
    return _REQUEST.sub("", rest).strip(" ?") or text


def _is_style(part: str) -> bool:
    words = re.findall(r"[^\s():\[\]{}?.!;|]+", part.lower())
    return all(word in _style_words() for word in words) and not (len(words) == 1 and words[0] in ("a", "an", "the"))


@lru_cache(maxsize=1)
def _style_words() -> frozenset[str]:
    return frozenset(word for (entry,) in section("style words") for word in entry.split())


@lru_cache(maxsize=1)
def _framing_words() -> frozenset[str]:
    return _style_words() | frozenset(word for (word,) in section("framing words"))


@lru_cache(maxsize=1)
def _listed_words() -> frozenset[str]:
    entries = (variant for name in sections() for variants in section(name) for variant in variants)
    return frozenset(word for entry in entries for word in re.findall(r"[^\W\d_]+", entry.lower()) if len(word) > 2)


@lru_cache(maxsize=1)
def _risky_words() -> frozenset[str]:
    """Words that mean a risk and hardly anything else."""
    entries = (variant for risk in RISKS for variants in section(f"{risk} words") for variant in variants)
    return frozenset(entry for entry in entries if entry.isalpha() and len(entry) >= 4)


@lru_cache(maxsize=1)
def _person_words() -> frozenset[str]:
    names = ("occupations", "roles", "gendered", "gender")
    return frozenset(v for name in names for variants in section(name) for v in variants if v.isalpha() and len(v) > 2)
