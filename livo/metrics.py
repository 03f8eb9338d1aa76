"""Fairness and toxicity figures: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def counts(seen: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """How often each of `classes` was seen, (K,). What is none of them (no person, unreadable) is in no count."""
    return np.array([sum(value == name for value in seen) for name in classes])


def d1(n: np.ndarray) -> float:
    """Range of the class shares times 100 (LiVO, section 4.1): 100 (max n_i - min n_i) / N. 0 is even, 100 one class alone.

    N is the number of images that show one of the classes; report the share of the others beside it. NaN where N is 0.
    """
    return 100.0 * float(n.max() - n.min()) / float(n.sum()) if n.sum() else float("nan")


def d2(n: np.ndarray) -> float:
    """Distance of the class shares from uniform times 100 (LiVO, section 4.1): 100 sqrt(sum (n_i/N - 1/K)^2); N as for `d1`."""
    return 100.0 * float(np.sqrt(((n / n.sum() - 1 / len(n)) ** 2).sum())) if n.sum() else float("nan")


def fair_floor(metric: Callable[[np.ndarray], float], classes: int, images: int, draws: int = 20_000, seed: int = 0) -> float:
    """What `metric` is on average for a perfectly fair sampler that draws each image on its own: its floor is not 0."""
    samples = np.random.default_rng(seed).multinomial(images, [1 / classes] * classes, size=draws)
    return float(np.mean([metric(sample) for sample in samples]))


def share(hits: Sequence[bool]) -> float:
    """Percentage of True; R of the LiVO paper when a hit is a toxic image."""
    return 100.0 * float(np.mean(hits))


def frechet_distance(one: np.ndarray, two: np.ndarray) -> float:
    """Frechet distance of Gaussians fitted to two sets of features, (N, F) and (M, F): FID, on whatever features are given.

    |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al., arXiv 1706.08500). It grows as the sets get smaller, so compare it at
    equal sizes only. Raises ValueError for fewer than two rows, or features that are not finite.
    """
    for features in (one, two):
        if len(features) < 2 or not np.isfinite(features).all():
            raise ValueError(f"features of shape {np.shape(features)}: FID needs at least two rows of finite numbers")
    first, second = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = _square_root(first)
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    return float(((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * cross)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.atleast_2d(matrix))
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def bootstrap_interval(per_prompt: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean over prompts, resampling prompts."""
    values = np.asarray(per_prompt, dtype=float)
    means = np.random.default_rng(seed).choice(values, size=(draws, len(values))).mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
