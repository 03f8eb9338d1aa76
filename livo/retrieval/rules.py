"""Whether a principle applies to a prompt that was read, and why: facets, exemplars, and what forbids it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np

from livo.principles.principle import RISK, ValuePrinciple
from livo.retrieval.exemplar_index import ExemplarIndex
from livo.retrieval.lexicon import Evidence

SAME = 0.95  # cosine from which two texts say the same: an exemplar or counter-exemplar speaks louder than a head


@dataclass(frozen=True)
class ValueDecision:
    """What was decided for a prompt, or for one image of it, and why.

    `id` and `statement` are None where no principle applies. `score` is the cosine similarity of the prompt to
    `nearest_exemplar`, -1 to 1, and `threshold` the similarity from which exemplars alone decide. `probability` is the calibrated
    probability that the principle applies, and `facets` those of the questions that led to it; both are None where exemplars
    decide. `text` is what was read, after normalisation. `scale`, `applied` and `direction` are filled in by the pipeline: the
    strength, whether this image received the value token, and the class that it was moved towards, where the principle has
    directions. `also` holds the decisions of further principles on the same image.
    """

    prompt: str
    id: str | None
    statement: str | None
    score: float | None
    threshold: float | None
    nearest_exemplar: str | None
    why: str
    scale: float | None = None
    applied: bool = False
    direction: str | None = None
    also: tuple[ValueDecision, ...] = ()
    probability: float | None = None
    facets: Mapping[str, float] | None = None
    text: str | None = None

    def to_dict(self) -> dict:
        return asdict(self)


class Read(NamedTuple):
    """All that is known of one prompt when a principle is considered."""

    prompt: str
    text: str
    words: Evidence
    near: np.ndarray  # cosines to the rows of the index
    facets: dict[str, float]
    own: dict[str, float]  # by heads fitted for principles' ids


def strongest(answers: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of several parts of a prompt: what any of them asks for or states, the prompt does."""
    return {name: max(part[name] for part in answers) for name in answers[0]}


def consider(exemplars: ExemplarIndex, read: Read) -> list[tuple[bool, ValueDecision]]:
    """For each principle whether it applies, and the decision that says why or why not.

    Risks come first, because other principles may be forbidden by them; the order given back is that of the file.
    """
    found, risks = {}, []
    for principle in sorted(exemplars.principles, key=lambda p: RISK in p.forbidden_by):
        found[principle.id] = applies, decision = _consider(exemplars, principle, read, risks)
        if applies and principle.kind == "detoxify":
            risks.append((principle.id, decision.probability))
    return [found[principle.id] for principle in exemplars.principles]


def chosen(considered: list[tuple[bool, ValueDecision]]) -> list[ValueDecision]:
    """The decisions of the principles that apply; one with id None, that of the nearest, where none does."""
    found = [decision for applies, decision in considered if applies]
    if found:
        passed = [d.id for applies, d in considered if not applies and d.why.endswith(_PASSED)]
        if passed:
            found[0] = replace(found[0], why=f"{found[0].why}; passed over for it: {', '.join(passed)}")
        return found
    nearest = max(
        (decision for _, decision in considered),
        key=lambda d: (d.probability is not None, d.probability if d.probability is not None else d.score - d.threshold),
    )
    why = f"no principle applies; the nearest is {nearest.id}: {nearest.why}"
    return [replace(nearest, id=None, statement=None, why=why)]


