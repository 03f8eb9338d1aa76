"""Making preference data: the generator draws aligned and violating images, a judge keeps those that show what they should.

LiVO, section 3.4, and the populations of PopAlign. Work is cut into rounds of one generator batch; a round is a folder that appears
whole or not at all, so a killed build goes on where it stopped. What a round holds follows from its number alone, so nothing is made
twice and processes can share the rounds.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from livo.construct import ATTRIBUTE, fill, template_fields
from livo.files import differing, replacing, sweep, write_json
from livo.hashing import weights_hash
from livo.judges import Judge
from livo.mixin import ValueMixin
from livo.pictures import grid, save_picture
from livo.pipeline import refuse_safety_checker
from livo.precision import for_pipeline
from livo.preferences import MANIFEST, PreferenceError, scheduler_record
from livo.principles import ValuePrinciple

CENSUS_IMAGES = 16  # neutral images of a scene that say which class the backbone draws most
_TWINS = 1.0  # root mean square difference, of 255, below which two 16 x 16 thumbnails are one picture
Reading = dict[str, tuple[str, float]]  # attribute -> the likeliest class and its probability


@dataclass(frozen=True)
class Options:
    """How images are drawn. `precision` as in `livo.precision.resolve`.

    `populations` makes PopAlign's sets: diverse images against neutral ones, in place of pairs.
    """

    seed: int = 0
    batch: int = 16
    steps: int = 20
    guidance: float = 7.5
    precision: str = "auto"
    populations: bool = False


@dataclass(frozen=True)
class Wanted:
    """One image to be made: what it is generated from, and what a judge must read from it."""

    text: str
    label: int
    reading: dict[str, str]
    prompt: str
    pair: int
    value: str
    kind: str = ""  # the class of a debias principle
    subject: str = ""


@dataclass(frozen=True)
class Job:
    """What is made for a principle's statement, or for its directions: `pairs` in rounds of their own."""

    principle: ValuePrinciple
    name: str
    pairs: int
    directions: bool = False


def jobs(principles: Sequence[ValuePrinciple], options: Options) -> list[Job]:
    found = []
    for principle in principles:
        if principle.construct is None:
            raise PreferenceError(f"principle {principle.id} has no construct section, so nothing says how its images are made")
        found.append(Job(principle, principle.id, principle.construct.pairs))
        if principle.directions:
            count = principle.construct.direction_pairs * len(principle.directions)
            found.append(Job(principle, f"{principle.id}.directions", count, directions=True))
    return found


@dataclass
class Progress:
    """A record of the build: how far it is, and what was thrown away why."""

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
    """Make the pairs that each principle's `construct` asks for, below `folder`; yield a record a round.

    Of `world` processes this one is `rank`. When all have come to their end, `finish` writes the manifest.

    Raises:
        PreferenceError: too few images show what they should; or the folder holds data that were made otherwise.
    """
    refuse_safety_checker(pipe)
    if options.batch < 2:
        raise PreferenceError(f"batch is {options.batch}: a pair is made together, so give at least 2")
    for principle in principles:
        missing = {principle.construct.judge, *principle.construct.also} - set(judge.attributes)
        if missing:
            raise PreferenceError(f"principle {principle.id}: {judge.name} cannot tell {', '.join(sorted(missing))}")
        known = judge.attributes[principle.construct.judge]
        if unknown := [name for name in principle.attributes if name not in known]:
            raise PreferenceError(
                f"principle {principle.id}: {judge.name} reads no {unknown[0]!r} of {principle.construct.judge}, only {', '.join(known)}"
            )
    work = jobs(principles, options)
    _claim(folder, pipe, judge, work, options)
    for job in work:
        yield from _Builder(pipe, judge, job, folder, options, rank, world).run()


def finish(folder: Path, principles: Sequence[ValuePrinciple], options: Options) -> Path:
    """Drop near-duplicates, balance the classes, write manifest, data card and contact sheets; the manifest's path."""
    rows, card = [], {"made": json.loads((folder / "build.json").read_text()), "principles": {}}
    for job in jobs(principles, options):
        rounds = _rounds(folder, job.name)
        pairs = [pair for file in rounds for pair in _pairs_of(file)]
        kept, twins = _without_twins(folder, pairs)
        kept = _balanced(kept, job.pairs)
        rows += [row | {"direction": job.directions} for pair in kept for row in pair]
        logs = [json.loads((file / "round.json").read_text()) for file in rounds]
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


