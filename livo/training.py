"""Preference training: any objective on any adapter, from a folder of preference data to weights with a record of how they came about."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from livo import objectives
from livo.adapters import Condition, LoRAAdapter, ValueEncoderAdapter, encode_texts
from livo.conditioning import value_text
from livo.config import TrainingConfig
from livo.environment import versions
from livo.files import differing, replacing, sweep, write_json
from livo.judges import load_judge
from livo.metrics import counts, d1, share
from livo.noising import Noising
from livo.objectives import squared_error
from livo.optimising import Record, optimise
from livo.pictures import curves, grid, save_png, stack
from livo.pipeline import LiVOPipeline, LiVOXLPipeline
from livo.preferences import LatentCache, PreferenceError, Sample, module_hash, pairs, read
from livo.principles import ValuePrinciple
from livo.publishing import weights_card

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")  # whose versions a run records
_LOOK = 50  # steps for which one look at the hinges holds
_BUSY = 0.65  # share of pushing hinges from which a look costs more than it saves: 0.77 on a CPU, 0.5 where backward is cheap
_LOST = 4.0  # times the reference's error on aligned images: a model that is so far off no longer denoises


def train(config: TrainingConfig, *, resume: bool = False) -> Iterator[Record]:
    """Train as `config` says; yield a record every `log_every` steps. The result is `<output>/value_encoder` or `<output>/lora`.

    Raises:
        PreferenceError: the data cannot be used. Diverged: training went wrong and stopped.
        FileExistsError: the run folder holds a run and `resume` is False.
    """
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("mixed_precision is fp16, which needs a GPU: choose bf16 or no")
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=not torch.cuda.is_available())
    run = Path(config.output)
    _may_start(run, config, resume)
    samples = read(config.data)
    if config.adapter == "lora":  # it reads no statement, so pairs that tell directions apart would contradict each other
        samples = [sample for sample in samples if not sample.direction]
    check_sources(config, samples)
    pipe = load_pipeline(config).to(accelerator.device)
    resolution = config.resolution or pipe.unet.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    adapter = _adapter(config, pipe, resolution, samples)
    if config.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    latents, condition = _cached(config, pipe, resolution, samples, accelerator)
    batches = Batches(config, samples, latents, accelerator.process_index, accelerator.num_processes)
    loss = Loss(config, pipe, adapter, batches, condition, accelerator)
    inputs = {"data": batches.digest, "backbone": _backbone_hash(adapter), "processes": accelerator.num_processes}
    if config.value_encoder:
        inputs["value_encoder"] = module_hash(adapter.encoder)
    record = inputs | {"pairs": len(batches.pairs), "versions": versions(_PACKAGES)}
    _claim(run, config, inputs, accelerator)
    log = Log(run, accelerator.is_main_process)
    training = optimise(
        adapter.modules,
        loss,
        steps=config.steps,
        lr=config.lr,
        checkpoints=run / "checkpoints",
        keep=config.keep,
        save_every=config.save_every,
        log_every=config.log_every,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        accumulation=config.accumulation,
        ema=config.ema,
        optimizer=config.optimizer,
        accelerator=accelerator,
        guard=partial(_lost, warmup=config.warmup),
    )
    start = {name: p.detach().clone() for name, p in adapter.trainable()} if config.interpolate < 1 else {}
    prompts = list(config.validation_prompts) or list(dict.fromkeys(s.prompt for s in samples))[:4]
    last: Record = {}
    for last in training:
        due = config.validate_every and last["step"] % config.validate_every < config.log_every
        log.write(last)
        if due and accelerator.is_main_process:
            found = validate(adapter, prompts, config, run / "validation" / f"step-{last['step']:07}.png")
            log.write({"step": last["step"], **found})
            last = last | found
        yield last
    trained = dict(adapter.trainable())
    with torch.no_grad():  # WiSE-FT (Wortsman et al., arXiv 2109.01903): what was there before holds where training never looked
        for name, before in start.items():
            trained[name].lerp_(before, 1 - config.interpolate)
    if accelerator.is_main_process:
        record["metrics"] = last or log.last()
        _finish(run, config, adapter, record, samples)
    accelerator.wait_for_everyone()


def load_pipeline(config: TrainingConfig) -> DiffusionPipeline:
    dtype = getattr(torch, config.backbone_dtype)
    xl = config.model != "papertown" and "XL" in DiffusionPipeline.load_config(config.model)["_class_name"]
    pipe = (LiVOXLPipeline if xl else LiVOPipeline).from_pretrained(config.model, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- data ---------------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """2B rows: B winners, then the B losers of the same pairs, which share noise and timestep.

    The backbone is told `prompts`; a value encoder reads `read`; `made_from` are the aligned images' own prompts.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    prompts: list[str]
    values: list[str]
    read: list[str]
    made_from: list[str]


