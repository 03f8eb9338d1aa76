"""`livo evaluate`"""

from __future__ import annotations

import argparse
from pathlib import Path

from livo.cli import PROMPTS, add_column, add_judge, add_sampling, device_of, positive

HELP = "Measure bias, toxicity and quality of methods on prompts, with intervals."
EXAMPLE = "livo evaluate --prompts prompts.txt --method base livo negative=blood -n 10 -o runs/evaluation"
_METHODS = """base; livo (the retriever chooses); livo=ID[,ID] (given principles); negative=WORDS; sld=WORDS, or sld-weak, sld-medium,
sld-strong, sld-max; fair=A/B[;C/D/E] (Fair Diffusion, the concepts of each attribute); uce=WORD[,WORD] (erased); weights=FILE
(a baseline that was saved); lora=FILE, folder or hub id. Default: base livo"""

_BETWEEN = {"fair": "/", "livo": ",", "uce": ","}  # what separates the words of a method
_KINDS = ("base", "livo", "negative", "sld", "sld-weak", "sld-medium", "sld-strong", "sld-max", "fair", "uce", "weights", "lora")

_WRITTEN = ("results.json", "report.html", "contact.png", "readings", "images")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"{PROMPTS}; the papers' files and I2P as they are. A column named like an attribute of a judge (gender) says which class the "
        "prompt states; the others are carried into results.json",
    )
    add_column(parser)
    parser.add_argument("--method", nargs="+", default=["base", "livo"], help=_METHODS)
    add_judge(parser, "; repeat it, and their disagreement is reported", action="append")
    parser.add_argument(
        "--reference",
        default="base",
        help="set for FID: base (the frozen backbone's images at other seeds), a folder of images, or none",
    )
    parser.add_argument("-n", type=positive, default=8, help="images per prompt (default 8)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("evaluation"), help="folder; an evaluation that was killed goes on there"
    )
    parser.add_argument("--keep", action="store_true", help="keep the images as PNG")
    parser.add_argument("--model", default="papertown", help="papertown, or any Stable Diffusion or SDXL: hub id or folder")
    parser.add_argument("--value-encoder", help="hub id, folder or .safetensors file (default: the model's own)")
    parser.add_argument(
        "--principles",
        type=Path,
        help="YAML file, folder, or bundled name (livo, safety): what is judged (default: what livo=ID names, else the model's own, else "
        "the paper's five)",
    )
    parser.add_argument("--batch", type=positive, default=32, help="images generated together, across prompts (default 32)")
    add_sampling(parser)


def run(args) -> None:
    from livo.cli.checks import check_judges, check_model, check_value_encoder, principles_of
    from livo.utils.extras import require
    from livo.utils.files import check_output, refuse_foreign, refuse_overwriting
    from livo.utils.images import require_images
    from livo.utils.prompt_files import distinct, read_prompts

    check_output(args.output, folder=True)
    refuse_foreign(args.output, "evaluation.json", _WRITTEN)
    for source in filter(None, (args.prompts, args.principles)):
        refuse_overwriting(source, args.output, ("evaluation.json", *_WRITTEN))
    check_model(args.model)
    check_value_encoder(args.value_encoder)
    check_judges(args.model, args.judge or [], principles_of(args))
    for spec in args.method:
        _check_method(spec)
    if twice := [spec for spec in args.method if args.method.count(spec) > 1]:
        raise ValueError(f"--method {twice[0]} is there twice; name each method once")
    require("evaluating", "accelerate")
    prompts = read_prompts(args.prompts, args.column)  # what may fail is loaded before the long part
    if args.reference not in ("base", "none"):
        folder = Path(args.reference)
        if not folder.is_dir():
            raise ValueError(f"--reference {folder}: no such folder; give base, a folder of images, or none")
        if args.keep and folder.resolve().is_relative_to((args.output / "images").resolve()):
            raise ValueError(f"--reference {folder}: --keep writes there; copy it to another place")
        require_images(folder, 2)
    from accelerate import PartialState

    from livo.evaluation import report, results, runner
    from livo.evaluation.judges import judge_for
    from livo.evaluation.method import Method, Settings, reference
    from livo.pipelines.stable_diffusion import load_pipeline
    from livo.utils.progress import follow_evaluation

    state = PartialState(cpu=device_of(args) == "cpu")
    pipe = load_pipeline(args.model, value_encoder=args.value_encoder, value_principles=args.principles).to(state.device)
    pipe.set_progress_bar_config(disable=True)
    asked = _asked(args, pipe)
    judges = [judge_for(pipe, spec, asked, state.device) for spec in args.judge or [None]]
    prompts = distinct([prompt.stating({name for judge in judges for name in judge.attributes}) for prompt in prompts])
    methods = [_method(spec, pipe) for spec in args.method]
    names = ("images", "batch", "steps", "guidance", "seed", "precision", "keep")
    settings = Settings(**{name: args.n if name == "images" else getattr(args, name) for name in names})
    against = {"base": reference(), "none": None}.get(args.reference, Path(args.reference))
    if not any(hasattr(judge, "embed") for judge in judges):
        against = None
        if state.is_main_process:
            print("no judge gives features (papertown and clip do), so FID, KID and drift are left out")
    if state.is_main_process:
        runner.claim(args.output, pipe, prompts, judges, settings)
    state.wait_for_everyone()
    work = [*methods, *([against] if isinstance(against, Method) else [])]
    jobs = runner.evaluate(pipe, work, prompts, judges, args.output, settings, rank=state.process_index, world=state.num_processes)
    follow_evaluation(jobs, disable=not state.is_main_process)
    state.wait_for_everyone()
    if state.is_main_process:
        result, found = results.assemble(args.output, methods, prompts, judges, asked, settings, against)
        report.write(args.output, result, found)
        print(report.plain(*report.table(result["figures"]["all prompts"])))
        for name, read in found.items():
            if broken := int((~read.good).sum()):
                print(f"{name}: {broken} of {read.good.size} images are black, constant or not finite, and in no figure")
        for pair, values in next(iter(result["disagreement"].values()), {}).items():
            kappa = "" if values["kappa"] is None else f", kappa {values['kappa']:.2f}"
            print(f"{pair}: the judges differ on {values['differ']:.1f}% of the images{kappa}")
        print(f"{args.output}/results.json written; report.html and contact.png lie beside it")


