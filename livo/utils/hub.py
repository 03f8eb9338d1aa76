"""Fail within seconds if a model is not on this machine and the hub cannot be reached: huggingface_hub retries for 39 s."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

_PATIENCE = 5.0  # seconds for the hub to answer
_HOLDS = 60.0  # seconds: a command asks for several models one after another
_last: tuple[float, str | None] = (float("-inf"), None)  # when the hub was asked, and what came of it
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class NotFound(FileNotFoundError, ValueError):
    """A model is neither on this machine nor on a hub that can be reached."""


def hub_options(source: str | Path, what: str, **options) -> dict[str, Any]:
    """What `from_pretrained` needs beside `options` to load `source`, a path or a hub id, without waiting for a hub that cannot answer.

    What the hub itself answers (no such repository, no access) is left to the loader.

    Args:
        source: A path or a hub id.
        what: What the source is, for the message: "model".
        **options: As for `from_pretrained`; `cache_dir` and `local_files_only` are read.

    Returns:
        `local_files_only` for a hub id that is in the cache while the hub cannot be reached; nothing otherwise.

    Raises:
        NotFound: it is a path where nothing is, or a hub id that is not in the cache while the hub cannot be reached.
    """
    path, text = Path(source).expanduser(), str(source)
    if path.exists():
        return {}
    if isinstance(source, Path) or text.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(text) or path.suffix == ".safetensors":
        raise NotFound(f"{what} {text!r}: no such file or folder")
    reason = "local_files_only is set" if options.get("local_files_only") else _unreachable()
    if reason is None:
        return {}
    from huggingface_hub import constants

    cache = Path(options.get("cache_dir") or constants.HF_HUB_CACHE)
    ids = [text] if "/" in text else [text, f"sentence-transformers/{text}"]  # as sentence-transformers completes a name
    if any(any(cache.glob(f"models--{name.replace('/', '--')}/snapshots/*")) for name in ids):
        return {"local_files_only": True}
    raise NotFound(
        f"{what} {text!r} was not found locally, and the hub cannot be reached ({reason}): download it first, or give a folder"
    )


def _unreachable() -> str | None:
    """Why the hub cannot be reached; None where it answers, whatever it says. What was found out holds for `_HOLDS` seconds."""
    global _last
    if time.monotonic() - _last[0] > _HOLDS:
        _last = (time.monotonic(), _ask())
    return _last[1]


def _ask() -> str | None:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    found: list[str] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
            found.append("")
        except Exception as error:  # of httpx or requests, by the version of huggingface_hub
            found.append(" ".join(str(error).split()) or type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)  # looking a name up has no timeout of its own
    thread.start()
    thread.join(_PATIENCE)
    return (found or [f"no answer from {constants.ENDPOINT} in {_PATIENCE:.0f} s"])[0] or None
