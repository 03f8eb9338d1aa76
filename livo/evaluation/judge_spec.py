"""The name of a judge on the command line, read without loading the judge."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from livo.utils.bundled import bundled, bundled_names

KINDS = ("clip", "vlm", "nsfw", "safety")
BUNDLED = "bundled"  # the kind of a judge that a bundled model brings


class JudgeSpec(NamedTuple):
    """A judge's kind (`BUNDLED`, one of `KINDS`, or an attribute), where it comes from, and the revision of a hub id."""

    kind: str
    source: str
    revision: str | None


def parse_judge(spec: str, attributes: Collection[str] | None) -> JudgeSpec:
    """Read the name of a bundled model, the folder of a judge of its class, or KIND:SOURCE with, for a hub id, @REVISION.

    Args:
        spec: A word of --judge.
        attributes: What the principles judge; None where that is not known yet, and any kind may turn out to be one.

    Raises:
        ValueError: it is none of these, or the kind is neither in `KINDS` nor in `attributes`.
    """
    if bundled(spec) or (Path(spec) / "config.json").is_file():
        return JudgeSpec(BUNDLED, spec, None)
    kind, _, source = spec.partition(":")
    if not source:
        raise ValueError(
            f"judge {spec!r}: give a bundled model ({bundled_names()}), a folder of its judge, or KIND:SOURCE with clip, vlm, nsfw, "
            "safety or an attribute"
        )
    if attributes is not None and kind not in (*KINDS, *attributes):
        raise ValueError(
            f"judge {spec}: no principle judges {kind!r}; there are {', '.join(attributes) or 'none'}, clip, vlm, nsfw and safety"
        )
    if "@" in source and not Path(source).exists():
        source, _, revision = source.rpartition("@")
        return JudgeSpec(kind, source, revision)
    return JudgeSpec(kind, source, None)


def no_judge() -> str:
    """The message where a judge is needed and none is given."""
    return (
        f"no judge is given, and only bundled models ({bundled_names()}) have one of their own: give --judge, such as "
        "clip:openai/clip-vit-large-patch14, vlm:llava-hf/llava-1.5-7b-hf, nsfw:SOURCE, safety:SOURCE or gender:SOURCE"
    )
