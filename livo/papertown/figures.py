"""Papertown's figures on held-out prompts: judge, backbone, and what LiVO changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from livo.evaluation import metrics
from livo.evaluation.judges import load_judge
from livo.papertown import fid, judging, world
from livo.papertown.corpus import scene as corpus_scene
from livo.papertown.reading import GUIDANCE, IMAGES, STEPS, Reader, Reading, bias, kept, scenes, unread
from livo.papertown.scene import Scene, describe, sample_prompt
from livo.pipelines.stable_diffusion import LiVOPipeline
from livo.principles.principle import ValuePrinciple
from livo.utils.files import write_report

_RATES = [round(0.05 * i, 2) for i in range(21)]
Row = tuple[str, list[float], list[float]]  # figure, base's value of each prompt, LiVO's


def debias_rows(reader: Reader, principles: dict[str, ValuePrinciple]) -> list[Row]:
    """Training careers in held-out places; held-out careers in held-out places and wordings, by directions and by plain tokens."""
    rows = []
    held_out = [describe(s, world.TEMPLATES.held_out[i % 3]) for i, s in enumerate(scenes(world.CAREERS.held_out, 2))]
    for split, wanted, prompts in (
        ("training careers", scenes(world.CAREERS.train), [describe(s) for s in scenes(world.CAREERS.train)]),
        ("held-out careers", scenes(world.CAREERS.held_out, 2), held_out),
    ):
        base = reader.read_all(prompts, None, f"base, {split}")
        for principle in world.DEBIASED:
            ways = {"directions": principles[principle]}
            if split == "held-out careers":
                ways["plain token"] = replace(principles[principle], directions={}, target={})
            for how, value in ways.items():
                label = f"{principle}, {how}, {split}"
                ours = reader.read_all(prompts, value, label)
                rows.append((f"D1 {label}", bias(base, principle), bias(ours, principle)))
                rows.append((f"D2 {label}", bias(base, principle, metrics.d2), bias(ours, principle, metrics.d2)))
                rows.append((f"unread %, {label}", unread(base, principle), unread(ours, principle)))
                rows += [
                    (f"{name} kept %, {label}", kept(base, wanted, name), kept(ours, wanted, name)) for name in ("career", "place")
                ]
    return rows


def mood_rows(reader: Reader, principles: dict[str, ValuePrinciple]) -> list[Row]:
    """Held-out adjectives on held-out careers: whether the smile or frown they stand for is still there.

    The backbone itself frowns less for some tones than for others, so its images of the same people, their classes stated in even
    numbers, are the second base that LiVO's are compared with.
    """
    adjectives = world.GOODNESS.held_out + world.BADNESS.held_out
    careers = scenes(world.CAREERS.held_out)
    wanted = [scene.stating(adjective=adjective) for scene, adjective in zip(careers, adjectives, strict=True)]
    prompts = [describe(scene) for scene in wanted]
    base = kept(reader.read_all(prompts, None, "base, adjectives"), wanted, "mood")
    rows = []
    for principle, (name, classes) in world.DEBIASED.items():
        ours = kept(reader.read_all(prompts, principles[principle], f"{principle}, adjectives"), wanted, "mood")
        count = reader.images // len(classes)
        stated = [
            [reading for c in classes for reading in reader.read(describe(scene.stating(**{name: c})), None, count)]
            for scene in tqdm(wanted, f"base, adjectives, each {name} stated", unit="prompt", mininterval=5)
        ]
        rows.append((f"mood kept %, {principle}", base, ours))
        rows.append((f"mood kept %, {principle}, base stating the classes", kept(stated, wanted, "mood"), ours))
    return rows


CENSUS = {"white": 0.6, "asian": 0.2, "latino": 0.1, "indian": 0.05, "black": 0.05}


def target_rows(reader: Reader, principles: dict[str, ValuePrinciple]) -> list[Row]:
    """Held-out careers: gender and race together, and an uneven target for race."""
    wanted = scenes(world.CAREERS.held_out, 2)
    prompts = [describe(s, world.TEMPLATES.held_out[i % 3]) for i, s in enumerate(wanted)]
    base = reader.read_all(prompts, None, "base, held-out careers")
    joint = reader.read_all(prompts, tuple(principles[p] for p in world.DEBIASED), "gender and race, held-out careers")
    cells = [f"{gender} {race}" for gender in world.GENDERS for race in world.RACES]
    rows = [("D1 gender x race (10 classes), held-out careers", *(_joint(readings, cells) for readings in (base, joint)))]
    rows += [
        (f"{name} kept %, gender x race, held-out careers", kept(base, wanted, name), kept(joint, wanted, name))
        for name in ("career", "place")
    ]
    census = reader.read_all(prompts, replace(principles["racial_equality"], target=CENSUS), "target 60/20/10/5/5")
    rows.append(("points from a 60/20/10/5/5 target, per class", *(_off_target(readings) for readings in (base, census))))
    return rows


def _joint(readings: list[list[Reading]], cells: Sequence[str]) -> list[float]:
    return [metrics.d1(metrics.counts([f"{r['gender']} {r['race']}" for r in rows], cells)) for rows in readings]


def _off_target(readings: list[list[Reading]]) -> list[float]:
    wanted = np.array(list(CENSUS.values()))
    return [
        100 * float(np.abs(metrics.counts([r["race"] for r in rows], list(CENSUS)) / len(rows) - wanted).mean())
        for rows in readings
    ]


def risk_rows(reader: Reader, principles: dict[str, ValuePrinciple]) -> list[Row]:
    """Held-out careers, places and wordings, each wording in turn."""
    rows = []
    for risk in world.RISKS:
        wordings = world.RISK_WORDINGS[risk].held_out
        wanted = scenes(world.CAREERS.held_out, risk=risk)
        prompts = [describe(scene, risk_wording=wordings[i % 2]) for i, scene in enumerate(wanted)]
        base, ours = reader.read_all(prompts, None, f"base, {risk}"), reader.read_all(prompts, principles[risk], f"LiVO, {risk}")
        toxic = [[metrics.share([r[risk] == "yes" for r in rows]) for rows in readings] for readings in (base, ours)]
        rows.append((f"R {risk}, held-out careers and wordings", *toxic))
        rows += [(f"{name} kept %, {risk}", kept(base, wanted, name), kept(ours, wanted, name)) for name in ("career", "place")]
    return rows


def backbone_fidelity(reader: Reader, count: int = 1000) -> dict[str, float]:
    """Percentage of images that show what their prompt states, over the corpus's own mix of fresh scenes, by attribute."""
    wanted = [corpus_scene(i, seed=9) for i in range(count)]
    prompts = [sample_prompt(scene, np.random.default_rng((9, i))) for i, scene in enumerate(wanted)]
    readings = []
    for first in tqdm(range(0, count, IMAGES), "backbone fidelity", unit="batch", mininterval=5):
        readings += reader.judge.read(reader.sample(prompts[first : first + IMAGES], first, value=None))
    hits: dict[str, list[bool]] = {}
    for scene, read in zip(wanted, readings, strict=True):
        labels = scene.labels()
        stated = scene.stated - {"adjective", "risk"} | ({"mood"} if "adjective" in scene.stated else set())
        if scene.subject == "person":
            hits.setdefault("risk" if scene.risk else "no risk", []).append(all(read[r] == labels[r] for r in world.RISKS))
        for name in stated - {"race"} if scene.risk == "zombie" else stated:
            hits.setdefault(name, []).append(read[name] == labels[name])
    return {name: metrics.share(values) for name, values in sorted(hits.items())}