def _asked(args, pipe):
    """The principles that are reported: all of --principles, else those that every livo method names, else all of the model's."""
    named = [spec.partition("=")[2].split(",") for spec in args.method if spec.partition("=")[0] == "livo"]
    ids = {name for names in named for name in names}
    return [p for p in pipe.principles if p.id in ids] if named and "" not in ids and not args.principles else pipe.principles


def _check_method(spec: str) -> None:
    """What can be said of a word of --method before the model is loaded."""
    kind, _, rest = spec.partition("=")
    if kind not in _KINDS or not (rest or kind in ("base", "livo")) or (kind == "base" and rest):
        raise ValueError(f"--method {spec}: there are {' '.join(_METHODS.split())}")
    groups = [group.split(_BETWEEN.get(kind, "\n")) for group in (rest.split(";") if kind == "fair" else [rest])]
    if "=" in spec and not all(word.strip() for group in groups for word in group):
        raise ValueError(f"--method {spec}: a word of it is empty; write it, or leave its separator out")
    if kind == "fair" and any(len(set(group)) < max(2, len(group)) for group in groups):
        raise ValueError(f"--method {spec}: name two concepts or more for each attribute, each once, as in 'fair=a man/a woman'")
    if kind == "weights" and not Path(rest).is_file():
        raise ValueError(f"--method {spec}: no such file")
    if kind == "lora":
        from livo.utils.hub import hub_options

        hub_options(rest, "LoRA")


def _method(spec: str, pipe):
    """The method that a word of --method names."""
    from livo import baselines
    from livo.evaluation.method import Method

    kind, _, rest = spec.partition("=")
    if kind == "base":
        return Method("base")
    if kind == "livo":
        if not pipe.value_encoders:
            raise ValueError(f"--method {spec}: the model has no value encoder; give --value-encoder, or leave livo out")
        ids = tuple(rest.split(",")) if rest else ()
        statements = [words for encoder in pipe.value_encoders.values() for words in encoder.statements or ()]
        known = [*(p.id for p in pipe.principles), *statements]
        if unknown := [name for name in ids if name not in known]:
            raise ValueError(f"--method {spec}: no principle {unknown[0]!r}; there are {', '.join(known)}")
        return Method(spec, value=(ids[0] if len(ids) == 1 else ids) if ids else "auto")
    if kind == "negative":
        return Method(spec, edit=baselines.NegativePrompt(rest))
    if kind.startswith("sld"):
        return Method(spec, edit=baselines.SafeLatentDiffusion.preset(rest, kind.partition("-")[2] or "strong"))
    if kind == "fair":
        return Method(spec, edit=baselines.FairDiffusion(tuple(tuple(group.split("/")) for group in rest.split(";"))))
    if kind == "uce":
        return Method(spec, edit=baselines.UnifiedConceptEditing.edit(pipe, erase=dict.fromkeys(rest.split(","), "")))
    if kind == "weights":
        edit = baselines.WeightEdit.load(rest)
        edit.check(pipe, rest)
        return Method(spec, edit=edit)
    return Method(spec, edit=baselines.LoRA.read(pipe, rest))  # what is left of _KINDS
