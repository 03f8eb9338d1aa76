"""What a judge is called on the command line, told without loading one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

KINDS = ("clip", "vlm", "nsfw", "safety")
NO_JUDGE = (
    "no judge is given, and only Papertown has one of its own: give --judge, such as clip:openai/clip-vit-large-patch14, "
    "vlm:llava-hf/llava-1.5-7b-hf, nsfw:SOURCE, safety:SOURCE or gender:SOURCE"
)


class JudgeSpec(NamedTuple):
    """A judge's kind ("papertown", one of `KINDS`, or an attribute), where it comes from, and the revision of a hub id."""

    kind: str
    source: str
    revision: str | None


def parse_judge(spec: str, attributes: Collection[str] | None) -> JudgeSpec:
    """Read "papertown", the folder of such a judge, or KIND:SOURCE with, for a hub id, @REVISION.

    Args:
        attributes: What the principles judge; None where that is not known yet, and any kind may turn out to be one.

    Raises:
        ValueError: it is none of these, or the kind is neither in `KINDS` nor in `attributes`.
    """
    if spec == "papertown" or (Path(spec) / "config.json").is_file():
        return JudgeSpec("papertown", spec, None)
    kind, _, source = spec.partition(":")
    if not source:
        raise ValueError(f"judge {spec!r}: give papertown, its folder, or KIND:SOURCE with clip, vlm, nsfw, safety or an attribute")
    if attributes is not None and kind not in (*KINDS, *attributes):
        raise ValueError(
            f"judge {spec}: no principle judges {kind!r}; there are {', '.join(attributes) or 'none'}, clip, vlm, nsfw and safety"
        )
    if "@" in source and not Path(source).exists():
        source, _, revision = source.rpartition("@")
        return JudgeSpec(kind, source, revision)
    return JudgeSpec(kind, source, None)
