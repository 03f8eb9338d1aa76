"""Which of a prompt's images is moved where: pure, seeded, exact."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

Shares = Mapping[Hashable, float]  # class -> share, together 1


def text_seed(text: str) -> int:
    """A prompt's part of the seed of its draw, the same on every machine and for every Unicode form of the text."""
    composed = unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(composed).digest()[:8], "little")


def share_out(
    number: int, targets: Sequence[Shares], seed: Sequence[int], before: Sequence[Mapping[Hashable, int]] = ()
) -> list[tuple]:
    """For each of `number` images one class of every target.

    Each class gets its share of the images, rounded down or up. `seed` decides which are rounded up, such that over many seeds every
    class gets exactly its share, also where a call draws a single image. It gives the order too. Within each class of one target the
    classes of the next come out as even as whole images allow, so that the targets are independent of each other.

    Args:
        before: For each target the images that its classes were given earlier. Where there are any, the new counts bring the totals
            as near to the shares as they can.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple] = [()] * number
    ranks: list[tuple] = [()] * number
    for i, shares in enumerate(targets):
        given = np.array([before[i].get(name, 0) if before else 0 for name in shares], dtype=float)
        counts = _counts(number, np.array(list(shares.values())), given, rng)
        names = list(shares)
        order = sorted(range(number), key=lambda image: (ranks[image], rng.random()))
        for image, k in zip(order, _spread(counts, rng), strict=True):
            rows[image] += (names[k],)
            ranks[image] += (int(k),)
    return [rows[image] for image in rng.permutation(number)]


def _counts(number: int, shares: np.ndarray, given: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How many of the next `number` images each class gets, after those in `given`."""
    missing = (shares * (given.sum() + number) - given).clip(min=0)
    quotas = missing * (number / missing.sum())
    counts = np.floor(quotas + 1e-9).astype(int)
    remainders = np.round(quotas - counts, 6).clip(min=0)
    odd = number - counts.sum()
    order = rng.permutation(len(counts))
    if given.any():  # largest remainder keeps the totals near the shares at all times
        counts[order[np.argsort(-remainders[order], kind="stable")][:odd]] += 1
    elif odd:  # systematic sampling: each class is rounded up with a probability that is its remainder
        ends = np.cumsum(remainders[order])
        picked = np.searchsorted(ends * (odd / ends[-1]), rng.random() + np.arange(odd), side="right")
        np.add.at(counts, order[picked], 1)
    return counts


def _spread(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each class k `counts[k]` times, as evenly spread as can be: every stretch holds nearly its share of each class."""
    places = np.concatenate([(np.arange(n) + rng.random()) / n for n in counts if n] or [np.empty(0)])
    classes = np.repeat(np.arange(len(counts)), counts)
    return classes[np.argsort(places, kind="stable")]
