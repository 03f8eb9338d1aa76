"""What is checked before a command imports torch: arguments that name things. Each raises one ValueError or OSError."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from livo.evaluation.judge_spec import BUNDLED, no_judge, parse_judge
from livo.principles.principle import ValuePrinciple, bundled_principles, load_principles
from livo.utils.bundled import bundled, bundled_names
from livo.utils.hub import hub_options


def check_model(model: str) -> None:
    """A model is a bundled model's name, a diffusers folder, or a hub id that can be had."""
    if bundled(model):
        return
    hub_options(model, "model")
    if Path(model).exists() and not (Path(model) / "model_index.json").is_file():
        what = f"a folder in diffusers' layout, a hub id, or a bundled model ({bundled_names()})"
        raise ValueError(f"--model {model}: no model_index.json in it; give {what}")


def check_value_encoder(source: str | Path | None) -> None:
    """A value encoder is a folder, a .safetensors file, or a hub id that can be had."""
    if source is None:
        return
    if not str(source):
        raise ValueError("--value-encoder is empty: give a folder, a .safetensors file or a hub id, or leave it out")
    hub_options(str(source), "value encoder")
    path = Path(source)
    if path.is_file() and path.suffix.lower() != ".safetensors":
        raise ValueError(f"--value-encoder {source}: a value encoder is a folder or a .safetensors file, and this is neither")
    if path.is_dir() and not any((folder / "config.json").is_file() for folder in (path, path / "value_encoder")):
        raise ValueError(f"--value-encoder {source}: no config.json in it or in its value_encoder folder, so no value encoder")


def principles_of(args) -> list[ValuePrinciple] | None:
    """The principles a command works with, as far as they are known: None where the model may bring its own."""
    if args.principles:
        return load_principles(args.principles)
    return load_principles(bundled_principles()) if bundled(args.model) else None


def check_judges(model: str, judges: Sequence[str], principles: Sequence[ValuePrinciple] | None) -> None:
    """Each judge is one that can be had. A hub id needs one; a folder may hold a bundled model, so it is loaded first."""
    if not judges and not bundled(model) and not Path(model).is_dir():
        raise ValueError(f"--model {model}: {no_judge()}")
    if len(set(judges)) < len(judges):
        raise ValueError(f"--judge {max(judges, key=judges.count)} is there twice; name each judge once")
    attributes = None if principles is None else {p.judged: None for p in principles if p.attributes}
    for spec in judges:
        kind, source, _ = parse_judge(spec, attributes)
        if kind != BUNDLED:
            hub_options(source, f"judge {kind}")
