"""Writing so that a file or folder is either whole or not there."""

from __future__ import annotations

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


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written below `folder`; what a living one is writing stays."""
    for leftover in folder.rglob("*.partial"):
        writer = leftover.name.split(".")[-2]
        if not writer.isdecimal() or int(writer) == os.getpid() or not _alive(int(writer)):
            remove(leftover)


def _alive(process: int) -> bool:
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