class Batches:
    """Which pairs a step sees, and with which noise: a function of the seed and the step alone, however many processes share it.

    The pairs come in a new order each epoch. Position p in that endless list has its own generator, so a step of two processes sees
    what a step of one process with twice the batch sees.
    """

    def __init__(self, config: TrainingConfig, samples: Sequence[Sample], latents: torch.Tensor, rank: int = 0, world: int = 1):
        self.config, self.samples, self.latents, self.rank, self.world = config, samples, latents, rank, world
        self.pairs = pairs(samples)
        content = [
            [s.prompt, s.value, s.label, s.scene] + [s.kind] * config.reads_classes + [s.made_from] * config.reads_sources
            for s in samples
        ]
        digest = hashlib.sha256(json.dumps(content).encode() + latents.numpy().tobytes())
        self.digest = digest.hexdigest()[:16]
        self._alike: dict[tuple[str, str], list[str]] = defaultdict(list)  # prompts of winners by statement and class
        for winner, _ in self.pairs:
            self._alike[samples[winner].value, samples[winner].kind].append(samples[winner].prompt)
        self._order: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def at(self, step: int, micro: int, timesteps: int) -> Batch:
        """The batch of this process; `timesteps` are drawn from 0..timesteps - 1."""
        winners, losers, noise, t, prompts, values, read, made_from = ([] for _ in range(8))
        shares = torch.tensor([self.config.contrary_prompt, self.config.prompt_swap])
        for winner, loser, side, dropped, generator in self.draws(step, micro):
            sample = self.samples[winner]
            winners.append(self.latents[winner, side])
            losers.append(self.latents[loser, side])
            t.append(torch.randint(timesteps, (), generator=generator))
            noise.append(torch.randn(self.latents.shape[2:], generator=generator))
            values.append(sample.value)
            contrary, swapped = torch.rand(2, generator=generator) < shares
            told, heard = sample.prompt, sample.prompt
            if sample.kind and contrary:
                told = self.samples[loser].made_from
            if sample.kind and swapped:
                alike = self._alike[sample.value, sample.kind]
                heard = alike[int(torch.randint(len(alike), (), generator=generator))]
            prompts.append("" if dropped else told)
            read.append("" if dropped else heard)
            made_from.append(sample.made_from)
        images, noise, t = torch.stack(winners + losers), torch.stack(noise).repeat(2, 1, 1, 1), torch.stack(t).repeat(2)
        return Batch(images, noise, t, prompts, values, read, made_from)

    def draws(self, step: int, micro: int) -> Iterator[tuple[int, int, int, bool, torch.Generator]]:
        """Aligned and violating sample, whether mirrored, whether without its prompt, and the generator for the rest."""
        config = self.config
        block = (step * config.accumulation + micro) * self.world + self.rank
        for position in range(block * config.batch, (block + 1) * config.batch):
            generator = torch.Generator().manual_seed(_mixed(config.seed, position))
            winner, others = self.pairs[self._index(position)]
            u = torch.rand(3, generator=generator).tolist()
            loser = others[int(u[0] * len(others))]
            yield winner, loser, int(config.flip and u[1] < 0.5), u[2] < config.caption_dropout, generator

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.pairs))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mixed(self.config.seed, epoch))
            self._order = (epoch, torch.randperm(len(self.pairs), generator=generator))
        return int(self._order[1][place])