def _consider(
    exemplars: ExemplarIndex, principle: ValuePrinciple, read: Read, risks: list[tuple[str, float | None]]
) -> tuple[bool, ValueDecision]:
    best = max(exemplars.rows[principle.id][0], key=read.near.__getitem__)
    decision = ValueDecision(
        read.prompt,
        principle.id,
        principle.statement,
        float(read.near[best]),
        exemplars.thresholds[principle.id],
        exemplars.entries[best].text,
        "",
        text=read.text,
    )
    if not any(c.isalnum() for c in read.text):
        return False, replace(decision, why="the prompt has no words", probability=0.0)
    said = _said(exemplars, principle, read)
    calls = principle.called_by or ((principle.id,) if principle.id in read.facets else ())
    if said is not None:
        applies, why, probability = *said, None
    elif principle.id in read.own:
        probability = read.own[principle.id]
        applies, why = probability >= 0.5, f"its own head gives {probability:.2f}"
    elif calls and all(name in read.facets for name in calls):
        name = max(calls, key=read.facets.__getitem__)
        probability = read.facets[name]
        applies, why = probability >= 0.5, f"{name} {probability:.2f}{because(name, read.words)}"
    else:
        applies, decision = _by_exemplars(exemplars, principle, read, decision)
        probability, why = None, decision.why
    shown = {name: read.facets[name] for name in (*calls, *principle.forbidden_by) if name in read.facets}
    forbidding = _forbidding(exemplars.principles, principle, read, risks) if principle.id not in read.own else []
    if not forbidding:
        return applies, replace(decision, why=why, probability=probability, facets=shown or None)
    name, strongest, text = max(forbidding, key=lambda item: item[1])
    if probability is not None:  # that what calls holds, and none of what forbids: taken as independent
        probability *= float(np.prod([1 - p for _, p, _ in forbidding]))
    if strongest >= 0.5:
        text = f"{text}, so it is left alone" if name != RISK else f"{text} {_PASSED}" if applies else why
        applies, why = False, text
    elif applies and probability is not None and probability < 0.5:
        doubts = ", ".join(f"{name} {p:.2f}" for name, p, _ in forbidding if p >= 0.05)
        applies, why = False, f"{why}; {doubts} speak against it together, so it is left alone"
    elif probability is not None:
        why += f"; {name} only {strongest:.2f}"
    return applies, replace(decision, why=why, probability=probability, facets=shown or None)


def _said(exemplars: ExemplarIndex, principle: ValuePrinciple, read: Read) -> tuple[bool, str] | None:
    """What an exemplar or counter-exemplar decides that says the same as the prompt."""
    best = max(exemplars.listed[principle.id], key=read.near.__getitem__)
    if read.near[best] < SAME:
        return None
    entry = exemplars.entries[best]
    kind = "exemplar" if entry.exemplar else "counter-exemplar"
    return entry.exemplar, f"it says the same as {kind} {entry.text!r} ({read.near[best]:.2f})"


def _forbidding(
    principles: Sequence[ValuePrinciple], principle: ValuePrinciple, read: Read, risks: list[tuple[str, float | None]]
) -> list[tuple[str, float, str]]:
    """The facets that forbid a principle: their names, their probabilities, and how to say each."""
    found = []
    for name in principle.forbidden_by:
        if name == RISK:
            known = [read.facets[p.id] for p in principles if p.kind == "detoxify" and p.id in read.facets]
            probability = 1.0 if risks else min(0.49, max(known, default=0.0))
            found.append((name, probability, f"{risks[0][0] if risks else 'a risk'} applies"))
        elif name in read.facets:
            words = because(name, read.words)
            found.append(
                (
                    name,
                    read.facets[name],
                    f"the prompt states {_STATED.get(name, name)}{words} ({name} {read.facets[name]:.2f})",
                )
            )
        elif name in ("gender", "race"):
            stated = read.words.stated()
            found.append((name, float(stated is not None), f"the prompt states {stated!r}"))
    return found


