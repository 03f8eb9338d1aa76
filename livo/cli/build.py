"""`livo build`"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from livo.cli import add_judge, add_sampling, device_of, positive

HELP = "Make preference data for principles with a construct section, or check a folder of them."
EXAMPLE = "livo build -o data/gender --only gender_equality --pairs 100"

_WRITTEN = ("data_card.json", "metadata.jsonl", "rounds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, help="folder to build into; a build that was killed goes on there")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="validate and summarise a folder, and build nothing")
    parser.add_argument(
        "--principles", type=Path, help="YAML file, folder, or bundled name: livo, safety (default: the paper's five)"
    )
    parser.add_argument("--only", nargs="+", metavar="ID", help="these principles alone")
    parser.add_argument(
        "--pairs", type=positive, help="pairs for each statement and direction (default: as the construct section says)"
    )
    parser.add_argument(
        "--populations", action="store_true", help="PopAlign's diverse and neutral sets in place of the debias principles' pairs"
    )
    parser.add_argument("--model", default="papertown", help="the generator: any text-to-image pipeline (default papertown)")
    add_judge(parser)
    parser.add_argument("--batch", type=positive, default=32, help="images generated together (default 32)")
    add_sampling(parser)


def run(args) -> None:
    if (args.check is None) == (args.output is None):
        raise ValueError("give either --output FOLDER to build, or --check FOLDER")
    if args.check is not None:
        return _check(args.check)
    from livo.cli.checks import check_judges, check_model
    from livo.principles.principle import bundled_principles, load_principles
    from livo.utils.extras import require
    from livo.utils.files import check_output, refuse_foreign, refuse_overwriting

    check_output(args.output, folder=True)
    refuse_foreign(args.output, "build.json", _WRITTEN)
    if args.principles:
        refuse_overwriting(args.principles, args.output, ("build.json", *_WRITTEN))
    known = load_principles(args.principles or bundled_principles())
    principles = _chosen(known, args.only)
    check_model(args.model)
    check_judges(args.model, [args.judge] if args.judge else [], known)
    require("building", "accelerate")
    from accelerate import PartialState

    from livo.data import build_folder, builder
    from livo.data.build_plan import further_attributes
    from livo.evaluation.judges import judge_for
    from livo.pipelines.stable_diffusion import load_pipeline
    from livo.utils.progress import follow_build

    if args.pairs:
        counts = {"pairs": args.pairs, "direction_pairs": args.pairs}
        principles = [replace(p, construct=p.construct and replace(p.construct, **counts)) for p in principles]
    state = PartialState(cpu=device_of(args) == "cpu")
    pipe = load_pipeline(args.model).to(state.device)
    pipe.set_progress_bar_config(disable=True)
    judge = judge_for(pipe, args.judge, principles, state.device, further_attributes(principles, known))
    options = builder.Options(args.seed, args.batch, args.steps, args.guidance, args.precision, args.populations)
    if state.is_main_process:
        builder.prepare(args.output, pipe, judge, principles, options)
    state.wait_for_everyone()
    jobs = builder.build(pipe, judge, principles, args.output, options, rank=state.process_index, world=state.num_processes)
    follow_build(jobs, disable=not state.is_main_process)
    state.wait_for_everyone()
    if state.is_main_process:
        manifest = build_folder.finish(args.output, principles)
        card = json.loads(manifest.with_name("data_card.json").read_text())["principles"]
        for name, job in card.items():
            print(
                f"{name:28} {job['pairs']} of {job['asked']} pairs, {job['near_duplicate_pairs_dropped']} near-duplicates dropped"
            )
        print(f"{manifest} written; look at the contact sheets and data_card.json beside it")


def _check(folder: Path) -> None:
    from livo.data import manifest

    report = manifest.check(folder)
    print(report.table())
    for line in report.notes[:20]:
        print(f"note: {line}")
    for line in report.problems[:20]:
        print(f"problem: {line}")
    if report.problems:
        raise ValueError(f"{folder}: {len(report.problems)} problems; fix them before training")
    print(f"{folder}: {len(report.samples)} images, {len(manifest.form_pairs(report.samples))} pairs, no problem")


def _chosen(principles, ids):
    if not ids:
        return principles
    known = [p.id for p in principles]
    for name in ids:
        if name not in known:
            raise ValueError(f"--only {name}: no such principle; there are {', '.join(known)}")
    return [p for p in principles if p.id in ids]
