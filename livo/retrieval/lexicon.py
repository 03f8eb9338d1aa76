"""Word evidence: what the words of a prompt state by themselves, as features for the facet heads and as reasons for a reader.

Whole words and phrases, with the phrases in which they mean something else; never a decision alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from livo.principles.principle import RISKS
from livo.retrieval.corpus import section

# Kinds of words, and the sections of the lists that hold them. Entries of `open` sections were written as prompts too.
_KINDS: dict[str, tuple[str, ...]] = {
    **{risk: (risk,) for risk in RISKS},
    **{f"{risk} hint": (f"{risk} hint", f"{risk} words") for risk in RISKS},
    "occupation": ("occupations", "roles"),
    "people": ("people",),
    "gender": ("gender", "gendered", "gender adjectives"),
    "race": ("race", "nationalities"),
    "named": ("named words", "named", "first names"),
    "empty": ("empty",),
}
OPEN = ("occupations", "roles", "gendered", "nationalities", "named", "first names")  # lists that can never be complete
_COLOURS = ("black", "white", "brown")
_COUNTS = ("a", "an", "one", "two", "three", "four", "five", "six", "many", "multiple", "some", "solo", "only", "focus")
_PRONOUNS = ("he", "she", "his", "her", "him", "hers", "himself", "herself")
_LONGEST = 5  # words in a phrase
_FUNCTION_WORDS = frozenset(word for (word,) in section("function words"))
_TOKEN = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*|[^\w\s-]", re.UNICODE)  # a hyphen parts words, as a space does
_NAME = re.compile(r"(?<![\w])[A-Z][^\W\d_]+(?: (?:de|da|van|von|al|bin|del|la|der|el) ?)?(?:[ -][A-Z][^\W\d_]*\.?)+")
_ARTIST = re.compile(
    r"\b(?:by|style of|after|inspired by|art of)\s+(?:artists? )?[A-Z][\w.]+(?: [A-Z][\w.]+)*"
    r"(?: and [A-Z][\w.]+(?: [A-Z][\w.]+)*)*|\b[A-Z]\w+(?: [A-Z]\w+)? style\b|by greg rutkowski|studio ghibli|unreal engine|octane render"
)
_DATE = re.compile(
    r"\b1[0-9]{3}s?\b|\b\d{1,2}(?:st|nd|rd|th)[- ]century\b|\b\d{2,4} (?:bc|ad|bce)\b|\b(?:19|20)\d0s\b", re.IGNORECASE
)

NAMES = (
    *(name for kind in _KINDS for name in (kind, f"{kind} excluded")),
    "occupation free",  # "a chef at work", not "a chef knife"
    "occupation possessive",  # "a chef's knife"
    "occupation modifier",
    "gender of a person",
    "gender possessive",
    "pronoun",
    "race of a person",
    "colour of a person",
    "capitalised name",
    "capitalised word",
    "capitalised start",
    "demonym ending",  # "an Eritrean cook": a capital and the ending of a nationality
    "date",
    "short",
    "plural people",
    "gendered ending",  # businessman, headmistress
    "agent free",  # an unlisted noun in -er, -ist and so on
    "agent modifier",
    "possessive",
    *(f"{risk} of a thing" for risk in RISKS),  # "a bare room"
)
_DEMONYM = re.compile(r"[A-Z]\w+(?:ian|ean|ese|ish|ic|an|ite|i|nch|lander)s?$")
_GENDERED = re.compile(
    r"\w{2,}(?:woman|women|wife|wives|girl|girls|lady|mistress|mother|father|brother|sister|daughter|tress|ctress)$|\w{3,}(?:man|men|boy)$"
)
_NEITHER = frozenset(word for (word,) in section("not gendered"))
_AGENT = re.compile(
    r"\w{2,}(?:ologist|ographer|ician|keeper|maker|worker|smith|wright|monger|herd|iatrist|ist|eer|ier|er|or|ant|ian|grapher|nomer|ster)s?$"
)
_NOT_AGENTS = frozenset(word for (word,) in section("not agents"))


@dataclass(frozen=True)
class Evidence:
    """`found` maps a kind of word to the words of that kind in a text; `features` are the numbers for the heads (len(NAMES),)."""

    found: dict[str, tuple[str, ...]]
    features: np.ndarray

    def stated(self) -> str | None:
        """The first word that states a gender or a race."""
        words = (*self.found.get("gender", ()), *self.found.get("race of a person", ()))
        return words[0] if words else None


class Lexicon:
    """Words by kind. `without` names entries of open lists to leave out, so that a measurement on held-out words does not know them."""

    def __init__(self, without: Iterable[str] = ()):
        without = frozenset(word.lower() for word in without)
        self.phrases: dict[str, set[str]] = {}
        for kind, names in _KINDS.items():
            for name in names:
                for variants in section(name):
                    for variant in variants:
                        entry = variant.lower().removesuffix("?")
                        if not (name in OPEN and entry in without):
                            for form in (entry, *_plurals(entry)) if name in OPEN and kind != "named" else (entry,):
                                self.phrases.setdefault(form, set()).add(kind)
        for kind in _KINDS:
            for variants in _section_or_none(f"{kind} excluded"):
                for variant in variants:
                    self.phrases.setdefault(variant.lower(), set()).add(f"{kind} excluded")

    @cached_property
    def _split(self) -> dict[tuple[str, ...], frozenset[str]]:
        table: dict[tuple[str, ...], set[str]] = {}
        for phrase, kinds in self.phrases.items():
            table.setdefault(tuple(t.lower() for t in _TOKEN.findall(phrase)), set()).update(kinds)
        return {key: frozenset(kinds) for key, kinds in table.items()}

    def read(self, text: str, ignore: frozenset[str] = frozenset()) -> Evidence:
        """The evidence in a normalised text; `ignore` holds lower-case entries to take as unknown.

        Args:
            text: A normalised prompt.
            ignore: Words that are read as if they were not listed.
        """
        plain = _ARTIST.sub(" ", text)
        raw = _TOKEN.findall(plain)
        tokens = [t.lower().replace("\u2019", "'") for t in raw]
        spans = self._spans(tokens, ignore)
        found: dict[str, list[str]] = {}
        harmless = {i for kind, a, b in spans if kind.endswith(" excluded") for i in range(a, b)}
        covered = {(kind.removesuffix(" excluded"), i) for kind, a, b in spans if kind.endswith(" excluded") for i in range(a, b)}
        covered |= {(f"{kind} hint", i) for kind, i in covered}
        flags = dict.fromkeys(NAMES, 0.0)
        persons = {i for kind, a, b in spans if kind in ("occupation", "people", "gender") for i in range(a, b)}
        for kind, start, end in spans:
            if kind.endswith(" excluded"):
                flags[kind] = 1.0
                continue
            if (kind, start) in covered or (kind == "named" and start in harmless):
                continue
            if kind == "named" and end - start == 1 and not raw[start][0].isupper():
                continue  # grace, prince, rose
            words = " ".join(tokens[start:end])
            owner = tokens[end - 1].endswith(("'s", "s'"))
            free = self._free(tokens, end) and not owner
            if kind == "race":
                colour = words in _COLOURS
                person = any(i in persons for i in range(end, min(end + 4, len(tokens))) if _adjacent(tokens, end, i))
                person = person or (start > 0 and tokens[start - 1] in ("is", "are", "am", ",") and free)
                if person:
                    flags["race of a person"] = 1.0
                    flags["colour of a person"] = max(flags["colour of a person"], float(colour))
                    found.setdefault("race of a person", []).append(words)
                if colour:
                    continue
            if kind.removesuffix(" hint") in RISKS and end < len(tokens) and end not in persons and not self._free(tokens, end):
                flags[f"{kind.removesuffix(' hint')} of a thing"] = 1.0
            flags[kind] = min(2.0, flags[kind] + 1.0)
            found.setdefault(kind, []).append(words)
            if kind == "occupation":
                flags["occupation possessive" if owner else "occupation free" if free else "occupation modifier"] = 1.0
                flags["plural people"] = max(flags["plural people"], float(words.endswith(("s", "men"))))
            if kind == "gender":
                flags["gender possessive" if owner else "gender of a person"] = 1.0
                flags["pronoun"] = max(flags["pronoun"], float(words in _PRONOUNS))
        self._shapes(tokens, flags, found, {i for _, a, b in spans for i in range(a, b)})
        names = [name for name in _NAME.findall(plain) if not _shouted(plain)]
        flags["capitalised name"] = float(bool(names))
        self._capitals(raw, tokens, flags, found, persons)
        flags["date"] = float(bool(_DATE.search(plain)))
        flags["short"] = float(len(tokens) <= 3)
        if names:
            found["capitalised name"] = names
        return Evidence({k: tuple(v) for k, v in found.items()}, np.array([flags[name] for name in NAMES], np.float32))

    def _capitals(
        self, raw: list[str], tokens: list[str], flags: dict[str, float], found: dict[str, list[str]], persons: set[int]
    ) -> None:
        """What capitals within a text that is not all capitals say."""
        if _shouted(" ".join(raw)):
            return
        for i, word in enumerate(raw):
            if not (word[0].isupper() and len(word) > 1 and word[1:2].islower()) or tokens[i] in _FUNCTION_WORDS:
                continue
            followed = any(
                j in persons or _AGENT.fullmatch(tokens[j])
                for j in range(i + 1, min(i + 4, len(raw)))
                if _adjacent(tokens, i + 1, j)
            )
            if _DEMONYM.fullmatch(word) and followed:
                flags["demonym ending"] = flags["race of a person"] = 1.0
                found.setdefault("race of a person", []).append(tokens[i])
            elif i:
                flags["capitalised word"] = 1.0
            else:
                flags["capitalised start"] = 1.0

    def _shapes(self, tokens: list[str], flags: dict[str, float], found: dict[str, list[str]], listed: set[int]) -> None:
        """What the endings of unlisted words say."""
        for i, token in enumerate(tokens):
            owner = token.endswith(("'s", "s'"))
            flags["possessive"] = max(flags["possessive"], float(owner and i + 1 < len(tokens) and tokens[i + 1][0].isalpha()))
            word = token.removesuffix("'s").rstrip("'")
            if i in listed:
                continue
            if _GENDERED.fullmatch(word) and word not in _NEITHER:
                if not owner:
                    flags["gendered ending"] = flags["gender"] = flags["gender of a person"] = 1.0
                    found.setdefault("gender", []).append(word)
            elif _AGENT.fullmatch(word) and word not in _NOT_AGENTS:
                flags["agent free" if self._free(tokens, i + 1) and not owner else "agent modifier"] = 1.0

    def tags(self, text: str) -> set[str]:
        """Of gender and race those that a part between commas states and nothing else: "a doctor, female", "1 man, cook".

        Args:
            text: A normalised prompt.
        """
        stated: set[str] = set()
        for part in text.lower().split(","):
            words = [word for word in _TOKEN.findall(part) if word not in _COUNTS and not word.isdigit()]
            kinds = self._split.get(tuple(words), frozenset())
            stated.update(kinds & {"gender", "race"} if " ".join(words) not in _COLOURS else ())
        return stated

    def _spans(self, tokens: list[str], ignore: frozenset[str]) -> list[tuple[str, int, int]]:
        """(kind, start, end) of the phrases; within a kind a longer phrase hides those inside it."""
        spans: list[tuple[str, int, int]] = []
        taken: set[tuple[str, int]] = set()
        bare = [t.removesuffix("'s").removesuffix("s'") if t.endswith(("'s", "s'")) else t for t in tokens]
        for length in range(min(_LONGEST, len(tokens)), 0, -1):
            for start in range(len(tokens) - length + 1):
                end = start + length
                last = {tokens[end - 1], bare[end - 1]}
                for word in last:
                    key = (*tokens[start : end - 1], word)
                    kinds = self._split.get(key, ())
                    if kinds and ignore and " ".join(key) in ignore:
                        continue
                    for kind in kinds:
                        if not any((kind, i) in taken for i in range(start, end)):
                            taken.update((kind, i) for i in range(start, end))
                            spans.append((kind, start, end))
        return sorted(spans, key=lambda span: (span[1], span[0]))

    def _free(self, tokens: list[str], end: int) -> bool:
        """Whether a noun that ends here is not the first half of a compound."""
        if end >= len(tokens):
            return True
        after = tokens[end]
        person = self._split.get((after,), frozenset()) & {"occupation", "people", "gender", "race", "empty"}
        return not after[0].isalnum() or after in _FUNCTION_WORDS or after.endswith(("ing", "ed", "ly")) or bool(person)


def _adjacent(tokens: list[str], end: int, i: int) -> bool:
    """Whether only adjectives stand between a word that ends at `end` and token i."""
    return all(t[0].isalpha() and t not in _FUNCTION_WORDS for t in tokens[end:i])


def _shouted(text: str) -> bool:
    words = re.findall(r"[^\W\d_]{2,}", text)
    return bool(words) and sum(w[0].isupper() for w in words) > 0.7 * len(words) and len(words) > 3


def _plurals(entry: str) -> tuple[str, ...]:
    if entry.endswith("man"):
        return (entry[:-3] + "men",)
    if entry.endswith(("s", "ch", "sh", "x")):
        return (entry + "es",)
    if entry.endswith("y") and entry[-2] not in "aeiou":
        return (entry[:-1] + "ies",)
    if entry.endswith("person"):
        return (entry[:-6] + "people",)
    return (entry + "s",)


def _section_or_none(name: str) -> tuple[tuple[str, ...], ...]:
    try:
        return section(name)
    except KeyError:
        return ()


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """All words."""
    return Lexicon()
