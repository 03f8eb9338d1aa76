"""Loading the judge that --judge names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline

from livo.evaluation.judge_spec import BUNDLED, no_judge, parse_judge
from livo.evaluation.judges.base import NO_YES, Judge, Words
from livo.evaluation.judges.bundled import bundled_model_of, load_bundled_judge
from livo.evaluation.judges.classifier import ClassifierJudge, labels_of, unsafe_labels
from livo.evaluation.judges.clip import TEMPLATE, ZERO_SHOT, CLIPJudge
from livo.evaluation.judges.safety import SafetyCheckerJudge
from livo.evaluation.judges.vision_language import VisionLanguageJudge
from livo.principles.principle import ValuePrinciple


def load_judge(
    spec: str, principles: Sequence[ValuePrinciple] = (), device: str | torch.device = "cpu", also: Words | None = None
) -> Judge:
    """The judge that `spec` names: what it is asked follows from the principles.

    Args:
        spec: A bundled model ("papertown"), or the folder of a judge of its class; else KIND:SOURCE, with a hub id or a folder and,
            for a hub id, @REVISION:
            "clip:openai/clip-vit-large-patch14", "vlm:llava-hf/llava-1.5-7b-hf", "nsfw:...", "safety:...", "gender:..." (or any other
            attribute of the principles: an image classifier whose labels are its classes).
        principles: Their attributes are what the judge is asked.
        device: Where the model runs.
        also: Further attributes for the judges that are asked in words, clip and vlm.

    Raises:
        ValueError: it cannot be loaded, or cannot tell what it is asked; the message says what to do.
    """
    words: dict[str, dict[str, str]] = {}
    for principle in principles:
        if principle.attributes:
            words.setdefault(principle.judged, {}).update(principle.attributes)
    kind, source, revision = parse_judge(spec, words)
    if kind == BUNDLED:
        return load_bundled_judge(source, device)
    options: dict[str, Any] = {"revision": revision, "device": device}
    if kind in ("clip", "vlm") and not words:
        raise ValueError(f"judge {spec}: no principle has attributes, so there is nothing to ask; give --principles that have")
    more = {name: dict(classes) for name, classes in (also or {}).items() if name not in words}
    if kind == "clip":  # the paper's words for a class are its name, "male"; a risk has no word but its description
        plain = {a: {n: w if set(c) == set(NO_YES) else n for n, w in c.items()} for a, c in words.items()}
        templates = dict.fromkeys(plain, TEMPLATE) | dict.fromkeys(more, ZERO_SHOT)
        return CLIPJudge(source, plain | more, templates if more else TEMPLATE, **options)
    if kind == "vlm":
        return VisionLanguageJudge(source, words | more, **options)
    if kind == "safety":
        return SafetyCheckerJudge(source, **options)
    if kind == "nsfw":
        return ClassifierJudge(source, kind, unsafe_labels, **options)
    return ClassifierJudge(source, kind, lambda labels: labels_of(labels, tuple(words[kind])), **options)


def judge_for(
    pipe: DiffusionPipeline,
    spec: str | None,
    principles: Sequence[ValuePrinciple] = (),
    device: str | torch.device = "cpu",
    also: Words | None = None,
) -> Judge:
    """The judge that `spec` names, which must be able to read what `pipe` draws. Without a name: a bundled model's own.

    Args:
        pipe: The pipeline whose images are judged.
        spec: As for `load_judge`; None or "" for a bundled model's own judge.
        principles: As for `load_judge`.
        device: As for `load_judge`.
        also: As for `load_judge`.

    Raises:
        ValueError: no judge is named and the pipeline is no bundled model; or the judge cannot be loaded, or is for other pictures.
    """
    if not spec:
        model = bundled_model_of(pipe)
        if model is None:
            raise ValueError(no_judge())
        spec = model.name
    judge = load_judge(spec, principles, device, also)
    judge.check_pipeline(pipe)
    return judge
