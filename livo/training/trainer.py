"""Preference training: any objective on any adapter, from a folder of preference data to weights with a record of how they came about."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from diffusers import DiffusionPipeline

from livo.data.preference_dataset import PreferenceError, Sample, check_pictures, read
from livo.evaluation.judges import Judge, judge_for
from livo.pipelines.settings import scheduler_record
from livo.pipelines.stable_diffusion import load_pipeline
from livo.training.adapters import LoRAAdapter, ValueEncoderAdapter
from livo.training.config import TrainingConfig, check_run
from livo.training.loop import Record, optimise
from livo.training.model_card import weights_card
from livo.training.monitor import Log, readable, validate
from livo.training.sampler import Batches, cached, check_sources
from livo.training.step import Loss, lost
from livo.utils.files import differing, replacing, write_json
from livo.utils.hashing import weights_hash
from livo.utils.precision import Precision, recorded, resolve, warn_if_slow
from livo.utils.versions import versions

logger = logging.getLogger(__name__)
_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")  # whose versions a run records


def train(config: TrainingConfig, *, resume: bool = False) -> Iterator[Record]:
    """Train as `config` says; yield a record every `log_every` steps. The result is `<output>/value_encoder` or `<output>/lora`.

    Raises:
        PreferenceError: the data cannot be used. Diverged: training went wrong and stopped.
        FileExistsError: the run folder holds a run and `resume` is False.
    """
    run = Path(config.output)
    check_run(config, resume)
    precision = _precision(config, run)
    accelerator = Accelerator(mixed_precision=precision.mixed, cpu=not torch.cuda.is_available())
    samples = read(config.data)
    if config.adapter == "lora":  # it reads no statement, so pairs that tell directions apart would contradict each other
        samples = [sample for sample in samples if not sample.direction]
        if not samples:
            raise PreferenceError(
                f"{config.data} holds directions alone, which a LoRA cannot tell apart: build pairs of plain statements"
            )
    check_sources(config, samples)
    check_pictures(samples[accelerator.process_index :: accelerator.num_processes])
    pipe = load_pipeline(config.model, dtype=getattr(torch, config.backbone_dtype)).to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    judge = _judge(config, pipe, samples) if config.judge else None
    resolution = config.resolution or pipe.unet.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    adapter = _adapter(config, pipe, resolution, samples)
    if config.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    latents, condition = cached(config, pipe, resolution, samples, accelerator)
    batches = Batches(config, samples, latents, accelerator.process_index, accelerator.num_processes)
    loss = Loss(config, pipe, adapter, batches, condition, accelerator)
    inputs = {
        "data": batches.digest,
        "backbone": weights_hash(adapter.unet),
        "scheduler": scheduler_record(pipe.scheduler),
        "processes": accelerator.num_processes,
    }
    if config.value_encoder:
        inputs["value_encoder"] = weights_hash(adapter.encoder)
    record = inputs | {"precision": precision.record(), "pairs": len(batches.pairs), "versions": versions(_PACKAGES)}
    _claim(run, config, inputs, precision, accelerator)
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
        autocast=accelerator.autocast,
        accelerator=accelerator,
        guard=lost if config.objective != "distillation" else None,  # whose errors are gaps, small ones at first
    )
    start = {name: p.detach().clone() for name, p in adapter.trainable()} if config.interpolate < 1 else {}
    prompts = list(config.validation_prompts) or list(dict.fromkeys(s.prompt for s in samples))[:4]
    last: Record = {}
    for last in training:
        due = config.validate_every and last["step"] % config.validate_every < config.log_every
        log.write(last)
        if due and accelerator.is_main_process:
            found = validate(adapter, prompts, config, precision, run / "validation" / f"step-{last['step']:07}.png", judge)
            log.write({"step": last["step"], **found})
            last = last | found
        yield last
    trained = dict(adapter.trainable())
    with torch.no_grad():  # WiSE-FT (Wortsman et al., arXiv 2109.01903): what was there before holds where training never looked
        for name, before in start.items():
            trained[name].lerp_(before, 1 - config.interpolate)
    if accelerator.is_main_process:
        record |= {"metrics": last or log.last(), "weights": adapter.identifier()}
        _finish(run, config, adapter, record, samples)
    accelerator.wait_for_everyone()


# --- the run folder -----------------------------------------------------------------------------------------------------


def _precision(config: TrainingConfig, run: Path) -> Precision:
    """The main process decides for all; a run that is resumed keeps its own, which older ones wrote into config.json."""
    cuda = torch.cuda.is_available()
    state, device = PartialState(cpu=not cuda), "cuda" if cuda else "cpu"
    file = next((run / name for name in ("inputs.json", "config.json") if recorded(run / name)), None)
    chosen = [resolve(config.precision, device, fp16=False, file=file) if state.is_main_process else None]
    precision = broadcast_object_list(chosen)[0]
    if precision.resolved == "fp16" and not cuda:
        raise ValueError("precision is fp16, which needs a GPU in training: choose auto, bf16 or fp32")
    if config.backbone_dtype == "float16" and precision.resolved == "fp32":
        raise ValueError(
            "backbone_dtype is float16 and precision auto is fp32 here: give precision bf16, or backbone_dtype float32"
        )
    if config.backbone_dtype != "float32":
        warn_if_slow({"bfloat16": "bf16", "float16": "fp16"}[config.backbone_dtype], device)
    return precision


def _claim(run: Path, config: TrainingConfig, inputs: dict, precision: Precision, accelerator: Accelerator) -> None:
    """Write down what the run depends on, or refuse to go on from something else. Nothing is left by a run that could not start."""
    if changed := differing(run / "inputs.json", inputs):
        raise ValueError(f"{run} was started with another {', '.join(changed)}: restore it, or give another --output")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for name, content in (("inputs.json", inputs | {"precision": precision.record()}), ("config.json", asdict(config))):
            write_json(run / name, content)
    accelerator.wait_for_everyone()


def _judge(config: TrainingConfig, pipe: DiffusionPipeline, samples: Sequence[Sample]) -> Judge:
    """The judge of the validations. What it cannot read of the principles that are trained gets a warning, before the run."""
    judge = judge_for(pipe, config.judge, pipe.principles, pipe.device)
    values = {sample.value for sample in samples}
    trained = [p for p in pipe.principles if values & {p.statement, *p.directions.values()}]
    for name, why in readable(judge, trained).items():
        logger.warning("validations do not measure %s: %s", name, why)
    return judge


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
