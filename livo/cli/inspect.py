"""`livo inspect`"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HELP = "Read back from images what was decided for them, and what they were drawn with."
EXAMPLE = "livo inspect doctor.png"
_FACTS = ("statement", "direction", "scale", "start", "end", "score", "threshold", "nearest_exemplar", "encoder_name", "encoder")
_WIDTHS = {"file": 40, "prompt": 44, "values": 36, "seed": 12, "encoder": 16, "applied": 7}  # of the table's columns, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "image", nargs="+", type=Path, metavar="IMAGE", help="PNG, JPEG or WebP that LiVO wrote, or a folder of them for a table"
    )
    parser.add_argument(
        "--json", action="store_true", help='for programs: a JSON list an image file, {"file": ..., "record": [...]} in folders'
    )


def run(args) -> None:
    pictures, problems = [], []
    for path in args.image:
        found, broken = _read(path)
        problems += broken
        pictures += [(file, record) for file, record in found]
        if args.json:
            for file, record in found:
                print(json.dumps({"file": str(file), "record": record} if path.is_dir() else record, ensure_ascii=False))
        elif path.is_dir():
            _print_table([row for file, record in found for row in _rows(str(file.relative_to(path)), record)])
        else:
            print("\n".join(f"{file}\n{describe(record)}" for file, record in found), end="\n" * bool(found))
    if not pictures and len(problems) == 1:
        raise ValueError(problems[0])
    for problem in problems:
        print(problem, file=sys.stderr)
    if not pictures:
        raise ValueError(f"none of {len(problems)} pictures could be read")


def _read(path: Path) -> tuple[list[tuple[Path, list[dict]]], list[str]]:
    """The files at `path` that have a record, and a line for each of the others."""
    from livo.pipelines.decision_record import read_record
    from livo.utils.pictures import RECORD_FORMATS

    files = [path]
    if path.is_dir():
        known = {f".{name}" for name in RECORD_FORMATS}
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file())
        if not files:
            return [], [f"{path}: no picture in it ({', '.join(sorted(known))})"]
    found, broken = [], []
    for file in files:
        try:
            found.append((file, read_record(file)))
        except (ValueError, OSError) as error:
            message = _line(error.strerror.lower() if isinstance(error, OSError) and error.strerror else error)
            broken.append(message if str(file) in message else f"{file}: {message}")
    return found, broken


def describe(record: Sequence[Mapping]) -> str:
    """All that is known of each image of a record, in a few lines."""
    lines = []
    for i, entry in enumerate(record):
        if "prompt" not in entry:
            lines.append(_line("; ".join(f"{name}: {value}" for name, value in entry.items())))
            continue
        lines.append(f"image {i}: {_line(entry['prompt'])}")
        lines += [f"  no value: without the token; {_line(entry.get('reason'))}"] * (not entry["values"])
        for value in entry["values"]:
            received = "received the token" if value.get("applied") else "without the token"
            if value.get("applied") and value.get("known") is False:
                received += " (words that the encoder was not trained with)"
            lines.append(f"  {_line(value.get('id') or value.get('statement'))}: {received}; {_line(value.get('reason'))}")
            facts = [f"{key} {value[key]}" for key in _FACTS if value.get(key) is not None]
            lines += [f"    {_line(', '.join(facts))}"] * bool(facts)
            lines += [f"    conflict: {_line(conflict)}" for conflict in value.get("conflicts") or ()]
        drawn = [f"{key} {entry[key]}" for key in ("seed", "image") if entry.get(key) is not None]
        lines += [f"  {', '.join(drawn)}"] * bool(drawn)
        lines += [f"  {name}: {_line(_told(value))}" for name, value in (entry.get("settings") or {}).items() if value]
    return "\n".join(lines)


def _rows(name: str, record: Sequence[Mapping]) -> Iterator[dict[str, str]]:
    """A row of the table for each image."""
    for i, entry in enumerate(record):
        values = entry.get("values") or ()
        advanced = ((entry.get("settings") or {}).get("generator") or {}).get("state")
        yield {
            "file": name if len(record) == 1 else f"{name} [{i}]",
            "prompt": entry.get("prompt") or _told(entry),
            "values": " + ".join(f"{v.get('id') or v.get('statement')}{_direction(v)}" for v in values) or "none",
            "seed": "" if entry.get("seed") is None else f"{entry['seed']}{' (state)' if advanced else ''}",
            "encoder": next((str(v["encoder"]) for v in values if v.get("encoder")), ""),
            "applied": _count(sum(bool(v.get("applied")) for v in values), len(values)),
        }


def _count(applied: int, values: int) -> str:
    return f"{applied} of {values}" if 0 < applied < values else "yes" if applied else "no"


def _direction(value: Mapping) -> str:
    return f" > {value['direction']}" if value.get("direction") else ""


def _print_table(rows: Sequence[Mapping[str, str]]) -> None:
    cells = [{name: _line(row[name]) for name in _WIDTHS} for row in rows]
    widths = {name: min(most, max(len(row[name]) for row in [*cells, {name: name}])) for name, most in _WIDTHS.items()}
    for row in [dict(zip(_WIDTHS, _WIDTHS, strict=True)), *cells] if cells else []:
        shown = (text if len(text) <= widths[name] else f"{text[: widths[name] - 1]}…" for name, text in row.items())
        print("  ".join(text.ljust(width) for text, width in zip(shown, widths.values(), strict=True)).rstrip())


def _told(value: object) -> str:
    """A value of the record in one line: nested ones as name=value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_told(item)}" for name, item in value.items() if item is not None and name != "state")
    if isinstance(value, list):
        return "[" + "; ".join(map(_told, value)) + "]"
    return str(value)


def _line(text: object) -> str:
    """The text in one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in " ".join(str(text).split()))
