"""The judges' readings of an evaluation's images, joined from its units on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import safe_open

from livo.evaluation.judges import Judge
from livo.evaluation.method import Method, Settings
from livo.evaluation.runner import METHOD, SMALL, judge_name, method_folder, units
from livo.pipelines.decision_record import current_record
from livo.utils.prompt_files import Prompt


@dataclass
class Readings:
    """All that was read of a method's images, prompt by prompt: P prompts, N images each."""

    method: Method
    prompts: list[Prompt]
    scores: dict[str, dict[str, np.ndarray]]  # judge -> attribute -> probabilities (P, N, classes), NaN for a broken image
    features: np.ndarray | None  # (P, N, F), NaN for a broken image
    clip: np.ndarray | None  # (P, N), NaN for a broken image
    thumbnails: list[np.ndarray]  # for each prompt (shown, h, w, 3)
    small: np.ndarray  # (P, N, 16, 16, 3), every image
    decisions: list[list[dict]]
    digests: list[list[str]]
    faults: np.ndarray  # (P, N): why an image is broken, see `livo.evaluation.judges.broken`; "" for one that was judged
    seconds: float
    peak: float  # bytes

    @property
    def good(self) -> np.ndarray:
        """(P, N): whether an image was judged."""
        return self.faults == ""


def gather(folder: Path, method: Method, prompts: Sequence[Prompt], judges: Sequence[Judge], settings: Settings) -> Readings:
    """What all processes found of a method's images.

    Args:
        folder: Of the evaluation.
        method: Whose images they are.
        prompts: Of the evaluation; a method's own prompts take precedence.
        judges: Of the evaluation.
        settings: Of the evaluation.

    Raises:
        FileNotFoundError: not all of it is there yet.
    """
    mine = list(method.prompts or prompts)
    shape = (len(mine), settings.images)
    tensors: dict[str, list[np.ndarray]] = {}
    rows: list[dict] = []
    for number, _ in enumerate(units(len(mine), settings)):
        file = method_folder(folder, method) / f"{number:06}.safetensors"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there yet: the evaluation of {method.name} has not come to its end")
        with safe_open(file, "np") as unit:
            rows.append(json.loads(unit.metadata()["rows"]))
            for key in unit.keys():  # noqa: SIM118, a safetensors file is no mapping
                tensors.setdefault(key, []).append(unit.get_tensor(key))
    joined = {key: np.concatenate(parts) for key, parts in tensors.items()}
    scores: dict[str, dict[str, np.ndarray]] = {judge_name(judge, judges): {} for judge in judges}
    for judge, attributes in scores.items():
        for key, values in joined.items():
            if key.startswith(f"score/{judge}/"):
                attributes[key.split("/", 2)[2]] = values.reshape(*shape, -1)
    by_prompt = {key: [row for unit in rows for row in unit[key]] for key in ("decisions", "digests", "faults")}
    cut = {key: [values[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])] for key, values in by_prompt.items()}
    faults = np.array(cut["faults"])
    shown = min(settings.shown, settings.images)
    return Readings(
        method,
        mine,
        scores,
        _placed(joined.get("features"), faults == ""),
        _placed(joined.get("clip"), faults == ""),
        [joined["thumbnails"][i * shown : (i + 1) * shown] for i in range(shape[0])],
        joined["small"].reshape(*shape, SMALL, SMALL, 3),
        [[current_record(row) for row in rows] for rows in cut["decisions"]],
        cut["digests"],
        faults,
        sum(unit["seconds"] for unit in rows),
        max(unit["peak"] for unit in rows),
    )


def _placed(values: np.ndarray | None, good: np.ndarray) -> np.ndarray | None:
    """Values of the good images, in order, as (P, N, ...) with NaN for the others."""
    if values is None:
        return None
    whole = np.full((*good.shape, *values.shape[1:]), np.nan, dtype=values.dtype)
    whole[good] = values
    return whole


def part(found: Readings, chosen: Sequence[int]) -> Readings:
    """The readings of some of the prompts.

    Args:
        found: Readings of all prompts.
        chosen: Row numbers of the prompts to keep.
    """
    chosen = list(chosen)
    return replace(
        found,
        prompts=[found.prompts[i] for i in chosen],
        scores={judge: {a: p[chosen] for a, p in attributes.items()} for judge, attributes in found.scores.items()},
        features=None if found.features is None else found.features[chosen],
        clip=None if found.clip is None else found.clip[chosen],
        thumbnails=[found.thumbnails[i] for i in chosen],
        decisions=[found.decisions[i] for i in chosen],
        small=found.small[chosen],
        digests=[found.digests[i] for i in chosen],
        faults=found.faults[chosen],
        seconds=found.seconds * len(chosen) / len(found.prompts),
    )


def seen(found: Readings, judge_name: str, judge: Judge, attribute: str) -> np.ndarray:
    """The likeliest class of every image, (P, N); "" for a broken one.

    Args:
        found: Readings.
        judge_name: The judge's name in them.
        judge: The judge.
        attribute: What it reads.
    """
    p = found.scores[judge_name][attribute]
    broken = np.isnan(p).any(-1)
    return np.where(broken, "", np.array(judge.attributes[attribute])[np.where(broken[..., None], 0, p).argmax(-1)])


def recorded(folder: Path, method: Method) -> dict:
    """What was written down of a method: its settings, and the value encoder's hash where it uses one.

    Args:
        folder: Of the evaluation.
        method: Whose record it is.
    """
    return json.loads((method_folder(folder, method) / METHOD).read_text())
