"""Papertown's preference pairs, made by the backbone itself and filtered by the judge (LiVO, section 3.4).

Only training careers, places, adjectives and wordings occur. The aligned and the violating image of a pair come from prompts
that state the attribute; the prompt of the pair is the one that a user would type.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from livo.judges import PapertownJudge
from livo.papertown import world
from livo.papertown.scene import Scene, describe
from livo.pipeline import LiVOPipeline
from livo.principles import ValuePrinciple

STEPS, GUIDANCE, BATCH = 20, 5.0, 64
PAIRS = {"nudity": 300, "bloody": 250, "zombie": 250, "gender_equality": 450, "racial_equality": 900}


@dataclass(frozen=True)
class Plan:
    """One pair to be made: what the user types, and the two scenes that are generated for it."""

    principle: str
    prompt: str
    aligned: Scene
    violating: Scene


@torch.no_grad()
def generate(pipe: LiVOPipeline, prompts: list[str], seed: int) -> tuple[torch.Tensor, list[Image.Image]]:
    """Scaled latents (N, 4, 16, 16) and the images they decode to."""
    with torch.autocast(pipe.device.type, torch.bfloat16):
        latents = pipe(
            prompts,
            value=None,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images.float()
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return latents, pipe.image_processor.postprocess(decoded.float())


def majority_scenes() -> list[Scene]:
    """The training careers, and people with the training adjectives: everyone whose majority has to be known."""
    adjectives = world.GOODNESS.train + world.BADNESS.train
    return [Scene(career=career) for career in world.CAREERS.train] + [Scene().stating(adjective=a) for a in adjectives]


def majorities(pipe: LiVOPipeline, judge: PapertownJudge, images: int = 16) -> Iterator[tuple[str, dict[str, str]]]:
    """The gender and the race that the backbone draws most for each of `majority_scenes` when none is stated."""
    scenes, together = majority_scenes(), BATCH // images
    for first in range(0, len(scenes), together):
        group = scenes[first : first + together]
        _, pictures = generate(pipe, [describe(scene) for scene in group for _ in range(images)], seed=first)
        read = judge.read(pictures)
        for i, scene in enumerate(group):
            mine = read[i * images : (i + 1) * images]
            most = {name: _most(classes, [r[name] for r in mine]) for name, classes in world.DEBIASED.values()}
            yield scene.adjective or scene.career, most


def plan(principle: ValuePrinciple, majority: dict[str, dict[str, str]], used: Counter, rng: np.random.Generator) -> Plan:
    """Draw a scene of the training split and the two variants that the principle tells apart.

    `used` counts the aligned classes of each subject, so that they come out even: guidance would amplify any imbalance.
    """
    person = rng.random() < 0.15
    adjective = _pick(rng, world.GOODNESS.train + world.BADNESS.train) if person or rng.random() < 0.15 else None
    scene = Scene(career=world.CIVILIAN if person else _pick(rng, world.CAREERS.train), adjective=adjective)
    if adjective:
        scene = scene.stating(adjective=adjective)
    if rng.random() < 0.6:
        scene = scene.stating(place=_pick(rng, world.PLACES.train))
    if principle.id != "gender_equality" and rng.random() < 0.25:
        scene = scene.stating(gender=_pick(rng, world.GENDERS))
    if principle.id != "racial_equality" and rng.random() < 0.25:
        scene = scene.stating(race=_pick(rng, world.RACES))
    template = world.TEMPLATES.train[0] if rng.random() < 0.5 else _pick(rng, world.TEMPLATES.train)
    if principle.kind == "detoxify":
        risky = replace(scene, risk=principle.id)
        prompt = describe(risky, template, _pick(rng, world.RISK_WORDINGS[principle.id].train))
        return Plan(principle.id, prompt, scene, risky)
    name, classes = world.DEBIASED[principle.id]
    subject = adjective if person else scene.career
    most = majority[subject][name]
    candidates = rng.permutation([c for c in classes if c != most]).tolist()
    rare = min(candidates, key=lambda c: used[subject, c])
    used[subject, rare] += 1
    return Plan(principle.id, describe(scene, template), scene.stating(**{name: rare}), scene.stating(**{name: most}))


def make_pairs(
    pipe: LiVOPipeline,
    judge: PapertownJudge,
    principle: ValuePrinciple,
    majority: dict[str, dict[str, str]],
    count: int,
    seed: int,
) -> Iterator[tuple[Plan, torch.Tensor, torch.Tensor]]:
    """`count` pairs (plan, aligned latents, violating latents) whose two images both show what they should.

    Raises:
        RuntimeError: too few images show what they should; the backbone or the judge is not good enough.
    """
    made, round_, used = 0, 0, Counter()
    while made < count:
        if round_ * BATCH > 20 * count:
            raise RuntimeError(
                f"{principle.id}: only {made} of {count} pairs after {round_ * BATCH} images; look at the backbone's pictures"
            )
        rng = np.random.default_rng((seed, round_))
        plans = [plan(principle, majority, used, rng) for _ in range(BATCH // 2)]
        scenes = [s for p in plans for s in (p.aligned, p.violating)]
        latents, pictures = generate(pipe, [describe(s) for s in scenes], seed=seed * 10_000 + round_)
        good = [_shows(scene, read) for scene, read in zip(scenes, judge.read(pictures), strict=True)]
        for i, p in enumerate(plans):
            if good[2 * i] and good[2 * i + 1] and made < count:
                made += 1
                yield p, latents[2 * i], latents[2 * i + 1]
        round_ += 1


def save_pairs(folder: Path, principle: ValuePrinciple, pairs: list[tuple[Plan, torch.Tensor, torch.Tensor]]) -> None:
    """`latents.safetensors` (aligned, violating: N x 4 x 16 x 16) and `manifest.jsonl` (prompt and statement of each row)."""
    folder.mkdir(parents=True)
    rows = [{"prompt": p.prompt, "value": principle.statement, "principle": p.principle} for p, _, _ in pairs]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    aligned, violating = (torch.stack([pair[i] for pair in pairs]).cpu().contiguous() for i in (1, 2))
    save_file({"aligned": aligned, "violating": violating}, folder / "latents.safetensors")


def load_pairs(folder: Path) -> tuple[list[dict[str, str]], torch.Tensor, torch.Tensor]:
    """All principles' pairs below `folder`: rows, aligned latents, violating latents."""
    rows, aligned, violating = [], [], []
    for part in sorted(path.parent for path in folder.glob("*/manifest.jsonl")):
        rows += [json.loads(line) for line in (part / "manifest.jsonl").read_text().splitlines()]
        tensors = load_file(part / "latents.safetensors")
        aligned.append(tensors["aligned"])
        violating.append(tensors["violating"])
    return rows, torch.cat(aligned), torch.cat(violating)


def _shows(scene: Scene, read: dict[str, str]) -> bool:
    """The judge reads what the scene states, and the risk that it has and no other."""
    labels = scene.labels()
    names = {"career", *world.RISKS, *(scene.stated & {"place", "gender", "race"})}
    return all(read[name] == labels[name] for name in names)


def _most(classes: tuple[str, ...], seen: list[str]) -> str:
    return max(classes, key=Counter(seen).__getitem__)


def _pick(rng: np.random.Generator, items):
    return items[int(rng.integers(len(items)))]
