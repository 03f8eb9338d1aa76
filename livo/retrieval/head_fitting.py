"""Training of facet heads: cross-entropy by Adam on folds of wording families, then Platt scaling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, dropout

from livo.principles.principle import FACETS
from livo.retrieval.features import DETECTORS, FacetHeads, PromptFeatures

_BATCH = 1024
_EVIDENCE_SCALE = 3.0  # a word that is there says more than a coordinate of an embedding
_HIDDEN = 64
_MEMBERS = 3  # heads from different seeds whose mean decides: one alone is right or wrong on whole families by luck


def targets_of(labels: Sequence[str | Iterable[str] | None], ids: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The questions that labels answer, and the answers (prompts, questions) as booleans.

    Args:
        labels: For each prompt the ids or facets that apply; None or nothing for none.
        ids: The principles' ids. A label that is a facet and no id makes all labels facets, and the questions `FACETS`.

    Raises:
        ValueError: a label is unknown, or a question has fewer than 5 prompts for or against it.
    """
    sets = [frozenset([x] if isinstance(x, str) else x or ()) for x in labels]
    used = frozenset().union(*sets)
    as_facets = bool(used & set(FACETS) - set(ids))
    names = FACETS if as_facets else tuple(i for i in ids if i in used)
    if used - set(names) or not names:
        known = FACETS if as_facets else tuple(dict.fromkeys((*ids, *FACETS)))
        raise ValueError(f"labels {', '.join(sorted(used - set(names))) or '(none)'}: give ids or facets among {', '.join(known)}")
    targets = np.array([[name in label for name in names] for label in sets])
    for name, count in zip(names, targets.sum(0), strict=True):
        if not 5 <= count <= len(sets) - 5:
            raise ValueError(f"label {name!r} stands at {count} of {len(sets)} prompts: give at least 5 with it and 5 without")
    return names, targets


