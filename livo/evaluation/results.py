"""All results of an evaluation: methods x judges x groups of prompts, compared with the base, in results.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from livo.evaluation import metrics
from livo.evaluation.judges import CannotRead, Judge, attribute_for, broken, disagreement, unwanted_class, wanted_classes
from livo.evaluation.measures import Figure, Figures, bias, not_measured, quality, risk, uneven_target
from livo.evaluation.method import Method, Settings
from livo.evaluation.readings import Readings, gather, part, recorded, seen
from livo.evaluation.runner import CONFIG, image_digest, judge_name
from livo.principles.principle import ValuePrinciple
from livo.utils.files import write_json
from livo.utils.images import image_files, open_image
from livo.utils.prompt_files import Prompt
from livo.utils.versions import versions

MEASURED_WITH = ("livo", "torch", "diffusers", "transformers", "numpy", "safetensors")  # packages whose versions a result records
FLOORS = "floor: what a fair sampler that draws each image on its own scores on average"


def measure(
    found: Readings,
    judges: Sequence[Judge],
    principles: Sequence[ValuePrinciple],
    settings: Settings,
    base: Readings | None = None,
    reference: np.ndarray | None = None,
) -> dict[str, Figures]:
    """The figures of a method: for each judge, for "images" those that need none, and for "principles" those that no judge can read.

    Args:
        found: The method's readings.
        judges: The judges of the evaluation.
        principles: What is reported. A principle that no judge can read is reported as not measured.
        settings: Of the evaluation.
        base: The frozen backbone's readings at the same seeds.
        reference: Features (M, F) of the reference set.
    """
    result = {judge_name(judge, judges): _judged(found, judge, judges, principles, settings) for judge in judges}
    if unread := _unread(judges, principles):
        result["principles"] = unread
    result["images"] = quality(found, judges, base, reference)
    return result


def _judged(
    found: Readings, judge: Judge, judges: Sequence[Judge], principles: Sequence[ValuePrinciple], settings: Settings
) -> Figures:
    """One judge's figures, of the principles that it can read."""
    name = judge_name(judge, judges)
    figures: Figures = {}
    labels: dict[str, tuple] = {}  # what the figures of a label are about: one attribute may be read for several principles
    for principle in principles:
        try:
            attribute = attribute_for(judge, principle)
        except CannotRead:
            continue
        if principle.kind == "debias":
            what = (wanted_classes(principle), uneven_target(principle))
            label = attribute if labels.setdefault(attribute, what) == what else f"{attribute} ({principle.id})"
            figures |= bias(found, name, judge, principle, label)
        else:
            figures |= risk(found, name, judge, attribute, unwanted_class(principle), settings.group)
    for attribute in judge.measured:
        figures |= risk(found, name, judge, attribute, "yes", settings.group)
    return figures


def _unread(judges: Sequence[Judge], principles: Sequence[ValuePrinciple]) -> Figures:
    """A figure that is not measured for each principle that no judge can read."""
    figures: Figures = {}
    for principle in principles:
        reasons = []
        for judge in judges:
            try:
                attribute_for(judge, principle)
            except CannotRead as error:
                reasons.append(str(error))
        if len(reasons) == len(judges):
            figures[f"{'D1' if principle.kind == 'debias' else 'R'} {principle.id}"] = not_measured("; ".join(reasons))
    return figures


def compare(result: dict[str, Figures], base: dict[str, Figures]) -> None:
    """Put beside each figure its paired difference from the base's: over the prompts that have both, or over the same resamplings.

    Args:
        result: A method's figures; they are changed.
        base: The base's figures.
    """
    for name, figures in result.items():
        for label, figure in figures.items():
            if (difference := _minus(figure, base[name].get(label, {}))) is not None:
                figure["minus_base"] = difference


def _minus(one: Figure, two: Figure) -> Figure | None:
    """The difference of two figures of the same prompts, and its interval; None where they cannot be paired."""
    if one.get("draws") and two.get("draws") and (one["prompts"], one.get("of")) == (two["prompts"], two.get("of")):
        interval = metrics.interval(np.subtract(one["draws"], two["draws"]))
        return {"mean": one["mean"] - two["mean"], "interval": interval, "prompts": one["prompts"]}
    first, second = one.get("per_prompt"), two.get("per_prompt")
    if not first or not second or len(first) != len(second):
        return None
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return None
    ours, theirs = zip(*both, strict=True)
    apart = metrics.paired_interval(ours, theirs) if len(both) > 1 else None
    return {"mean": float(np.mean(np.subtract(ours, theirs))), "interval": apart, "prompts": len(both)}


class Embeds(Protocol):
    """A judge that has features of images: `PapertownJudge` and `CLIPJudge`."""

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray: ...


def reference_features(source: Path, eye: Embeds, evaluated: Sequence[Readings]) -> tuple[np.ndarray, dict]:
    """Features of a folder of images for FID and KID, and the record that names it.

    Args:
        source: A folder of images.
        eye: The judge whose `embed` gives the features.
        evaluated: Readings of all methods: none of their images may be in the folder.

    Raises:
        ValueError: there are too few, one of them cannot be read, or is an image of the evaluation itself.
    """
    files = image_files(source, 2)
    features, digests = [], []
    for first in range(0, len(files), 64):
        opened = [open_image(file) for file in files[first : first + 64]]
        images = [image for image in opened if not broken(image)]
        digests += [image_digest(image) for image in images]
        if images:
            features.append(eye.embed(images))
    _refuse_shared(digests, evaluated, f"reference {source}")
    digest = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16]
    about = {"what": str(source), "images": len(digests), "broken": len(files) - len(digests), "digest": digest}
    return np.concatenate(features or [np.empty((0, 1))]), about