def check_sources(config: TrainingConfig, samples: Sequence[Sample]) -> None:
    """Whether the pairs have the classes, and the prompts that their images were made from, that the run reads.

    Raises:
        PreferenceError: they do not.
    """
    paired = pairs(samples)
    readers: dict[str, list[Sample]] = {}
    if config.objective == "distillation":
        readers["distillation"] = [samples[winner] for winner, _ in paired]
    directed = [losers for winner, losers in paired if samples[winner].kind]
    for name in ("contrary_prompt", "prompt_swap"):
        if getattr(config, name) and not directed:
            raise PreferenceError(
                f"{name} is {getattr(config, name)}, but no aligned image of {config.data} has a class: make it 0"
            )
    if config.contrary_prompt:
        readers["contrary_prompt"] = [samples[loser] for losers in directed for loser in losers]
    for reader, wanted in readers.items():
        for sample in wanted:
            if not sample.made_from:
                raise PreferenceError(
                    f"{sample.where}: no image_prompt, the prompt that the image was made from, which {reader} reads: "
                    "build the data with `livo build`, or leave it out"
                )


def _mixed(seed: int, number: int) -> int:
    """A seed for the `number`-th thing that is drawn: streams of different seeds start far apart."""
    return (seed * 0x9E3779B97F4A7C15 + number) % 2**63


def _cached(config, pipe, resolution, samples, accelerator) -> tuple[torch.Tensor, dict[str, Condition]]:
    """Latents of all samples, and the condition of every prompt: computed once, shared between runs and processes."""
    folder = Path(config.cache or Path(config.data) / ".cache")
    dtype = pipe.vae.dtype
    cache = LatentCache(folder, pipe.vae.float(), resolution)  # in half precision SDXL's VAE overflows
    if accelerator.is_main_process and folder.is_dir():
        sweep(folder)
    accelerator.wait_for_everyone()
    cache.fill(samples, rank=accelerator.process_index, world=accelerator.num_processes)
    sources = {sample.made_from for sample in samples if config.reads_sources}
    texts = ["", *sorted({sample.prompt for sample in samples} | sources - {""})]
    encoders = [module for name in ("text_encoder", "text_encoder_2") if (module := getattr(pipe, name, None)) is not None]
    key = hashlib.sha256(json.dumps([texts, *map(module_hash, encoders)]).encode()).hexdigest()[:32]
    file = folder / f"texts-{key}.safetensors"
    if accelerator.is_main_process and not file.is_file():
        parts = [encode_texts(pipe, texts[i : i + 64], accelerator.device) for i in range(0, len(texts), 64)]
        tensors = {"embeds": torch.cat([part.embeds.cpu() for part in parts])}
        if parts[0].pooled is not None:
            tensors["pooled"] = torch.cat([part.pooled.cpu() for part in parts])
        with replacing(file) as temporary:
            save_file(tensors, temporary)
    accelerator.wait_for_everyone()
    stored = Condition(*(load_file(file).get(name) for name in ("embeds", "pooled")))
    condition = {text: stored[i : i + 1] for i, text in enumerate(texts)}
    latents = cache.load(samples)
    for name in ("vae", "text_encoder", "text_encoder_2"):  # not needed again but to look at pictures
        if config.validate_every and hasattr(pipe, name):
            getattr(pipe, name).to("cpu", dtype)
        elif hasattr(pipe, name):
            setattr(pipe, name, None)
    return latents, condition


# --- loss ---------------------------------------------------------------------------------------------------------------


