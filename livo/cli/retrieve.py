"""`livo retrieve`"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from livo.cli import PROMPTS, add_column

HELP = "Say which principle each prompt calls for, or none, and why."
EXAMPLE = (
    'livo retrieve "a photo of a doctor" "a z0mbie nurse" --explain; livo retrieve --file prompts.txt -o decisions.csv; '
    "livo retrieve --fit labelled.csv -o fitted; livo retrieve --redteam"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", metavar="PROMPT")
    parser.add_argument(
        "--principles", type=Path, help="YAML file, folder, or bundled name: livo, safety (default: the paper's five)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list of decisions a prompt, for programs")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="what was read, every facet, the neighbours, and what would change the decision; with --principles, likely mistakes in "
        "these too",
    )
    parser.add_argument("--file", type=Path, help=f"{PROMPTS}; the decisions and its other columns go to --output")
    add_column(parser)
    parser.add_argument(
        "--fit",
        metavar="FILE",
        help="fit to labelled prompts and save into --output: any file of prompts with a column labels (ids or facets separated by |) and, "
        "where prompts are near copies of one another, family, a name for each set of copies: none of a family is measured by another; "
        "`bundled` fits the facet heads to the project's own",
    )
    parser.add_argument(
        "--redteam", action="store_true", help="perturb the project's labelled prompts and report which decisions break"
    )
    parser.add_argument("--fitted", type=Path, metavar="FOLDER", help="use what --fit saved")
    parser.add_argument("--embedder", help="any SentenceTransformer: hub id or folder (default all-MiniLM-L6-v2)")
    parser.add_argument("-o", "--output", type=Path, help=".csv or .jsonl for --file, a folder for --fit, .json for --redteam")


def run(args) -> None:
    jobs = [name for name in ("file", "fit", "redteam") if getattr(args, name)] + ["prompt"] * bool(args.prompt)
    if len(jobs) != 1:
        raise ValueError("give either prompts, --file, --fit or --redteam")
    if args.column and jobs[0] not in ("file", "fit"):
        raise ValueError("--column names a column of --file or --fit; there is no file")
    if jobs[0] == "prompt" and args.output:
        raise ValueError("--output needs --file, --fit or --redteam: decisions about prompts in the command line are printed")
    if (args.json or args.explain) and (jobs[0] != "prompt" or args.json == args.explain):
        raise ValueError("--json and --explain are for prompts in the command line, one of the two at a time")
    prompts = _read(args, jobs[0])

    from livo.principles.principle import bundled_principles
    from livo.retrieval.embedder import DEFAULT_EMBEDDER
    from livo.retrieval.retriever import ValueRetriever

    principles = args.principles or bundled_principles()
    if args.fitted:
        retriever = ValueRetriever.load(args.fitted, principles, args.embedder)
    else:
        retriever = ValueRetriever(principles, args.embedder or DEFAULT_EMBEDDER)
    if args.file:
        return _decide_file(retriever, prompts, args.output)
    if args.fit:
        return _fit(retriever, prompts, args.output)
    if args.redteam:
        return _redteam(retriever, args.output)
    for warning in retriever.warnings() if args.explain and args.principles else ():
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
                f"  {decision.id or 'none':16} score {decision.score:.2f}  threshold {decision.threshold:.2f}{sure}  {decision.reason}"
            )


def _read(args, job: str) -> list | None:
    """The prompts of --file or --fit: what may be wrong with them is said before anything is loaded."""
    from livo.utils.extras import require
    from livo.utils.files import check_output, refuse_overwriting

    suffixes = {"file": (".csv", ".jsonl"), "redteam": (".json",)}.get(job)
    if job == "file" and args.output is None:
        raise ValueError("--file needs --output NAME.csv or NAME.jsonl")
    if job == "fit":
        if args.output is None:
            raise ValueError("--fit needs --output FOLDER")
        require("fitting", "matplotlib")
    if args.output and suffixes and args.output.suffix.lower() not in suffixes:
        raise ValueError(f"--output {args.output}: --{job} writes {' or '.join(suffixes)}; give --output NAME{suffixes[0]}")
    if args.output:
        check_output(args.output, folder=job == "fit")
    written = ("report.json", "risk_coverage.png", "retriever.json", "facets") if job == "fit" else ()
    for source in (args.file, args.principles, args.fit if args.fit != "bundled" else None):
        if source and args.output:
            refuse_overwriting(source, args.output, written)
    if job == "file":
        from livo.utils.prompt_files import read_prompts

        return read_prompts(args.file, args.column)
    if job == "fit" and args.fit != "bundled":
        from livo.utils.prompt_files import read_labelled

        return read_labelled(Path(args.fit), args.column)
    return None


def _decide_file(retriever, prompts, output: Path) -> None:
    import csv

    from tqdm import tqdm

    from livo.utils.files import replacing

    columns = ("prompt", "ids", "probability", "score", "threshold", "nearest_exemplar", "text", "reason")
    carried = list(dict.fromkeys(name for prompt in prompts for name in prompt.columns))
    counts: dict[str, int] = {}
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out) if output.suffix.lower() == ".csv" else None
        if table:
            table.writerow([*columns, *(f"input_{name}" if name in columns else name for name in carried)])
        for start in tqdm(range(0, len(prompts), 256), "deciding", unit="batch"):
            batch = prompts[start : start + 256]
            for prompt, decisions in zip(batch, retriever.retrieve_batch([prompt.text for prompt in batch]), strict=True):
                ids, first = "|".join(d.id for d in decisions if d.id), decisions[0]
                counts[ids or "none"] = counts.get(ids or "none", 0) + 1
                if table:
                    values = (getattr(first, name) for name in columns[2:])
                    table.writerow([first.prompt, ids, *values, *(_cell(prompt.columns.get(name)) for name in carried)])
                else:
                    rows = [d.to_dict() | ({"columns": prompt.columns} if carried else {}) for d in decisions]
                    out.write(json.dumps(rows, ensure_ascii=False, default=str) + "\n")
    for ids, count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{count:6} {ids}")
    print(f"{output} written")


def _cell(value: object) -> object:
    """A carried value in a table: lists and objects as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _fit(retriever, rows, output: Path) -> None:
    import numpy as np

    from livo.principles.principle import FACETS
    from livo.retrieval import fit
    from livo.utils.files import write_report
    from livo.utils.pictures import curves

    if rows is None:
        report = fit.fit_bundled(retriever, output / "facets")
    else:
        unseen = retriever.fit([r.prompt for r in rows], [r.labels for r in rows], [r.family for r in rows])
        names = retriever.fitted_names
        if set(names) == set(FACETS):
            wanted = [fit.wanted_class(r.labels) for r in rows]
            decided, sure = zip(*(fit.class_of_facets(dict(zip(names, row, strict=True))) for row in unseen), strict=True)
        else:
            wanted = [next((name for name in names if name in r.labels), fit.NONE) for r in rows]
            decided = [next((name for name, p in zip(names, row, strict=True) if p >= 0.5), fit.NONE) for row in unseen]
            sure = [row[names.index(d)] if d != fit.NONE else 1 - row.max() for d, row in zip(decided, unseen, strict=True)]
        report = fit.report_of(wanted, decided, np.array(sure))
    retriever.save(output)
    write_report(output / "report.json", report, levels=2)
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


def _redteam(retriever, output: Path | None) -> None:
    from livo.retrieval import fit
    from livo.retrieval.corpus import labelled_prompts
    from livo.utils.files import write_json

    prompts = [p for p in labelled_prompts() if p.held_out and p.language == "en" and p.group != "obfuscated risk"][::6]
    found = []
    for row in fit.redteam(retriever, prompts):
        found.append(row)
        print(
            f"{row['perturbation']:14} breaks {row['broken']:6.1%} [{row['interval'][0]:.1%}, {row['interval'][1]:.1%}] of {row['prompts']}"
        )
        for example in row["examples"][:2]:
            print(f"    {example['prompt'][:90]!r}: {example['wanted']} becomes {example['decided']}")
    if output:
        write_json(output, found)
        print(f"{output} written")