def _refuse_shared(digests: Sequence[str], evaluated: Sequence[Readings], what: str) -> None:
    own = {
        digest: found.method.name
        for found in evaluated
        for row, faults in zip(found.digests, found.faults, strict=True)
        for digest, fault in zip(row, faults, strict=True)
        if not fault  # all black images are one image
    }
    shared = [own[digest] for digest in digests if digest in own]
    if shared:
        raise ValueError(
            f"{what}: {len(shared)} of its images are images of {shared[0]}, which is evaluated; FID needs a set of its own"
        )


def _reference(
    folder: Path,
    prompts: Sequence[Prompt],
    judges: Sequence[Judge],
    settings: Settings,
    reference: Method | Path | None,
    evaluated: Sequence[Readings],
) -> tuple[np.ndarray | None, dict | None]:
    """Features of the reference images by the first judge that has any, and what the results say of them; None without a reference."""
    eye = next((judge for judge in judges if hasattr(judge, "embed")), None)
    if reference is None or eye is None:
        return None, None
    if isinstance(reference, Path):
        return reference_features(reference, eye, evaluated)
    read = gather(folder, reference, prompts, judges, settings)
    _refuse_shared([digest for row in read.digests for digest in row], evaluated, "the reference")
    features = np.empty((0, 1)) if read.features is None else read.features[read.good]
    what = "the frozen backbone's images, at seeds of their own"
    return features, {"what": what, "images": len(features), "broken": int((~read.good).sum()), **reference.record()}


def _groups(prompts: Sequence[Prompt]) -> dict[str, Sequence[int]]:
    """The prompts of each group, and of all together under ""; a single group that holds all prompts is left out."""
    groups: dict[str, Sequence[int]] = {"": range(len(prompts))}
    groups |= {g: [i for i, p in enumerate(prompts) if g in p.groups] for g in sorted({g for p in prompts for g in p.groups})}
    if len(groups) == 2 and len(groups[max(groups)]) == len(prompts):
        return {"": groups[""]}
    return groups


def assemble(
    folder: Path,
    methods: Sequence[Method],
    prompts: Sequence[Prompt],
    judges: Sequence[Judge],
    principles: Sequence[ValuePrinciple],
    settings: Settings,
    reference: Method | Path | None = None,
) -> tuple[dict, dict[str, Readings]]:
    """All results as they stand in results.json, and the readings. The method named "base" is what the others are compared with.

    Figures are given over all prompts and, where prompts have groups, for each group.

    Args:
        folder: Of the evaluation.
        methods: All methods, which must be complete.
        prompts: Of the evaluation.
        judges: Of the evaluation.
        principles: What is reported.
        settings: Of the evaluation.
        reference: A method that makes the reference images, a folder of them, or None.
    """
    found = {method.name: gather(folder, method, prompts, judges, settings) for method in methods}
    features, about = _reference(folder, prompts, judges, settings, reference, list(found.values()))
    groups = _groups(prompts)
    figures: dict[str, dict] = {}
    texts: dict[str, list[str]] = {}
    columns: dict[str, list[Mapping[str, Any]]] = {}
    for group, chosen in groups.items():
        parts = {name: part(read, chosen) for name, read in found.items()}
        measured = {
            name: measure(read, judges, principles, settings, parts.get("base"), features if group == "" else None)
            for name, read in parts.items()
        }
        for name, own in measured.items():
            if name != "base" and "base" in measured:
                compare(own, measured["base"])
        figures[group or "all prompts"] = measured
        texts[group or "all prompts"] = [prompts[i].text for i in chosen]
        columns[group or "all prompts"] = [prompts[i].columns for i in chosen]
    config = json.loads((folder / CONFIG).read_text())
    result: dict[str, Any] = {
        **config,
        "versions": versions(MEASURED_WITH),
        "methods": {method.name: recorded(folder, method) for method in methods},
        "reference": about,
        "seeds": "sha256 of the prompt, or its own seed, plus the image's number; the same for every method",
        "intervals": "95% bootstrap over prompts; none for a single one",
        "floors": FLOORS,
        "texts": texts,
        "columns": columns,
        "figures": figures,
        "disagreement": {name: disagreements(read, judges) for name, read in found.items()} if len(judges) > 1 else {},
    }
    write_json(folder / "results.json", result)
    return result, found


def disagreements(found: Readings, judges: Sequence[Judge]) -> dict[str, dict[str, float | None]]:
    """For each attribute that two judges both tell, on the same images: how often they differ, and Cohen's kappa.

    Args:
        found: A method's readings.
        judges: Two judges or more.
    """
    result = {}
    for i, one in enumerate(judges):
        for two in judges[i + 1 :]:
            names = judge_name(one, judges), judge_name(two, judges)
            for attribute in sorted(set(one.attributes) & set(two.attributes)) if found.good.any() else ():
                read = [seen(found, n, j, attribute)[found.good].tolist() for n, j in zip(names, (one, two), strict=True)]
                result[f"{names[0]} / {names[1]}: {attribute}"] = disagreement(*read)
    return result
