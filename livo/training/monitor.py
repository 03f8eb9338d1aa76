"""Watching a training run: metrics, curves and validation grids."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from livo.evaluation.judges import CannotRead, Judge, attribute_for, unwanted_class, verdicts, wanted_classes
from livo.evaluation.metrics import counts, d1, fair_floor, share
from livo.pipelines.mixin import ValueMixin
from livo.principles.principle import ValuePrinciple
from livo.training.adapters import Adapter
from livo.training.config import TrainingConfig
from livo.training.loop import Record
from livo.utils.extras import installed, remedy, require
from livo.utils.files import replacing, sweep
from livo.utils.logs import warn_once
from livo.utils.pictures import curves, grid, save_picture, stack
from livo.utils.precision import Precision

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)
_CURVES = (
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
_DRAW_EVERY = 10  # records


def available_tracker(name: str) -> str | None:
    """The tracker for `Accelerator(log_with=...)`, or None. A missing TensorBoard, the default, is a warning.

    Args:
        name: tensorboard, wandb or none.

    Raises:
        MissingExtra: wandb is asked for, but not installed.
    """
    if name == "wandb":
        require("tracker wandb", "wandb")
    if name == "tensorboard" and not installed("tensorboard"):
        warn_once(logger, "TensorBoard's files are not written, because it is not installed: %s", remedy("tensorboard"))
        return None
    return None if name == "none" else name


class MetricsLogger:
    """Writes records to metrics.jsonl, curves.png and the accelerator's tracker; the main process alone writes.

    metrics.jsonl is our own, next to the tracker: a tracker can only append, while a resumed run first cuts off the records that a
    killed run wrote after its last checkpoint. So the file equals that of an uninterrupted run.

    Args:
        run: The run folder.
        accelerator: Made with `log_with=available_tracker(config.tracker)` and `project_dir=run`.
        config: The run's options, for the tracker.
    """

    def __init__(self, run: Path, accelerator: Accelerator, config: TrainingConfig | None = None):
        self.file, self.accelerator, self.lines = run / "metrics.jsonl", accelerator, 0
        if not accelerator.is_main_process:
            return
        sweep(run)
        trackers = [str(name) for name in accelerator.log_with]
        project = "tensorboard" if "tensorboard" in trackers else "livo"  # TensorBoard's files go to <run>/<project>
        wandb = {"name": run.name, "dir": str(run), "config": asdict(config) if config else {}}
        accelerator.init_trackers(project, init_kwargs={"wandb": wandb})

    def write(self, record: Record) -> None:
        """Add a record.

        Args:
            record: Numbers by name, among them `step`.
        """
        if not self.accelerator.is_main_process:
            return
        if self.lines == 0:  # cut off what a killed run wrote after its checkpoint, perhaps half a line
            earlier = [row for row in self.rows() if row["step"] < record["step"]]
            with replacing(self.file) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in earlier))
        self.lines += 1
        with self.file.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.accelerator.log(record, step=record["step"])
        if self.lines % _DRAW_EVERY == 0:
            self.draw()

    def rows(self) -> list[Record]:
        """All whole lines of metrics.jsonl."""
        lines = self.file.read_text().split("\n") if self.file.is_file() else [""]
        return [json.loads(line) for line in lines[:-1]]

    def last(self) -> Record:
        """The last record, or an empty one."""
        return (self.rows() or [{}])[-1]

    def draw(self) -> None:
        """Draw curves.png from metrics.jsonl."""
        rows = self.rows()
        series = {n: ([r["step"] for r in rows if n in r], [r[n] for r in rows if n in r]) for n in _CURVES}
        if rows:
            curves({name: xy for name, xy in series.items() if xy[0]}, self.file.with_name("curves.png"))

    def close(self) -> None:
        """Finish the tracker's files."""
        for tracker in self.accelerator.trackers:  # not `end_training`, which would also destroy the process group
            tracker.finish()


def validate(
    adapter: Adapter,
    prompts: Sequence[str],
    config: TrainingConfig,
    precision: Precision,
    file: Path,
    judge: Judge | None = None,
) -> Record:
    """Draw a grid of images of the base and of the adapter for each prompt; with a judge, return D1 and R of the adapter's images.

    Args:
        adapter: What is trained.
        prompts: The prompts of the grid.
        config: The run's options: number of images and seed.
        precision: The precision that images are generated in.
        file: Where the grid is saved.
        judge: Reads the images; None measures nothing.
    """
    pipe = adapter.pipe
    pipe.to(pipe.unet.device)
    sheets, metrics = [], {}
    try:
        with adapter.sampling(), precision.autocast(pipe.unet.device):
            for prompt in prompts:
                principles: list[ValuePrinciple | None] = [None]
                if adapter.name == "value_encoder":
                    first = pipe.retriever.retrieve(prompt)[0].id
                    principles += [p for p in pipe.principles if p.id == first]
                for principle in principles:
                    images = _images(pipe, prompt, principle, config)
                    base = "base" if len(principles) > 1 else adapter.name
                    sheets.append(grid(images, min(len(images), 8), title=f"{principle.id if principle else base}: {prompt}"))
                    if judge and principle:
                        metrics |= validation_metrics(judge, images, principle, prompt)
    finally:
        pipe.vae.to("cpu")
        pipe.text_encoder.to("cpu")
    save_picture(stack(sheets), file, {"prompts": list(prompts), "seed": config.seed})
    return metrics


def _images(pipe, prompt: str, principle: ValuePrinciple | None, config: TrainingConfig) -> list[Image.Image]:
    return pipe(
        prompt,
        num_images_per_prompt=config.validation_images,
        num_inference_steps=20,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(config.seed),
        **({"value": principle} if isinstance(pipe, ValueMixin) else {}),
    ).images


def unreadable(judge: Judge, principles: Sequence[ValuePrinciple]) -> dict[str, str]:
    """The principles that a judge cannot read, by id, each with the reason.

    Args:
        judge: The judge of the validations.
        principles: The principles that are trained.

    Raises:
        ValueError: It can read none of them.
    """
    reasons = {}
    for principle in principles:
        try:
            attribute_for(judge, principle)
        except CannotRead as error:
            reasons[principle.id] = str(error)
    if principles and len(reasons) == len(principles):
        raise ValueError(
            f"judge: {'; '.join(dict.fromkeys(reasons.values()))}; no validation could be measured, so give another judge"
        )
    return reasons


def validation_metrics(judge: Judge, images: Sequence[Image.Image], principle: ValuePrinciple, prompt: str) -> Record:
    """D1 with the floor of a fair sampler (debias), or R (detoxify), of the images of one prompt; empty if they are too few.

    Args:
        judge: Reads the images.
        images: The images of the prompt.
        principle: The value that they were generated with.
        prompt: Their prompt.
    """
    try:
        attribute = attribute_for(judge, principle)
    except CannotRead:
        return {}  # `unreadable` gave a warning before the run
    read = verdicts(judge, images, [prompt] * len(images))
    seen = [verdict.classes[attribute] for verdict in read if not verdict.fault]
    broken = len(images) - len(seen)
    found: Record = {f"broken images, {principle.id}, {prompt}": broken} if broken else {}
    if principle.kind == "debias":
        n = counts(seen, wanted_classes(principle))
        if n.sum() > 1:
            name = f"D1 {principle.id}, {prompt}"
            found |= {name: d1(n), f"{name}, floor": fair_floor(d1, len(n), int(n.sum()))}
    elif seen:
        found[f"R {principle.id}, {prompt}"] = share([name == unwanted_class(principle) for name in seen])
    return found
