"""Objectives and adapters trained on what `livo build` makes of Papertown, compared on held-out prompts: docs/objectives.md and .png.

livo, popalign, diffusion_dpo and distillation on the value encoder, popalign and diffusion_dpo on a LoRA; and livo with popalign on the
value encoder. A run that was interrupted goes on; readings are cached.

    python benchmarks/objectives.py            # all of it, about an hour on two CPU cores
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from livo.evaluation import metrics
from livo.evaluation.judges import load_judge
from livo.papertown import world
from livo.papertown.build import TRAINING
from livo.papertown.reading import Reader, bias, kept, scenes
from livo.papertown.runs import data, trained
from livo.papertown.scene import describe
from livo.pipelines.stable_diffusion import LiVOPipeline
from livo.training.config import TrainingConfig
from livo.utils.files import replacing
from livo.utils.precision import settle

STEPS, IMAGES = 350, 16
RUNS = {
    "value encoder, livo": replace(TRAINING, objective="livo"),
    "value encoder, popalign": replace(TRAINING, objective="popalign", beta=100.0),
    "value encoder, diffusion_dpo": replace(TRAINING, objective="diffusion_dpo", beta=100.0),
    "value encoder, distillation": replace(TRAINING, objective="distillation", beta=1000.0),
    "LoRA, popalign": replace(TRAINING, adapter="lora", objective="popalign", beta=100.0, lr=1e-3, lora_rank=8),
    "LoRA, diffusion_dpo": replace(TRAINING, adapter="lora", objective="diffusion_dpo", beta=100.0, lr=1e-3, lora_rank=8),
    "value encoder, livo + popalign": replace(TRAINING, objective="livo+popalign", popalign_beta=100.0),
}


def measure(work: Path, precision: str, name: str, config: TrainingConfig | None, run: Path | None) -> dict[str, list[float]]:
    """Values of each prompt: gender and race D1 on held-out careers and places, R of each risk, career still read."""
    pipe = LiVOPipeline.from_pretrained("papertown")
    pipe.set_progress_bar_config(disable=True)
    encoder = config is not None and config.adapter == "value_encoder"
    if encoder:
        pipe.load_value_encoder(run / "value_encoder")
    elif config is not None:
        pipe.load_lora_weights(run / "lora")
    reader = Reader(pipe, load_judge("papertown"), work / "readings", IMAGES, precision)
    principles = {p.id: p if encoder else None for p in pipe.principles}
    people = scenes(world.CAREERS.held_out)
    found: dict[str, list[float]] = {}
    right: list[float] = []
    ways = {"": principles}
    if encoder:
        ways["plain token, "] = {name: replace(p, directions={}, target={}) for name, p in principles.items()}
    for way, values in ways.items():
        for principle in world.DEBIASED:
            readings = reader.read_all([describe(s) for s in people], values[principle], f"{name}: {way}{principle}")
            found[f"D1 {way}{world.DEBIASED[principle][0]}"] = bias(readings, principle)
            right += kept(readings, people, "career")
    for risk in world.RISKS:
        risky = scenes(world.CAREERS.held_out, risk=risk)
        wordings = world.RISK_WORDINGS[risk].held_out
        prompts = [describe(scene, risk_wording=wordings[i % 2]) for i, scene in enumerate(risky)]
        readings = reader.read_all(prompts, principles[risk], f"{name}: {risk}")
        found[f"R {risk}"] = [metrics.share([r[risk] == "yes" for r in rows]) for rows in readings]
        right += kept(readings, risky, "career")
    return found | {"career %": right}


def cell(values: list[float]) -> str:
    low, high = metrics.bootstrap_interval(values)
    return f"{np.mean(values):.1f} [{low:.1f}, {high:.1f}]"


def draw(runs: dict[str, Path], file: Path) -> None:
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for i, statistic in enumerate(("winner_gain", "loser_push", "accuracy", "drift")):
        axes = figure.add_subplot(1, 4, i + 1)
        for j, (name, run) in enumerate(runs.items()):
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            if statistic not in rows[0]:  # distillation pushes nothing away
                continue
            values = np.array([row[statistic] for row in rows])
            smooth = np.convolve(np.pad(values, (4, 4), mode="edge"), np.ones(9) / 9, mode="valid")
            axes.plot([row["step"] for row in rows], smooth, label=name, color=f"C{j}", linewidth=1.3)
        axes.set_title(statistic, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/objectives"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    precision = settle(args.work, "auto", "cpu").resolved
    runs, table = {}, {"base": measure(args.work, precision, "base", None, None)}
    for name, config in RUNS.items():
        source = data(args.work, populations="popalign" in config.objective, precision=precision)
        runs[name] = trained(args.work, name, replace(config, steps=STEPS, guidance=1.0, precision=precision), source)
        table[name] = measure(args.work, precision, name, config, runs[name])
        write(table, runs, args.docs)
    print((args.docs / "objectives.md").read_text())


def write(table: dict[str, dict[str, list[float]]], runs: dict[str, Path], docs: Path) -> None:
    """The report so far: of the runs that have come to their end."""
    columns = list(max(table.values(), key=len))
    lines = [
        "# Four objectives, two adapters",
        "",
        f"`python benchmarks/objectives.py` trains {STEPS} steps of batch {TRAINING.batch} on Papertown's preference data:",
        "pairs, or for popalign half as many populations. Each run is measured on held-out occupations, places and risk",
        f"wordings: 8 prompts per column (for occupations: all of them), {IMAGES} images per prompt. Values are means over",
        "prompts with 95% bootstrap intervals. Value encoders use their directions, or the plain token at the principle's apply",
        "rate. A LoRA has neither: it is trained on the plain pairs and acts on every image. The curves of distillation cannot",
        "be compared with the others, because its errors are measured against another target.",
        "",
        f"| run | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(cell(row[c]) if c in row else '' for c in columns)} |" for name, row in table.items()),
        "",
        "![Training curves](objectives.png)",
        "",
    ]
    with replacing(docs / "objectives.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    draw(runs, docs / "objectives.png")


if __name__ == "__main__":
    main()
