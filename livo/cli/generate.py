"""`livo generate`"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from livo.cli import PROMPTS, add_column, add_sampling, device_of, positive, strength

HELP = "Generate images that keep to the values their prompts call for."
EXAMPLE = 'livo generate "a photo of a doctor" -n 8 --compare -o doctor.png'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", metavar="PROMPT")
    parser.add_argument(
        "-n", type=positive, help="images per prompt (default 8; with --file 1, where its column num_images is empty)"
    )
    parser.add_argument(
        "--value",
        action="append",
        help="auto, none, a principle's id, or a statement; give it again for several that act together (default auto)",
    )
    parser.add_argument("--scale", type=strength, default=1.0, help="strength of the value token: 0 is the base (default 1)")
    parser.add_argument("--compare", action="store_true", help="show the base pipeline's images of the same seed above")
    add_sampling(parser)
    parser.add_argument("-o", "--output", type=Path, help="the grid; decisions go beside it as JSON (default livo.png)")
    parser.add_argument(
        "--model", default="papertown", help="papertown, or any Stable Diffusion: hub id or folder (default papertown)"
    )
    parser.add_argument("--value-encoder", help="hub id, folder or .safetensors file (default: the model's own)")
    parser.add_argument(
        "--principles",
        type=Path,
        help="YAML file, folder, or bundled name: livo, safety (default: the model's own, else the paper's five)",
    )
    parser.add_argument(
        "--ledger",
        type=Path,
        metavar="FILE",
        help="balance with all images drawn with this file, by other runs and processes too; made where there is none",
    )
    parser.add_argument("--target", metavar="FILE[#ENTRY]", help="YAML file of shares for the principle that has these classes")
    _add_table(parser.add_argument_group("from a table", "a file for each image instead of a grid"))


def _add_table(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--file",
        type=Path,
        help=f"{PROMPTS}, with any of the columns id, seed, negative_prompt, width, height, steps, guidance, value, value_scale, "
        "num_images; where a cell is empty the option above holds, and all other columns go into the manifest",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the images, and manifest.jsonl with a line for each")
    parser.add_argument(
        "--resume", action="store_true", help="continue what --out holds: images that are there are not drawn again"
    )
    parser.add_argument("--format", choices=("png", "jpg", "webp"), help="of the images (default png)")
    parser.add_argument("--batch", type=positive, help="images in one call, of rows with the same settings (default 8)")
    add_column(parser)


def run(args) -> None:
    _check(args)
    if args.file:
        return _run_table(args)
    args.output, args.n = args.output or Path("livo.png"), args.n or 8
    if args.output.suffix.lower() != ".png":
        raise ValueError(f"--output {args.output}: the grid is a PNG, give a name that ends in .png")
    beside = args.output.with_suffix(".json")
    value = _value(args)
    _check_inputs(args, [args.output, beside])
    import torch

    from livo.evaluation.judges import bundled_model_of, load_judge
    from livo.utils.files import write_json
    from livo.utils.pictures import grid, save_picture, stack
    from livo.utils.precision import for_pipeline

    ledger, pipe = _ledger(args), _pipeline(args)
    pipe.set_progress_bar_config(desc="sampling", unit="step")

    precision = for_pipeline(args.precision, pipe)

    def generate(prompt, value):
        with precision.autocast(pipe.device):
            return pipe(
                prompt,
                value=value,
                value_scale=args.scale,
                ledger=ledger,
                num_images_per_prompt=args.n,
                num_inference_steps=args.steps,
                guidance_scale=args.guidance,
                generator=torch.Generator().manual_seed(args.seed),
            )

    model = bundled_model_of(pipe)
    judge = load_judge(model.name) if model else None
    sheets, record = [], []
    columns = min(args.n, 10)
    for prompt in args.prompt:
        out = generate(prompt, value)
        first, applied = out.decisions[0], [bool(decision.applied_values) for decision in out.decisions]
        names = ", ".join(value.name for value in first.values) or "no principle"
        why = first.values[0].reason if first.values else first.reason
        base = generate(prompt, None).images if args.compare else []
        if base:
            sheets.append(grid(base, columns, title=f"base: {prompt}"))
        captions = [_caption(decision) for decision in out.decisions]
        note = f"{names}: {why}" if first.values else why
        sheets.append(grid(out.images, columns, captions, f"LiVO: {prompt}", applied, note=note))
        print(f"{prompt}: {names}, token on {sum(applied)} of {args.n} images; {why}")
        sheets += _shares(pipe, out, base, judge, sheets[-1].width)
        drawn = {"seed": args.seed, "precision": precision.record()}
        record += [decision.to_dict() | drawn | {"image": i} for i, decision in enumerate(out.decisions)]
    save_picture(stack(sheets), args.output, record)
    write_json(beside, record)
    print(f"{args.output} and {beside} written")


def _check(args) -> None:
    """Raises ValueError where options do not go together."""
    if bool(args.prompt) == bool(args.file):
        raise ValueError(
            "give prompts, or a table of them with --file" if not args.file else f"--file {args.file}: leave PROMPT out"
        )
    table = {f"--{name}": getattr(args, name) for name in ("out", "resume", "column", "format", "batch")}
    if args.file and not args.out:
        raise ValueError("--file needs --out FOLDER, where the images go")
    if args.file and (args.output or args.compare):
        raise ValueError(f"{'--output' if args.output else '--compare'} makes a grid: leave it out with --file")
    if not args.file and (given := [name for name, value in table.items() if value]):
        raise ValueError(f"{given[0]} needs --file")


def _check_inputs(args, outputs: list[Path]) -> None:
    """Raises ValueError or OSError where something that was named is not there or would be overwritten: before models are loaded."""
    from livo.cli.checks import check_model, check_value_encoder, principles_of
    from livo.principles.principle import load_target, refuse_unknown_id
    from livo.utils.files import check_output, refuse_overwriting

    for file in outputs:
        check_output(file, folder=file == args.out, option="--out" if file == args.out else "--output")
        for source in filter(None, (args.principles, args.target and args.target.partition("#")[0], args.ledger, args.file)):
            refuse_overwriting(source, file, ("manifest.jsonl", "job.json"))
    check_model(args.model)
    check_value_encoder(args.value_encoder)
    principles = principles_of(args)
    if args.target:
        load_target(args.target)
    if principles is not None:
        for wish in args.value or ():
            refuse_unknown_id(wish, principles)
        if args.target:
            _with_target(principles, args.target)


def _run_table(args) -> None:
    """A file for each image of a table."""
    from functools import partial

    from livo.cli.checks import principles_of
    from livo.pipelines.job_table import Defaults, carried, check_folder, read_jobs, refuse_unknown_ids

    value = _value(args)
    jobs = read_jobs(args.file, Defaults(args.seed, args.steps, args.guidance, value, args.scale, args.n or 1), args.column)
    if names := carried(jobs):
        print(f"carried into the manifest: {', '.join(names)}")
    _check_inputs(args, [args.out])
    check_folder(args.out, args.resume)
    if (known := principles_of(args)) is not None:
        refuse_unknown_ids(jobs, known)
    from tqdm import tqdm

    from livo.pipelines.jobs import MANIFEST, run_jobs
    from livo.utils.precision import for_pipeline

    ledger, pipe = _ledger(args), _pipeline(args)
    pipe.set_progress_bar_config(disable=True)
    precision = for_pipeline(args.precision, pipe, file=args.out / "job.json")
    progress = run_jobs(
        pipe,
        jobs,
        args.out,
        format=args.format or "png",
        batch=args.batch or 8,
        resume=args.resume,
        ledger=ledger,
        settings={"precision": {"resolved": precision.resolved}},
        computing=partial(precision.autocast, pipe.device),
    )
    total, there = sum(job.images for job in jobs), next(progress)
    with tqdm(total=total, initial=there, desc=args.file.name, unit="image") as bar:
        for count in progress:
            bar.update(count - bar.n)
    print(f"{total - there} images drawn, {there} were there; {args.out / MANIFEST} has a line for each")


def _pipeline(args):
    from livo.pipelines.stable_diffusion import load_pipeline

    pipe = load_pipeline(args.model, keep_safety_checker=True, value_encoder=args.value_encoder, value_principles=args.principles)
    if args.target:
        pipe.load_value_principles(_with_target(pipe.principles, args.target))
        known = {words for encoder in pipe.value_encoders.values() for words in getattr(encoder, "statements", None) or ()}
        if not any(p.target and set(p.directions.values()) <= known for p in pipe.principles):
            raise ValueError(f"--target {args.target}: the value encoder was not trained with directions, so no target can be met")
    return pipe.to(device_of(args))


def _ledger(args):
    from livo.pipelines.ledger import ValueLedger

    return ValueLedger(args.ledger, across=None if args.ledger.exists() else "principle") if args.ledger else None


def _value(args) -> str | tuple[str, ...] | None:
    from livo.principles.principle import RESERVED, refuse_mixed

    wishes = args.value or ["auto"]
    refuse_mixed(wishes)
    if wishes[0].lower() in RESERVED:
        return None if wishes[0].lower() == "none" else "auto"
    return tuple(wishes) if len(wishes) > 1 else wishes[0]


def _with_target(principles, source: str):
    from livo.principles.principle import load_target

    target = load_target(source)
    if not any(set(p.attributes) == set(target) for p in principles):
        known = "; ".join(f"{p.id}: {', '.join(p.attributes)}" for p in principles if p.kind == "debias")
        raise ValueError(f"--target {source}: no principle has the classes {', '.join(target)}; there are {known}")
    return [replace(p, target=target) if set(p.attributes) == set(target) else p for p in principles]


def _shares(pipe, out, base, judge, width: int) -> list:
    """For each principle that acted by directions: asked, assigned and, with a judge, measured shares, printed and as bars."""
    from livo.evaluation.judges import CannotRead, attribute_for, verdicts
    from livo.evaluation.metrics import counts
    from livo.utils.pictures import bars

    sheets = []
    drawn = {"LiVO, as the judge reads it": out.images, "base, as the judge reads it": base} if judge else {}
    readings = {what: verdicts(judge, pictures) for what, pictures in drawn.items() if pictures}
    for what, rows in readings.items():
        if broken := [row.fault for row in rows if row.fault]:
            print(f"  {what}: {len(broken)} of {len(rows)} images are {' or '.join(sorted(set(broken)))}, so they are not read")
    for place, value in enumerate(out.decisions[0].values):
        if value.direction is None:
            continue
        principle = next(p for p in pipe.principles if p.id == value.id)
        directions = [decision.values[place].direction for decision in out.decisions]
        assigned = counts(directions, list(principle.shares)) / len(directions)
        shown = {"asked": list(principle.shares.values()), "assigned": assigned}
        try:
            attribute = attribute_for(judge, principle) if judge else None
        except CannotRead as error:
            attribute = None
            print(f"  {principle.id} is not measured: {error}")
        for what, rows in readings.items():
            read = [row.classes[attribute] for row in rows if attribute and not row.fault]
            if read:
                shown[what] = counts(read, list(principle.shares)) / len(read)
        classes = {name: {key: float(values[i]) for key, values in shown.items()} for i, name in enumerate(principle.shares)}
        sheets.append(bars(principle.id, classes, width))
        for name, values in classes.items():
            print(f"  {principle.id} {name:10} " + "  ".join(f"{key} {value:4.0%}" for key, value in values.items()))
    return sheets


def _caption(decision) -> str:
    if not decision.values:
        return "as the base"
    return ", ".join(value.direction or f"{value.name} token" for value in decision.applied_values) or "without the token"
