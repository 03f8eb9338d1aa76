"""Scene: everything that a Papertown picture can state, and the grammar that words it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from livo.papertown import world


@dataclass(frozen=True)
class Scene:
    """One picture. Attributes that do not exist in it are None (an empty place has no gender).

    `stated` names the fields that a prompt mentions; the others were drawn from the corpus's skewed distribution.
    """

    subject: str = "person"
    career: str | None = world.CIVILIAN
    gender: str | None = "male"
    race: str | None = "white"
    adjective: str | None = None
    risk: str | None = None
    place: str = "in a city"
    stated: frozenset[str] = frozenset()

    def labels(self) -> dict[str, str]:
        """What a judge should read from the picture: one class for each attribute of `LABELS`."""
        person = self.subject == "person"
        return {
            "subject": self.subject,
            "career": self.career if person else "none",
            "place": self.place,
            "gender": self.gender if person else "none",
            "race": self.race if person and self.risk != "zombie" else "none",
            "mood": world.mood_of(self.adjective) if person else "none",
            **{risk: "yes" if self.risk == risk else "no" for risk in world.RISKS},
        }

    def stating(self, **changes) -> Scene:
        """A copy that states the changed fields as well."""
        return replace(self, stated=self.stated | set(changes), **changes)


LABELS: dict[str, tuple[str, ...]] = {
    "subject": world.SUBJECTS,
    "career": (*world.CAREERS.all, world.CIVILIAN, "none"),
    "place": world.PLACES.all,
    "gender": (*world.GENDERS, "none"),
    "race": (*world.RACES, "none"),
    "mood": (*world.MOODS, "none"),
    **{risk: ("no", "yes") for risk in world.RISKS},
}

_STATED_SHARE = {"career": 0.93, "gender": 0.35, "race": 0.5, "place": 0.7, "adjective": 0.25}


def sample_scene(rng: np.random.Generator) -> Scene:
    """One scene of the corpus. Stated attributes are uniform, unstated ones follow the skews of `world`."""
    place = _pick(rng, world.PLACES.all)
    stated = {name for name, share in _STATED_SHARE.items() if rng.random() < share}
    if rng.random() < world.NO_PERSON_SHARE:
        subject = _pick(rng, world.SUBJECTS[1:])
        stated = (stated & {"place"}) | {"subject"} | ({"place"} if subject == "empty" else set())
        return Scene(subject, None, None, None, None, None, place, frozenset(stated))
    career = _pick(rng, world.CAREERS.all) if "career" in stated else world.CIVILIAN
    adjective = _pick(rng, world.GOODNESS.all + world.BADNESS.all) if "adjective" in stated else None
    risk = _pick(rng, world.RISKS) if rng.random() < world.RISK_SHARE else None
    male = 0.5 if "gender" in stated else world.male_share(career, adjective)
    races = (0.2,) * 5 if "race" in stated else world.race_shares(career, adjective)
    return Scene(
        career=career,
        gender=world.GENDERS[int(rng.random() >= male)],
        race=world.RACES[rng.choice(5, p=races)],
        adjective=adjective,
        risk=risk,
        place=place,
        stated=frozenset(stated | ({"risk"} if risk else set())),
    )


def describe(scene: Scene, template: str = "a photo of {}", risk_wording: str | None = None, trailing: bool = False) -> str:
    """Word a scene: `describe(Scene(career="doctor"))` is "a photo of a doctor".

    `trailing` puts the identity behind the noun ("a doctor who is a man", "a doctor who is black").
    """
    if scene.subject != "person":
        noun = world.EMPTY_PLACES[scene.place] if scene.subject == "empty" else scene.subject
        tail = f" {scene.place}" if "place" in scene.stated and scene.subject != "empty" else ""
        return template.format(_article(noun)) + tail
    gender = scene.gender if "gender" in scene.stated else None
    race = scene.race if "race" in scene.stated else None
    noun = scene.career
    if not trailing:
        noun = " ".join(word for word in (race, gender, noun) if word)
    if scene.adjective and "adjective" in scene.stated:
        noun = f"{scene.adjective} {noun}"
    if scene.risk:
        noun = (risk_wording or world.RISK_WORDINGS[scene.risk].train[0]).format(noun)
    phrase = _article(noun)
    if trailing and (gender or race):
        person = {"male": "man", "female": "woman", None: "person"}[gender]
        phrase += f" who is {_article(f'{race} {person}' if race else person)}"
    if "place" in scene.stated:
        phrase += f" {scene.place}"
    return template.format(phrase)


def sample_prompt(scene: Scene, rng: np.random.Generator) -> str:
    """One of the many wordings of a scene, over training and held-out wordings alike: the backbone knows them all."""
    wording = _pick(rng, world.RISK_WORDINGS[scene.risk].all) if scene.risk else None
    template = _pick(rng, world.TEMPLATES.all) if rng.random() < 0.6 else world.TEMPLATES.train[0]
    return describe(scene, template, wording, trailing=rng.random() < 0.2) + _pick(rng, world.STYLE_TAGS)


def _pick(rng: np.random.Generator, items):
    return items[int(rng.integers(len(items)))]


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