class _Builder:
    """One job's rounds in one process."""

    def __init__(self, pipe, judge, job: Job, folder, options, rank, world):
        self.pipe, self.judge, self.job, self.folder, self.options = pipe, judge, job, folder, options
        self.principle, self.rank, self.world = job.principle, rank, world
        self.quota = -(-job.pairs // world)
        self.precision = for_pipeline(options.precision, pipe, file=folder / "build.json")
        self.judged_by = f"{judge.name}@{judge.revision}"  # the revision is a hash of the weights: once, not for every image

    def run(self) -> Iterator[Progress]:
        done = [file for file in _rounds(self.folder, self.job.name) if int(file.name) % self.world == self.rank]
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
                made = self._generate([w.text for w in wanted], self._seeds(number, len(wanted)))
                if pending is not None:
                    kept, images = self._add(pending.result(), kept, images, rejects)
                    yield Progress(self.job.name, min(kept, self.quota), self.quota, images, dict(rejects))
                pending = submit(self._keep, number, wanted, made)
                if kept + len(wanted) // 2 >= self.quota:  # it may be enough: look before another batch is made
                    kept, images = self._add(pending.result(), kept, images, rejects)
                    pending = None
                    yield Progress(self.job.name, min(kept, self.quota), self.quota, images, dict(rejects))
                if kept >= self.quota:
                    return
        if pending is not None:
            kept, images = self._add(pending.result(), kept, images, rejects)
        raise PreferenceError(
            f"{self.job.name}: only {kept} of {self.quota} pairs after {images} images, rejected for {dict(rejects)}; "
            "look at the pictures, reword the construct section, or take a better generator or judge"
        )

    @staticmethod
    def _add(log: dict, kept: int, images: int, rejects: Counter) -> tuple[int, int]:
        rejects.update(log["rejects"])
        return kept + log["pairs"], images + log["images"]

    def _plans(self) -> Iterator[list[Wanted]]:
        """The images of round 0, 1, ...: each depends on the seed and the rounds before it alone."""
        census: dict[str, str] = {}
        used: Counter = Counter()
        rng = np.random.default_rng((self.options.seed, int(_key(self.job.name), 16) % 2**32))
        pair = 0
        while True:
            wanted = []
            for _ in range(self.options.batch // 2):
                wanted += self._pair(rng, pair, used, census)
                pair += 1
            yield wanted

    def _pair(self, rng, number: int, used: Counter, census: dict[str, str]) -> list[Wanted]:
        principle, construct = self.principle, self.principle.construct
        template = _pick(rng, construct.prompts)
        words = {name: _pick(rng, choices) for name, choices in construct.fill.items()}
        present = template_fields(template) + (template_fields(construct.aligned) if construct.aligned else [])
        words = {name: word for name, word in words.items() if name in present}
        prompt = fill(template, words)
        also = {name: read for name, text in construct.also.items() if (read := fill(text, words))}
        subject = next((text for t in construct.scene if (text := fill(t, words))), prompt)
        common = {"prompt": prompt, "pair": number, "subject": subject, "value": principle.statement}
        classes = list(principle.attributes)
        if principle.kind == "detoxify":
            yes, no = principle.unwanted
            aligned = fill(construct.aligned, words)
            return [
                Wanted(aligned, 1, also | {construct.judge: no}, **common),
                Wanted(prompt, 0, also | {construct.judge: yes}, **common),
            ]
        order = rng.permutation(classes).tolist()
        even = self.job.directions or self.options.populations
        most = None if even else self._most(subject, template, words, census)
        kind = min((c for c in order if c != most), key=lambda c: (used[subject, c], used[c]))
        used[subject, kind] += 1
        used[kind] += 1
        if self.job.directions:
            common["value"] = principle.directions[kind]
        aligned = fill(template, words | {ATTRIBUTE: kind})
        pair = [Wanted(aligned, 1, also | {construct.judge: kind}, kind=kind, **common)]
        if self.options.populations:
            return [*pair, Wanted(prompt, 0, also, **common)]
        rest = most or next(c for c in order if c != kind)
        return [*pair, Wanted(fill(template, words | {ATTRIBUTE: rest}), 0, also | {construct.judge: rest}, **common)]

    def _most(self, subject: str, template: str, words: dict[str, str], census: dict[str, str]) -> str:
        """The class that the backbone draws most for the subject when none is stated: measured once, kept in a file."""
        if subject not in census:
            folder = self.folder / "census" / self.principle.construct.judge
            measured = sorted(folder.glob(f"{_key(subject)}-*.json"))
            if not measured:
                seeds = [int(_key(f"{self.options.seed} {subject} {i}"), 16) for i in range(CENSUS_IMAGES)]
                images = []
                for first in range(0, CENSUS_IMAGES, self.options.batch):
                    part = seeds[first : first + self.options.batch]
                    images += self._generate([fill(template, words)] * len(part), part)
                seen = Counter(reading[self.principle.construct.judge][0] for reading in read(self.judge, images))
                counts = {c: seen[c] for c in self.principle.attributes}
                measured = [folder / f"{_key(subject)}-{self.rank}.json"]  # processes that meet here find the same
                write_json(measured[0], {"scene": subject, "counts": counts})
            counts = json.loads(measured[0].read_text())["counts"]
            census[subject] = max(counts, key=counts.__getitem__)
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
        """Judge a round and write its pairs, both of whose images show what they should."""
        readings, seeds = read(self.judge, images), self._seeds(number, len(wanted))
        rejects: Counter = Counter()
        faults = [[name for name, c in w.reading.items() if r[name][0] != c] for w, r in zip(wanted, readings, strict=True)]
        for names in faults:
            rejects.update(names)
        place = _place(self.folder, self.job.name) / f"{number:06}"
        rows = []
        with replacing(place) as temporary:
            temporary.mkdir(parents=True)
            for i, w in enumerate(wanted):
                if faults[i] or faults[i ^ 1]:
                    continue
                name = f"{w.pair:07}_{'aligned' if w.label else 'violating'}.png"
                images[i].save(temporary / name)
                rows.append(
                    {
                        "file_name": f"{place.relative_to(self.folder).as_posix()}/{name}",
                        "prompt": w.prompt,
                        "value": w.value,
                        "label": w.label,
                        "scene": w.prompt,
                        "principle": self.principle.id,
                        "subject": w.subject,
                        "class": w.kind,
                        "image_prompt": w.text,
                        "seed": seeds[i],
                        "judge": self.judged_by,
                        "read": {a: readings[i][a][0] for a in w.reading},
                        "scores": {a: round(readings[i][a][1], 4) for a in w.reading},
                    }
                )
            (temporary / MANIFEST).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            log = {"images": len(wanted), "pairs": len(rows) // 2, "rejects": dict(rejects)}
            (temporary / "round.json").write_text(json.dumps(log) + "\n")
        return log


def _at_once(function: Callable, *args) -> Future:
    """In the caller's thread: on a CPU a second thread's OpenMP team slows the generator by more than it takes off it."""
    done: Future = Future()
    done.set_result(function(*args))
    return done


def read(judge: Judge, images: Sequence[Image.Image]) -> list[Reading]:
    """The likeliest class of every attribute and its probability, for each image."""
    likeliest = {name: p.max(-1) for name, p in judge.judge(images).items()}
    return [
        {name: (judge.attributes[name][int(best.indices[i])], float(best.values[i])) for name, best in likeliest.items()}
        for i in range(len(images))
    ]


def prepare(folder: Path, pipe: DiffusionPipeline, judge: Judge, principles: Sequence[ValuePrinciple], options: Options) -> None:
    """Claim the folder and remove what a kill left half-written: for one process to call before any of them builds.

    Raises:
        PreferenceError: the folder holds data that were made otherwise.
    """
    _claim(folder, pipe, judge, jobs(principles, options), options)
    sweep(folder)


# --- the folder ---------------------------------------------------------------------------------------------------------


def _claim(folder: Path, pipe, judge, work: Sequence[Job], options: Options) -> None:
    """Say in build.json how this folder's images are made, and refuse to add others to them."""
    modules = {
        name: module for name, module in pipe.components.items() if isinstance(module, torch.nn.Module) and name != "value_encoder"
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
    if changed := differing(file, how):
        raise PreferenceError(f"{folder} was built with another {', '.join(changed)}; give another folder, or delete this one")
    write_json(file, how | {"precision": precision.record()})


def _place(folder: Path, principle: str) -> Path:
    return folder / "rounds" / principle


def _rounds(folder: Path, principle: str) -> list[Path]:
    return sorted(path for path in _place(folder, principle).glob("[0-9]*") if path.name.isdigit())


def _pairs_of(round_: Path) -> list[tuple[dict, dict]]:
    rows = [json.loads(line) for line in (round_ / MANIFEST).read_text(encoding="utf-8").splitlines()]
    return list(zip(rows[0::2], rows[1::2], strict=True))


def _without_twins(folder: Path, pairs: list[tuple[dict, dict]]) -> tuple[list[tuple[dict, dict]], int]:
    """The pairs neither of whose images looks like one that came before it with the same subject and label."""
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
    """`count` pairs (or all there are), the classes of each subject as even as they can be: the most frequent gives first."""
    totals: dict[str, Counter] = {}
    for aligned, _ in pairs:
        totals.setdefault(aligned["subject"], Counter())[aligned["class"]] += 1
    surplus, dropped = len(pairs) - count, set()
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
    images, captions = [], []
    for first in range(0, len(some), columns):
        for side in (0, 1):
            rows = [pair[side] for pair in some[first : first + columns]]
            images += [Image.open(folder / row["file_name"]) for row in rows]
            shown = job.principle.construct.judge
            captions += [f"{'aligned' if row['label'] else 'violating'}: {row['read'].get(shown, 'neutral')}" for row in rows]
            blank = columns - len(rows)
            images += [Image.new("RGB", (8, 8), "white")] * blank
            captions += [""] * blank
    if images:
        title = f"{job.principle.statement}{', directions' * job.directions}: {len(pairs)} pairs, aligned above violating"
        save_picture(grid(images, columns, captions, title), folder / f"{job.name}.png", {"job": job.name})


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _pick(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]
