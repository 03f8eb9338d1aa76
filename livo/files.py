"""Writing so that a file or folder is either whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what the block leaves there takes its place when the block ends without an error."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    remove(temporary)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
    except BaseException:
        remove(temporary)
        raise
    if temporary.is_dir():
        remove(path)
    temporary.replace(path)


def write_json(path: Path, data: object) -> None:
    """Write `data` as JSON in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def differing(path: Path, content: dict) -> list[str]:
    """The names in `content` that have another value in the JSON file at `path`; none where there is no such file."""
    if not path.is_file():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    return [name for name, value in json.loads(json.dumps(content)).items() if before.get(name) != value]


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written below `folder`; what a living one is writing stays."""
    for leftover in folder.rglob("*.partial"):
        writer = leftover.name.split(".")[-2]
        if not writer.isdecimal() or int(writer) == os.getpid() or not alive(int(writer)):
            remove(leftover)


def alive(process: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
