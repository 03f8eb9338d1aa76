"""Reading text files in any encoding, and writing files and folders that are either complete or absent."""

from __future__ import annotations

import codecs
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_KINDS = {  # how files start that are no text
    b"PAR1": "Parquet data",
    b"PK\x03\x04": "a zip archive (as .xlsx is)",
    b"\x1f\x8b": "gzip data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"\x28\xb5\x2f\xfd": "zstandard data",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF",
}

HALF = "half of a character (a lone surrogate, or bytes that are not UTF-8); write it again"


def check_file(file: Path) -> None:
    """Raises FileNotFoundError or ValueError where `file` is no regular file; the message says what it is.

    Args:
        file: A path that should be a file.
    """
    if file.is_symlink() and not file.exists():
        raise FileNotFoundError(f"{file}: a broken link to {os.readlink(file)}")
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file")
    if file.is_dir():
        raise ValueError(f"{file}: a folder; name a file")
    if not file.is_file():
        raise ValueError(f"{file}: a device or a pipe; name a file")


def read_bytes(file: Path) -> bytes:
    """The content of a regular file.

    Args:
        file: A path.

    Raises:
        FileNotFoundError, PermissionError, ValueError: it is not there, cannot be opened, or is no file. The message names it.
    """
    check_file(file)
    try:
        return file.read_bytes()
    except PermissionError:
        raise PermissionError(f"{file}: no permission to read it") from None


def read_text(file: str | Path) -> str:
    """The text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one, as Excel saves it.

    Raises:
        FileNotFoundError, PermissionError, ValueError: see `read_bytes`; or it is no such text. The message names the file and the remedy.
    """
    file = Path(file)
    content = read_bytes(file)
    for start, what in _KINDS.items():
        if content.startswith(start):
            raise ValueError(f"{file}: holds {what}, not text; unpack or export it, or give it its own suffix")
    encoding = "UTF-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "UTF-8"
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not {encoding} text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    if (at := text.find("\0")) >= 0:
        raise ValueError(f"{file}:{text.count(chr(10), 0, at) + 1}: a null character, so it is no plain text; save it as UTF-8")
    return text


def split_lines(text: str) -> list[str]:
    """Lines that end in LF, CRLF or CR. `splitlines` would cut texts at U+2028, NEL and others too.

    Args:
        text: The content of a file.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def load_json(text: str, where: str) -> object:
    """Plain data from JSON.

    Args:
        text: The content of a JSON file.
        where: File and line, for the message.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a key twice in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"{where}: JSON that is nested too deeply; nothing that LiVO reads is") from None
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice; keep one")
    return found


def is_text(value: object) -> bool:
    """Whether it is a string that can be written: half a surrogate pair ("\\ud800" in JSON, invalid bytes of a command line) cannot.

    Args:
        value: Any value.
    """
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def refuse_half(name: str, value: object) -> None:
    """Raises ValueError where a string, or one in a list or tuple, has half a surrogate pair; the message starts with `name`.

    Args:
        name: What the text is, for the message.
        value: The text.
    """
    for part in value if isinstance(value, (list, tuple)) else ():
        refuse_half(name, part)
    if isinstance(value, str) and not is_text(value):
        raise ValueError(f"{name} {value!r:.80} holds {HALF}")


def check_output(path: Path, folder: bool = False, option: str = "--output") -> None:
    """Raises ValueError where `path`, given as `option`, cannot become a file, or with `folder` a folder: for before long work."""
    if path.exists() and path.is_dir() != folder:
        raise ValueError(f"{option} {path} is a {'file: give a folder' if folder else 'folder: name a file'}")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ValueError(f"{option} {path}: {above} is a file, so nothing can be written below it")
    if not os.access(above, os.W_OK):
        raise ValueError(f"{option} {path}: no permission to write in {above}")


def refuse_overwriting(source: str | Path, output: Path, names: tuple[str, ...] = ()) -> None:
    """Raises ValueError where writing `output`, or the files and folders `names` in it, would replace the input `source`.

    Args:
        source: A file or folder that is read.
        output: What will be written.
        names: Files and folders that will be written in `output`.
    """
    source = Path(source).resolve()
    for target in (output, *(output / name for name in names)):
        target = target.resolve()
        if source == target or (target in source.parents and target != output.resolve()) or _same(source, target):
            raise ValueError(f"{output}: writing there would replace the input {source.name}; choose another output")


def refuse_foreign(folder: Path, mark: str, names: tuple[str, ...]) -> None:
    """Raises ValueError where `folder` holds one of `names`, which a run would replace, but not `mark`, which every run writes first.

    Args:
        folder: Where a run will write.
        mark: The file that every such run writes first.
        names: What the run would replace.
    """
    if not (folder / mark).is_file() and (there := [name for name in names if (folder / name).exists()]):
        raise ValueError(f"--output {folder}: its {there[0]} was not made by this command (no {mark}); choose another folder")


def _same(one: Path, two: Path) -> bool:
    return one.exists() and two.exists() and one.samefile(two)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what the block leaves there takes its place when the block ends without an error.

    Args:
        path: A file or folder; its parents are made.
    """
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
    elif path.is_dir():
        remove(temporary)
        raise IsADirectoryError(f"{path}: a folder; name a file")
    temporary.replace(path)


def write_json(path: Path, data: object) -> None:
    """Write `data` as JSON in UTF-8, whole or not at all.

    Args:
        path: The file to replace.
        data: Plain JSON values.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_report(path: Path, data: object, levels: int) -> None:
    """Write figures as JSON that people and git can read: few lines, numbers with six significant digits.

    Args:
        path: The file to replace.
        data: Plain JSON values.
        levels: How many of the outer dicts, and lists of dicts, are spread over lines; each other value stands on one line.
    """
    rounded = json.loads(json.dumps(data), parse_float=lambda text: float(f"{float(text):.6g}"))
    with replacing(path) as temporary:
        temporary.write_text(_spread(rounded, levels, "") + "\n", encoding="utf-8")


def _spread(data: object, levels: int, indent: str) -> str:
    deeper = indent + " "
    if levels and data and isinstance(data, dict):
        named = [f"{json.dumps(key, ensure_ascii=False)}: {_spread(value, levels - 1, deeper)}" for key, value in data.items()]
        return "{\n" + ",\n".join(deeper + line for line in named) + f"\n{indent}}}"
    if levels and data and isinstance(data, list) and isinstance(data[0], dict):
        return "[\n" + ",\n".join(deeper + _spread(value, levels - 1, deeper) for value in data) + f"\n{indent}]"
    return json.dumps(data, ensure_ascii=False)


def differing(path: Path, content: dict) -> list[str]:
    """The names in `content` that have another value in the JSON file at `path`; none where there is no such file.

    Args:
        path: A JSON file.
        content: What it should hold.
    """
    if not path.is_file():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    return [name for name, value in json.loads(json.dumps(content)).items() if before.get(name) != value]


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written below `folder`; what a living one is writing stays.

    Args:
        folder: Where runs have written.
    """
    for leftover in folder.rglob("*.partial"):
        writer = leftover.name.split(".")[-2]
        if not writer.isdecimal() or int(writer) == os.getpid() or not alive(int(writer)):
            remove(leftover)


def alive(process: int) -> bool:
    """Whether a process of this machine is running.

    Args:
        process: A process id of this machine.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there.

    Args:
        path: A file or folder.
    """
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
