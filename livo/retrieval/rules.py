"""Rules: which principles apply to a prompt, and why. Facets and exemplars speak for a principle, others forbid it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np

from livo.principles.principle import RISK, ValuePrinciple
from livo.retrieval.exemplar_index import ExemplarIndex
from livo.retrieval.lexicon import Evidence

SAME = 0.95  # cosine from which two texts say the same: an exemplar or counter-exemplar overrules a head


@dataclass(frozen=True)
class ValueDecision:
    """What the retriever decided for a prompt about one principle, and why.

    Attributes:
        prompt: The prompt as it was given.
        id: The principle's id; None where no principle applies.
        statement: The principle's statement; None where no principle applies.
        score: Cosine similarity of the prompt to `nearest_exemplar`, -1 to 1.
        threshold: The similarity from which exemplars alone decide.
        nearest_exemplar: The exemplar that is most similar to the prompt.
        reason: Why the principle applies, or why none does.
        probability: Calibrated probability that the principle applies; None where exemplars decided.
        facets: Probabilities of the facets that led to it; None where exemplars decided.
        text: What was read: the prompt after normalisation.
    """

    prompt: str
    id: str | None
    statement: str | None
    score: float
    threshold: float
    nearest_exemplar: str
    reason: str
    probability: float | None = None
    facets: Mapping[str, float] | None = None
    text: str | None = None

    def to_dict(self) -> dict:
        """The decision as JSON-ready data."""
        return asdict(self)


class PromptContext(NamedTuple):
    """All that is known of one prompt when a principle is considered.

    Attributes:
        prompt: The prompt as it was given.
        text: The prompt after normalisation.
        words: What the lexicon found in the text.
        similarities: Cosine similarities (rows of the exemplar index,) of the prompt.
        facets: Probability of each facet, by its head.
        fitted: Probability of each principle that has a fitted head of its own, by id.
    """

    prompt: str
    text: str
    words: Evidence
    similarities: np.ndarray
    facets: dict[str, float]
    fitted: dict[str, float]


def strongest(answers: Sequence[dict[str, float]]) -> dict[str, float]:
    """For each facet the largest probability among the parts of a prompt: what one part says, the prompt says."""
    return {name: max(part[name] for part in answers) for name in answers[0]}


def apply_rules(exemplars: ExemplarIndex, context: PromptContext) -> list[tuple[bool, ValueDecision]]:
    """For each principle whether it applies, and the decision that says why or why not.

    Risks are considered first, because a risk that applies can forbid other principles. The result has the order of the principles' file.

    Args:
        exemplars: The index of the principles' exemplars.
        context: What is known of the prompt.
    """
    found: dict[str, tuple[bool, ValueDecision]] = {}
    risks: list[str] = []
    for principle in sorted(exemplars.principles, key=lambda p: RISK in p.forbidden_by):
        found[principle.id] = applies, _ = _apply_rules(exemplars, principle, context, risks)
        if applies and principle.kind == "detoxify":
            risks.append(principle.id)
    return [found[principle.id] for principle in exemplars.principles]


def applicable(considered: Sequence[tuple[bool, ValueDecision]]) -> list[ValueDecision]:
    """The decisions of the principles that apply; where none does, one decision with id None that names the nearest principle."""
    found = [decision for applies, decision in considered if applies]
    if found:
        passed = [d.id for applies, d in considered if not applies and d.id and d.reason.endswith(_PASSED)]
        if passed:
            found[0] = replace(found[0], reason=f"{found[0].reason}; passed over for it: {', '.join(passed)}")
        return found
    nearest = max((decision for _, decision in considered), key=_nearness)
    why = f"no principle applies; the nearest is {nearest.id}: {nearest.reason}"
    return [replace(nearest, id=None, statement=None, reason=why)]


def _nearness(decision: ValueDecision) -> tuple[bool, float]:
    """Orders by probability; decisions without one come after, by how far the score is above the threshold."""
    if decision.probability is not None:
        return True, decision.probability
    assert decision.score is not None and decision.threshold is not None  # as `_apply_rules` leaves them
    return False, decision.score - decision.threshold


def _apply_rules(
    exemplars: ExemplarIndex, principle: ValuePrinciple, context: PromptContext, risks: Sequence[str]
) -> tuple[bool, ValueDecision]:
    """The rules for one principle; `risks` are the ids of the risks that apply."""
    best = max(exemplars.rows[principle.id][0], key=context.similarities.__getitem__)
    score, threshold = float(context.similarities[best]), exemplars.thresholds[principle.id]
    nearest = exemplars.entries[best].text
    decision = ValueDecision(context.prompt, principle.id, principle.statement, score, threshold, nearest, "", text=context.text)
    if not any(c.isalnum() for c in context.text):
        return False, replace(decision, reason="the prompt has no words", probability=0.0)
    listed = match_listed(exemplars, principle, context)
    calls = principle.called_by or ((principle.id,) if principle.id in context.facets else ())
    probability = None
    if listed is not None:
        applies, why = listed
    elif principle.id in context.fitted:
        probability = context.fitted[principle.id]
        applies, why = probability >= 0.5, f"its own head gives {probability:.2f}"
    elif calls and all(name in context.facets for name in calls):
        name = max(calls, key=context.facets.__getitem__)
        probability = context.facets[name]
        applies, why = probability >= 0.5, f"{name} {probability:.2f}{quoted_word(name, context.words)}"
    else:
        applies, decision = _by_exemplars(exemplars, principle, context, decision)
        why = decision.reason
    shown = {name: context.facets[name] for name in (*calls, *principle.forbidden_by) if name in context.facets}
    forbidding = [] if principle.id in context.fitted else _forbidding(exemplars.principles, principle, context, risks)
    if forbidding:
        applies, why, probability = _weigh(applies, why, probability, forbidding)
    return applies, replace(decision, reason=why, probability=probability, facets=shown or None)


def _weigh(
    applies: bool, why: str, probability: float | None, forbidding: Sequence[tuple[str, float, str]]
) -> tuple[bool, str, float | None]:
    """Whether a principle still applies, why, and with which probability, given the facets that forbid it."""
    name, most, text = max(forbidding, key=lambda item: item[1])
    if probability is not None:  # that what calls holds, and none of what forbids: taken as independent
        probability *= float(np.prod([1 - p for _, p, _ in forbidding]))
    if most >= 0.5:
        if name != RISK:
            return False, f"{text}, so it is left alone", probability
        return False, f"{text} {_PASSED}" if applies else why, probability
    if applies and probability is not None and probability < 0.5:
        doubts = ", ".join(f"{name} {p:.2f}" for name, p, _ in forbidding if p >= 0.05)
        return False, f"{why}; {doubts} speak against it together, so it is left alone", probability
    return applies, why if probability is None else f"{why}; {name} only {most:.2f}", probability


def match_listed(exemplars: ExemplarIndex, principle: ValuePrinciple, context: PromptContext) -> tuple[bool, str] | None:
    """Whether a principle applies, and why, where one of its exemplars or counter-exemplars says the same as the prompt; else None."""
    best = max(exemplars.listed[principle.id], key=context.similarities.__getitem__)
    if context.similarities[best] < SAME:
        return None
    entry = exemplars.entries[best]
    kind = "exemplar" if entry.exemplar else "counter-exemplar"
    return entry.exemplar, f"it says the same as {kind} {entry.text!r} ({context.similarities[best]:.2f})"


def _forbidding(
    principles: Sequence[ValuePrinciple], principle: ValuePrinciple, context: PromptContext, risks: Sequence[str]
) -> list[tuple[str, float, str]]:
    """The facets that forbid a principle: the name of each, its probability, and the reason in words."""
    found = []
    for name in principle.forbidden_by:
        if name == RISK:
            known = [context.facets[p.id] for p in principles if p.kind == "detoxify" and p.id in context.facets]
            probability = 1.0 if risks else min(0.49, max(known, default=0.0))
            found.append((name, probability, f"{risks[0] if risks else 'a risk'} applies"))
        elif name in context.facets:
            probability = context.facets[name]
            stated = f"{_STATED.get(name, name)}{quoted_word(name, context.words)}"
            found.append((name, probability, f"the prompt states {stated} ({name} {probability:.2f})"))
        elif name in ("gender", "race"):
            word = context.words.stated()
            found.append((name, float(word is not None), f"the prompt states {word!r}"))
    return found


def _by_exemplars(
    exemplars: ExemplarIndex, principle: ValuePrinciple, context: PromptContext, decision: ValueDecision
) -> tuple[bool, ValueDecision]:
    """Whether the prompt is nearer to the principle's exemplars than to what speaks against it, and the decision with the reason."""
    own, against = exemplars.rows[principle.id]
    similarity, threshold = context.similarities, exemplars.thresholds[principle.id]
    keyword = next((word for word in principle.keywords if has_word(context.text, word)), None)
    sharing = [i for i in own if keyword and has_word(exemplars.entries[i].text, keyword)]
    if keyword is not None and sharing:
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
    return applies, replace(decision, score=score, threshold=threshold, nearest_exemplar=exemplar, reason=why)


