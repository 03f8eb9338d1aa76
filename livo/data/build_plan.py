"""What a build makes, and whether its generator and its judge can: all that is known before the first image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import DiffusionPipeline

from livo.data.preference_dataset import PreferenceError
from livo.evaluation.judges import CannotRead, Judge, attribute_for
from livo.pipelines.stable_diffusion import refuse_safety_checker
from livo.principles.construction import ATTRIBUTE, fill, template_fields
from livo.principles.principle import ValuePrinciple


@dataclass(frozen=True)
class Job:
    """What is made for a principle's statement, or for its directions: `pairs` in rounds of their own."""

    principle: ValuePrinciple
    name: str
    pairs: int
    directions: bool = False


def jobs(principles: Sequence[ValuePrinciple]) -> list[Job]:
    """One job for each principle's statement, and one for its directions. Raises PreferenceError for one without a construct section."""
    found = []
    for principle in principles:
        if principle.construct is None:
            raise PreferenceError(f"principle {principle.id} has no construct section, so nothing says how its images are made")
        found.append(Job(principle, principle.id, principle.construct.pairs))
        if principle.directions:
            count = principle.construct.direction_pairs * len(principle.directions)
            found.append(Job(principle, f"{principle.id}.directions", count, directions=True))
    return found


def check(pipe: DiffusionPipeline, judge: Judge, principles: Sequence[ValuePrinciple], batch: int) -> None:
    """Raises ValueError for everything that can be known before the first image: what cannot be drawn, and what the judge cannot read."""
    refuse_safety_checker(pipe)
    judge.check_pipeline(pipe)
    if batch < 2:
        raise PreferenceError(f"batch is {batch}: a pair is made together, so give at least 2")
    jobs(principles)
    for principle in principles:
        try:
            attribute_for(judge, principle)
        except CannotRead as error:
            raise PreferenceError(f"principle {principle.id}: {error}") from None
        for name, words in also_words(principle).items():
            if name not in judge.attributes:
                raise PreferenceError(
                    f"principle {principle.id}: {judge.name} cannot tell {name}, which its construct section has under `also`; it reads "
                    + ", ".join(judge.attributes)
                )
            if unknown := [word for word in words if word not in judge.attributes[name]]:
                known = ", ".join(judge.attributes[name])
                raise PreferenceError(f"principle {principle.id}: {judge.name} reads no {unknown[0]!r} of {name}, only {known}")


def also_words(principle: ValuePrinciple) -> dict[str, list[str]]:
    """For each attribute under a construct section's `also`, all that may be asked of it: its template with every choice of words."""
    construct = principle.construct
    found = {}
    for name, template in construct.also.items():
        fields = template_fields(template)
        choices = itertools.product(*(principle.attributes if f == ATTRIBUTE else construct.fill[f] for f in fields))
        texts = [fill(template, dict(zip(fields, words, strict=True))) for words in choices]
        found[name] = [text for text in dict.fromkeys(texts) if text]
    return found


def further_attributes(principles: Sequence[ValuePrinciple], known: Sequence[ValuePrinciple]) -> dict[str, dict[str, str]]:
    """What a judge that is asked in words must read besides the principles: the attributes under `also`, with a class for each choice.

    Args:
        principles: What is built.
        known: Principles whose attributes may be meant, as `bloody` in `bloody: "no"`: their classes and words are used.
    """
    attributes = {principle.judged: dict(principle.attributes) for principle in known if principle.attributes}
    found: dict[str, dict[str, str]] = {}
    for principle in principles:
        for name, words in also_words(principle).items() if principle.construct is not None else ():
            found.setdefault(name, {}).update(attributes.get(name) or zip(words, words, strict=True))
    return {name: classes for name, classes in found.items() if len(classes) > 1}  # one class alone would always be read
