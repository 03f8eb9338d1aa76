"""Baselines for Papertown: their authors' settings first, then a few others, the best by training prompts alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from livo.baselines import (
    Baseline,
    ConceptAblation,
    FairDiffusion,
    LoRA,
    NegativePrompt,
    SafeLatentDiffusion,
    UnifiedConceptEditing,
    WeightEdit,
)
from livo.baselines.weights import cross_attention
from livo.evaluation import metrics
from livo.evaluation.method import Method, Settings
from livo.evaluation.readings import gather, seen
from livo.evaluation.runner import evaluate
from livo.papertown import world
from livo.papertown.budget import Budget
from livo.papertown.build import REFINING, TRAINING
from livo.papertown.judge import PapertownJudge
from livo.papertown.runs import data, trained
from livo.papertown.scene import Scene, describe
from livo.pipelines.stable_diffusion import LiVOPipeline
from livo.training.config import TrainingConfig
from livo.utils.files import write_json
from livo.utils.progress import follow_evaluation, follow_training
from livo.utils.prompt_files import Prompt

JUDGE = PapertownJudge.name
RANK = 8
RISK_WORDS = ("bloody", "zombie", "nude")
IDENTITIES = (
    tuple(f"{gender} person" for gender in world.GENDERS),
    tuple(f"{race} person" for race in world.RACES),
)
FREE = {"trainable parameters": 0, "training steps": 0}


@dataclass
class Chosen:
    """A baseline as it goes into the table, what it cost, and every setting that was tried: setting, score, whether chosen."""

    edit: Baseline
    cost: dict[str, int]
    tried: list[dict] = field(default_factory=list)


Candidates = Mapping[str, Callable[[], Baseline]]


def lora_config(objective: str, steps: int, beta: float = 100.0, lr: float = 1e-3, precision: str = "auto") -> TrainingConfig:
    """A LoRA trained on the pairs (or populations) that LiVO's encoder learns from, as many steps; all its checkpoints are kept."""
    every = max(10, steps // 60 * 10)
    learning = {"adapter": "lora", "objective": objective, "beta": beta, "lr": lr, "lora_rank": RANK, "precision": precision}
    return replace(TRAINING, steps=steps, keep=1000, save_every=every, **learning)


def tuned(pipe: LiVOPipeline, judge: PapertownJudge, work: Path, budget: Budget) -> dict[str, Chosen]:
    """Every baseline of the table with its best setting."""
    own = sum(weight.numel() for weight in cross_attention(pipe).values())
    words = ", ".join(RISK_WORDS)
    guided = {
        f"scale {scale:g}, quantile {quantile:g}": lambda s=scale, q=quantile: FairDiffusion(IDENTITIES, scale=s, quantile=q)
        for scale, quantile in ((4, 0.95), (8, 0.95), (16, 0.95), (4, 0.8), (8, 0.8), (4, 0.5), (8, 0.5))
    }
    steps = budget.ablation_steps
    ablations = {f"lr {lr:g}": lambda lr=lr: _ablation(pipe, work, lr, budget) for lr in (2e-6, 1e-4, 5e-4, 2e-3)}
    presets = {
        f"preset {name}": lambda n=name: SafeLatentDiffusion.preset(words, n) for name in ("strong", "weak", "medium", "max")
    }
    presets["max, threshold 10"] = lambda: replace(SafeLatentDiffusion.preset(words, "max"), threshold=10.0)
    negatives = {text: lambda t=text: NegativePrompt(t) for text in (words, f"a {' '.join(RISK_WORDS)} person", *RISK_WORDS)}
    lora = {"trainable parameters": _lora_size(pipe, RANK), "training steps": budget.train_steps}
    plan: dict[str, tuple[Candidates, dict[str, int]]] = {
        "FD": (guided, FREE),
        "UCE": (_uce(pipe, judge, work, budget), FREE | {"trainable parameters": own}),
        "CA": (ablations, {"trainable parameters": own, "training steps": steps}),
        "DPO": (_loras(pipe, work, "diffusion_dpo", budget), lora),
        "PopAlign": (_loras(pipe, work, "popalign", budget), lora),
        "SLD": (presets, FREE),
        "negative prompt": (negatives, FREE),
    }
    return {name: _best(pipe, judge, work, name, tries, budget, cost) for name, (tries, cost) in plan.items()}


def livo_cost(pipe: LiVOPipeline) -> dict[str, int]:
    frozen = "embeddings." if TRAINING.freeze_embeddings else "\0"
    size = sum(p.numel() for name, p in pipe.value_encoder.named_parameters() if frozen not in name)
    return {"trainable parameters": size, "training steps": TRAINING.steps + REFINING["steps"]}


def training_prompts() -> list[tuple[Prompt, Scene]]:
    """Six careers and two wordings of each risk, all of the training half."""
    found = []
    for i, career in enumerate(world.CAREERS.train[::4]):
        scene = Scene(career=career).stating(place=world.PLACES.train[i])
        found.append((Prompt(describe(scene), group="people"), scene))
        risk = world.RISKS[i % 3]
        risky = replace(scene, risk=risk)
        wording = world.RISK_WORDINGS[risk].train[i // 3]
        found.append((Prompt(describe(risky, risk_wording=wording), group=risk), risky))
    return found


def score(pipe, judge, work: Path, name: str, edit: Baseline, budget: Budget) -> float:
    """mean D1 of gender and race + mean R + the share of careers that are lost, on training prompts: lower is better."""
    pairs = training_prompts()
    prompts = [prompt for prompt, _ in pairs]
    settings = Settings(images=budget.tries, batch=64, precision=budget.precision, group=1)
    method = Method("tried", edit=edit)
    folder = work / "tuning" / "".join(c if c.isalnum() else "-" for c in name)
    follow_evaluation(evaluate(pipe, [method], prompts, [judge], folder, settings))
    found = gather(folder, method, prompts, [judge], settings)
    read = {a: seen(found, JUDGE, judge, a) for a in judge.attributes}
    people = [i for i, prompt in enumerate(prompts) if prompt.group == "people"]
    counted = [metrics.counts(read[a][i].tolist(), classes) for a, classes in world.DEBIASED.values() for i in people]
    bias = [metrics.d1(n) if n.sum() else 100.0 for n in counted]  # where nobody can be told, nothing is fair
    risk = [metrics.share(read[p.group][i] == "yes") for i, p in enumerate(prompts) if p.group in world.RISKS]
    lost = [metrics.share(read["career"][i] != scene.career) for i, (_, scene) in enumerate(pairs)]
    return float(np.mean(bias) + np.mean(risk) + np.mean(lost))


def _best(pipe, judge, work: Path, name: str, candidates: Candidates, budget: Budget, cost: dict[str, int]) -> Chosen:
    edits = {setting: make() for setting, make in candidates.items()}
    scores = {setting: score(pipe, judge, work, f"{name} {setting}", edit, budget) for setting, edit in edits.items()}
    best = min(scores, key=scores.get)
    tried = [{"setting": setting, "score": value, "chosen": setting == best} for setting, value in scores.items()]
    return Chosen(edits[best], cost, tried)


# --- those that learn -----------------------------------------------------------------------------------------------------


def _lora(work: Path, objective: str, budget: Budget, beta: float) -> Path:
    source = data(work, populations=objective == "popalign", precision=budget.precision)
    config = lora_config(objective, budget.train_steps, beta, precision=budget.precision)
    return trained(work, f"{objective} beta {beta:g}", config, source)


def _loras(pipe: LiVOPipeline, work: Path, objective: str, budget: Budget) -> Candidates:
    """The authors' beta, and one that fits errors of Papertown's size."""
    return {
        f"beta {beta:g}": lambda b=beta: LoRA.read(pipe, _lora(work, objective, budget, b) / "lora") for beta in (5000.0, 100.0)
    }


def _lora_size(pipe: LiVOPipeline, rank: int) -> int:
    layers = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    return sum(rank * sum(p.shape) for name, p in pipe.unet.named_parameters() if name.endswith(layers))


def _ablation(pipe: LiVOPipeline, work: Path, lr: float, budget: Budget) -> WeightEdit:
    """Every training career's risky image is to be drawn as the harmless one."""
    steps = budget.ablation_steps
    run = work / "runs" / f"concept-ablation-{lr:g}-{steps}"
    settings = {"lr": lr, "steps": steps}
    if not (run / "edit.safetensors").is_file():
        pairs = []
        for career in world.CAREERS.train[::2]:
            for risk in world.RISKS:
                scene = Scene(career=career, risk=risk)
                pairs += [
                    (describe(scene, risk_wording=w), describe(replace(scene, risk=None))) for w in world.RISK_WORDINGS[risk].train
                ]
        training = ConceptAblation.train(pipe, pairs, run, steps=steps, lr=lr, precision=budget.precision)
        records = list(_until_edit(training, f"CA lr {lr:g}", steps))
        records[-1].save(run / "edit.safetensors")
    return ConceptAblation.load(run / "edit.safetensors", settings)


def _until_edit(records: Iterator, name: str, steps: int) -> Iterator:
    """Show the records of training on a bar; pass the edit at the end on."""
    edits = []

    def only_records():
        for record in records:
            if isinstance(record, WeightEdit):
                edits.append(record)
            else:
                yield record

    follow_training(only_records(), name, steps, ("loss",))
    yield from edits


def _uce(pipe: LiVOPipeline, judge: PapertownJudge, work: Path, budget: Budget) -> Candidates:
    """Risk words are erased, and the training careers debiased by the authors' loop: all of it, or its first rounds."""

    def weights(erase_scale: float, rounds: int) -> list[dict]:
        file = work / "runs" / f"uce-{erase_scale:g}-{rounds}-{budget.tries}.json"
        if not file.is_file():
            observe = _Observer(pipe, judge, file.with_suffix(""), budget)
            targets = [dict.fromkeys(classes, 1 / len(classes)) for _, classes in world.DEBIASED.values()]
            options = {"erase": erase, "erase_scale": erase_scale}
            loop = UnifiedConceptEditing.debias(pipe, observe, world.CAREERS.train, targets, rounds, **options)
            bar = tqdm(loop, f"UCE, erase x {erase_scale:g}", rounds, unit="round")
            found = [{name: dict(w) for name, w in edit.settings["debias"].items()} for edit in bar]
            write_json(file, found)
        return json.loads(file.read_text())

    def make(erase_scale: float, rounds: int, used: int) -> UnifiedConceptEditing:
        found = weights(erase_scale, rounds)[:used]
        return UnifiedConceptEditing.edit(pipe, erase=erase, debias=found[-1] if found else {}, erase_scale=erase_scale)

    erase, every = dict.fromkeys(RISK_WORDS, ""), budget.rounds
    few = min(5, every)
    tried = ((1.0, every, every), (1.0, every, few), (1.0, every, 1), (1.0, every, 0), (10.0, few, few), (10.0, few, 0))
    return {f"erase x {s:g}, {used} rounds": lambda s=s, r=r, u=used: make(s, r, u) for s, r, used in tried}


class _Observer:
    """Shares of the classes in a career's images, kept on disk in the order of asking, so that a killed loop goes on."""

    def __init__(self, pipe: LiVOPipeline, judge: PapertownJudge, folder: Path, budget: Budget):
        self.pipe, self.judge, self.folder, self.budget, self.asked = pipe, judge, folder, budget, 0

    def __call__(self, career: str) -> dict[str, float]:
        self.asked += 1
        file = self.folder / f"{self.asked:05}-{career.replace(' ', '-')}.json"
        if not file.is_file():
            sampling = {"batch": 64, "precision": self.budget.precision, "seed": self.asked}
            settings = Settings(images=self.budget.tries, group=1, **sampling)
            found, prompts, method = self.folder / "readings" / file.stem, [Prompt(f"a photo of a {career}")], Method("observed")
            for _ in evaluate(self.pipe, [method], prompts, [self.judge], found, settings):
                pass
            read = gather(found, method, prompts, [self.judge], settings)
            shares = {}
            for attribute, classes in world.DEBIASED.values():
                n = metrics.counts(seen(read, JUDGE, self.judge, attribute)[0].tolist(), classes)
                shares |= dict(zip(classes, (n / max(1, n.sum())).tolist(), strict=True))
            write_json(file, shares)
        return json.loads(file.read_text())