def objective_function(config: TrainingConfig, average=None) -> objectives.Objective:
    bounded = partial(objectives.livo, beta=config.beta, alpha=config.alpha, gamma_1=config.gamma_1, gamma_2=config.gamma_2)
    population = partial(objectives.popalign, centre=config.centre, average=average)
    if config.objective == "livo":
        return bounded
    if config.objective == "diffusion_dpo":
        return partial(objectives.diffusion_dpo, beta=config.beta)
    if config.objective == "distillation":
        return partial(objectives.distillation, beta=config.beta)
    if config.objective == "popalign":
        return partial(population, beta=config.beta)
    return objectives.mixed((1.0, bounded), (config.popalign_weight, partial(population, beta=config.popalign_beta)))


@dataclass
class _Rows:
    """Images of a batch, noised, with all that the UNet is told of them; `unconditional` is its prediction where guidance is."""

    noisy: torch.Tensor
    target: torch.Tensor
    t: torch.Tensor
    told: torch.Tensor
    condition: Condition
    texts: list[str]
    unconditional: torch.Tensor | None

    def at(self, rows: torch.Tensor) -> _Rows:
        texts = [self.texts[i] for i in rows.tolist()]
        unconditional = None if self.unconditional is None else self.unconditional[rows]
        tensors = (x[rows] for x in (self.noisy, self.target, self.t, self.told))
        return _Rows(*tensors, self.condition[rows], texts, unconditional)


