"""Watching a training run: its log, curves and validation grids."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from livo.evaluation.judges import CannotRead, Judge, attribute_for, unwanted_class, verdicts, wanted_classes
from livo.evaluation.metrics import counts, d1, fair_floor, share
from livo.pipelines.mixin import ValueMixin
from livo.principles.principle import ValuePrinciple
from livo.training.config import TrainingConfig
from livo.training.loop import Record
from livo.utils.extras import installed, remedy
from livo.utils.files import replacing, sweep
from livo.utils.logs import warn_once
from livo.utils.pictures import curves, grid, save_picture, stack
from livo.utils.precision import Precision

logger = logging.getLogger(__name__)


class Log:
    """`metrics.jsonl`, curves.png and TensorBoard in the run folder, written by the main process alone."""

    def __init__(self, run: Path, main: bool):
        self.file, self.main, self.writer, self.lines = run / "metrics.jsonl", main, None, 0
        if not main:
            return
        sweep(run)
        if installed("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(run / "tensorboard"))
        else:
            warn_once(logger, "TensorBoard's files are not written, for it is not installed: %s", remedy("tensorboard"))

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


def validate(
    adapter, prompts: Sequence[str], config: TrainingConfig, precision: Precision, file: Path, judge: Judge | None = None
) -> Record:
    """A grid of the base's and the adapter's images for each prompt; with a judge, D1 and R of the adapter's."""
    pipe = adapter.pipe
    pipe.to(pipe.unet.device)
    sheets, found = [], {}
    try:
        with adapter.sampling(), precision.autocast(pipe.unet.device):
            for prompt in prompts:
                principles: list[ValuePrinciple | None] = [None]
                if adapter.name == "value_encoder":
                    first = pipe.retriever.retrieve(prompt)[0].id
                    principles += [p for p in pipe.principles if p.id == first]
                for principle in principles:
                    extra = {"value": principle} if isinstance(pipe, ValueMixin) else {}
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
                    if judge and principle:
                        found |= judged(judge, images, principle, prompt)
    finally:
        pipe.vae.to("cpu")
        pipe.text_encoder.to("cpu")
    save_picture(stack(sheets), file, {"prompts": list(prompts), "seed": config.seed})
    return found


def readable(judge: Judge, principles: Sequence[ValuePrinciple]) -> dict[str, str]:
    """Why a validation cannot measure a principle, for each that the judge cannot read. Raises ValueError where it can read none."""
    reasons = {}
    for principle in principles:
        try:
            attribute_for(judge, principle)
        except CannotRead as error:
            reasons[principle.id] = str(error)
    if principles and len(reasons) == len(principles):
        raise ValueError(f"judge: {'; '.join(dict.fromkeys(reasons.values()))}; no validation could be measured, so give another")
    return reasons


def judged(judge: Judge, images: Sequence[Image.Image], principle: ValuePrinciple, prompt: str) -> Record:
    """D1, with the floor of a fair sampler, or R of one prompt's images; empty where there is too little to measure it on."""
    try:
        attribute = attribute_for(judge, principle)
    except CannotRead:
        return {}  # `readable` said so before the run
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
