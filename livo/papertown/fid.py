"""FID on the judge's features at equal identities: what a value leaves behind in a picture beside the identity it asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from livo.evaluation import metrics
from livo.papertown import world
from livo.papertown.reading import IMAGES, Reader, Reading, scenes
from livo.papertown.scene import Scene, describe
from livo.principles.principle import ValuePrinciple

Principles = dict[str, ValuePrinciple]
OTHER_WORDS = ("{}", "a picture of {}", "an image of {}", "a photograph of {}")  # than "a photo of {}"


def against_told_people(reader: Reader, principles: Principles, images: int = IMAGES) -> dict:
    """LiVO's even people against those of the base whose prompts state as many of each identity.

    The base's own split halves, of the same size, are what it is compared with: no two samples of one distribution come nearer, where
    both have as many images of each prompt and identity. Of random halves of the sets both are measured too: what a split that does
    not count prompts and identities would find. And the base is told the same people in other words: what a wording alone changes.
    """
    wanted = scenes(world.CAREERS.held_out, 2)
    together = tuple(principles[p] for p in world.DEBIASED)
    identities = [(g, r) for g in world.GENDERS for r in world.RACES]

    def told(scene: Scene, seed: int, **wording) -> np.ndarray:
        prompts = [describe(scene.stating(gender=g, race=r), **wording) for g, r in identities]
        return reader.judge.embed(reader.sample(prompts, seed, value=None, num_images_per_prompt=images // len(prompts)))

    rows = []
    for i, scene in enumerate(tqdm(wanted, "FID to told people", unit="prompt", mininterval=5)):
        ours = reader.judge.embed(reader.sample(describe(scene), i, value=together, num_images_per_prompt=images))
        others = [told(scene, 2000 + i, template=template) for template in OTHER_WORDS]
        rows.append((ours, told(scene, 1000 + i), told(scene, 2000 + i), *others))
    ours, first, second, *others = map(np.concatenate, zip(*rows, strict=True))
    return {
        "images a set": len(ours),
        "base, split halves": metrics.frechet_distance(first, second),
        "LiVO against the first half": metrics.frechet_distance(ours, first),
        "LiVO against the second half": metrics.frechet_distance(ours, second),
        "base in other words against the first half": {
            template.format("..."): metrics.frechet_distance(other, first)
            for template, other in zip(OTHER_WORDS, others, strict=True)
        },
        "base, random halves": _random_halves(first, second),
        "LiVO against the base, random halves": (_random_halves(ours, first) + _random_halves(ours, second)) / 2,
    }


def against_own_people(reader: Reader, principles: Principles, images: int = IMAGES) -> dict:
    """LiVO's people against those that the base draws by itself, at the base's own mix of identities.

    The identities of the base's images are read; LiVO is asked for the same ones by directions, and the base by words in its prompt. So
    two ways of asking for what the base would have drawn anyway are compared by what else they change. The interval resamples prompts.
    """
    rows = []
    for i, scene in enumerate(tqdm(scenes(world.CAREERS.held_out, 2), "FID to own people", unit="prompt", mininterval=5)):
        prompt = describe(scene)
        own = reader.sample(prompt, i, value=None, num_images_per_prompt=images)
        people = [(image, who) for image, reading in zip(own, reader.judge.read(own), strict=True) if (who := _identity(reading))]
        identities = [who for _, who in people]
        asked = [tuple(principles[p].directions[c] for p, c in zip(world.DEBIASED, classes, strict=True)) for classes in identities]
        told = [describe(scene.stating(gender=gender, race=race)) for gender, race in identities]
        sets = (
            [image for image, _ in people],
            reader.sample(prompt, 1000 + i, value=None, num_images_per_prompt=images),
            reader.sample([prompt] * len(asked), 2000 + i, value=asked),
            reader.sample(told, 2000 + i, value=None),
        )
        rows.append([reader.judge.embed(pictures) for pictures in sets])

    def distance(which: int, chosen: Sequence[int] = range(len(rows))) -> float:
        one, own = (np.concatenate([rows[row][column] for row in chosen]) for column in (which, 0))
        return metrics.frechet_distance(one, own)

    gain = metrics.bootstrap_draws(lambda chosen: distance(3, chosen) - distance(2, chosen), len(rows))
    return {
        "images a set": sum(len(row[0]) for row in rows),
        "base, another draw": distance(1),
        "LiVO asked for the same identities": distance(2),
        "base told the same identities": distance(3),
        "told less LiVO, interval": metrics.interval(gain),
    }


def _identity(reading: Reading) -> tuple[str, ...] | None:
    """Pin and tone of an image; None where the judge does not read both."""
    found = tuple(reading[name] for name, _ in world.DEBIASED.values())
    return found if all(c in classes for c, (_, classes) in zip(found, world.DEBIASED.values(), strict=True)) else None


def _random_halves(one: np.ndarray, other: np.ndarray, draws: int = 50) -> float:
    """Mean FID between a random half of each set."""
    rng = np.random.default_rng(0)
    halves = ([rng.permutation(features)[: len(features) // 2] for features in (one, other)] for _ in range(draws))
    return float(np.mean([metrics.frechet_distance(*pair) for pair in halves]))