def _by_exemplars(
    exemplars: ExemplarIndex, principle: ValuePrinciple, read: Read, decision: ValueDecision
) -> tuple[bool, ValueDecision]:
    own, against = exemplars.rows[principle.id]
    similarity, threshold = read.near, decision.threshold
    keyword = next((word for word in principle.keywords if has_word(read.text, word)), None)
    sharing = [i for i in own if keyword and has_word(exemplars.entries[i].text, keyword)]
    if sharing:
        own, threshold = sharing, -1.0
        against = [i for i in against if not exemplars.entries[i].exemplar and has_word(exemplars.entries[i].text, keyword)]
    best = max(own, key=similarity.__getitem__)
    rival = max(against, key=similarity.__getitem__, default=None)
    score, exemplar = float(similarity[best]), exemplars.entries[best].text
    applies = False
    if score < threshold:
        why = f"nearest exemplar {exemplar!r} at {score:.2f} is below the threshold {threshold:.2f}"
    elif rival is not None and similarity[rival] >= score:
        entry = exemplars.entries[rival]
        what = f"{entry.owner}'s" if entry.exemplar else "counter-exemplar" if entry.owner else "everyday prompt"
        why = f"{what} {entry.text!r} at {similarity[rival]:.2f} is nearer than exemplar {exemplar!r} at {score:.2f}"
    elif sharing:
        why, applies = f"it has the word {keyword!r}, in the sense of exemplar {exemplar!r} at {score:.2f}", True
    else:
        why, applies = f"exemplar {exemplar!r} at {score:.2f} reaches the threshold {threshold:.2f}", True
    return applies, replace(decision, score=score, threshold=threshold, nearest_exemplar=exemplar, why=why)


def would_change(principle: ValuePrinciple, decision: ValueDecision, applies: bool) -> str:
    """What would have to be different for the other decision."""
    forbidden = [n for n in principle.forbidden_by if (decision.facets or {}).get(n, 0) >= 0.5]
    if decision.probability is None and not forbidden:
        change = "not apply if the prompt were farther from" if applies else "apply if the prompt were nearer to"
        listed = "a counter-exemplar" if applies else "an exemplar"
        return f"it would {change} {decision.nearest_exemplar!r}, or {listed} said the same"
    facets = decision.facets or {}
    calls = [name for name in facets if name not in principle.forbidden_by]
    if applies:
        against = " or ".join(principle.forbidden_by) or "a counter-exemplar"
        return f"it would not apply if {' and '.join(calls) or 'its head'} fell below 0.5, or {against} spoke against it"
    wrong = [f"{name} rose from {facets[name]:.2f} to 0.5" for name in calls if facets[name] < 0.5]
    wrong += [f"{name} fell from {facets[name]:.2f} below 0.5" for name in forbidden]
    if not wrong and not decision.why.endswith(_PASSED):
        wrong = ["what speaks against it together became less"]
    return f"it would apply if {' and '.join(wrong) or 'no risk came before it'}"


def explained(exemplars: ExemplarIndex, read: Read, subject: str) -> list[str]:
    """Lines for a reader of what was decided and why; `subject` is the part of the text that was embedded."""
    considered = consider(exemplars, read)
    lines = [read.prompt[:300], f"  read as     {subject[:300]!r}"]
    lines += [f"  facet       {name:8} {p:.3f}{because(name, read.words)}" for name, p in read.facets.items()]
    for near in exemplars.nearest(read.near, 5):
        what = "everyday prompt" if near.owner is None else f"{'exemplar' if near.exemplar else 'counter-exemplar'} of {near.owner}"
        lines.append(f"  neighbour   {near.score:.3f} {near.text!r}, {what}")
    for principle, (applies, d) in zip(exemplars.principles, considered, strict=True):
        sure = (
            f"p {d.probability:.3f} of 0.5"
            if d.probability is not None
            else f"score {d.score:.3f}, " + (f"threshold {d.threshold:.3f}" if d.threshold > -1 else "by its keyword")
        )
        lines.append(f"  {d.id:24} {'applies' if applies else 'does not apply'} ({sure}): {d.why}")
        lines.append(f"  {'':24} {would_change(principle, d, applies)}")
    return [*lines, f"  decision    {', '.join(d.id or 'none' for d in chosen(considered))}"]


_PASSED = "and comes first"
_STATED = {"gender": "a gender", "race": "a race or nationality", "named": "who it is"}


def because(name: str, words: Evidence) -> str:
    kinds = {"race": ("race of a person",), "person": ("occupation", "people"), "named": ("named", "capitalised name")}
    found = [word for kind in kinds.get(name, (name, f"{name} hint")) for word in words.found.get(kind, ())]
    return f" ({found[0]!r})" if found else ""


def has_word(text: str, word: str) -> bool:
    """Whether `word` stands in `text` as a whole word, in any case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
