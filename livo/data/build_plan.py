"""What a build makes, and the checks that are possible before the first image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import DiffusionPipeline

from livo.data.manifest import PreferenceError
from livo.evaluation.judges import CannotRead, Judge, attribute_for
from livo.pipelines.stable_diffusion import refuse_safety_checker
from livo.principles.construction import ATTRIBUTE, Construct, fill, template_fields
from livo.principles.principle import ValuePrinciple


@dataclass(frozen=True)
class Job:
    """The pairs of a principle's statement, or of its directions, which have rounds of their own.

    Args:
        principle: The principle.
        name: The folder name of the job.
        pairs: How many pairs are made.
        directions: Whether they teach the principle's directions.
    """

    principle: ValuePrinciple
    name: str
    pairs: int
    directions: bool = False

    @property
    def construct(self) -> Construct:
        assert self.principle.construct is not None  # `jobs` refuses a principle without one
        return self.principle.construct


@dataclass(frozen=True)
class Wanted:
    """One image to generate.

    Args:
        source_prompt: The prompt that it is generated from.
        label: 1 for an aligned image, 0 for a violating one.
        reading: The class that the judge must read of each attribute.
        prompt: The prompt of its pair.
        pair: The number of its pair.
        value: The statement that the pair teaches.
        class_name: The class of a debias principle.
        subject: The scene that classes are balanced within.
    """

    source_prompt: str
    label: int
    reading: dict[str, str]
    prompt: str
    pair: int
    value: str
    class_name: str = ""
    subject: str = ""


def jobs(principles: Sequence[ValuePrinciple]) -> list[Job]:
    """One job for the statement of each principle, and one for its directions if it has any.

    Args:
        principles: The principles that are built.

    Raises:
        PreferenceError: A principle has no construct section.
    """
    found = []
    for principle in principles:
        if principle.construct is None:
            raise PreferenceError(
                f"principle {principle.id} has no construct section, which describes how its images are made: add one"
            )
        found.append(Job(principle, principle.id, principle.construct.pairs))
        if principle.directions:
            count = principle.construct.direction_pairs * len(principle.directions)
            found.append(Job(principle, f"{principle.id}.directions", count, directions=True))
    return found


def check(pipe: DiffusionPipeline, judge: Judge, principles: Sequence[ValuePrinciple], batch: int) -> None:
    """Check what the generator can draw and the judge can read, before the first image.

    Args:
        pipe: The generator.
        judge: Reads what the images show.
        principles: The principles that are built.
        batch: Images per round.

    Raises:
        ValueError: Something of it cannot be used.
    """
    refuse_safety_checker(pipe)
    judge.check_pipeline(pipe)
    if batch < 2:
        raise PreferenceError(f"batch is {batch}: the two images of a pair are made together, so give at least 2")
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
    """For each attribute under `also` of a construct section, the classes that may be asked for: its template with every choice of words.

    Args:
        principle: A principle with a construct section.
    """
    construct = principle.construct
    found: dict[str, list[str]] = {}
    if construct is None:
        return found
    for name, template in construct.also.items():
        fields = template_fields(template)
        choices = itertools.product(*(principle.attributes if f == ATTRIBUTE else construct.fill[f] for f in fields))
        texts = [fill(template, dict(zip(fields, words, strict=True))) for words in choices]
        found[name] = [text for text in dict.fromkeys(texts) if text]
    return found


def further_attributes(principles: Sequence[ValuePrinciple], known: Sequence[ValuePrinciple]) -> dict[str, dict[str, str]]:
    """What a vision-language or CLIP judge must read besides the principles: the attributes under `also`, with a class for each choice.

    Args:
        principles: The principles that are built.
        known: Principles whose attributes `also` may name, like `bloody` in `bloody: "no"`. Their classes and words are used.
    """
    attributes = {principle.judged: dict(principle.attributes) for principle in known if principle.attributes}
    found: dict[str, dict[str, str]] = {}
    for principle in principles:
        for name, words in also_words(principle).items():
            found.setdefault(name, {}).update(attributes.get(name) or zip(words, words, strict=True))
    return {name: classes for name, classes in found.items() if len(classes) > 1}  # a single class would always be read
