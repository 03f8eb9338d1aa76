"""Likely mistakes in principles, found before they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from livo.retrieval.exemplar_index import ExemplarIndex
from livo.retrieval.rules import SAME, ValueDecision

Considered = list[tuple[bool, ValueDecision]]  # for each principle whether it applies, and why or why not


def likely_mistakes(
    exemplars: ExemplarIndex, has_heads: bool, consider: Callable[[Sequence[str]], Sequence[Considered]]
) -> list[str]:
    """A sentence for each likely mistake.

    Mistakes are a debias principle that no facet calls, exemplars that principles of different kinds share, principles that are too
    close, and counter-exemplars that would be decided wrongly if they were not listed.

    Args:
        exemplars: The index of the principles' exemplars.
        has_heads: Whether facet heads decide.
        consider: Applies the rules to prompts, without exemplars that say the same as the prompt.
    """
    notes = [
        f"{p.id} has no called_by: its nearest exemplars alone decide, so it may go to things and miss people that are far from them; "
        "write `called_by: [person]` if it is about people"
        for p in exemplars.principles
        if p.kind == "debias" and not p.called_by and has_heads
    ]
    return [*notes, *_too_close(exemplars), *_decided_wrongly(exemplars, consider)]


def _too_close(exemplars: ExemplarIndex) -> Iterator[str]:
    """Pairs of principles whose exemplars are the same, or nearer to each other's than to one another."""
    principles, vectors, entries = exemplars.principles, exemplars.vectors, exemplars.entries
    for i, p in enumerate(principles):
        for q in principles[i + 1 :]:
            if p.kind == q.kind == "debias":
                continue  # they are for the same people
            rows, others = exemplars.rows[p.id][0], exemplars.rows[q.id][0]
            similarity = vectors[rows] @ vectors[others].T
            for a, b in zip(*np.where(similarity >= SAME), strict=True):
                pair = f"{entries[rows[a]].text!r} of {p.id} and {entries[others[b]].text!r} of {q.id}"
                yield f"exemplars {pair} say the same: a prompt like them gets both"
            for one, other, nearest in ((p, q, similarity.max(axis=1)), (q, p, similarity.max(axis=0))):
                own = vectors[exemplars.rows[one.id][0]]
                within = own @ own.T - 2 * np.eye(len(own), dtype=np.float32)
                if len(own) > 1 and nearest.mean() >= within.max(axis=1).mean():
                    yield f"{one.id} is too close to {other.id}: its exemplars are nearer to those of {other.id} than to one another"


def _decided_wrongly(exemplars: ExemplarIndex, consider: Callable[[Sequence[str]], Sequence[Considered]]) -> list[str]:
    """Counter-exemplars to which their principle would apply if they were not listed."""
    listed = [(i, text) for i, principle in enumerate(exemplars.principles) for text in principle.counter_exemplars]
    wrong: dict[tuple[str, str], list[str]] = {}  # principles that share a counter-exemplar share the note
    for (i, text), considered in zip(listed, consider([text for _, text in listed]) if listed else [], strict=True):
        applies, decision = considered[i]
        if applies:
            wrong.setdefault((text, decision.reason), []).append(exemplars.principles[i].id)
    return [
        f"counter-exemplar {text!r} of {' and '.join(ids)} would be decided wrongly if it were not listed: {why}; add more like it"
        for (text, why), ids in wrong.items()
    ]
