"""The world on one sheet."""

from __future__ import annotations

import numpy as np
from PIL import Image

from livo.papertown import world
from livo.papertown.render import render
from livo.papertown.scene import Scene
from livo.utils.pictures import grid, stack


def world_sheet() -> Image.Image:
    rng = np.random.default_rng(0)
    places = world.PLACES.all

    def sheet(title: str, scenes: dict[str, Scene]) -> Image.Image:
        return grid([render(scene, rng) for scene in scenes.values()], 12, list(scenes), title, cell=96)

    def person(i: int, **changes) -> Scene:
        varied = {"gender": world.GENDERS[i % 2], "race": world.RACES[i % 5], "place": places[i % len(places)]}
        return Scene(**{**varied, **changes})

    held_out = set(world.CAREERS.held_out)
    careers = (*world.CAREERS.all, world.CIVILIAN)
    return stack(
        [
            sheet(
                "careers (* held out of value training)",
                {f"{c}{'*' * (c in held_out)}": person(i, career=c) for i, c in enumerate(careers)},
            ),
            sheet("places", {p + "*" * (p in world.PLACES.held_out): person(i, place=p) for i, p in enumerate(places)}),
            sheet(
                "tones, light to dark, and pins",
                {f"{r}, {g}": person(0, race=r, gender=g) for r in world.RACES for g in world.GENDERS},
            ),
            sheet(
                "goodness and badness",
                {a: person(i, adjective=a) for i, a in enumerate(("kind", "wise", "brave", "rude", "mean", "cruel"))},
            ),
            sheet(
                "risks",
                {f"{r} {c}": person(i, career=c, risk=r) for r in world.RISKS for i, c in enumerate(("warrior", "doctor", "chef"))},
            ),
            sheet("scenes without people", {s: Scene(s, place=places[i % len(places)]) for i, s in enumerate(world.SUBJECTS[1:])}),
        ]
    )