class Loss:
    """`optimise`'s loss: errors of the adapter and of the frozen backbone on a batch, through the objective.

    A hinge beyond its bound has no gradient. With LiVO's objective, as long as many are idle, the batch is first looked at without
    one, and only the images whose hinge still pushes go through the UNet again with one. The mathematics is the same. How many push is
    found out every `_LOOK` steps, counted from a checkpoint, so that a resumed run takes the same way.
    """

    def __init__(self, config, pipe, adapter, batches: Batches, condition: dict[str, Condition], accelerator: Accelerator):
        self.config, self.adapter, self.batches, self.condition = config, adapter, batches, condition
        self.device = accelerator.device
        self.noising = Noising(pipe.scheduler)
        average = partial(accelerator.reduce, reduction="mean") if accelerator.num_processes > 1 else None
        self.objective = objective_function(config, average)
        self.idle = False

    def __call__(self, step: int, micro: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = self.batches.at(step, micro, self.noising.steps)
        count = len(batch.prompts)
        t = batch.t.to(self.device)
        noisy, target = self.noising(batch.latents.to(self.device), batch.noise.to(self.device), t)
        condition = self._condition(batch.prompts).repeat(2)
        texts = [value_text(value, prompt) for value, prompt in zip(batch.values, batch.read, strict=True)] * 2
        told = self.noising.timestep(t)
        if self.config.objective == "distillation":
            target = self.adapter.reference(noisy, told, self._condition(batch.made_from).repeat(2))
        rows = _Rows(noisy, target, t, told, condition, texts, self._unconditional(noisy, told))
        frozen = self.adapter.reference(noisy, told, condition)
        reference = self._error(frozen, rows)
        look = step % self.config.save_every % _LOOK == 0
        if self.config.objective == "livo" and (self.idle or look):
            with torch.no_grad():
                predicted = self._predict(rows)
                error = self._error(predicted, rows)
                _, statistics = self.objective(error[:count], reference[:count], error[count:], reference[count:])
            pushing = torch.cat([statistics["winner_active"], statistics["loser_active"]]).nonzero().flatten()
            self.idle = len(pushing) < _BUSY * 2 * count
            if len(pushing):
                some = rows.at(pushing)
                error = error.index_copy(0, pushing, self._error(self._predict(some), some))
            else:  # nothing to learn from, but the caller goes backward all the same
                error = error + 0.0 * next(p for _, p in self.adapter.trainable()).sum()
        else:
            predicted = self._predict(rows)
            error = self._error(predicted, rows)
        losses, statistics = self.objective(error[:count], reference[:count], error[count:], reference[count:])
        errors = {
            "error": error[:count].detach().mean(),
            "reference_error": reference[:count].mean(),
            "drift": squared_error(predicted.detach(), frozen).mean(),
        }
        return losses.mean(), errors | {name: values.mean() for name, values in statistics.items()}

    def _predict(self, rows: _Rows) -> torch.Tensor:
        return self.adapter.predict(rows.noisy, rows.told, rows.condition, rows.texts)

    def _error(self, predicted: torch.Tensor, rows: _Rows) -> torch.Tensor:
        if rows.unconditional is not None:
            predicted = rows.unconditional + self.config.guidance * (predicted.float() - rows.unconditional)
        weight = self.noising.min_snr(rows.t, self.config.min_snr) if self.config.min_snr else 1.0
        return weight * squared_error(predicted, rows.target)

    def _unconditional(self, noisy: torch.Tensor, told: torch.Tensor) -> torch.Tensor | None:
        if self.config.guidance == 1:
            return None
        empty = self._condition([""]).repeat(len(noisy))
        return self.adapter.reference(noisy, told, empty).float()

    def _condition(self, prompts: Sequence[str]) -> Condition:
        rows = [self.condition[prompt] for prompt in prompts]
        pooled = None if rows[0].pooled is None else torch.cat([row.pooled for row in rows])
        return Condition(torch.cat([row.embeds for row in rows]), pooled).to(self.device)


def _lost(record: Record, warmup: int) -> str | None:
    if record["error"] > _LOST * record["reference_error"]:
        return f"the error on aligned images is {record['error'] / record['reference_error']:.1f} times the frozen backbone's"
    return None


# --- watching -----------------------------------------------------------------------------------------------------------


class Log:
    """`metrics.jsonl`, curves.png and TensorBoard in the run folder, written by the main process alone."""

    def __init__(self, run: Path, main: bool):
        self.file, self.main, self.writer, self.lines = run / "metrics.jsonl", main, None, 0
        if not main:
            return
        sweep(run)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(run / "tensorboard"))
        except ImportError:
            print("TensorBoard is not installed (pip install livo[train]): metrics.jsonl and curves.png are written all the same")

    def write(self, record: Record) -> None:
        if not self.main:
            return
        if self.lines == 0:  # what a killed run logged beyond its checkpoint, half a line perhaps, is cut off
            kept = [row for row in self.rows() if row["step"] < record["step"]]
            with replacing(self.file) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.lines += 1
        with self.file.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.writer:
            for name, value in record.items():
                self.writer.add_scalar(name, value, record["step"])
        if self.lines % 10 == 0:
            self.draw()

    def rows(self) -> list[Record]:
        lines = self.file.read_text().split("\n") if self.file.is_file() else [""]
        return [json.loads(line) for line in lines[:-1]]

    def last(self) -> Record:
        return (self.rows() or [{}])[-1]

    def draw(self) -> None:
        rows = self.rows()
        names = (
            "loss",
            "accuracy",
            "winner_active",
            "loser_active",
            "winner_gain",
            "loser_gain",
            "loser_push",
            "drift",
            "grad_norm",
        )
        series = {n: ([r["step"] for r in rows if n in r], [r[n] for r in rows if n in r]) for n in names}
        if rows:
            curves({name: xy for name, xy in series.items() if xy[0]}, self.file.with_name("curves.png"))


