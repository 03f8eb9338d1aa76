"""Which of a prompt's images is moved where: pure, seeded, exact."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

Shares = Mapping[Hashable, float]  # class -> share, together 1


class ValueLedger:
    """Remembers what each prompt's images were assigned, so that successive calls together meet the target.

    A hundred calls of one image each then come out as one call of a hundred images would. One ledger belongs to one series of
    calls; the decisions in their records tell what it was.
    """

    def __init__(self):
        self.given: dict[Hashable, dict[Hashable, int]] = {}

    def quotas(self, key: Hashable, number: int, shares: Shares) -> np.ndarray:
        """What the next `number` images of `key` should be assigned, in images, not yet whole."""
        given = np.array([self.given.get(key, {}).get(name, 0) for name in shares], dtype=float)
        missing = np.array(list(shares.values())) * (given.sum() + number) - given
        missing = missing.clip(min=0)
        return missing * (number / missing.sum())

    def add(self, key: Hashable, classes: Sequence[Hashable]) -> None:
        counts = self.given.setdefault(key, {})
        for name in classes:
            counts[name] = counts.get(name, 0) + 1


def apportion(quotas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole counts by largest remainder, of quotas that sum to a whole number; `rng` breaks ties."""
    number = round(float(quotas.sum()))
    counts = np.floor(quotas + 1e-9).astype(int)
    remainders = np.round(quotas - counts, 6)
    order = np.lexsort((rng.random(len(counts)), -remainders))
    counts[order[: number - counts.sum()]] += 1
    return counts


def share_out(
    number: int, targets: Sequence[Shares], seed: Sequence[int], ledger: ValueLedger | None = None, keys: Sequence[Hashable] = ()
) -> list[tuple]:
    """For each of `number` images one class of every target.

    The counts of every target are exact by largest remainder; within each class of one target the classes of the next come out as
    even as whole images allow, so that none goes with another. `seed` breaks ties and gives the order. With a `ledger`, `keys` name
    the targets in it, and the counts make up for what was added to it before; adding these rows is the caller's.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple] = [()] * number
    ranks: list[tuple] = [()] * number
    for i, shares in enumerate(targets):
        quotas = np.array(list(shares.values())) * number if ledger is None else ledger.quotas(keys[i], number, shares)
        counts = apportion(quotas, rng)
        names = list(shares)
        order = sorted(range(number), key=lambda image: (ranks[image], rng.random()))
        for image, k in zip(order, _spread(counts, rng), strict=True):
            rows[image] += (names[k],)
            ranks[image] += (int(k),)
    return [rows[image] for image in rng.permutation(number)]


def token_shares(rate: float, number: int, seed: Sequence[int]) -> Shares:
    """Shares of {True: token, False: none} for the plain token at `rate`, whole for `number` images.

    Where the rate is not a whole number of images, the seed decides about the odd one, so that it holds over many seeds.
    """
    whole, rest = divmod(number * rate + 1e-9, 1)
    count = int(whole) + (np.random.default_rng(seed).random() < rest - 1e-9)
    return {True: count / number, False: 1 - count / number}


def _spread(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each class k `counts[k]` times, as evenly spread as can be: every stretch holds nearly its share of each class."""
    places = np.concatenate([(np.arange(n) + rng.random()) / n for n in counts if n] or [np.empty(0)])
    classes = np.repeat(np.arange(len(counts)), counts)
    return classes[np.argsort(places, kind="stable")]
