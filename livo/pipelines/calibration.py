"""Closed loop: what each direction really draws, and the shares of directions that meet a target all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True)
class Calibration:
    """Of the images that were moved towards each class, the shares that a judge read as each class.

    `confusion[i][j]` is the share of class j among the images of direction i; rows may sum to less than 1, where images show none of
    the classes.
    """

    classes: tuple[str, ...]
    confusion: tuple[tuple[float, ...], ...]
    images: int
    judge: str
    prompts: int

    @classmethod
    def from_dict(cls, data: Mapping) -> Calibration:
        rows = tuple(tuple(map(float, row)) for row in data["confusion"])
        return cls(tuple(data["classes"]), rows, int(data["images"]), str(data["judge"]), int(data["prompts"]))

    def shares(self, target: Mapping[str, float]) -> tuple[dict[str, float], float]:
        """Shares of directions whose images come nearest to `target`, and the largest miss of a class that remains.

        Least squares under non-negativity and a sum of 1 (which is weighed so heavily that it holds), over the images that show
        one of the classes; a direction with many that show none is given more.
        """
        wanted = np.array([target[name] for name in self.classes])
        confusion = np.array(self.confusion)
        readable = confusion.sum(axis=1)
        confusion = confusion / readable[:, None]
        heavy = 1e3
        seen, _ = nnls(np.vstack([confusion.T, heavy * np.ones(len(wanted))]), np.append(wanted, heavy))
        seen /= seen.sum()
        miss = float(np.abs(confusion.T @ seen - wanted).max())
        solution = seen / readable
        solution /= solution.sum()
        return dict(zip(self.classes, solution.tolist(), strict=True)), miss


def tally(classes: Sequence[str], seen: Iterator[tuple[str, str]], judge: str, prompts: int) -> Calibration:
    """From (direction, class that the judge read) of every image. Raises ValueError where a direction drew none of the classes."""
    table = np.zeros((len(classes), len(classes)))
    totals = np.zeros(len(classes))
    for direction, read in seen:
        i = classes.index(direction)
        totals[i] += 1
        if read in classes:
            table[i, classes.index(read)] += 1
    for name, row in zip(classes, table, strict=True):
        if not totals[classes.index(name)]:
            raise ValueError(f"no image was made towards {name!r}: make at least as many as there are classes, {len(classes)}")
        if not row.sum():
            raise ValueError(
                f"of the images towards {name!r} the judge read none as any of {', '.join(classes)}: nothing to calibrate by"
            )
    confusion = tuple(tuple(np.round(row / total, 5).tolist()) for row, total in zip(table, totals, strict=True))
    return Calibration(tuple(classes), confusion, int(totals.sum()), judge, prompts)
