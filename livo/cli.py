"""The command line: `livo generate`, `inspect`, `retrieve`, `build`, `train`, `calibrate`, `evaluate`, `benchmark`, `env`, `papertown`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import fields, replace
from pathlib import Path

from livo import cli_evaluate
from livo.config import TrainingConfig, add_options

EXAMPLES = {
    "generate": 'livo generate "a photo of a doctor" -n 8 --compare -o doctor.png',
    "inspect": "livo inspect doctor.png",
    "retrieve": 'livo retrieve "a photo of a doctor" "a z0mbie nurse" --explain; livo retrieve --file prompts.txt -o decisions.csv; '
    "livo retrieve --fit labelled.csv -o fitted; livo retrieve --redteam",
    "build": "livo build -o data/gender --only gender_equality --pairs 100",
    "train": "livo train --data data/gender --output runs/gender --steps 600 --lr 4e-4 --beta 100 --alpha 50 --gamma-1 5",
    "calibrate": "livo calibrate prompts.txt --value-encoder runs/livo/value_encoder",
    "env": "livo env",
    "papertown": "livo papertown grid -o papertown.png",
    **cli_evaluate.EXAMPLES,
}


class CommandError(Exception):
    """Bad input: printed as one line, exit code 2."""


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its hints about torchvision and progress bars are not for our users
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        args.run(args)
    except (CommandError, ValueError, OSError) as error:
        print(f"livo {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"livo {args.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="livo", description="Keep a text-to-image model to stated values, with its backbone frozen."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, epilog=f"example: {EXAMPLES[name]}")
        sub.set_defaults(run=run)
        return sub

    sub = command("generate", _generate, "Generate images that keep to the values their prompts call for.")
    sub.add_argument("prompt", nargs="+", metavar="PROMPT")
    sub.add_argument("-n", type=_positive, default=8, help="images per prompt (default 8)")
    sub.add_argument(
        "--value", action="append", help="auto, none, a principle's id, or a statement; several act together (default auto)"
    )
    sub.add_argument("--scale", type=float, default=1.0, help="strength of the value token: 0 is the base (default 1)")
    sub.add_argument("--compare", action="store_true", help="show the base pipeline's images of the same seed above")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--steps", type=_positive, default=20, help="sampler steps (default 20)")
    sub.add_argument("--guidance", type=float, default=5.0, help="guidance scale (default 5)")
    sub.add_argument("-o", "--output", type=Path, default=Path("livo.png"), help="the grid; decisions go beside it as JSON")
    sub.add_argument(
        "--model", default="papertown", help="papertown, or any Stable Diffusion: hub id or folder (default papertown)"
    )
    sub.add_argument("--value-encoder", help="hub id, folder or .safetensors file (default: the model's own)")
    sub.add_argument("--principles", type=Path, help="YAML file or folder (default: the model's own, else the paper's five)")
    sub.add_argument("--target", metavar="FILE[#ENTRY]", help="YAML file of shares for the principle that has these classes")

    sub = command("inspect", _inspect, "Read back from a PNG what was decided for its images, and why.")
    sub.add_argument("image", nargs="+", type=Path, metavar="IMAGE", help="PNG that livo generate or save_images wrote")
    sub.add_argument("--json", action="store_true", help="one JSON list an image file, for programs")

    sub = command("retrieve", _retrieve, "Say which principle each prompt calls for, or none, and why.")
    sub.add_argument("prompt", nargs="*", metavar="PROMPT")
    sub.add_argument("--principles", type=Path, help="YAML file or folder (default: the paper's five)")
    sub.add_argument("--json", action="store_true", help="one JSON object a prompt, for programs")
    sub.add_argument(
        "--explain", action="store_true", help="what was read, every facet, the neighbours, and what would change the decision"
    )
    sub.add_argument("--file", type=Path, help="prompts: text, .jsonl or .csv, as for evaluate; the decisions go to --output")
    sub.add_argument(
        "--fit",
        metavar="FILE",
        help="fit to labelled prompts (CSV or JSON lines: prompt, labels, perhaps family) and save into --output; "
        "`bundled` fits the facet heads to the project's own",
    )
    sub.add_argument(
        "--redteam", action="store_true", help="perturb the project's labelled prompts and report which decisions break"
    )
    sub.add_argument("--fitted", type=Path, metavar="FOLDER", help="use what --fit saved")
    sub.add_argument("--embedder", help="any SentenceTransformer: hub id or folder (default all-MiniLM-L6-v2)")
    sub.add_argument("-o", "--output", type=Path, help=".csv or .jsonl for --file, a folder for --fit, .json for --redteam")

    sub = command("build", _build, "Make preference data for principles with a construct section, or check a folder of them.")
    sub.add_argument("-o", "--output", type=Path, help="folder to build into; a build that was killed goes on there")
    sub.add_argument("--check", type=Path, metavar="FOLDER", help="validate and summarise a folder, and build nothing")
    sub.add_argument("--principles", type=Path, help="YAML file or folder (default: the paper's five)")
    sub.add_argument("--only", nargs="+", metavar="ID", help="these principles alone")
    sub.add_argument(
        "--pairs", type=_positive, help="pairs for each statement and direction (default: as the construct section says)"
    )
    sub.add_argument(
        "--populations", action="store_true", help="PopAlign's diverse and neutral sets in place of the debias principles' pairs"
    )
    sub.add_argument("--model", default="papertown", help="the generator: any text-to-image pipeline (default papertown)")
    sub.add_argument("--judge", default="papertown", help="papertown, or the folder of a judge (default papertown)")
    sub.add_argument("--batch", type=_positive, default=32, help="images generated together (default 32)")
    sub.add_argument("--steps", type=_positive, default=20, help="sampler steps (default 20)")
    sub.add_argument("--guidance", type=float, default=5.0, help="guidance scale (default 5)")
    sub.add_argument("--bf16", action="store_true", help="generate in bfloat16 autocast: 2.5 times as fast on CPUs that have it")
    sub.add_argument("--seed", type=int, default=0)

    sub = command("train", _train, "Train a value encoder or a LoRA on preference data.")
    sub.add_argument("--resume", choices=["latest"], help="go on from the newest checkpoint in --output")
    add_options(sub, TrainingConfig)

    sub = command("calibrate", _calibrate, "Measure what an encoder's directions draw, and save it with the encoder.")
    sub.add_argument(
        "prompts", type=Path, help="text file of neutral prompts, one a line; training prompts, not those you report on"
    )
    sub.add_argument("--value-encoder", type=Path, required=True, help="folder of the encoder; its config.json receives the result")
    sub.add_argument("--model", default="papertown", help="papertown, or any Stable Diffusion: hub id or folder")
    sub.add_argument("--principles", type=Path, help="YAML file or folder (default: the model's own, else the paper's five)")
    sub.add_argument("--judge", default="papertown", help="papertown, or the folder of a judge (default papertown)")
    sub.add_argument("-n", type=_positive, default=20, help="images per prompt and principle (default 20)")
    sub.add_argument("--steps", type=_positive, default=20, help="sampler steps (default 20)")
    sub.add_argument("--guidance", type=float, default=5.0, help="guidance scale (default 5)")
    sub.add_argument("--seed", type=int, default=0)

    sub = command("evaluate", cli_evaluate.evaluate, "Measure bias, toxicity and quality of methods on prompts, with intervals.")
    cli_evaluate.add_evaluate(sub, _positive)

    sub = command(
        "benchmark", cli_evaluate.benchmark, "Replay the LiVO paper's table and figures in the embedded world; resumable."
    )
    cli_evaluate.add_benchmark(sub, _positive)

    command("env", _env, "Print versions, devices, and combinations known to be bad, for bug reports.")

    sub = command("papertown", _papertown, "Show the embedded world.")
    sub.add_argument("what", choices=["grid"], help="grid: every career, place, risk and thing, as the renderer draws it")
    sub.add_argument("-o", "--output", type=Path, default=Path("papertown.png"))
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _generate(args) -> None:
    if args.output.suffix.lower() != ".png":
        raise CommandError(f"--output {args.output}: the grid is a PNG, give a name that ends in .png")
    import torch

    from livo.files import write_json
    from livo.judges import load_judge
    from livo.pictures import grid, save_png, stack
    from livo.pipeline import LiVOPipeline

    pipe = LiVOPipeline.from_pretrained(args.model, value_encoder=args.value_encoder, value_principles=args.principles)
    if args.target:
        pipe.load_value_principles(_with_target(pipe.principles, args.target))
        known = set(getattr(pipe.value_encoder, "statements", None) or ())
        if not any(p.target and set(p.directions.values()) <= known for p in pipe.principles):
            raise CommandError(
                f"--target {args.target}: the value encoder was not trained with directions, so no target can be met"
            )
    if torch.cuda.is_available():
        pipe.to("cuda")
    value = (args.value or ["auto"])[0] if len(args.value or ()) < 2 else tuple(args.value)
    value = None if value == "none" else value
    pipe.set_progress_bar_config(desc="sampling", unit="step")

    def generate(prompt, value):
        return pipe(
            prompt,
            value=value,
            value_scale=args.scale,
            num_images_per_prompt=args.n,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            generator=torch.Generator().manual_seed(args.seed),
        )

    judge = load_judge("papertown") if args.model == "papertown" else None
    sheets, record = [], []
    columns = min(args.n, 10)
    for prompt in args.prompt:
        out = generate(prompt, value)
        first, applied = out.decisions[0], [any(d.applied for d in (image, *image.also)) for image in out.decisions]
        names = ", ".join(d.id or d.statement for d in (first, *first.also) if d.statement) or "no principle"
        base = generate(prompt, None).images if args.compare else []
        if base:
            sheets.append(grid(base, columns, title=f"base: {prompt}"))
        captions = [_caption(image) for image in out.decisions]
        sheets.append(grid(out.images, columns, captions, f"LiVO: {prompt}", applied, note=f"{names}: {first.why}"))
        sheets += _shares(pipe, out, base, judge, sheets[-1].width)
        record += [decision.to_dict() | {"seed": args.seed, "image": i} for i, decision in enumerate(out.decisions)]
        print(f"{prompt}: {names}, token on {sum(applied)} of {args.n} images; {first.why}")
    save_png(stack(sheets), args.output, record)
    beside = args.output.with_suffix(".json")
    write_json(beside, record)
    print(f"{args.output} and {beside} written")


def _with_target(principles, source: str):
    from livo.principles import load_target

    target = load_target(source)
    if not any(set(p.attributes) == set(target) for p in principles):
        known = "; ".join(f"{p.id}: {', '.join(p.attributes)}" for p in principles if p.kind == "debias")
        raise CommandError(f"--target {source}: no principle has the classes {', '.join(target)}; there are {known}")
    return [replace(p, target=target) if set(p.attributes) == set(target) else p for p in principles]


def _shares(pipe, out, base, judge, width: int) -> list:
    """For each principle that acted by directions: asked, assigned and, with a judge, measured shares, printed and as bars."""
    from livo.metrics import counts
    from livo.pictures import bars

    sheets = []
    images = [(image, *image.also) for image in out.decisions]
    for place, decision in enumerate(images[0]):
        if decision.direction is None:
            continue
        principle = next(p for p in pipe.principles if p.id == decision.id)
        assigned = counts([image[place].direction for image in images], list(principle.shares)) / len(images)
        shown = {"asked": list(principle.shares.values()), "assigned": assigned}
        if judge is not None and principle.construct is not None:
            for what, pictures in (("LiVO, as the judge reads it", out.images), ("base, as the judge reads it", base)):
                if pictures:
                    read = [reading[principle.construct.judge] for reading in judge.read(pictures)]
                    shown[what] = counts(read, list(principle.shares)) / len(images)
        classes = {name: {key: float(values[i]) for key, values in shown.items()} for i, name in enumerate(principle.shares)}
        sheets.append(bars(principle.id, classes, width))
        for name, values in classes.items():
            print(f"  {principle.id} {name:10} " + "  ".join(f"{key} {value:4.0%}" for key, value in values.items()))
    return sheets


def _caption(image) -> str:
    if image.statement is None:
        return "as the base"
    return ", ".join(d.direction or d.id or d.statement for d in (image, *image.also) if d.applied) or "without the token"


def _inspect(args) -> None:
    from livo.record import describe, read_record

    for file in args.image:
        record = read_record(file)
        print(json.dumps(record, ensure_ascii=False) if args.json else f"{file}\n{describe(record)}")


def _retrieve(args) -> None:
    from livo.embedding import DEFAULT_EMBEDDER
    from livo.principles import bundled_principles
    from livo.retriever import ValueRetriever

    jobs = [name for name in ("file", "fit", "redteam") if getattr(args, name)] + ["prompt"] * bool(args.prompt)
    if len(jobs) != 1:
        raise CommandError("give either prompts, --file, --fit or --redteam")
    principles = args.principles or bundled_principles()
    if args.fitted:
        retriever = ValueRetriever.load(args.fitted, principles, args.embedder)
    else:
        retriever = ValueRetriever(principles, args.embedder or DEFAULT_EMBEDDER)
    if args.file:
        return _retrieve_file(retriever, args.file, args.output)
    if args.fit:
        return _retrieve_fit(retriever, args.fit, args.output)
    if args.redteam:
        return _retrieve_redteam(retriever, args.output)
    for warning in retriever.warnings() if args.explain or args.principles else ():
        print(f"note: {warning}", file=sys.stderr)
    for prompt, decisions in zip(args.prompt, retriever.retrieve_batch(args.prompt), strict=True):
        if args.json:
            print(json.dumps([decision.to_dict() for decision in decisions], ensure_ascii=False))
            continue
        if args.explain:
            print("\n".join(retriever.explain(prompt)))
            continue
        print(decisions[0].prompt)
        for decision in decisions:
            sure = "" if decision.probability is None else f"  p {decision.probability:.2f}"
            print(
                f"  {decision.id or 'none':16} score {decision.score:.2f}  threshold {decision.threshold:.2f}{sure}  {decision.why}"
            )


def _retrieve_file(retriever, file: Path, output: Path | None) -> None:
    import csv

    from tqdm import tqdm

    from livo.files import replacing
    from livo.prompts import read_prompts

    if output is None or output.suffix.lower() not in (".csv", ".jsonl"):
        raise CommandError("--file needs --output NAME.csv or NAME.jsonl")
    prompts = [prompt.text for prompt in read_prompts(file)]
    columns = ("prompt", "ids", "probability", "score", "threshold", "nearest_exemplar", "text", "why")
    counts: dict[str, int] = {}
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out) if output.suffix.lower() == ".csv" else None
        if table:
            table.writerow(columns)
        for start in tqdm(range(0, len(prompts), 256), "deciding", unit="batch"):
            for decisions in retriever.retrieve_batch(prompts[start : start + 256]):
                ids, first = "|".join(d.id for d in decisions if d.id), decisions[0]
                counts[ids or "none"] = counts.get(ids or "none", 0) + 1
                if table:
                    table.writerow([first.prompt, ids, *(getattr(first, name) for name in columns[2:])])
                else:
                    out.write(json.dumps([d.to_dict() for d in decisions], ensure_ascii=False) + "\n")
    for ids, count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{count:6} {ids}")
    print(f"{output} written")


def _retrieve_fit(retriever, source: str, output: Path | None) -> None:
    import numpy as np

    from livo import fitting
    from livo.files import write_json
    from livo.pictures import curves
    from livo.principles import FACETS

    if output is None:
        raise CommandError("--fit needs --output FOLDER")
    if source == "bundled":
        report = fitting.fit_bundled(retriever, output / "facets")
    else:
        rows = fitting.read_labelled(Path(source))
        unseen = retriever.fit([r.prompt for r in rows], [r.labels for r in rows], [r.family for r in rows])
        names = retriever.fitted_names
        if set(names) == set(FACETS):
            wanted = [fitting.wanted_class(r.labels) for r in rows]
            decided, sure = zip(*(fitting.class_of_facets(dict(zip(names, row, strict=True))) for row in unseen), strict=True)
        else:
            wanted = [next((name for name in names if name in r.labels), fitting.NONE) for r in rows]
            decided = [next((name for name, p in zip(names, row, strict=True) if p >= 0.5), fitting.NONE) for row in unseen]
            sure = [row[names.index(d)] if d != fitting.NONE else 1 - row.max() for d, row in zip(decided, unseen, strict=True)]
        report = fitting.report_of(wanted, decided, np.array(sure))
    retriever.save(output)
    write_json(output / "report.json", report)
    curves({"share wrong over coverage": tuple(zip(*report["risk_coverage"], strict=True))}, output / "risk_coverage.png")
    low, high = report["interval"]
    print(
        f"{report['count']} prompts of unseen families: accuracy {report['accuracy']:.3f} [{low:.3f}, {high:.3f}], ECE {report['ece']:.3f}"
    )
    for name, group in report["groups"].items():
        print(f"  {name:24} {group['accuracy']:.3f} [{group['interval'][0]:.3f}, {group['interval'][1]:.3f}] of {group['count']}")
    for name, row in report["classes"].items():
        print(f"  {name:24} precision {row['precision']:.3f}  recall {row['recall']:.3f}  of {row['count']}")
    print(f"{output} holds the index, thresholds and heads (use it with --fitted), report.json and risk_coverage.png")


def _retrieve_redteam(retriever, output: Path | None) -> None:
    from livo import fitting
    from livo.files import write_json
    from livo.labelled import labelled_prompts

    prompts = [p for p in labelled_prompts() if p.held_out and p.language == "en" and p.group != "obfuscated risk"][::6]
    found = []
    for row in fitting.redteam(retriever, prompts):
        found.append(row)
        print(
            f"{row['perturbation']:14} breaks {row['broken']:6.1%} [{row['interval'][0]:.1%}, {row['interval'][1]:.1%}] of {row['prompts']}"
        )
        for example in row["examples"][:2]:
            print(f"    {example['prompt'][:90]!r}: {example['wanted']} becomes {example['decided']}")
    if output:
        write_json(output, found)
        print(f"{output} written")


def _build(args) -> None:
    if (args.check is None) == (args.output is None):
        raise CommandError("give either --output FOLDER to build, or --check FOLDER")
    from livo import preferences

    if args.check is not None:
        report = preferences.check(args.check)
        print(report.table())
        for line in report.notes[:20]:
            print(f"note: {line}")
        for line in report.problems[:20]:
            print(f"problem: {line}")
        if report.problems:
            raise CommandError(f"{args.check}: {len(report.problems)} problems; mend them before training")
        print(f"{args.check}: {len(report.samples)} images, {len(preferences.pairs(report.samples))} pairs, no problem")
        return
    import torch
    from accelerate import PartialState

    from livo import building
    from livo.judges import load_judge
    from livo.pipeline import LiVOPipeline
    from livo.principles import bundled_principles, load_principles
    from livo.progress import follow_build

    principles = load_principles(args.principles or bundled_principles())
    principles = _chosen(principles, args.only)
    if args.pairs:
        counts = {"pairs": args.pairs, "direction_pairs": args.pairs}
        principles = [replace(p, construct=p.construct and replace(p.construct, **counts)) for p in principles]
    state = PartialState(cpu=not torch.cuda.is_available())
    judge = load_judge(args.judge, principles, state.device)
    pipe = LiVOPipeline.from_pretrained(args.model).to(state.device)
    pipe.set_progress_bar_config(disable=True)
    options = building.Options(args.seed, args.batch, args.steps, args.guidance, args.bf16, args.populations)
    if state.is_main_process:
        building.prepare(args.output, pipe, judge, principles, options)
    state.wait_for_everyone()
    jobs = building.build(pipe, judge, principles, args.output, options, rank=state.process_index, world=state.num_processes)
    follow_build(jobs, disable=not state.is_main_process)
    state.wait_for_everyone()
    if state.is_main_process:
        manifest = building.finish(args.output, principles, options)
        card = json.loads(manifest.with_name("data_card.json").read_text())["principles"]
        for name, job in card.items():
            print(
                f"{name:28} {job['pairs']} of {job['asked']} pairs, {job['near_duplicate_pairs_dropped']} near-duplicates dropped"
            )
        print(f"{manifest} written; look at the contact sheets and data_card.json beside it")


def _chosen(principles, ids):
    if not ids:
        return principles
    known = [p.id for p in principles]
    for name in ids:
        if name not in known:
            raise CommandError(f"--only {name}: no such principle; there are {', '.join(known)}")
    return [p for p in principles if p.id in ids]


def _train(args) -> None:
    values = {option.name: getattr(args, option.name) for option in fields(TrainingConfig)}
    config = TrainingConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    from livo.progress import follow_training
    from livo.training import train

    main = int(os.environ.get("RANK", 0)) == 0
    records = train(config, resume=args.resume is not None)
    shown = ("loss", "accuracy", "winner_active", "loser_active", "grad_norm", "drift")
    follow_training(records, config.adapter, config.steps, shown, disable=not main)
    if main:
        print(f"{config.output}/{config.adapter} written; curves.png, metrics.jsonl and TensorBoard's files lie beside it")


def _calibrate(args) -> None:
    import torch
    from tqdm import tqdm

    from livo.calibration import tally
    from livo.files import write_json
    from livo.judges import load_judge
    from livo.pipeline import LiVOPipeline
    from livo.prompts import read_prompts

    prompts = list(dict.fromkeys(prompt.text for prompt in read_prompts(args.prompts)))
    config = args.value_encoder / "config.json"
    if not config.is_file():
        raise CommandError(f"--value-encoder {args.value_encoder}: no config.json there; give the folder of an encoder")
    pipe = LiVOPipeline.from_pretrained(args.model, value_encoder=args.value_encoder, value_principles=args.principles)
    pipe.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        pipe.to("cuda")
    judge = load_judge(args.judge, pipe.principles)
    known = set(pipe.value_encoder.statements or ())
    principles = [p for p in pipe.principles if p.directions and p.construct and set(p.directions.values()) <= known]
    if not principles:
        raise CommandError(
            f"{args.value_encoder}: it was trained with the directions of no principle, so there is nothing to calibrate"
        )
    found = {}
    pipe.value_encoder.config.value_calibration = None  # measured anew, from even shares
    for principle in principles:
        seen = []
        for i, prompt in enumerate(tqdm(prompts, principle.id, unit="prompt")):
            out = pipe(
                prompt,
                value=replace(principle, target={}),
                num_images_per_prompt=args.n,
                num_inference_steps=args.steps,
                guidance_scale=args.guidance,
                generator=torch.Generator().manual_seed(args.seed + i),
            )
            read = [reading[principle.construct.judge] for reading in judge.read(out.images)]
            seen += [(decision.direction, name) for decision, name in zip(out.decisions, read, strict=True)]
        calibration = tally(list(principle.directions), iter(seen), f"{judge.name}@{judge.revision}", len(prompts))
        settings = {"model": args.model, "steps": args.steps, "guidance": args.guidance, "seed": args.seed, "n": args.n}
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


def _env(args) -> None:
    import torch

    from livo.environment import devices, embedder, known_bad, versions

    found = versions()
    rows = [("python", platform.python_version()), ("platform", platform.platform()), *found.items(), *devices()]
    if not torch.cuda.is_available():
        rows.append(("cuda", "not available"))
    rows.append(("embedding model", embedder()))
    for name, value in rows:
        print(f"{name:22} {value}")
    problems = known_bad(found)
    for problem in problems:
        print(f"known bad: {problem}")
    if not problems:
        print("no combination here is known to be bad")


def _papertown(args) -> None:
    from livo.papertown.show import world_sheet
    from livo.pictures import save_png

    save_png(world_sheet(), args.output, {"what": "Papertown, rendered"})
    print(f"{args.output} written")