def retrieval(pipe: LiVOPipeline, count: int = 200) -> dict[str, float]:
    """Percentage of prompts for which the retriever's first choice is right, by what the prompts are.

    Careers, places and wordings are those held out of value training; the principle file's keywords know the wordings. A prompt
    that is left alone gives the base pipeline's images bit for bit.
    """
    rng = np.random.default_rng(8)
    kinds: dict[str, tuple[str | None, list[str]]] = {
        "neutral people": ("gender_equality", [describe(_held_out_scene(rng)) for _ in range(count)]),
        "stated identity, left alone": (None, [describe(_held_out_scene(rng, identity=True)) for _ in range(count)]),
        "no people, left alone": (None, [describe(_held_out_scene(rng, person=False)) for _ in range(count)]),
    }
    for risk in world.RISKS:
        wordings = world.RISK_WORDINGS[risk].held_out
        kinds[risk] = (risk, [describe(_held_out_scene(rng, risk=risk), risk_wording=wordings[i % 2]) for i in range(count)])
    return {
        kind: metrics.share([decisions[0].id == wanted for decisions in pipe.retriever.retrieve_batch(prompts)])
        for kind, (wanted, prompts) in kinds.items()
    }


def _held_out_scene(rng: np.random.Generator, identity: bool = False, person: bool = True, risk: str | None = None) -> Scene:
    if not person:
        scene = Scene(str(rng.choice(world.SUBJECTS[1:])), None, None, None)
    else:
        scene = Scene(career=str(rng.choice(world.CAREERS.held_out)), risk=risk)
    if identity:
        either, both = rng.random(), rng.random() < 0.3
        if either < 0.5 or both:
            scene = scene.stating(gender=str(rng.choice(world.GENDERS)))
        if either >= 0.5 or both:
            scene = scene.stating(race=str(rng.choice(world.RACES)))
    return scene.stating(place=str(rng.choice(world.PLACES.held_out))) if rng.random() < 0.5 else scene


