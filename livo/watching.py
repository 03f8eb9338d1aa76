"""Watching a training run: its log, curves and validation grids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from livo.config import TrainingConfig
from livo.files import replacing, sweep
from livo.judges import Judge
from livo.metrics import counts, d1, share
from livo.mixin import ValueMixin
from livo.optimising import Record
from livo.pictures import curves, grid, save_picture, stack
from livo.precision import Precision
from livo.principles import ValuePrinciple


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
                    if judge and principle and principle.construct:
                        found |= _judged(judge, images, principle, prompt)
    finally:
        pipe.vae.to("cpu")
        pipe.text_encoder.to("cpu")
    save_picture(stack(sheets), file, {"prompts": list(prompts), "seed": config.seed})
    return found


def _judged(judge, images, principle: ValuePrinciple, prompt: str) -> Record:
    seen = [reading[principle.construct.judge] for reading in judge.read(images)]
    if principle.kind == "debias":
        return {f"D1 {principle.id}, {prompt}": d1(counts(seen, tuple(principle.attributes)))}
    return {f"R {principle.id}, {prompt}": share([c == principle.unwanted[0] for c in seen])}
