"""Rows of a prompt file in any of its formats, read by csv, json, PyYAML and PyArrow."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from livo.utils.extras import require
from livo.utils.files import check_file, load_json, read_text, split_lines
from livo.utils.plain_yaml import load_yaml

TEXT = ("prompt", "prompts", "text", "caption")  # names of the column with the prompt, in any case
Rows = list[tuple[dict[str, Any], str]]
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_SEPARATOR_LINE = "sep="  # how the first line starts where Excel is told the separator


def read_table(file: str | Path, column: str | None = None) -> Rows:
    """The rows of a file in order: for each the values by column name, and where it is ("prompts.csv: row 3 (line 4)").

    A plain string is a row with the one column `prompt`. Texts keep every character, line breaks too. NaN and empty become None.

    Args:
        file: `.txt` (one a line), `.csv` (commas, or semicolons as Excel writes them in Europe), `.tsv`, `.jsonl` or `.ndjson` (a string or
            an object a line), `.json` or `.yaml` (a list of strings or objects, `{"prompts": [...]}`, or lists by column), `.parquet`.
        column: Name of the column with the prompt, where it is none of `TEXT`.

    Raises:
        FileNotFoundError, PermissionError: it cannot be opened.
        ValueError: another suffix; another format than its suffix says; a broken row; a column that is there twice.
    """
    file = Path(file)
    if file.suffix.lower() not in _READERS:
        check_file(file)
        raise ValueError(f"{file}: cannot tell its format from {file.suffix or 'no suffix'!r}; known are {', '.join(_READERS)}")
    if file.suffix.lower() == ".parquet":
        return _parquet(file)
    text = read_text(file)
    if not text.strip():
        raise ValueError(f"{file}: no prompt in it; the file is empty")
    _refuse_stand_in(text, file)
    return [
        ({name: _plain(value) for name, value in row.items()}, where)
        for row, where in _READERS[file.suffix.lower()](file, text, column)
    ]


def _refuse_stand_in(text: str, file: Path) -> None:
    """Raises ValueError where a download left something else in place of the data."""
    start = text.lstrip()[:100].lower()
    if start.startswith(("<!doctype html", "<html")):
        raise ValueError(f"{file}: holds a web page; download the raw file instead")
    if start.startswith("version https://git-lfs"):
        raise ValueError(f"{file}: holds a Git LFS pointer instead of the data; fetch them with git lfs pull")


def text_column(names: Sequence[str], column: str | None, where: str) -> str:
    """The one of `names` that holds the prompt.

    Args:
        names: The columns of the table.
        column: The column that was asked for; None to find it.
        where: The file's name, for errors.

    Raises:
        ValueError: there is none, or it is not clear which; the message lists them.
    """
    listed = ", ".join(name or "(no name)" for name in names) or "none"
    for wanted in TEXT if column is None else (column.strip().lower(),):
        found = [name for name in names if name.lower() == wanted]
        if len(found) > 1 and column not in found:
            raise ValueError(f"{where}: {' and '.join(found)} differ in case only; rename one")
        if found:
            return column if column in found else found[0]
    if column is not None:
        raise ValueError(f"{where}: no column {column!r}; there are {listed}")
    likely = next((name for name in names if re.search("prompt|text|caption", name.lower())), None)
    hint = f"as in --column {likely!r}" if likely else "with --column; a table needs a first line of names"
    hint = f"name the one with the prompts, {hint}" if names else "give one"
    raise ValueError(f"{where}: no column named {' or '.join(TEXT)}; there are {listed}; {hint}")


# --- one format each ----------------------------------------------------------------------------------------------------


def _lines(file: Path, text: str, column: str | None) -> Iterator[tuple[dict, str]]:
    lines = [line.strip(" \t") for line in split_lines(text)]
    filled = [line for line in lines if line.strip()]
    if column is not None:
        raise ValueError(f"{file}: plain text has no columns, so there is no {column!r}; a .csv file has")
    if _is_json(text) or _is_json(filled[0], (dict, list)):
        raise ValueError(f"{file}: holds JSON, not one prompt a line; name it .json, or .jsonl where each line is an object")
    if len(filled) > 1 and all(line.startswith("- ") for line in filled):
        raise ValueError(f"{file}: holds a list in YAML, not one prompt a line; name it .yaml")
    for separator in _SEPARATORS:
        names = [name.strip().strip('"').lower() for name in filled[0].split(separator)]
        if set(names) & set(TEXT) and all(re.fullmatch(r"[\w-]*", name) for name in names) and (len(filled) > 1 or len(names) > 1):
            suffix = ".tsv" if separator == "\t" else ".csv"
            raise ValueError(f"{file}: its first line names columns ({', '.join(names)}), so it is a table; name it {suffix}")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield {"prompt": line.strip()}, f"{file}:{number}"


def _json_lines(file: Path, text: str, column: str | None) -> Iterator[tuple[dict, str]]:
    lines = split_lines(text)
    first = next(line for line in lines if line.strip())
    if (not _is_json(first) and _is_json(text)) or _is_json(first, list, of=(str, dict)):
        raise ValueError(f"{file}: holds one JSON document, not a document a line; name it .json")
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{file}:{number}"
            yield _row(load_json(line, where), where, column), where


def _json(file: Path, text: str, column: str | None) -> Iterator[tuple[dict, str]]:
    first, _, rest = text.strip().partition("\n")
    if rest.strip() and _is_json(first, (dict, str)):
        raise ValueError(f"{file}: holds one JSON document a line; name it .jsonl")
    return _document(file, load_json(text, str(file)), column)


def _yaml(file: Path, text: str, column: str | None) -> Iterator[tuple[dict, str]]:
    for row, where in _document(file, load_yaml(text, str(file)), column):
        only = next(iter(row), "")
        if len(row) == 1 and " " in only and only != column:
            raise ValueError(f"{where}: {only!r:.60} is read as the name of a column; put a text that has a colon in quotes")
        yield row, where


def _document(file: Path, data: object, column: str | None) -> Iterator[tuple[dict, str]]:
    """Rows of a list, of `{"prompts": [...]}`, or of lists by column (pandas writes {"0": ...} in place of a list)."""
    if isinstance(data, dict):
        if (orient := _orient(data, column)) is not None:
            raise ValueError(f"{file}: its rows are {orient}; save them as a list of objects (pandas: orient='records')")
        indices = [list(values) for values in data.values() if isinstance(values, dict)]
        if any(index != indices[0] for index in indices):
            raise ValueError(f"{file}: its columns have different indices; save it as a list of objects")
        columns = {str(k): list(v.values()) if isinstance(v, dict) else v for k, v in data.items()}
        lists = {name: values for name, values in columns.items() if isinstance(values, list)}
        if set(lists) == {"prompts"} and len(columns) == 1:
            data = lists["prompts"]
        elif not lists or len(lists) < len(columns):
            known = "a list, {prompts: [...]}, or a list for each column"
            raise ValueError(f"{file}: prompts are {known}; this has {', '.join(columns) or 'nothing'}: keep the lists only")
        elif len(sizes := {name: len(values) for name, values in lists.items()}) and len(set(sizes.values())) > 1:
            raise ValueError(f"{file}: its columns differ in length: {', '.join(f'{n} has {s}' for n, s in sizes.items())}")
        else:
            data = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    if not isinstance(data, list):
        raise ValueError(f"{file}: holds {data!r:.60}, not a list of prompts")
    for number, item in enumerate(data, 1):
        where = f"{file}: row {number}"
        yield _row(item, where, column), where


def _orient(data: dict, column: str | None) -> str | None:
    """How pandas or a person keeps rows other than in a list or by column; None where it is neither."""
    if {"columns", "data"} <= set(data) or {"schema", "data"} == set(data):
        return "apart from the names of their columns"
    wanted = {column.strip().lower()} if column else set(TEXT)
    inner = [{str(name).lower() for name in value} for value in data.values() if isinstance(value, dict)]
    if inner and all(names & wanted for names in inner) and not wanted & {str(name).lower() for name in data}:
        return "objects under a name each"
    return None


def _row(item: object, where: str, column: str | None) -> dict:
    if item is None or isinstance(item, str):
        return {column or "prompt": item}
    if isinstance(item, (bool, int, float)):
        raise ValueError(f"{where}: {item!r:.60} is not a text; put it in quotes, or delete it")
    if not isinstance(item, dict):
        raise ValueError(f"{where}: {item!r:.60} is neither an object with a prompt nor a string; correct or delete it")
    names = [str(name).strip() for name in item]
    _refuse_twice(names, where)
    return dict(zip(names, item.values(), strict=True))


def _table(file: Path, text: str, column: str | None) -> Iterator[tuple[dict, str]]:
    first = next((line for line in split_lines(text) if line.strip() and not line.startswith(_SEPARATOR_LINE)), "")
    if _is_json(first, dict) or _is_json(text, list):
        raise ValueError(f"{file}: holds JSON, not a table; name it .jsonl, or .json where it is one document")
    separator = _separator(file, first, column)
    rows = _cells(file, text, separator)
    names = [name.strip() for name in next((row for row, _, _ in rows if any(cell.strip() for cell in row)), ())]
    while names and not names[-1]:
        names.pop()  # spreadsheets end lines with separators of empty columns
    text_column(list(dict.fromkeys(names)), column, str(file))
    _refuse_twice(names, f"{file}")
    for row, where, last in rows:
        if not any(cell.strip() for cell in row):
            if not last:
                yield dict.fromkeys(names), where
            continue
        if any(cell.strip() for cell in row[len(names) :]):
            raise ValueError(f"{where}: more cells than columns; put a prompt that has a separator ({separator!r}) in quotes")
        if len(row) < len(names):
            raise ValueError(f"{where}: {len(row)} cells for {len(names)} columns; put a prompt with a line break in quotes")
        yield dict(zip(names, row, strict=False)), where


def _cells(file: Path, text: str, separator: str) -> Iterator[tuple[list[str], str, bool]]:
    """Rows of cells, where they are, and whether nothing but blank follows. What is broken is raised behind the rows before it."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, line, broken = [], 1, None
    try:
        for row in reader:
            if line > 1 or not "".join(row[:1]).startswith(_SEPARATOR_LINE):
                rows.append((row, line))
            line = reader.line_num + 1
    except csv.Error as error:
        quote = "unexpected end" in str(error) or "limit" in str(error)
        broken = f"{error}: perhaps a quote that opens there is not closed" if quote else str(error)
    filled = [i for i, (row, _) in enumerate(rows) if any(cell.strip() for cell in row)] or [0]
    for i, (row, start) in enumerate(rows):
        yield row, f"{file}: row {i - filled[0]} (line {start})", i > filled[-1]
    if broken:
        where = f"{file}: row {len(rows) - filled[0]} (line {line})"
        raise ValueError(f"{where}: not a row of CSV ({broken}); correct or delete it")


