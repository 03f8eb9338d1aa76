"""The paper's figures: data efficiency, convergence, and the trade-off for several (gamma_1, gamma_2)."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from livo.data.manifest import MANIFEST
from livo.papertown import tuning
from livo.papertown.build import TRAINING
from livo.papertown.runs import checkpoints, data, encoder_at, lora_at, subset, trained
from livo.pipelines.stable_diffusion import LiVOPipeline

SHARES = (0.05, 0.2, 0.5, 1.0)
GAMMAS = ((0.5, 0.1), (10.0, 0.5))
POINTS = 6  # checkpoints of a convergence curve


@dataclass
class Study:
    """One measured point: `figure` it belongs to, `series`, `x`, and its figures."""

    figure: str
    series: str
    x: float
    row: dict

    def record(self) -> dict[str, object]:
        """For benchmark.json, without the values of single prompts: the curves show means and intervals."""
        row = {name: {key: value for key, value in figure.items() if key != "per_prompt"} for name, figure in self.row.items()}
        return vars(self) | {"row": row}


def studies(
    pipe: LiVOPipeline, work: Path, steps: int, precision: str, measure, chosen: Mapping[str, tuning.Chosen]
) -> list[Study]:
    """Train what is not trained yet and measure every point on held-out prompts."""
    return [
        *_data(pipe, work, steps, precision, measure),
        *_convergence(pipe, work, steps, precision, measure, chosen),
        *_gammas(pipe, work, steps, precision, measure),
    ]


def _config(steps: int, precision: str, **changes):
    every = max(10, steps // (10 * POINTS) * 10)
    return replace(TRAINING, steps=steps, precision=precision, keep=1000, save_every=every, **changes)


def _data(pipe, work: Path, steps: int, precision: str, measure) -> Iterator[Study]:
    source = data(work, populations=False, precision=precision)
    for share in SHARES:
        folder = subset(source, work / f"pairs-{share:g}", share)
        run = trained(work, f"livo data {share:g}", _config(steps, precision), folder)
        pairs = len((folder / MANIFEST).read_text().splitlines()) // 2
        yield Study("data", "LiVO", pairs, _with_encoder(pipe, run / "value_encoder", measure, f"data-{share:g}"))


def _convergence(pipe, work: Path, steps: int, precision: str, measure, chosen) -> Iterator[Study]:
    run = trained(work, "livo data 1", _config(steps, precision), data(work, populations=False, precision=precision))
    for step, file in _spread(checkpoints(run)):
        row = _with_encoder(pipe, encoder_at(pipe, run, file), measure, f"convergence-livo-{step}")
        yield Study("convergence", "LiVO", step, row)
    for name in ("DPO", "PopAlign"):
        source = Path(chosen[name].edit.record()["source"]).parent if name in chosen else None
        for step, file in _spread(checkpoints(source)) if source else ():
            row = measure(f"convergence-{name}-{step}", lora_at(pipe, file))
            yield Study("convergence", name, step, row)


def _gammas(pipe, work: Path, steps: int, precision: str, measure) -> Iterator[Study]:
    source = data(work, populations=False, precision=precision)
    for gamma_1, gamma_2 in ((TRAINING.gamma_1, TRAINING.gamma_2), *GAMMAS):
        own = (gamma_1, gamma_2) == (TRAINING.gamma_1, TRAINING.gamma_2)
        name = "livo data 1" if own else f"livo gammas {gamma_1:g} {gamma_2:g}"
        run = trained(work, name, _config(steps, precision, gamma_1=gamma_1, gamma_2=gamma_2), source)
        row = _with_encoder(pipe, run / "value_encoder", measure, f"gammas-{gamma_1:g}-{gamma_2:g}", whole=True)
        yield Study("gammas", f"({gamma_1:g}, {gamma_2:g})", gamma_1, row)


def _spread(files: Mapping[int, Path]) -> list[tuple[int, Path]]:
    """At most `POINTS` checkpoints, evenly, the last among them."""
    steps = sorted(files)
    stride = -(-len(steps) // POINTS)
    return [(step, files[step]) for step in steps[::-1][::stride][::-1]]


def _with_encoder(pipe: LiVOPipeline, encoder, measure, name: str, whole: bool = False) -> dict:
    before = pipe.value_encoder
    try:
        if isinstance(encoder, Path):
            pipe.load_value_encoder(encoder)
        else:
            pipe.register_modules(value_encoder=encoder)
        return measure(name, whole=whole)
    finally:
        pipe.register_modules(value_encoder=before)
        gc.collect()
