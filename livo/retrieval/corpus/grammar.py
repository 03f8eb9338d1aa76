"""Labelled prompts: what each asks for (its facets), its group, and the wording family that keeps training and held-out apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from livo.principles.principle import RISKS
from livo.retrieval.corpus.lists import section, sections
from livo.retrieval.corpus.perturb import DISGUISES, WORDINGS

LANGUAGES = ("de", "fr", "es", "it", "pt", "nl")
_BARE = ("bare", "naked", "nude", "exposed", "stripped", "uncovered", "undressed")
_SPOILT = ("rotten", "decaying", "dead", "rotting", "decayed", "infected")
_Item = TypeVar("_Item")
HELD_OUT = 4  # one wording family in four


@dataclass(frozen=True)
class LabelledPrompt:
    """`facets` is what the prompt asks for or states; `group` names the difficulty; `family` the list entry it was made from.

    `words` are the list entries of open classes in it (an occupation, a name), lower case.
    """

    text: str
    facets: frozenset[str]
    group: str
    family: str
    held_out: bool
    language: str = "en"
    words: frozenset[str] = frozenset()


def held_out(entries: Sequence, yes: bool) -> list:
    """The entries of a list that are held out, or those that are not.

    Args:
        entries: Items of a section.
        yes: Whether the held-out items are wanted, or the others.
    """
    return [entry for i, entry in enumerate(entries) if (i % HELD_OUT == HELD_OUT - 1) == yes]


def labelled_prompts(seed: int = 0) -> list[LabelledPrompt]:
    """Several thousand prompts, the same for the same seed. Held-out ones share neither a list entry, nor a template, nor a place
    with the others; a text that could be made on both sides is on neither.

    Args:
        seed: Of the wording.
    """
    halves = [list(dict.fromkeys(_half(yes, seed + yes))) for yes in (False, True)]
    both = {p.text.lower() for p in halves[0]} & {p.text.lower() for p in halves[1]}
    seen: set[str] = set()
    prompts = []
    for prompt in halves[0] + halves[1]:
        key = prompt.text.lower()
        if key not in both and key not in seen:
            seen.add(key)
            prompts.append(prompt)
    return prompts


def _half(yes: bool, seed: int) -> Iterator[LabelledPrompt]:
    rng = np.random.default_rng(seed)

    def entries(name: str) -> list[tuple[str, ...]]:
        return held_out(section(name), yes)

    def firsts(name: str) -> list[str]:
        return [variants[0] for variants in entries(name)]

    def pick(items: Sequence[_Item]) -> _Item:
        return items[int(rng.integers(len(items)))]

    templates, places = firsts("templates") + firsts("more templates"), firsts("places")
    perturbations = list(DISGUISES.values())
    wordings = list(WORDINGS.values())

    def emit(phrase: str, facets: str, group: str, family: str, count: int = 1, place: float = 0.3, words: Sequence[str] = ()):
        for i in range(count):
            bare = i == 0 and count > 2
            where = f" {pick(places)}" if rng.random() < place and not bare else ""
            text = phrase + where if bare else pick(templates).format(phrase + where)
            if rng.random() < 0.12:
                text = pick(wordings)(text, rng)
            yield LabelledPrompt(text, frozenset(facets.split()), group, f"{group}/{family}", yes, words=frozenset(words))

    occupations, roles = firsts("occupations"), firsts("roles")
    people = occupations + roles
    for noun in occupations:
        yield from emit(article(noun), "person", "people, neutral", noun, 3, words=[noun])
    for noun in roles:
        yield from emit(article(noun), "person", "people, neutral", noun, 3, words=[noun])
    for name in ("crowds", "implied", "neutral traps"):
        for variants in entries(name):
            for phrase in variants:
                yield from emit(phrase, "person", "people, neutral", variants[0], 4, place=0.05)

    genders, races = firsts("gendered"), firsts("nationalities")
    adjectives = [word for (word,) in section("gender adjectives")[:3]] + firsts("gender adjectives")
    for noun in genders:
        yield from emit(article(noun), "person gender", "people, stated", noun, 5, words=[noun])
        race = pick(races)
        yield from emit(article(f"{race} {noun}"), "person gender race", "people, stated", noun, 1, words=[noun, race.lower()])
    for noun in occupations:
        worded = f"{pick(adjectives)} {noun}"
        yield from emit(article(worded), "person gender", "people, stated", f"adjective {noun}", 1, words=[noun])
        if rng.random() < 0.6:
            phrase = pick(firsts("gender phrases"))
            yield from emit(_slotted(phrase, noun), "person gender", "people, stated", phrase, 1, 0, [noun])
        if rng.random() < 0.4:
            phrase = pick(firsts("race phrases"))
            yield from emit(_slotted(phrase, noun), "person race", "people, stated", phrase, 1, 0, [noun])
    for race in races:
        for _ in range(5):
            noun = pick(people)
            yield from emit(article(f"{race} {noun}"), "person race", "people, stated", race, 1, words=[race.lower(), noun])
        noun = pick(occupations)
        yield from emit(
            article(f"{race} {pick(adjectives)} {noun}"),
            "person gender race",
            "people, stated",
            race,
            1,
            words=[race.lower(), noun],
        )
    for name in firsts("named"):
        for _ in range(4):
            phrase = pick(firsts("named settings")).format(name if rng.random() < 0.75 else name.lower())
            yield from emit(phrase, "person named", "people, named", name, 1, 0, [name.lower()])
        surname = name.split()[-1]
        if " " in name and len(surname) > 4 and "the" not in name.split():
            phrase = pick(firsts("named settings")).format(surname)
            yield from emit(phrase, "person named", "people, named", name, 1, 0, [name.lower()])
    for name in firsts("first names"):
        for _ in range(3):
            phrase = f"{name}, {article(pick(occupations))}" if rng.random() < 0.5 else pick(firsts("named settings")).format(name)
            yield from emit(phrase, "person named", "people, named", name, 1, 0, [name.lower()])
    for variants in entries("historical"):
        for phrase in variants:
            yield from emit(phrase, "person named race", "people, named", variants[0], 4)

    for risk in RISKS:
        for (phrase,) in entries(f"{risk} explicit"):
            for i in range(8):
                noun = pick(genders if i % 3 == 2 else people)
                stated = " gender" if i % 3 == 2 else ""
                worded = _slotted(phrase, noun)
                yield from emit(worded, f"person{stated} {risk}", "explicit risk", f"{risk} {phrase}", 1, 0.2, [noun])
                disguise = perturbations[int(rng.integers(len(perturbations)))]
                if i % 2 == 0:
                    text = disguise(pick(templates[:4]).format(worded), rng)
                    yield LabelledPrompt(
                        text,
                        frozenset(f"person{stated} {risk}".split()),
                        "obfuscated risk",
                        f"{risk} {phrase}",
                        yes,
                        words=frozenset([noun]),
                    )
        for variants in entries(f"{risk} implicit"):
            for phrase in variants:
                for _ in range(4):
                    worded = _slotted(phrase, pick(people)) if "{}" in phrase else phrase
                    yield from emit(worded, f"person {risk}", "implicit risk", f"{risk} {variants[0]}", 1, place=0.1)
        for (word,) in entries(f"{risk} words"):
            yield from emit(word, risk, "explicit risk", f"{risk} {word}", 1, 0)
            yield LabelledPrompt(word, frozenset({risk}), "explicit risk", f"explicit risk/{risk} {word}", yes)
            for disguise in perturbations:
                if len(word) >= 5 or disguise.__name__ not in ("typos", "masking"):
                    noun = pick(people)
                    text = disguise(f"{word} {noun}", rng)
                    label = frozenset(f"person {risk}".split())
                    yield LabelledPrompt(text, label, "obfuscated risk", f"{risk} {word}", yes, words=frozenset([noun]))
        for variants in entries(f"{risk} look-alikes"):
            for phrase in variants:
                yield from emit(phrase, "", "harmless look-alikes", variants[0], 4, place=0.1)
        for variants in entries(f"{risk} look-alikes people"):
            for phrase in variants:
                yield from emit(phrase, "person", "harmless look-alikes", variants[0], 4, place=0.1)
    for (noun,) in entries("bare things"):
        for kinds in (_BARE, _SPOILT):
            for _ in range(3):
                yield from emit(article(f"{pick(kinds)} {noun}"), "", "harmless look-alikes", f"bare {noun}", 1, place=0.1)
    for (animal,) in entries("animals"):
        for disguised in ("{0} dressed as {1}", "{0} working as {1}", "{0} in the uniform of {1}", "{2} {3}"):
            noun = pick(occupations)
            phrase = disguised.format(animal, article(noun), animal, noun)
            yield from emit(phrase, "", "occupations as things", f"disguised {animal}", 1, place=0.1, words=[noun])
    for group in ("no people", "occupations as things"):
        for variants in entries(group):
            for phrase in variants:
                yield from emit(phrase, "", group, variants[0], 3, place=0.05)

    for name in sections():
        language, _, kind = name.partition(" ")
        if language in LANGUAGES and kind in _ABROAD:
            for (text,) in entries(name):
                yield LabelledPrompt(text, frozenset(_ABROAD[kind].split()), "other languages", f"{language}/{text}", yes, language)


_ABROAD = {
    "people": "person",
    "stated": "person gender race",
    "nudity": "person nudity",
    "bloody": "person bloody",
    "zombie": "person zombie",
    "no people": "",
}


_BEFORE_ARTICLE = (
    *(" of", " by", " as", " is", " and", " among", " with", " around", " led", " chasing", " once", " in", ","),
    *("zombies chasing", "infected", "robbed", "overrun", "hits"),
)


def _slotted(phrase: str, noun: str) -> str:
    """ "{} covered in blood" with its noun, and the articles that English wants."""
    before, _, after = phrase.partition("{}")
    if not before or before.rstrip().endswith(_BEFORE_ARTICLE):
        return f"{before}{article(noun)}{after}"
    worded = f"{before}{noun}{after}"
    first = before.split()[0].lower()
    return worded if first in ("a", "an", "the", "my", "her", "his", "zombies") or before[0].isupper() else article(worded)


def article(noun: str) -> str:
    """The noun with its article, unless it has one.

    Args:
        noun: A noun phrase without an article.
    """
    if noun.split()[0] in ("a", "an", "the"):
        return noun
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"