def _separator(file: Path, first: str, column: str | None) -> str:
    """The separator under which the header has a column of prompts; a comma or semicolon in `.csv`, a tab in `.tsv`."""
    wanted = {column.strip().lower()} if column else set(TEXT)
    headers = {s: [name.strip().strip('"').lower() for name in first.split(s)] for s in _SEPARATORS}
    own = "\t" if file.suffix.lower() == ".tsv" else ","
    matching = [s for s in (own, *_SEPARATORS) if wanted & set(headers[s])]
    separator = matching[0] if matching else max((own, *_SEPARATORS), key=lambda s: len(headers[s]))
    if separator != own and "\t" in (separator, own):
        raise ValueError(
            f"{file}: its columns are separated by {_SEPARATORS[separator]}; name it {'.tsv' if own == ',' else '.csv'}"
        )
    return separator


def _parquet(file: Path) -> Rows:
    check_file(file)
    with file.open("rb") as stream:
        _refuse_stand_in(stream.read(200).decode("latin-1"), file)
    require(f"{file}: reading Parquet", "pyarrow")
    from pyarrow import ArrowException, parquet

    try:
        with file.open("rb") as stream:  # PyArrow would take a folder's name for a data set
            table = parquet.ParquetFile(stream).read()
    except (ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as Parquet ({error})") from None
    names = [name.strip() for name in table.column_names]
    _refuse_twice(names, str(file))
    columns = [values.to_pylist() for values in table.columns]
    return [
        (
            {name: _plain(value) for name, value in zip(names, row, strict=True) if name != "__index_level_0__"},
            f"{file}: row {number}",
        )
        for number, row in enumerate(zip(*columns, strict=True), 1)
    ]


_READERS: dict[str, Callable[..., Iterable[tuple[dict, str]]]] = {
    ".txt": _lines,
    ".csv": _table,
    ".tsv": _table,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".parquet": _parquet,
}


# --- helpers ------------------------------------------------------------------------------------------------------------


def _is_json(text: str, kind: type | tuple[type, ...] = (dict, list), of: tuple[type, ...] = (object,)) -> bool:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(data, kind) and (not isinstance(data, list) or (bool(data) and all(isinstance(item, of) for item in data)))


def _refuse_twice(names: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            what = f"two columns named {name!r}" if name else "two columns without a name"
            raise ValueError(f"{where}: {what}; rename one")


def _plain(value: object) -> object:
    """What JSON can hold. NaN and blank texts are no value; dates, bytes and the like become text, in lists and objects too."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip()):
        return None
    plain = isinstance(value, (str, int, type(None))) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)
