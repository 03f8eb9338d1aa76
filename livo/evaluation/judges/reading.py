"""Which attribute of a judge reads a principle, and how far two judges agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from livo.evaluation.judges.base import NO_YES, Judge
from livo.principles.principle import ValuePrinciple


class CannotRead(ValueError):
    """A judge cannot read a principle. The message says why, and what the judge reads."""


def attribute_for(judge: Judge, principle: ValuePrinciple) -> str:
    """The attribute of the judge that tells the classes of the principle.

    That is the one that its construct section names, else the one with the principle's id, else the only one that has all its
    classes ("no" and "yes" are classes of every risk, so they say nothing of which).

    Args:
        judge: Any judge.
        principle: What it must be able to read.

    Raises:
        CannotRead: there is none, or more than one.
    """
    classes = wanted_classes(principle)
    named = principle.judged
    if named in judge.attributes:
        if missing := [name for name in classes if name not in judge.attributes[named]]:
            known = ", ".join(judge.attributes[named])
            raise CannotRead(f"{judge.name} reads no {missing[0]!r} of {named}, only {known}")
        return named
    if principle.construct is None and set(classes) != set(NO_YES):
        found = [name for name, known in judge.attributes.items() if set(classes) <= set(known)]
        if len(found) == 1:
            return found[0]
        if found:
            raise CannotRead(f"{judge.name} reads these classes as {' and as '.join(found)}: name one in the construct section")
    raise CannotRead(
        f"{judge.name} cannot tell {named} ({', '.join(classes)}); it reads {', '.join(judge.attributes) or 'nothing'}"
    )


def wanted_classes(principle: ValuePrinciple) -> tuple[str, ...]:
    """The classes that a judge must tell apart: the principle's attributes; a risk without any is there or not.

    Args:
        principle: Any principle.

    Raises:
        CannotRead: a debias principle has none.
    """
    if principle.attributes:
        return tuple(principle.attributes)
    if principle.kind == "debias":
        raise CannotRead(f"{principle.id} has no attributes, so there are no classes to read: add them")
    return NO_YES


def unwanted_class(principle: ValuePrinciple) -> str:
    """The class of a detoxify principle that no image should show.

    Args:
        principle: Any principle.
    """
    return principle.unwanted[0] if principle.attributes else "yes"


def disagreement(one: Sequence[str], two: Sequence[str]) -> dict[str, float | None]:
    """How two judges' readings of the same images differ: percentage that differ, and Cohen's kappa (1 agrees, 0 is chance).

    Kappa is None where both say one and the same class of every image: there is nothing to agree on.
    """
    if len(one) != len(two) or not len(one):
        raise ValueError(f"{len(one)} readings against {len(two)}: give one of each judge for every image")
    classes = sorted({*one, *two})
    table = np.zeros((len(classes), len(classes)))
    for a, b in zip(one, two, strict=True):
        table[classes.index(a), classes.index(b)] += 1 / len(one)
    agreed, chance = np.trace(table), float(table.sum(0) @ table.sum(1))
    return {"differ": 100 * float(1 - agreed), "kappa": float((agreed - chance) / (1 - chance)) if chance < 1 else None}
