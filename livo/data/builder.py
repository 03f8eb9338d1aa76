"""Builds preference data: the generator draws aligned and violating images, and a judge keeps those that show what they should.

This follows LiVO, section 3.4, and PopAlign for populations. Work is cut into rounds of one generator batch. A round is a folder that
appears whole or not at all, so an interrupted build resumes. What a round holds follows from its number alone, so nothing is made twice,
and processes can share the rounds.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from livo.data.build_folder import rounds, rounds_folder
from livo.data.build_plan import Job, Wanted, check, jobs
from livo.data.manifest import MANIFEST, PreferenceError
from livo.evaluation.judges import Judge, verdicts
from livo.pipelines.mixin import ValueMixin
from livo.pipelines.settings import scheduler_record
from livo.principles.construction import ATTRIBUTE, fill, template_fields
from livo.principles.principle import ValuePrinciple
from livo.utils.files import differing, replacing, sweep, write_json
from livo.utils.hashing import weights_hash
from livo.utils.precision import for_pipeline

CENSUS_IMAGES = 16  # neutral images of a scene that say which class the backbone draws most


@dataclass(frozen=True)
class Options:
    """How images are drawn.

    Args:
        seed: Seed of prompts, classes and images.
        batch: Images per round; at least 2.
        steps: Denoising steps.
        guidance: Guidance scale.
        precision: As in `livo.utils.precision.resolve`.
        populations: Whether to build PopAlign's populations, diverse images against neutral ones, in place of pairs.
    """

    seed: int = 0
    batch: int = 16
    steps: int = 20
    guidance: float = 7.5
    precision: str = "auto"
    populations: bool = False


@dataclass
class Progress:
    """How far a build is.

    Args:
        principle: The principle, or its directions, that is built.
        kept: Pairs that are kept so far.
        wanted: Pairs that are asked for.
        images: Images that were generated.
        rejects: How many images were rejected, by attribute or fault.
    """

    principle: str
    kept: int
    wanted: int
    images: int
    rejects: dict[str, int] = field(default_factory=dict)


def build(
    pipe: DiffusionPipeline,
    judge: Judge,
    principles: Sequence[ValuePrinciple],
    folder: Path,
    options: Options = Options(),
    *,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Progress]:
    """Make the pairs that the `construct` section of each principle describes, and yield the progress after each round.

    When all processes are done, `livo.data.build_folder.finish` writes the manifest.

    Args:
        pipe: The generator.
        judge: Reads what the images show.
        principles: The principles; each needs a `construct` section.
        folder: Where the rounds are written.
        options: How images are drawn.
        rank: The number of this process.
        world: How many processes share the work.

    Raises:
        PreferenceError: Too few images show what they should, or the folder holds data that were built differently.
    """
    check(pipe, judge, principles, options.batch)
    work = jobs(principles)
    _claim(folder, pipe, judge, work, options)
    for job in work:
        yield from _Builder(pipe, judge, job, folder, options, rank, world).run()


class _Builder:
    """One job's rounds in one process."""

    def __init__(self, pipe, judge, job: Job, folder, options, rank, world):
        self.pipe, self.judge, self.job, self.folder, self.options = pipe, judge, job, folder, options
        self.principle, self.rank, self.world = job.principle, rank, world
        self.quota = -(-job.pairs // world)
        self.precision = for_pipeline(options.precision, pipe, file=folder / "build.json")
        self.judged_by = f"{judge.name}@{judge.revision}"  # the revision is a hash of the weights: once, not for every image

    def run(self) -> Iterator[Progress]:
        done = [file for file in rounds(self.folder, self.job.name) if int(file.name) % self.world == self.rank]
        logs = [json.loads((file / "round.json").read_text()) for file in done]
        kept, images = sum(log["pairs"] for log in logs), sum(log["images"] for log in logs)
        rejects = sum((Counter(log["rejects"]) for log in logs), Counter())
        finished = {int(file.name) for file in done}
        yield Progress(self.job.name, min(kept, self.quota), self.quota, images, dict(rejects))
        if kept >= self.quota:
            return
        limit = 20 * self.job.pairs  # images, beyond which the generator or the judge is not good enough
        plans = self._plans()
        pending: Future | None = None
        with ThreadPoolExecutor(1) as pool:  # judging and writing run beside the generator, which is the bottleneck
            submit = _at_once if self.pipe.device.type == "cpu" else pool.submit
            for number in range(max(limit // self.options.batch + 1, self.world)):
                wanted = next(plans)
                if number % self.world != self.rank or number in finished:
                    continue
                made = self._generate([w.source_prompt for w in wanted], self._seeds(number, len(wanted)))
                if pending is not None:
                    kept, images = self._add(pending.result(), kept, images, rejects)
                    yield Progress(self.job.name, min(kept, self.quota), self.quota, images, dict(rejects))
                pending = submit(self._keep, number, wanted, made)
                if kept + len(wanted) // 2 >= self.quota:  # it may be enough: check before another batch is generated
                    kept, images = self._add(pending.result(), kept, images, rejects)
                    pending = None
                    yield Progress(self.job.name, min(kept, self.quota), self.quota, images, dict(rejects))
                if kept >= self.quota:
                    return
        if pending is not None:
            kept, images = self._add(pending.result(), kept, images, rejects)
        raise PreferenceError(
            f"{self.job.name}: only {kept} of {self.quota} pairs after {images} images, rejected for {dict(rejects)}; "
            "look at the images, reword the construct section, or use a better generator or judge"
        )

    @staticmethod
    def _add(log: dict, kept: int, images: int, rejects: Counter) -> tuple[int, int]:
        rejects.update(log["rejects"])
        return kept + log["pairs"], images + log["images"]

    def _plans(self) -> Iterator[list[Wanted]]:
        """The images of round 0, 1, ...: each depends only on the seed and on the rounds before it."""
        census: dict[str, str | None] = {}
        used: Counter = Counter()
        rng = np.random.default_rng((self.options.seed, int(_key(self.job.name), 16) % 2**32))
        pair = 0
        while True:
            wanted = []
            for _ in range(self.options.batch // 2):
                wanted += self._pair(rng, pair, used, census)
                pair += 1
            yield wanted

    def _pair(self, rng, number: int, used: Counter, census: dict[str, str | None]) -> list[Wanted]:
        principle, construct = self.principle, self.job.construct
        template = _pick(rng, construct.prompts)
        words = {name: _pick(rng, choices) for name, choices in construct.fill.items()}
        present = template_fields(template) + (template_fields(construct.aligned) if construct.aligned else [])
        words = {name: word for name, word in words.items() if name in present}
        prompt = fill(template, words)
        also = {name: read for name, text in construct.also.items() if (read := fill(text, words))}
        subject = next((text for t in construct.scene if (text := fill(t, words))), prompt)
        common: dict[str, Any] = {"prompt": prompt, "pair": number, "subject": subject, "value": principle.statement}
        classes = list(principle.attributes)
        if principle.kind == "detoxify":
            yes, no = principle.unwanted
            assert construct.aligned is not None  # a principle file gives it to each risk
            aligned = fill(construct.aligned, words)
            return [
                Wanted(aligned, 1, also | {construct.judge: no}, **common),
                Wanted(prompt, 0, also | {construct.judge: yes}, **common),
            ]
        order = rng.permutation(classes).tolist()
        even = self.job.directions or self.options.populations
        most = None if even else self._most(subject, template, words, census)
        name = min((c for c in order if c != most), key=lambda c: (used[subject, c], used[c]))
        used[subject, name] += 1
        used[name] += 1
        if self.job.directions:
            common["value"] = principle.directions[name]
        aligned = fill(template, words | {ATTRIBUTE: name})
        pair = [Wanted(aligned, 1, also | {construct.judge: name}, class_name=name, **common)]
        if self.options.populations:
            return [*pair, Wanted(prompt, 0, also, **common)]
        rest = most or next(c for c in order if c != name)
        return [*pair, Wanted(fill(template, words | {ATTRIBUTE: rest}), 0, also | {construct.judge: rest}, **common)]

    def _most(self, subject: str, template: str, words: dict[str, str], census: dict[str, str | None]) -> str | None:
        """The class that the backbone draws most often for the subject when the prompt states none, or None; measured once."""
        if subject not in census:
            folder = self.folder / "census" / self.job.construct.judge
            measured = sorted(folder.glob(f"{_key(subject)}-*.json"))
            if not measured:
                seeds = [int(_key(f"{self.options.seed} {subject} {i}"), 16) for i in range(CENSUS_IMAGES)]
                images = []
                for first in range(0, CENSUS_IMAGES, self.options.batch):
                    part = seeds[first : first + self.options.batch]
                    images += self._generate([fill(template, words)] * len(part), part)
                neutral = fill(template, words)
                read = verdicts(self.judge, images, [neutral] * len(images))
                if not any(not verdict.fault for verdict in read):
                    raise PreferenceError(
                        f"{self.job.name}: all {len(read)} images of {neutral!r} are {read[0].fault}: check the generator"
                    )
                seen = Counter(verdict.classes.get(self.job.construct.judge) for verdict in read)
                counts = {c: seen[c] for c in self.principle.attributes}
                measured = [folder / f"{_key(subject)}-{self.rank}.json"]  # several processes may measure it, with the same result
                write_json(measured[0], {"scene": subject, "counts": counts})
            counts = json.loads(measured[0].read_text())["counts"]
            census[subject] = max(counts, key=counts.__getitem__) if any(counts.values()) else None
        return census[subject]

    def _seeds(self, number: int, count: int) -> list[int]:
        return [int(_key(f"{self.options.seed} {self.job.name} {number} {i}"), 16) for i in range(count)]

    def _generate(self, prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        unaligned = {"value": None} if isinstance(self.pipe, ValueMixin) else {}
        with self.precision.autocast(self.pipe.device):
            return self.pipe(
                prompts,
                num_inference_steps=self.options.steps,
                guidance_scale=self.options.guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                **unaligned,
            ).images

    def _keep(self, number: int, wanted: list[Wanted], images: list[Image.Image]) -> dict:
        """Judge a round and write the pairs whose two images both show what they should."""
        read = verdicts(self.judge, images, [w.prompt for w in wanted])
        seeds = self._seeds(number, len(wanted))
        rejects: Counter = Counter()
        faults = [
            [f"{r.fault} image"] if r.fault else [name for name, c in w.reading.items() if r.classes[name] != c]
            for w, r in zip(wanted, read, strict=True)
        ]
        for names in faults:
            rejects.update(names)
        where = rounds_folder(self.folder, self.job.name) / f"{number:06}"
        rows = []
        with replacing(where) as temporary:
            temporary.mkdir(parents=True)
            for i, w in enumerate(wanted):
                if faults[i] or faults[i ^ 1]:
                    continue
                name = f"{w.pair:07}_{'aligned' if w.label else 'violating'}.png"
                images[i].save(temporary / name)
                rows.append(
                    {
                        "file_name": f"{where.relative_to(self.folder).as_posix()}/{name}",
                        "prompt": w.prompt,
                        "value": w.value,
                        "label": w.label,
                        "scene": w.prompt,
                        "principle": self.principle.id,
                        "subject": w.subject,
                        "class": w.class_name,
                        "image_prompt": w.source_prompt,
                        "seed": seeds[i],
                        "judge": self.judged_by,
                        "read": {a: read[i].classes[a] for a in w.reading},
                        "scores": {a: round(read[i].scores[a], 4) for a in w.reading},
                    }
                )
            (temporary / MANIFEST).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            log = {"images": len(wanted), "pairs": len(rows) // 2, "rejects": dict(rejects)}
            (temporary / "round.json").write_text(json.dumps(log) + "\n")
        return log


def _at_once(function: Callable, *args) -> Future:
    """Call it in this thread: on a CPU, a second thread slows the generator by more than it saves."""
    done: Future = Future()
    done.set_result(function(*args))
    return done


def prepare(folder: Path, pipe: DiffusionPipeline, judge: Judge, principles: Sequence[ValuePrinciple], options: Options) -> None:
    """Check everything, claim the folder, and remove what an interrupted build left half-written. One process calls it before any builds.

    Args:
        folder: The folder of the build.
        pipe: The generator.
        judge: Reads what the images show.
        principles: The principles that are built.
        options: How images are drawn.

    Raises:
        ValueError: A principle, the judge or the options cannot be used. The folder is left as it was.
        PreferenceError: The folder holds data that were built differently.
    """
    check(pipe, judge, principles, options.batch)
    _claim(folder, pipe, judge, jobs(principles), options)
    sweep(folder)


# --- the folder ---------------------------------------------------------------------------------------------------------


def _claim(folder: Path, pipe, judge, work: Sequence[Job], options: Options) -> None:
    """Record in build.json how the images of this folder are made, and refuse to add images that are made differently."""
    modules = {
        name: module
        for name, module in pipe.components.items()
        if isinstance(module, torch.nn.Module) and not name.startswith("value_encoder")
    }
    how = {name: value for name, value in asdict(options).items() if name != "precision"} | {
        "generator": {name: weights_hash(module) for name, module in sorted(modules.items())},
        "scheduler": scheduler_record(pipe.scheduler),
        "judge": f"{judge.name}@{judge.revision}",
        "principles": {
            job.name: _key(
                json.dumps([asdict(job.principle)[name] for name in ("construct", "directions", "statement", "attributes")])
            )
            for job in work
        },
    }
    file = folder / "build.json"
    precision = for_pipeline(options.precision, pipe, file=file)
    made = [*folder.glob("rounds/*/*/round.json"), *folder.glob("census/*/*.json")]
    if made and (changed := differing(file, how)):  # a build without images yet may change
        raise PreferenceError(f"{folder} was built with another {', '.join(changed)}; give another folder, or delete this one")
    write_json(file, how | {"precision": precision.record()})


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _pick(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]
