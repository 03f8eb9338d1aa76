"""Facet heads: several questions about a prompt, answered with calibrated probabilities from one embedding of its text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from livo.utils.files import replacing, write_json

_BATCH = 1024
_EVIDENCE_SCALE = 3.0  # a word that is there says more than a coordinate of an embedding
_HIDDEN = 64
DETECTORS = 24  # of each member
_MEMBERS = 3  # heads from different seeds whose mean decides: one alone is right or wrong on whole families by luck


@dataclass(frozen=True)
class Reading:
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

    def rows(self, indices: np.ndarray) -> Reading:
        """Those prompts alone, in that order."""
        if self.tokens is None:
            return Reading(self.sentences[indices], None, np.zeros(len(indices) + 1, int), self.evidence[indices])
        lengths = np.diff(self.offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        where = np.repeat(self.offsets[:-1][indices] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Reading(self.sentences[indices], self.tokens[where], offsets, self.evidence[indices])


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

    def raw(self, reading: Reading) -> np.ndarray:
        """Uncalibrated log-odds (N, F)."""
        a = self.arrays
        logits = reading.sentences @ a["sentence"] + reading.evidence @ a["evidence"] + a["bias"]
        if "detectors" in a:
            found = np.maximum.reduceat(reading.tokens @ a["detectors"], reading.offsets[:-1], axis=0)
            hidden = np.concatenate([found, reading.evidence], axis=1) @ a["hidden"] + a["hidden_bias"]
            logits = logits + found @ a["responses"] + np.maximum(hidden, 0) @ a["outputs"]
        return logits

    def log_odds(self, reading: Reading) -> np.ndarray:
        """Calibrated log-odds (N, F)."""
        return self.raw(reading) * self.arrays["slope"] + self.arrays["offset"]

    def answers(self, reading: Reading) -> list[dict[str, float]]:
        """The probabilities of the names, for each prompt."""
        probabilities = 1 / (1 + np.exp(-np.clip(self.log_odds(reading), -30, 30)))
        return [dict(zip(self.names, map(float, row), strict=True)) for row in probabilities]

    def fits(self, reading: Reading) -> bool:
        """Whether these heads were fitted on the model that gives this reading of `PROBE`."""
        width = 0 if reading.tokens is None else reading.tokens.shape[1]
        reads = "detectors" not in self.arrays or len(self.arrays["detectors"]) == width
        return reads and same_model(self.arrays["probe"], reading.sentences[0])

    def save(self, folder: str | Path) -> None:
        """heads.safetensors and heads.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "heads.safetensors") as temporary:
            save_file({k: np.ascontiguousarray(v, np.float32) for k, v in self.arrays.items()}, temporary)
        write_json(folder / "heads.json", {"names": list(self.names), "embedder": self.embedder, "record": self.record})

    @classmethod
    def load(cls, folder: str | Path) -> FacetHeads:
        """
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
    """Whether two unit vectors of `PROBE` are of one embedding model."""
    return known.shape == probe.shape and float(known @ probe) >= 0.999


def fit_heads(
    reading: Reading,
    targets: np.ndarray,
    names: Sequence[str],
    families: Sequence[str],
    embedder: str,
    probe: np.ndarray,
    unlisted: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    detectors: int = DETECTORS,
    steps: int = 600,
    folds: int = 3,
    seed: int = 0,
) -> tuple[FacetHeads, np.ndarray]:
    """Fit and calibrate; returns the heads and the calibrated log-odds (N, F) of each prompt by heads that had not seen its family.

    Args:
        targets: (N, F) booleans.
        families: Wording family of each prompt; folds never divide one.
        unlisted: Word evidence (N, features) as if the prompts' own list entries were unknown; used half of the time, so that
            the heads do not rely on the lists alone.
        weights: (N,) weight of each prompt.
    """
    unlisted = reading.evidence if unlisted is None else unlisted
    weights = np.ones(len(reading)) if weights is None else weights
    detectors = detectors if reading.tokens is not None else 0

    def fit(rows: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        chosen = (reading.rows(rows), targets[rows], unlisted[rows], weights[rows])
        members = _MEMBERS if detectors else 1  # without detectors there is one best head, and each finds it
        return _mean([_optimise(*chosen, detectors, steps, seed + 1000 * member) for member in range(members)])

    def heads(arrays: dict[str, np.ndarray]) -> FacetHeads:
        identity = {"slope": np.ones(len(names), np.float32), "offset": np.zeros(len(names), np.float32), "probe": probe}
        return FacetHeads(tuple(names), embedder, arrays | identity)

    fold = _folds(families, folds, seed)
    unseen = np.zeros(targets.shape, np.float32)
    for k in range(folds):
        rows = np.where(fold == k)[0]
        if len(rows):
            unseen[rows] = heads(fit(np.where(fold != k)[0], seed + k + 1)).raw(
                replace(reading.rows(rows), evidence=unlisted[rows])
            )
    slope, offset = zip(*(_platt(unseen[:, f], targets[:, f], weights) for f in range(len(names))), strict=True)
    slope, offset = np.array(slope, np.float32), np.array(offset, np.float32)
    fitted = heads(fit(np.arange(len(reading)), seed))
    fitted.arrays.update(slope=slope, offset=offset)
    return fitted, unseen * slope + offset


def _folds(families: Sequence[str], count: int, seed: int) -> np.ndarray:
    names = sorted(set(families))
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {name: int(order[i]) % count for i, name in enumerate(names)}
    return np.array([fold[name] for name in families])


def _optimise(reading, targets, unlisted, weights, detectors, steps, seed) -> dict[str, np.ndarray]:
    """Adam on the weighted cross-entropy, with dropout and weight decay; the arrays apply to unscaled inputs."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, dropout

    width, count = reading.sentences.shape[1], targets.shape[1]
    spread = 0.5 * width**0.5  # of the sentence vectors' coordinates, after scaling
    scale = float(np.sqrt(np.mean(reading.tokens**2))) if detectors else 1.0
    weights = (weights / weights.mean()).astype(np.float32)
    share = torch.from_numpy((weights[:, None] * targets).mean(0).clip(0.005, 0.995).astype(np.float32))
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(seed)  # for dropout too, which takes no generator
    torch.set_num_threads(1)  # the matrices are small: more threads only wait for each other
    try:
        arrays = {
            "sentence": torch.zeros(width, count),
            "evidence": torch.zeros(reading.evidence.shape[1], count),
            "bias": share.logit(),
        }
        if detectors:
            arrays["detectors"] = torch.randn(reading.tokens.shape[1], detectors) * 0.02
            arrays["responses"] = torch.randn(detectors, count) * 0.1
            inputs = detectors + reading.evidence.shape[1]
            arrays["hidden"] = torch.randn(inputs, _HIDDEN) / inputs**0.5
            arrays["hidden_bias"] = torch.zeros(_HIDDEN)
            arrays["outputs"] = torch.randn(_HIDDEN, count) * 0.05
        for array in arrays.values():
            array.requires_grad_()
        optimiser = torch.optim.Adam(arrays.values(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        order = np.zeros(0, int)
        for _ in range(steps):
            if len(order) < min(_BATCH, len(reading)):
                order = torch.randperm(len(reading)).numpy()
            rows, order = order[:_BATCH], order[_BATCH:]
            batch = reading.rows(rows)
            evidence = np.where(torch.rand(len(rows), 1).numpy() < 0.5, batch.evidence, unlisted[rows]).astype(np.float32)
            logits = dropout(torch.from_numpy(batch.sentences) * spread, 0.5) @ arrays["sentence"] + arrays["bias"]
            evidence = torch.from_numpy(evidence) * _EVIDENCE_SCALE
            logits = logits + evidence @ arrays["evidence"]
            if detectors:
                owner = torch.from_numpy(np.repeat(np.arange(len(rows)), np.diff(batch.offsets)))[:, None].expand(-1, detectors)
                responses = torch.from_numpy(batch.tokens) / scale @ arrays["detectors"]
                pooled = torch.full((len(rows), detectors), -torch.inf)
                pooled = pooled.scatter_reduce(0, owner, responses, "amax", include_self=False)
                pooled = dropout(pooled, 0.5)
                hidden = torch.cat([pooled, evidence], 1) @ arrays["hidden"] + arrays["hidden_bias"]
                logits = logits + pooled @ arrays["responses"] + dropout(hidden.relu(), 0.5) @ arrays["outputs"]
            wanted = torch.from_numpy(targets[rows].astype(np.float32))
            errors = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            loss = (torch.from_numpy(weights[rows])[:, None] * errors).mean()
            decayed = [arrays[name] for name in arrays if name not in ("evidence", "bias", "hidden_bias")]
            loss = loss + 1e-4 * arrays["evidence"].pow(2).sum() + 5e-4 * sum(array.pow(2).sum() for array in decayed)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    finally:
        torch.random.set_rng_state(state)
        torch.set_num_threads(threads)
    found = {name: array.detach().numpy() for name, array in arrays.items()}
    found["sentence"] = found["sentence"] * np.float32(spread)
    found["evidence"] = found["evidence"] * np.float32(_EVIDENCE_SCALE)
    if detectors:
        found["detectors"] = found["detectors"] / np.float32(scale)
        found["hidden"][detectors:] *= np.float32(_EVIDENCE_SCALE)
    return found


def _mean(members: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The head whose log-odds are the mean of the members': their detectors and hidden units side by side."""
    together = {name: np.mean([m[name] for m in members], axis=0) for name in ("sentence", "evidence", "bias")}
    if "detectors" not in members[0]:
        return together
    count, detectors, units = len(members), members[0]["detectors"].shape[1], len(members[0]["hidden_bias"])
    hidden = np.zeros((len(together["evidence"]) + count * detectors, count * units), np.float32)
    for i, member in enumerate(members):
        columns = slice(i * units, (i + 1) * units)
        hidden[i * detectors : (i + 1) * detectors, columns] = member["hidden"][:detectors]
        hidden[count * detectors :, columns] = member["hidden"][detectors:]
    return together | {
        "detectors": np.concatenate([m["detectors"] for m in members], axis=1),
        "responses": np.concatenate([m["responses"] for m in members]) / count,
        "hidden": hidden,
        "hidden_bias": np.concatenate([m["hidden_bias"] for m in members]),
        "outputs": np.concatenate([m["outputs"] for m in members]) / count,
    }


def _platt(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the logistic that fits best (Platt 1999, with his smoothed targets), by Newton's method."""
    positive, negative = float(targets.sum()), float((~targets.astype(bool)).sum())
    if not positive or not negative:
        return 1.0, 0.0
    smooth = np.where(targets, (positive + 1) / (positive + 2), 1 / (negative + 2))
    x = np.stack([logits, np.ones_like(logits)], 1).astype(np.float64)
    ab = np.array([1.0, 0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ ab, -30, 30)))
        gradient = x.T @ (weights * (p - smooth)) + 1e-3 * (ab - [1, 0])
        hessian = (x * (weights * p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        ab = ab - np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-8:
            break
    return max(float(ab[0]), 0.05), float(ab[1])
