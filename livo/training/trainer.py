"""Preference training: any objective on any adapter, from a folder of preference data to weights with a training record."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, get_grad_scaler
from diffusers import DiffusionPipeline

from livo.data.manifest import PreferenceError, Sample, check_readable, read_samples
from livo.data.precompute import encode_dataset
from livo.data.preference_dataset import PreferenceDataset
from livo.evaluation.judges import Judge, judge_for
from livo.pipelines.settings import scheduler_record
from livo.pipelines.stable_diffusion import load_pipeline
from livo.training.adapters import Adapter, LoRAAdapter, ValueEncoderAdapter
from livo.training.config import TrainingConfig, check_run
from livo.training.loop import Record, training_loop
from livo.training.model_card import weights_card
from livo.training.monitor import MetricsLogger, available_tracker, unreadable, validate
from livo.training.noise import NoiseSchedule
from livo.training.sampler import PreferenceSampler, check_fields
from livo.training.step import TrainingStep, no_longer_denoises
from livo.utils.files import differing, replacing, write_json
from livo.utils.hashing import weights_hash
from livo.utils.precision import Precision, recorded, resolve, warn_if_slow
from livo.utils.versions import versions

logger = logging.getLogger(__name__)
_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")  # whose versions a run records


def train(config: TrainingConfig, *, resume: bool = False) -> Iterator[Record]:
    """Train, and yield a record every `config.log_every` steps. The result is `<output>/value_encoder` or `<output>/lora`.

    Args:
        config: The run's options.
        resume: Whether to resume the run in `config.output` from its newest checkpoint.

    Raises:
        PreferenceError: The data cannot be used.
        Diverged: Training went wrong and stopped.
        FileExistsError: The run folder holds a run and `resume` is False.
        ValueError: Options, model or judge cannot be used, or the run was started with other inputs.
    """
    run = Path(config.output)
    check_run(config, resume)
    precision = _precision(config, run)
    tracker, cpu = available_tracker(config.tracker), not torch.cuda.is_available()
    accelerator = Accelerator(cpu=cpu, log_with=tracker, project_dir=run)  # its own precision is fixed for the life of the process
    accelerator.scaler = get_grad_scaler() if precision.resolved == "fp16" else None
    samples = _samples(config, accelerator)
    pipe, resolution, judge = _backbone(config, accelerator, samples)
    adapter = _adapter(config, pipe, resolution, samples)
    cache = Path(config.cache or Path(config.data) / ".cache")
    dataset = encode_dataset(samples, pipe, resolution, cache, accelerator, source_prompts=config.reads_source_prompts)
    _put_away_encoders(pipe, keep=config.validate_every > 0)
    noise = NoiseSchedule(pipe.scheduler)
    sampler = PreferenceSampler(
        dataset, config, noise.num_timesteps, rank=accelerator.process_index, world=accelerator.num_processes
    )
    step = TrainingStep(config, adapter, noise, dataset.embed([""]), accelerator)
    training_record = _claim(run, config, dataset, adapter, precision, accelerator)
    metrics = MetricsLogger(run, accelerator, config)
    start = {name: p.detach().clone() for name, p in adapter.trainable()} if config.interpolate < 1 else {}
    prompts = list(config.validation_prompts) or list(dict.fromkeys(s.prompt for s in samples))[:4]
    last: Record = {}
    for last in training_loop(
        adapter.modules,
        sampler,
        step,
        config.loop,
        run / "checkpoints",
        autocast=partial(precision.autocast, accelerator.device),
        accelerator=accelerator,
        guard=no_longer_denoises if config.objective != "distillation" else None,  # its errors are gaps, small ones at first
    ):
        metrics.write(last)
        if accelerator.is_main_process and config.validate_every and last["step"] % config.validate_every < config.log_every:
            file = run / "validation" / f"step-{last['step']:07}.png"
            measured = validate(adapter, prompts, config, precision, file, judge)
            metrics.write({"step": last["step"], **measured})
            last = last | measured
        yield last
    metrics.close()
    _interpolate(adapter, start, config.interpolate)
    if accelerator.is_main_process:
        training_record |= {"metrics": last or metrics.last(), "weights": adapter.identifier()}
        metrics.draw()
        _save(run / adapter.name, config, adapter, training_record, samples)
    accelerator.wait_for_everyone()


def _samples(config: TrainingConfig, accelerator: Accelerator) -> list[Sample]:
    """The samples of the data folder. What can be wrong with them is found before a model is loaded."""
    samples = read_samples(config.data)
    if config.adapter == "lora":  # it reads no statement, so pairs of different directions would contradict each other
        samples = [sample for sample in samples if not sample.direction]
        if not samples:
            raise PreferenceError(
                f"{config.data} holds directions only, which a LoRA cannot tell apart: build pairs of plain statements"
            )
    check_fields(config, samples)
    check_readable(samples[accelerator.process_index :: accelerator.num_processes])
    return samples


def _backbone(
    config: TrainingConfig, accelerator: Accelerator, samples: Sequence[Sample]
) -> tuple[DiffusionPipeline, int, Judge | None]:
    """The pipeline, the resolution in pixels, and the judge of the validations."""
    pipe = load_pipeline(config.model, dtype=getattr(torch, config.backbone_dtype)).to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    judge = _judge(config, pipe, samples) if config.judge else None
    resolution = config.resolution or pipe.unet.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    return pipe, resolution, judge


def _put_away_encoders(pipe: DiffusionPipeline, keep: bool) -> None:
    """Free the device of what only encodes: everything is cached. Validation needs it again, from the CPU."""
    for name in ("vae", "text_encoder", "text_encoder_2"):
        if (module := getattr(pipe, name, None)) is not None:
            setattr(pipe, name, module.to("cpu") if keep else None)


def _interpolate(adapter: Adapter, start: Mapping[str, torch.Tensor], share: float) -> None:
    """WiSE-FT (Wortsman et al., arXiv 2109.01903): start + share (end - start). Words that were not trained keep more of their meaning.

    It is one lerp for each weight, so no library is used.
    """
    trained = dict(adapter.trainable())
    with torch.no_grad():
        for name, before in start.items():
            trained[name].lerp_(before, 1 - share)


# --- the run folder -----------------------------------------------------------------------------------------------------


def _precision(config: TrainingConfig, run: Path) -> Precision:
    """The main process decides for all. A resumed run keeps its precision, which older runs wrote into config.json."""
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


def _claim(
    run: Path,
    config: TrainingConfig,
    dataset: PreferenceDataset,
    adapter: Adapter,
    precision: Precision,
    accelerator: Accelerator,
) -> dict[str, object]:
    """Write what the run depends on into its folder, and return the training record; refuse to resume with other inputs.

    It is called after everything else has been checked, so that a run that cannot start leaves nothing behind.
    """
    inputs = {
        "data": dataset.digest(classes=config.reads_classes, source_prompts=config.reads_source_prompts),
        "backbone": weights_hash(adapter.unet),
        "scheduler": scheduler_record(adapter.pipe.scheduler),
        "processes": accelerator.num_processes,
    }
    if config.value_encoder:
        inputs["value_encoder"] = weights_hash(adapter.encoder)
    if changed := differing(run / "inputs.json", inputs):
        raise ValueError(f"{run} was started with another {', '.join(changed)}: restore it, or give another --output")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for name, content in (("inputs.json", inputs | {"precision": precision.record()}), ("config.json", asdict(config))):
            write_json(run / name, content)
    accelerator.wait_for_everyone()
    return inputs | {"precision": precision.record(), "pairs": len(dataset.pairs), "versions": versions(_PACKAGES)}


def _judge(config: TrainingConfig, pipe: DiffusionPipeline, samples: Sequence[Sample]) -> Judge:
    """The judge of the validations. Each trained principle that it cannot read gets a warning, before the run."""
    judge = judge_for(pipe, config.judge, pipe.principles, pipe.device)
    values = {sample.value for sample in samples}
    trained = [p for p in pipe.principles if values & {p.statement, *p.directions.values()}]
    for name, why in unreadable(judge, trained).items():
        logger.warning("validations do not measure %s: %s", name, why)
    return judge


def _adapter(config: TrainingConfig, pipe: DiffusionPipeline, resolution: int, samples: Sequence[Sample]) -> Adapter:
    torch.manual_seed(config.seed)  # a LoRA is drawn at random
    if config.adapter == "lora":
        adapter: Adapter = LoRAAdapter(pipe, resolution, config.lora_rank)
    else:
        statements = [sample.value for sample in samples]
        adapter = ValueEncoderAdapter(pipe, resolution, statements, config.freeze_embeddings, config.value_encoder)
    if config.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    return adapter


def _save(folder: Path, config: TrainingConfig, adapter: Adapter, record: Mapping, samples: Sequence[Sample]) -> None:
    """Write the weights with their training record and model card. The folder appears whole or not at all."""
    with replacing(folder) as temporary:
        adapter.save(temporary)
        write_json(temporary / "training.json", {"config": asdict(config), **record})
        (temporary / "README.md").write_text(weights_card(config, record, sorted({s.value for s in samples})), encoding="utf-8")
