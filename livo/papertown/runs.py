"""Training runs on Papertown for benchmarks: data and weights are made once, and a run that was interrupted goes on."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open

from livo.baselines import WeightEdit
from livo.data import build_folder, builder
from livo.data.manifest import MANIFEST
from livo.evaluation.judges import load_judge
from livo.papertown.build import GENERATION
from livo.pipelines.stable_diffusion import LiVOPipeline
from livo.principles.construction import Construct
from livo.principles.principle import bundled_principles, load_principles
from livo.training.config import TrainingConfig
from livo.training.trainer import train
from livo.utils.files import replacing
from livo.utils.progress import follow_build, follow_training
from livo.value_encoder.encoder import ValueEncoder


def data(work: Path, populations: bool, precision: str = "auto") -> Path:
    """Preference data of the bundled principles, as pairs or, half as many, as PopAlign's populations."""
    folder = work / ("populations" if populations else "pairs")
    if not (folder / MANIFEST).is_file():
        principles = load_principles(bundled_principles())
        if populations:
            principles = [replace(p, construct=_half(p.construct)) if p.kind == "debias" else p for p in principles]
        pipe = LiVOPipeline.from_pretrained("papertown")
        pipe.set_progress_bar_config(disable=True)
        judge = load_judge("papertown")
        options = replace(GENERATION, populations=populations, precision=precision)
        builder.prepare(folder, pipe, judge, principles, options)
        follow_build(builder.build(pipe, judge, principles, folder, options))
        build_folder.finish(folder, principles)
    return folder


def _half(construct: Construct) -> Construct:
    return replace(construct, pairs=construct.pairs // 2, direction_pairs=construct.direction_pairs // 2)


def subset(source: Path, target: Path, share: float) -> Path:
    """The first `share` of the pairs of every statement, in a folder of their own."""
    if share == 1:
        return source
    if not (target / MANIFEST).is_file():
        by_value: dict[str, list[dict]] = defaultdict(list)
        for line in (source / MANIFEST).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            by_value[row["value"]].append(row)
        kept = [row for rows in by_value.values() for row in rows[: 2 * max(1, round(share * len(rows) / 2))]]  # pairs lie together
        with replacing(target) as temporary:
            for row in kept:
                file = temporary / row["file_name"]
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / row["file_name"], file)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
            (temporary / MANIFEST).write_text(text, encoding="utf-8")
    return target


def trained(work: Path, name: str, config: TrainingConfig, source: Path) -> Path:
    """The run folder of `config` on the data in `source`, trained to its end."""
    run = work / "runs" / name.replace(",", "").replace(" ", "-")
    config = replace(config, data=str(source), output=str(run), model="papertown")
    if (run / config.adapter).is_dir():
        if config.changed(json.loads((run / config.adapter / "training.json").read_text())["config"]):
            raise ValueError(f"{run} was trained otherwise: delete it to train it again")
    else:
        records = train(config, resume=(run / "config.json").is_file())
        follow_training(records, name, config.steps, ("loss", "accuracy", "winner_gain", "loser_push"))
    return run


def checkpoints(run: Path) -> dict[int, Path]:
    """A run's checkpoints, by the steps behind them."""
    return {int(file.stem.removeprefix("step-")): file for file in sorted((run / "checkpoints").glob("step-*.safetensors"))}


def encoder_at(pipe: LiVOPipeline, run: Path, file: Path) -> ValueEncoder:
    """The value encoder of a run as it was at a checkpoint."""
    encoder = ValueEncoder.load(run / "value_encoder", like=pipe.text_encoder)
    with safe_open(file, "pt") as state, torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if (key := f"parameter/value_encoder.{name}") in state.keys():  # noqa: SIM118, a safetensors file is no mapping
                parameter.copy_(state.get_tensor(key))
    return encoder.eval()


def lora_at(pipe: LiVOPipeline, file: Path) -> WeightEdit:
    """The LoRA of a run as it was at a checkpoint, merged: W0 + B A, its scale being 1 (alpha is the rank)."""
    own = dict(pipe.unet.named_parameters())
    edited = {}
    with safe_open(file, "pt") as state:
        for key in state.keys():  # noqa: SIM118
            if key.startswith("parameter/") and ".lora_A." in key:  # the optimiser's moments stand beside them
                name = key.removeprefix("parameter/unet.").replace(".lora_A.default.weight", ".weight")
                low, high = state.get_tensor(key), state.get_tensor(key.replace("lora_A", "lora_B"))
                edited[name] = own[name].data + (high @ low).to(own[name])
    return WeightEdit(edited, {"checkpoint": file.name})