def would_change(principle: ValuePrinciple, decision: ValueDecision, applies: bool) -> str:
    """What would have to be different for the opposite decision.

    Args:
        principle: The principle that was considered.
        decision: What was decided about it.
        applies: Whether it applies.
    """
    facets = decision.facets or {}
    forbidden = [n for n in principle.forbidden_by if facets.get(n, 0) >= 0.5]
    if decision.probability is None and not forbidden:
        change = "not apply if the prompt were farther from" if applies else "apply if the prompt were nearer to"
        listed = "a counter-exemplar" if applies else "an exemplar"
        return f"it would {change} {decision.nearest_exemplar!r}, or {listed} said the same"
    calls = [name for name in facets if name not in principle.forbidden_by]
    if applies:
        against = " or ".join(principle.forbidden_by) or "a counter-exemplar"
        return f"it would not apply if {' and '.join(calls) or 'its head'} fell below 0.5, or {against} spoke against it"
    wrong = [f"{name} rose from {facets[name]:.2f} to 0.5" for name in calls if facets[name] < 0.5]
    wrong += [f"{name} fell from {facets[name]:.2f} below 0.5" for name in forbidden]
    if not wrong and not decision.reason.endswith(_PASSED):
        wrong = ["what speaks against it together became less"]
    return f"it would apply if {' and '.join(wrong) or 'no risk came before it'}"


