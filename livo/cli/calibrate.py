"""`livo calibrate`"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from livo.cli import PROMPTS, add_column, add_judge, add_sampling, device_of, positive

HELP = "Measure what an encoder's directions draw, and save it with the encoder."
EXAMPLE = "livo calibrate prompts.txt --value-encoder runs/livo/value_encoder"
_ENOUGH = 20  # images a direction: one that misses is then 5%


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", type=Path, help=f"neutral {PROMPTS}; training prompts, not those you report on")
    add_column(parser)
    parser.add_argument(
        "--value-encoder", type=Path, required=True, help="folder of the encoder; its config.json receives the result"
    )
    parser.add_argument("--model", default="papertown", help="papertown, or any Stable Diffusion: hub id or folder")
    parser.add_argument(
        "--principles",
        type=Path,
        help="YAML file, folder, or bundled name: livo, safety (default: the model's own, else the paper's five)",
    )
    add_judge(parser)
    parser.add_argument("-n", type=positive, default=20, help="images per prompt and principle (default 20)")
    add_sampling(parser)


def run(args) -> None:
    from livo.cli.checks import check_judges, check_model, principles_of
    from livo.utils.files import refuse_overwriting
    from livo.utils.prompt_files import read_prompts

    refuse_overwriting(args.prompts, args.value_encoder, ("config.json",))
    check_model(args.model)
    check_judges(args.model, [args.judge] if args.judge else [], principles_of(args))
    prompts = list(dict.fromkeys(prompt.text for prompt in read_prompts(args.prompts, args.column)))
    config = args.value_encoder / "config.json"
    if not config.is_file():
        raise ValueError(f"--value-encoder {args.value_encoder}: no config.json there; give the folder of an encoder")
    import torch
    from tqdm import tqdm

    from livo.evaluation.judges import CannotRead, attribute_for, judge_for, verdicts
    from livo.pipelines.calibration import tally
    from livo.pipelines.stable_diffusion import load_pipeline
    from livo.utils.files import write_json
    from livo.utils.hashing import weights_hash
    from livo.utils.precision import for_pipeline

    pipe = load_pipeline(args.model, value_encoder=args.value_encoder, value_principles=args.principles)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device_of(args))
    precision = for_pipeline(args.precision, pipe)
    known = set(pipe.value_encoder.statements or ())
    principles = [p for p in pipe.principles if p.directions and set(p.directions.values()) <= known]
    if not principles:
        raise ValueError(
            f"{args.value_encoder}: it was trained with the directions of no principle, so there is nothing to calibrate"
        )
    judge = judge_for(pipe, args.judge, principles, pipe.device)
    attributes = {}
    for principle in principles:  # before anything is generated
        try:
            attributes[principle.id] = attribute_for(judge, principle)
        except CannotRead as error:
            raise ValueError(f"{principle.id}: {error}; change its construct section, or give another --judge") from None
    found = {}
    pipe.value_encoder.config.value_calibration = None  # measured again, from equal shares
    for principle in principles:
        seen, broken = [], 0
        for i, prompt in enumerate(tqdm(prompts, principle.id, unit="prompt")):
            with precision.autocast(pipe.device):
                out = pipe(
                    prompt,
                    value=replace(principle, target={}),
                    num_images_per_prompt=args.n,
                    num_inference_steps=args.steps,
                    guidance_scale=args.guidance,
                    generator=torch.Generator().manual_seed(args.seed + i),
                )
            for decision, verdict in zip(out.decisions, verdicts(judge, out.images, [prompt] * args.n), strict=True):
                broken += bool(verdict.fault)
                if not verdict.fault:
                    seen.append((decision.values[0].direction, verdict.classes[attributes[principle.id]]))
        if broken:
            print(f"note: {principle.id}: {broken} images are black, constant or not finite, and were left out")
        if not seen:
            raise ValueError(f"{principle.id}: no image could be judged, so there is nothing to calibrate by")
        calibration = tally(list(principle.directions), iter(seen), f"{judge.name}@{judge.revision}", len(prompts))
        if calibration.images < _ENOUGH * len(calibration.classes):
            print(
                f"note: {calibration.images} images for {len(calibration.classes)} directions; below {_ENOUGH} each the shares are rough"
            )
        settings = {
            "encoder": weights_hash(pipe.value_encoder),
            "model": args.model,
            "steps": args.steps,
            "guidance": args.guidance,
            "seed": args.seed,
            "n": args.n,
            "precision": precision.record(),
        }
        found[principle.id] = vars(calibration) | {"settings": settings}
        for name, row in zip(calibration.classes, calibration.confusion, strict=True):
            print(
                f"{principle.id} towards {name:10} "
                + "  ".join(f"{c} {v:4.0%}" for c, v in zip(calibration.classes, row, strict=True))
            )
        shares, miss = calibration.shares(principle.shares)
        print(
            "  shares that meet the target: "
            + ", ".join(f"{c} {v:.1%}" for c, v in shares.items())
            + f"; worst class misses {miss:.1%}"
        )
    values = json.loads(config.read_text())
    values["value_calibration"] = (values.get("value_calibration") or {}) | found
    write_json(config, values)
    print(f"{config} holds the calibration now")
