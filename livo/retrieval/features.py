"""Facet heads: several questions about a prompt, answered with calibrated probabilities from one embedding of its text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from livo.utils.files import replacing, write_json

DETECTORS = 24  # of each member


@dataclass(frozen=True)
class PromptFeatures:
    """What is known of N prompts before any question is asked.

    Attributes:
        sentences: (N, width) unit vectors, float32.
        tokens: (M, token width) contextual vectors of all tokens, those of prompt i at offsets[i]:offsets[i + 1]: unit vectors of
            the embedding model's last layer and of the one half way up, side by side; None where the model gives none.
        offsets: (N + 1,).
        evidence: (N, features) word evidence.
    """

    sentences: np.ndarray
    tokens: np.ndarray | None
    offsets: np.ndarray
    evidence: np.ndarray

    def __len__(self) -> int:
        return len(self.sentences)

    def rows(self, indices: np.ndarray) -> PromptFeatures:
        """Those prompts alone, in that order."""
        if self.tokens is None:
            return PromptFeatures(self.sentences[indices], None, np.zeros(len(indices) + 1, int), self.evidence[indices])
        lengths = np.diff(self.offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        where = np.repeat(self.offsets[:-1][indices] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return PromptFeatures(self.sentences[indices], self.tokens[where], offsets, self.evidence[indices])


@dataclass(frozen=True)
class FacetHeads:
    """Logistic regression on the sentence vector, the word evidence, the strongest response of each of a few token detectors, and
    a small hidden layer of responses and evidence together; then Platt scaling, fitted on predictions for wording families that a
    head had not seen.

    `arrays`: sentence (width, F), evidence (features, F), bias, slope and offset (F,), probe (width,): the embedding model's vector
    of `PROBE`, by which a different model is recognised. All or none of detectors (token width, K), responses (K, F),
    hidden (K + features, H), hidden_bias (H,) and outputs (H, F).
    """

    names: tuple[str, ...]
    embedder: str
    arrays: dict[str, np.ndarray]
    record: dict = field(default_factory=dict)

    def raw(self, features: PromptFeatures) -> np.ndarray:
        """Uncalibrated log-odds (N, F)."""
        a = self.arrays
        logits = features.sentences @ a["sentence"] + features.evidence @ a["evidence"] + a["bias"]
        if "detectors" in a:
            found = np.maximum.reduceat(features.tokens @ a["detectors"], features.offsets[:-1], axis=0)
            hidden = np.concatenate([found, features.evidence], axis=1) @ a["hidden"] + a["hidden_bias"]
            logits = logits + found @ a["responses"] + np.maximum(hidden, 0) @ a["outputs"]
        return logits

    def log_odds(self, features: PromptFeatures) -> np.ndarray:
        """Calibrated log-odds (N, F)."""
        return self.raw(features) * self.arrays["slope"] + self.arrays["offset"]

    def answers(self, features: PromptFeatures) -> list[dict[str, float]]:
        """The probabilities of the names, for each prompt."""
        probabilities = 1 / (1 + np.exp(-np.clip(self.log_odds(features), -30, 30)))
        return [dict(zip(self.names, map(float, row), strict=True)) for row in probabilities]

    def fits(self, features: PromptFeatures) -> bool:
        """Whether these heads were fitted on the model that gives this features of `PROBE`."""
        width = 0 if features.tokens is None else features.tokens.shape[1]
        reads = "detectors" not in self.arrays or len(self.arrays["detectors"]) == width
        return reads and same_model(self.arrays["probe"], features.sentences[0])

    def save(self, folder: str | Path) -> None:
        """heads.safetensors and heads.json.

        Args:
            folder: Is made if it is missing.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "heads.safetensors") as temporary:
            save_file({k: np.ascontiguousarray(v, np.float32) for k, v in self.arrays.items()}, temporary)
        write_json(folder / "heads.json", {"names": list(self.names), "embedder": self.embedder, "record": self.record})

    @classmethod
    def load(cls, folder: str | Path) -> FacetHeads:
        """
        Args:
            folder: What `save` wrote.

        Raises:
            ValueError: the files are damaged or do not belong together.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
            arrays = load_file(folder / "heads.safetensors")
            heads = cls(tuple(about["names"]), about["embedder"], arrays, about["record"])
            if arrays["sentence"].shape[1] != len(heads.names) or not all(np.isfinite(v).all() for v in arrays.values()):
                raise ValueError("the arrays do not match the names")
            if "detectors" in arrays and "outputs" not in arrays:
                raise ValueError("they have no hidden layer: they are of an earlier version of LiVO")
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder}: no fitted heads there ({Path(error.filename).name} is missing); fit them with `livo retrieve --fit`"
            ) from None
        except Exception as error:
            raise ValueError(
                f"{folder}: the fitted heads are damaged or cannot be used ({error}); fit them again with `livo retrieve --fit`"
            ) from None
        return heads


PROBE = "a person reads the news in a quiet room"


def same_model(known: np.ndarray, probe: np.ndarray) -> bool:
    """Whether two unit vectors of `PROBE` are of one embedding model.

    Args:
        known: (width,) stored with the heads.
        probe: (width,) by the model in use.
    """
    return known.shape == probe.shape and float(known @ probe) >= 0.999