def calibrate(cache: Path, precision: str = "auto") -> dict[str, float]:
    """For each debias principle's plain token the apply rate with the least mean D1 on training careers in training places."""
    reader, principles = _reader(cache, precision)
    places = world.PLACES.train
    prompts = [describe(Scene(career=c).stating(place=places[i % len(places)])) for i, c in enumerate(world.CAREERS.train)]
    base = reader.read_all(prompts, None, "base")
    rates = {}
    for principle, (name, classes) in world.DEBIASED.items():
        plain = replace(principles[principle], apply_rate=1.0, directions={}, target={})
        ours = reader.read_all(prompts, plain, principle)
        without, with_ = ([metrics.counts([r[name] for r in rows], classes) for rows in readings] for readings in (base, ours))
        d1 = {
            rate: np.mean([metrics.d1((1 - rate) * b + rate * o) for b, o in zip(without, with_, strict=True)]) for rate in _RATES
        }
        rates[principle] = best = min(d1, key=d1.get)
        print(f"{principle}: apply_rate {best} gives D1 {d1[best]:.1f} ({len(prompts)} training prompts, {IMAGES} images each)")
    return rates


def figures(cache: Path, output: Path, precision: str = "auto") -> dict:
    """Measure everything, print the tables, write `output` (JSON)."""
    reader, principles = _reader(cache, precision)
    pipe, judge = reader.pipe, reader.judge
    accuracy = {name: 100 * value for name, value in judging.accuracy(judge).items()}
    chosen = retrieval(pipe)
    fidelity = backbone_fidelity(reader)
    rows = (
        debias_rows(reader, principles)
        + target_rows(reader, principles)
        + mood_rows(reader, principles)
        + risk_rows(reader, principles)
    )
    told, own = (measure(reader, principles) for measure in (fid.against_told_people, fid.against_own_people))
    floors = [metrics.fair_floor(metrics.d1, classes, IMAGES) for classes in (2, 5, 10)]
    print(
        f"\njudge {judge.name} {judge.revision}; {IMAGES} images a prompt, {STEPS} steps, guidance {GUIDANCE}, "
        f"{reader.precision.resolved}; 95% bootstrap over prompts"
    )
    print("judge, % of 2,000 fresh renders: " + ", ".join(f"{k} {v:.2f}" for k, v in accuracy.items()))
    print("backbone, % of 1,000 prompts shown as stated: " + ", ".join(f"{k} {v:.1f}" for k, v in fidelity.items()))
    print("retriever, % right of 200 prompts each: " + ", ".join(f"{k} {v:.1f}" for k, v in chosen.items()))
    print(
        f"D1 of a fair sampler at N = {IMAGES}: {floors[0]:.1f} for two classes, {floors[1]:.1f} for five, {floors[2]:.1f} for ten"
    )
    for what, found in (("told people", told), ("own people", own)):
        print(f"FID to the base's {what}: " + json.dumps(found))
    print("\n| figure, mean over prompts [95% bootstrap interval] | prompts | base | LiVO |\n|---|---|---|---|")
    for label, base, ours in rows:
        print(f"| {label} | {len(base)} | {_with_interval(base)} | {_with_interval(ours)} |")
    result = {
        "judge": {"name": judge.name, "revision": judge.revision, "accuracy": accuracy},
        "settings": {
            "images": IMAGES,
            "steps": STEPS,
            "guidance": GUIDANCE,
            "precision": reader.precision.record(),
            "seed": "sha256 of the prompt",
            "weights": f"{reader.base}-{reader.encoder}",
        },
        "backbone_fidelity": fidelity,
        "retrieval": chosen,
        "fid_to_told_people": told,
        "fid_to_own_people": own,
        "rows": [
            {"figure": label, "prompts": len(base), "base": _summary(base), "livo": _summary(ours)} for label, base, ours in rows
        ],
    }
    write_report(output, result, levels=2)
    print(f"{output} written")
    return result


def _reader(cache: Path, precision: str) -> tuple[Reader, dict[str, ValuePrinciple]]:
    pipe = LiVOPipeline.from_pretrained("papertown")
    pipe.set_progress_bar_config(disable=True)
    judge = load_judge("papertown")
    return Reader(pipe, judge, cache, precision=precision), {principle.id: principle for principle in pipe.principles}


def _summary(values: list[float]) -> dict:
    return {"mean": float(np.mean(values)), "interval": metrics.bootstrap_interval(values), "per_prompt": values}


def _with_interval(values: list[float]) -> str:
    low, high = metrics.bootstrap_interval(values)
    return f"{np.mean(values):.1f} [{low:.1f}, {high:.1f}]"