def explained(exemplars: ExemplarIndex, context: PromptContext, subject: str) -> list[str]:
    """Lines for a reader: what was read, the facets, the nearest entries, and each principle's decision.

    Args:
        exemplars: The index of the principles' exemplars.
        context: What is known of the prompt.
        subject: The part of the text that was embedded.
    """
    considered = apply_rules(exemplars, context)
    lines = [context.prompt[:300], f"  read as     {subject[:300]!r}"]
    lines += [f"  facet       {name:8} {p:.3f}{quoted_word(name, context.words)}" for name, p in context.facets.items()]
    for near in exemplars.nearest(context.similarities, 5):
        what = "everyday prompt" if near.owner is None else f"{'exemplar' if near.exemplar else 'counter-exemplar'} of {near.owner}"
        lines.append(f"  neighbour   {near.score:.3f} {near.text!r}, {what}")
    for principle, (applies, d) in zip(exemplars.principles, considered, strict=True):
        by_keyword = d.threshold is None or d.threshold <= -1
        threshold = "by its keyword" if by_keyword else f"threshold {d.threshold:.3f}"
        sure = f"score {d.score:.3f}, {threshold}" if d.probability is None else f"p {d.probability:.3f} of 0.5"
        lines.append(f"  {principle.id:24} {'applies' if applies else 'does not apply'} ({sure}): {d.reason}")
        lines.append(f"  {'':24} {would_change(principle, d, applies)}")
    return [*lines, f"  decision    {', '.join(d.id or 'none' for d in applicable(considered))}"]


_PASSED = "and comes first"
_STATED = {"gender": "a gender", "race": "a race or nationality", "named": "who it is"}


def quoted_word(facet: str, words: Evidence) -> str:
    """The word in the prompt that shows a facet, as " ('doctor')"; empty where there is none."""
    kinds = {"race": ("race of a person",), "person": ("occupation", "people"), "named": ("named", "capitalised name")}
    found = [word for kind in kinds.get(facet, (facet, f"{facet} hint")) for word in words.found.get(kind, ())]
    return f" ({found[0]!r})" if found else ""


def has_word(text: str, word: str) -> bool:
    """Whether `word` is in `text` as a whole word, in any case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