def fit_heads(
    features: PromptFeatures,
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
    """Fit and calibrate heads.

    Args:
        features: What is known of the N prompts.
        targets: (N, F) booleans.
        names: The F questions, one for each column of `targets`.
        embedder: Name of the embedding model, for the record.
        probe: (width,) its unit vector of `PROBE`.
        families: Wording family of each prompt; folds never divide one.
        unlisted: Word evidence (N, features) as if the prompts' own list entries were unknown; used half of the time, so that
            the heads do not rely on the lists alone.
        weights: (N,) weight of each prompt, all 1 by default.
        detectors: Token detectors of each member; none where the features have no token vectors.
        steps: Optimisation steps of each member.
        folds: How many parts the families are divided into for the unseen predictions.
        seed: Of the folds, the start and the dropout.

    Returns:
        The heads, and for each prompt the calibrated log-odds (N, F) by heads that had not seen its family.
    """
    unlisted = features.evidence if unlisted is None else unlisted
    weights = np.ones(len(features)) if weights is None else weights
    detectors = detectors if features.tokens is not None else 0

    def fit(rows: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        chosen = (features.rows(rows), targets[rows], unlisted[rows], weights[rows])
        members = _MEMBERS if detectors else 1  # without detectors there is one best head, and each finds it
        return _mean([_train(*chosen, detectors, steps, seed + 1000 * member) for member in range(members)])

    def heads(arrays: dict[str, np.ndarray]) -> FacetHeads:
        identity = {"slope": np.ones(len(names), np.float32), "offset": np.zeros(len(names), np.float32), "probe": probe}
        return FacetHeads(tuple(names), embedder, arrays | identity)

    fold = _folds(families, folds, seed)
    unseen = np.zeros(targets.shape, np.float32)
    for k in range(folds):
        rows = np.where(fold == k)[0]
        if len(rows):
            unseen[rows] = heads(fit(np.where(fold != k)[0], seed + k + 1)).raw(
                replace(features.rows(rows), evidence=unlisted[rows])
            )
    slope, offset = np.array([_platt(unseen[:, f], targets[:, f], weights) for f in range(len(names))], np.float32).T
    fitted = heads(fit(np.arange(len(features)), seed))
    fitted.arrays.update(slope=slope, offset=offset)
    return fitted, unseen * slope + offset


def _folds(families: Sequence[str], count: int, seed: int) -> np.ndarray:
    names = sorted(set(families))
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {name: int(order[i]) % count for i, name in enumerate(names)}
    return np.array([fold[name] for name in families])


def _train(
    features: PromptFeatures,
    targets: np.ndarray,
    unlisted: np.ndarray,
    weights: np.ndarray,
    detectors: int,
    steps: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Adam on the weighted cross-entropy, with dropout and weight decay; the arrays apply to unscaled inputs."""
    spread = 0.5 * features.sentences.shape[1] ** 0.5  # of the sentence vectors' coordinates, after scaling
    scale = float(np.sqrt(np.mean(features.tokens**2))) if features.tokens is not None and detectors else 1.0
    weights = (weights / weights.mean()).astype(np.float32)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(seed)  # for dropout too, which takes no generator
    torch.set_num_threads(1)  # the matrices are small: more threads only wait for each other
    try:
        arrays = _initial(features, (weights[:, None] * targets).mean(0), detectors)
        optimiser = torch.optim.Adam(arrays.values(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        order = np.zeros(0, int)
        for _ in range(steps):
            if len(order) < min(_BATCH, len(features)):
                order = torch.randperm(len(features)).numpy()
            rows, order = order[:_BATCH], order[_BATCH:]
            batch = features.rows(rows)
            evidence = np.where(torch.rand(len(rows), 1).numpy() < 0.5, batch.evidence, unlisted[rows]).astype(np.float32)
            logits = _logits(arrays, batch, torch.from_numpy(evidence) * _EVIDENCE_SCALE, spread, scale)
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
    return _unscaled(arrays, spread, scale)


def _initial(features: PromptFeatures, shares: np.ndarray, detectors: int) -> dict[str, torch.Tensor]:
    """The arrays before the first step: without evidence a head answers each question's share of positive prompts."""
    count = len(shares)
    arrays = {
        "sentence": torch.zeros(features.sentences.shape[1], count),
        "evidence": torch.zeros(features.evidence.shape[1], count),
        "bias": torch.from_numpy(shares.clip(0.005, 0.995).astype(np.float32)).logit(),
    }
    if detectors and features.tokens is not None:
        arrays["detectors"] = torch.randn(features.tokens.shape[1], detectors) * 0.02
        arrays["responses"] = torch.randn(detectors, count) * 0.1
        inputs = detectors + features.evidence.shape[1]
        arrays["hidden"] = torch.randn(inputs, _HIDDEN) / inputs**0.5
        arrays["hidden_bias"] = torch.zeros(_HIDDEN)
        arrays["outputs"] = torch.randn(_HIDDEN, count) * 0.05
    for array in arrays.values():
        array.requires_grad_()
    return arrays


def _logits(
    arrays: dict[str, torch.Tensor], batch: PromptFeatures, evidence: torch.Tensor, spread: float, scale: float
) -> torch.Tensor:
    """What `FacetHeads.raw` computes, with dropout and on scaled inputs: (N, F)."""
    logits = dropout(torch.from_numpy(batch.sentences) * spread, 0.5) @ arrays["sentence"] + arrays["bias"]
    logits = logits + evidence @ arrays["evidence"]
    if "detectors" in arrays:
        detectors = arrays["detectors"].shape[1]
        owner = torch.from_numpy(np.repeat(np.arange(len(batch)), np.diff(batch.offsets)))[:, None].expand(-1, detectors)
        responses = torch.from_numpy(batch.tokens) / scale @ arrays["detectors"]
        pooled = torch.full((len(batch), detectors), -torch.inf)
        pooled = pooled.scatter_reduce(0, owner, responses, "amax", include_self=False)
        pooled = dropout(pooled, 0.5)
        hidden = torch.cat([pooled, evidence], 1) @ arrays["hidden"] + arrays["hidden_bias"]
        logits = logits + pooled @ arrays["responses"] + dropout(hidden.relu(), 0.5) @ arrays["outputs"]
    return logits


def _unscaled(arrays: dict[str, torch.Tensor], spread: float, scale: float) -> dict[str, np.ndarray]:
    """The trained arrays, for inputs that are not scaled."""
    found = {name: array.detach().numpy() for name, array in arrays.items()}
    found["sentence"] = found["sentence"] * np.float32(spread)
    found["evidence"] = found["evidence"] * np.float32(_EVIDENCE_SCALE)
    if "detectors" in found:
        found["hidden"][found["detectors"].shape[1] :] *= np.float32(_EVIDENCE_SCALE)
        found["detectors"] = found["detectors"] / np.float32(scale)
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