def validate(adapter, prompts: Sequence[str], config: TrainingConfig, file: Path) -> Record:
    """A grid of the base's and the adapter's images for each prompt; with a judge, D1 and R of the adapter's."""
    judge = None
    if config.judge:
        judge = load_judge(config.judge)
    pipe = adapter.pipe
    pipe.to(pipe.unet.device)
    sheets, found = [], {}
    try:
        with adapter.sampling(), torch.autocast(pipe.unet.device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            for prompt in prompts:
                principles: list[ValuePrinciple | None] = [None]
                if adapter.name == "value_encoder":
                    wanted = {p.id for d in [pipe.retriever.retrieve(prompt)] for p in pipe.principles if d[0].id == p.id}
                    principles += [p for p in pipe.principles if p.id in wanted]
                for principle in principles:
                    extra = {"value": principle} if isinstance(pipe, LiVOPipeline) else {}
                    images = pipe(
                        prompt,
                        num_images_per_prompt=config.validation_images,
                        num_inference_steps=20,
                        guidance_scale=5.0,
                        generator=torch.Generator().manual_seed(config.seed),
                        **extra,
                    ).images
                    title = (
                        f"{principle.id}: {prompt}" if principle else f"{'base' if len(principles) > 1 else adapter.name}: {prompt}"
                    )
                    sheets.append(grid(images, min(len(images), 8), title=title))
                    if judge and principle and principle.construct:
                        found |= _judged(judge, images, principle, prompt)
    finally:
        pipe.vae.to("cpu")
        pipe.text_encoder.to("cpu")
    save_png(stack(sheets), file, {"prompts": list(prompts), "seed": config.seed})
    return found


def _judged(judge, images, principle: ValuePrinciple, prompt: str) -> Record:
    classes = tuple(principle.attributes)
    seen = [reading[principle.construct.judge] for reading in judge.read(images)]
    if principle.kind == "debias":
        return {f"D1 {principle.id}, {prompt}": d1(counts(seen, classes))}
    return {f"R {principle.id}, {prompt}": share([c == classes[0] for c in seen])}


# --- the run folder -----------------------------------------------------------------------------------------------------


def _may_start(run: Path, config: TrainingConfig, resume: bool) -> None:
    file = run / "config.json"
    if not file.is_file():
        if resume:
            raise FileNotFoundError(f"{run} holds no run to resume; leave --resume out")
        return
    if not resume:
        raise FileExistsError(f"{run} holds a run already: go on with --resume latest, or give another --output")
    if changed := [name for name in config.changed(json.loads(file.read_text())) if name != "output"]:
        raise ValueError(f"{run} was started with another {', '.join(changed)}: resume it as it was, or give another --output")


def _claim(run: Path, config: TrainingConfig, inputs: dict, accelerator: Accelerator) -> None:
    """Write down what the run depends on, or refuse to go on from something else. Nothing is left by a run that could not start."""
    if changed := differing(run / "inputs.json", inputs):
        raise ValueError(f"{run} was started with another {', '.join(changed)}: restore it, or give another --output")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for name, content in (("inputs.json", inputs), ("config.json", asdict(config))):
            write_json(run / name, content)
    accelerator.wait_for_everyone()


def _adapter(config: TrainingConfig, pipe: DiffusionPipeline, resolution: int, samples: Sequence[Sample]):
    torch.manual_seed(config.seed)  # a LoRA is drawn at random
    if config.adapter == "lora":
        return LoRAAdapter(pipe, resolution, config.lora_rank)
    statements = [sample.value for sample in samples]
    return ValueEncoderAdapter(pipe, resolution, statements, config.freeze_embeddings, config.value_encoder)


def _finish(run: Path, config: TrainingConfig, adapter, record: dict, samples: Sequence[Sample]) -> None:
    Log(run, False).draw()
    folder = run / adapter.name
    with replacing(folder) as temporary:
        adapter.save(temporary)
        write_json(temporary / "training.json", {"config": asdict(config), **record})
        (temporary / "README.md").write_text(weights_card(config, record, sorted({s.value for s in samples})), encoding="utf-8")


def _backbone_hash(adapter) -> str:
    return (
        module_hash(adapter.unet)
        if adapter.name == "value_encoder"
        else "UNet with an untrained LoRA: " + module_hash(adapter.unet)
    )
