"""The folder of a build: its rounds, and the manifest, data card and contact sheets that are made from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from livo.data.build_plan import Job, jobs
from livo.data.manifest import MANIFEST
from livo.principles.principle import ValuePrinciple
from livo.utils.files import replacing, write_json
from livo.utils.pictures import grid, save_picture

_TWINS = 1.0  # root mean square difference, of 255, below which two 16 x 16 thumbnails count as the same image


def finish(folder: Path, principles: Sequence[ValuePrinciple]) -> Path:
    """Drop near-duplicates, balance the classes, write manifest, data card and contact sheets, and return the manifest's path.

    Args:
        folder: The folder of the build, whose rounds are complete.
        principles: The principles that were built.
    """
    rows, card = [], {"made": json.loads((folder / "build.json").read_text()), "principles": {}}
    for job in jobs(principles):
        made = rounds(folder, job.name)
        pairs = [pair for file in made for pair in _pairs_of(file)]
        kept, twins = _without_twins(folder, pairs)
        kept = _balanced(kept, job.pairs)
        rows += [row | {"direction": job.directions} for pair in kept for row in pair]
        logs = [json.loads((file / "round.json").read_text()) for file in made]
        images = sum(log["images"] for log in logs)
        card["principles"][job.name] = {
            "pairs": len(kept),
            "asked": job.pairs,
            "images_generated": images,
            "yield": round(2 * len(pairs) / images, 4) if images else None,
            "near_duplicate_pairs_dropped": twins,
            "rejected_images_by_attribute": dict(sum((Counter(log["rejects"]) for log in logs), Counter())),
            "aligned_classes": dict(sorted(Counter(pair[0]["class"] for pair in kept if pair[0]["class"]).items())),
        }
        _contact_sheet(folder, job, kept)
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    write_json(folder / "data_card.json", card)
    return folder / MANIFEST


def rounds_folder(folder: Path, job: str) -> Path:
    """Where the rounds of a job are.

    Args:
        folder: The folder of the build.
        job: The job's name.
    """
    return folder / "rounds" / job


def rounds(folder: Path, job: str) -> list[Path]:
    """The finished rounds of a job, in order.

    Args:
        folder: The folder of the build.
        job: The job's name.
    """
    return sorted(path for path in rounds_folder(folder, job).glob("[0-9]*") if path.name.isdigit())


def _pairs_of(round_: Path) -> list[tuple[dict, dict]]:
    rows = [json.loads(line) for line in (round_ / MANIFEST).read_text(encoding="utf-8").splitlines()]
    return list(zip(rows[0::2], rows[1::2], strict=True))


def _without_twins(folder: Path, pairs: list[tuple[dict, dict]]) -> tuple[list[tuple[dict, dict]], int]:
    """The pairs without near-duplicates: neither image looks like an earlier one with the same subject and label."""
    seen: dict[tuple, list[np.ndarray]] = {}
    kept = []
    for pair in pairs:
        thumbnails = [_thumbnail(folder / row["file_name"]) for row in pair]
        groups = [seen.setdefault((row["subject"], row["label"]), []) for row in pair]
        if any(
            group and np.sqrt(((np.stack(group) - t) ** 2).mean((1, 2))).min() < _TWINS
            for group, t in zip(groups, thumbnails, strict=True)
        ):
            continue
        for group, thumbnail in zip(groups, thumbnails, strict=True):
            group.append(thumbnail)
        kept.append(pair)
    return kept, len(pairs) - len(kept)


def _balanced(pairs: list[tuple[dict, dict]], count: int) -> list[tuple[dict, dict]]:
    """At most `count` pairs, with the classes of each subject as even as possible: the most frequent class is cut first."""
    totals: dict[str, Counter] = {}
    for aligned, _ in pairs:
        totals.setdefault(aligned["subject"], Counter())[aligned["class"]] += 1
    surplus = len(pairs) - count
    dropped: set[int] = set()
    for i in reversed(range(len(pairs))):
        if len(dropped) >= surplus:
            break
        classes, kind = totals[pairs[i][0]["subject"]], pairs[i][0]["class"]
        if classes[kind] == max(classes.values()):
            classes[kind] -= 1
            dropped.add(i)
    return [pair for i, pair in enumerate(pairs) if i not in dropped][:count]


def _thumbnail(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX), dtype=np.float32)


def _contact_sheet(folder: Path, job: Job, pairs: list[tuple[dict, dict]], columns: int = 10) -> None:
    some = pairs[:: max(1, len(pairs) // (2 * columns))][: 2 * columns]
    images: list[Image.Image] = []
    captions: list[str] = []
    for first in range(0, len(some), columns):
        for side in (0, 1):
            rows = [pair[side] for pair in some[first : first + columns]]
            images += [Image.open(folder / row["file_name"]) for row in rows]
            shown = job.construct.judge
            captions += [f"{'aligned' if row['label'] else 'violating'}: {row['read'].get(shown, 'neutral')}" for row in rows]
            blank = columns - len(rows)
            images += [Image.new("RGB", (8, 8), "white")] * blank
            captions += [""] * blank
    if images:
        title = f"{job.principle.statement}{', directions' * job.directions}: {len(pairs)} pairs, aligned above violating"
        save_picture(grid(images, columns, captions, title), folder / f"{job.name}.png", {"job": job.name})
