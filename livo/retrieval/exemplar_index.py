"""ExemplarIndex: the exemplars and counter-exemplars of all principles, searched by cosine similarity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import faiss
import numpy as np

from livo.principles.principle import ValuePrinciple
from livo.retrieval.corpus import everyday_prompts


class Entry(NamedTuple):
    """A row of the index."""

    owner: str | None  # a principle's id; None for everyday prompts
    exemplar: bool  # else it is a counter-exemplar
    text: str


class Neighbour(NamedTuple):
    """An entry of the index and its cosine similarity to a prompt. `owner` is a principle's id, None for an everyday prompt."""

    text: str
    owner: str | None
    exemplar: bool
    score: float


class ExemplarIndex:
    """Exemplars and counter-exemplars of all principles beside everyday prompts, in a FAISS inner-product index over unit vectors.

    FAISS computes the similarity to every row, not only to the k nearest: a decision compares, for each principle, the best row that
    speaks for it with the best one that speaks against it, and either may lie far down the ranking. An index holds some hundred rows, so
    an exact search costs less than embedding the prompt.

    Args:
        principles: Their exemplars (or the statement where there are none) and counter-exemplars become rows.
        embed: Maps texts to unit vectors (N, D), made in the same way as those of prompts. It is called when a row is first needed.
        vectors: Of the rows, where they are known; otherwise they are embedded.
        thresholds: For each principle its threshold, where they are known; otherwise they are computed from the vectors.
    """

    def __init__(
        self,
        principles: Sequence[ValuePrinciple],
        embed: Callable[[Sequence[str]], np.ndarray],
        vectors: np.ndarray | None = None,
        thresholds: Mapping[str, float] | None = None,
    ):
        self.principles, self._embed = principles, embed
        self._known_vectors, self._known_thresholds = vectors, thresholds

    @cached_property
    def entries(self) -> list[Entry]:
        """The rows of the index."""
        entries = [Entry(None, False, text) for text in everyday_prompts()]
        for p in self.principles:
            entries += [Entry(p.id, True, text) for text in p.exemplars or (p.statement,)]
            entries += [Entry(p.id, False, text) for text in p.counter_exemplars]
        return entries

    @cached_property
    def vectors(self) -> np.ndarray:
        """Unit vectors (rows, width) of the rows of the index."""
        if self._known_vectors is not None:
            return self._known_vectors
        return self._embed([entry.text for entry in self.entries])

    @cached_property
    def index(self) -> faiss.IndexFlatIP:
        index = faiss.IndexFlatIP(self.vectors.shape[1])
        index.add(self.vectors)
        return index

    def nearest(self, similarities: np.ndarray, k: int) -> list[Neighbour]:
        """The k rows that are nearest to a prompt, best first, by its row of `similarities`.

        Args:
            similarities: A row of `similarities`.
            k: How many neighbours are wanted.
        """
        rows = np.argsort(-similarities, kind="stable")[:k]
        return [Neighbour(**self.entries[row]._asdict(), score=float(similarities[row])) for row in rows]

    def similarities(self, vectors: np.ndarray) -> np.ndarray:
        """Cosines (prompts, rows of the index).

        Args:
            vectors: (N, D) unit vectors of prompts.
        """
        found, rows = self.index.search(vectors, len(self.entries))
        similarities = np.empty_like(found)
        np.put_along_axis(similarities, rows, found, axis=1)
        return similarities

    @cached_property
    def rows(self) -> dict[str, tuple[list[int], list[int]]]:
        """For each principle, the rows of the index that speak for it, and against it."""

        def against(entry: Entry, principle: ValuePrinciple) -> bool:
            if entry.exemplar:
                return principle.kind == "detoxify" and entry.owner != principle.id
            return entry.owner in (None, principle.id)

        rows = list(enumerate(self.entries))
        return {
            p.id: (
                [i for i, entry in rows if entry.exemplar and entry.owner == p.id],
                [i for i, entry in rows if against(entry, p)],
            )
            for p in self.principles
        }

    @cached_property
    def listed(self) -> dict[str, list[int]]:
        """For each principle, the rows of its exemplars and counter-exemplars."""
        return {p.id: [i for i, entry in enumerate(self.entries) if entry.owner == p.id] for p in self.principles}

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """For each principle, the similarity that best tells its exemplars from everyday prompts and, for a risk, from the
        other principles' exemplars.

        Each exemplar is compared with the *other* exemplars of its principle, the rest with all of them.
        """
        if self._known_thresholds is not None:
            return dict(self._known_thresholds)
        thresholds = {}
        for principle in self.principles:
            own, against = self.rows[principle.id]
            exemplars = self.vectors[own]
            similarity = exemplars @ exemplars.T
            np.fill_diagonal(similarity, -1)
            positives = similarity.max(axis=1) if len(own) > 1 else np.ones(1, np.float32)
            others = [i for i in against if self.entries[i].owner != principle.id]
            negatives = (self.vectors[others] @ exemplars.T).max(axis=1)
            thresholds[principle.id] = _best_threshold(positives, negatives)
        return thresholds


def _best_threshold(positives: np.ndarray, negatives: np.ndarray) -> float:
    """The cut with the largest (true positive rate - false positive rate), in the middle of its gap."""
    values = np.unique(np.concatenate([positives, negatives]))
    cuts = np.concatenate([(values[1:] + values[:-1]) / 2, [values[0] - 1e-3, values[-1] + 1e-3]])
    gains = [(positives >= cut).mean() - (negatives >= cut).mean() for cut in cuts]
    return float(cuts[int(np.argmax(gains))])
