"""Digests of images, decisions and training runs, to show that a refactoring changes none of them.

Run it before and after, on the same machine with the same number of threads; it uses public names and the command line only:

    python tests/golden.py before.json
    python tests/golden.py after.json --against before.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from livo import LiVOPipeline

PROMPTS = (
    "a photo of a doctor",
    "a bloody warrior",
    "a red scarf on a beach",
    "a photo of a female teacher",
    "a nude painter in a library",
    "a zombie chef in a kitchen",
)
CALLS = {
    "auto": {"value": "auto"},
    "none": {"value": None},
    "id": {"value": "bloody"},
    "list": {"value": ["gender_equality", None, "racial_equality", "nudity", ("bloody", "gender_equality"), "auto"]},
    "scale": {"value": "auto", "value_scale": 0.5},
    "range": {"value": "auto", "value_start": 0.2, "value_end": 0.8},
}
OBJECTIVES = {
    "livo": [],
    "popalign": ["--adapter", "lora"],
    "diffusion_dpo": ["--adapter", "lora"],
    "livo+popalign": [],
    "distillation": [],
}
UNSEEN = Path(__file__).with_name("unseen_prompts.txt")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def images(pipe: LiVOPipeline) -> dict[str, list[str]]:
    found = {}
    for name, call in CALLS.items():
        out = pipe(
            list(PROMPTS),
            num_images_per_prompt=2,
            num_inference_steps=5,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(7),
            **call,
        )
        found[name] = [digest(np.asarray(image).tobytes()) for image in out.images]
    return found


def decisions(pipe: LiVOPipeline) -> list[list]:
    """Principle, probability and similarity for 200 prompts; reasons may be reworded."""
    lines = [line for line in UNSEEN.read_text(encoding="utf-8").splitlines() if line.strip() and line[0] not in "#["]
    prompts = [line.split("|")[0].strip() for line in lines][:200]
    batch = pipe.retriever.retrieve_batch(prompts)
    return [[[d.id, d.probability and round(d.probability, 5), round(d.score, 5)] for d in found] for found in batch]


def runs(folder: Path) -> dict[str, list]:
    """The losses of 20 steps and the weights after them, for each objective."""
    pairs = ["--only", "bloody", "gender_equality", "--pairs", "8", "--batch", "16", "--steps", "8", "--precision", "fp32"]
    livo("build", "-o", folder / "pairs", *pairs)
    livo("build", "-o", folder / "populations", *pairs[3:], "--only", "gender_equality", "--populations")
    found = {}
    for objective, more in OBJECTIVES.items():
        data = folder / ("populations" if "popalign" in objective else "pairs")
        run = folder / objective
        settings = ["--objective", objective, "--steps", "20", "--batch", "4", "--precision", "fp32", *more]
        livo("train", "--data", data, "--output", run, *settings)
        weights = sorted(file for file in run.rglob("*.safetensors") if file.parent.name in ("value_encoder", "lora"))
        losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
        found[objective] = [losses, [digest(file.read_bytes()) for file in weights]]
    return found


def livo(*args) -> None:
    command = [sys.executable, "-m", "livo", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--against", type=Path, help="an earlier output; exit code 1 if anything differs")
    args = parser.parse_args()
    pipe = LiVOPipeline.from_pretrained("papertown")
    pipe.set_progress_bar_config(disable=True)
    found = {"images": images(pipe), "decisions": decisions(pipe)}
    with tempfile.TemporaryDirectory() as folder:
        found["training"] = runs(Path(folder))
    args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.against:
        before = json.loads(args.against.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(found))
        changed = [
            f"{part}: {name}" for part in ("images", "training") for name in now[part] if now[part][name] != before[part][name]
        ]
        changed += ["decisions"] * (now["decisions"] != before["decisions"])
        print("\n".join(f"changed: {name}" for name in changed) or "identical")
        raise SystemExit(bool(changed))


if __name__ == "__main__":
    main()
