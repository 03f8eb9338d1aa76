"""The report of an evaluation: a table, a contact sheet, and one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from livo.evaluation.readings import Readings
from livo.evaluation.results import FLOORS
from livo.utils.files import replacing
from livo.utils.pictures import grid, save_picture, stack

_NO_JUDGE = ("images", "principles")  # figures that come from no judge


def cell(figure: Mapping[str, Any] | None) -> str:
    """A figure for a table: mean and interval, the floor of a fair sampler, or why it was not measured.

    Args:
        figure: As in `livo.evaluation.measures`; None gives an empty text.
    """
    if not figure:
        return ""
    if "count" in figure:
        return f"{figure['count']} of {figure['images']}" + (f" ({figure['mean']:.1f}%)" if figure["count"] else "")
    if figure["mean"] is None:
        return f"not measured: {figure['why']}"
    mean = float(figure["mean"])
    digits = 1 if mean == 0 or abs(mean) >= 10 else 2 if abs(mean) >= 1 else 3
    text = f"{mean:.{digits}f}"
    if figure.get("interval"):
        low, high = figure["interval"]
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    aside = [f"floor {figure['floor']:.1f}"] if figure.get("floor") is not None else []
    aside += [f"never shown: {', '.join(figure['missing'])}"] if figure.get("missing") else []
    return text + (f" ({'; '.join(aside)})" if aside else "")


def columns(figures: Mapping[str, Mapping]) -> list[tuple[str, str]]:
    """(judge, figure) of every column, in the order of the first method that has it; pooled figures and the like stay in the file.

    Args:
        figures: Method -> judge -> name -> figure.
    """
    found: dict[tuple[str, str], None] = {}
    for method in figures.values():
        for judge, named in method.items():
            found |= {(judge, name): None for name in named if not name.startswith(("discrepancy", "D2", "peak"))}
    return list(found)


def table(figures: Mapping[str, Mapping], only: Sequence[tuple[str, str]] | None = None) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a method a row, a figure a column; a judge is named where there are several.

    Args:
        figures: Method -> judge -> name -> figure.
        only: The (judge, name) pairs that become columns; all by default.
    """
    wanted = list(only or columns(figures))
    judges = {judge for judge, _ in wanted if judge not in _NO_JUDGE}
    head = ["method", *(f"{judge}: {name}" if len(judges) > 1 and judge not in _NO_JUDGE else name for judge, name in wanted)]
    rows = [[method, *(cell(named.get(judge, {}).get(name)) for judge, name in wanted)] for method, named in figures.items()]
    return head, rows


def plain(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: methods side by side, figures below each other, since there are more of these.

    What was measured for no method stands once, with its reason, and what a floor is stands below.

    Args:
        head: Names of the columns.
        rows: Their texts, a row for each method.
    """
    turned = [[name, *(row[i] for row in rows)] for i, name in enumerate(head)]
    turned = [row[:2] if _unmeasured(row[1]) and len(set(row[1:])) == 1 else row for row in turned]
    full = [row for row in turned if len(row) == len(rows) + 1 and not (len(row) == 2 and _unmeasured(row[1]))]
    widths = [max(len(row[0]) for row in turned), *(max(len(row[i + 1]) for row in full) for i in range(len(rows)))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)).rstrip() for row in turned]
    return "\n".join([*lines, FLOORS] if any("floor" in text for row in turned for text in row[1:]) else lines)


def _unmeasured(text: str) -> bool:
    return text.startswith("not measured")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    Args:
        head: Names of the columns.
        rows: Their texts.
    """
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def contact_sheet(found: Mapping[str, Readings], prompts: int = 12) -> Image.Image:
    """For the first prompts, spread over all of them, a row of images a method.

    Args:
        found: Readings of each method, by name.
        prompts: How many prompts are shown at most.
    """
    readings = list(found.values())
    total = len(readings[0].prompts)
    chosen = [i * total // min(prompts, total) for i in range(min(prompts, total))]
    sheets = []
    for i in chosen:
        for name, read in found.items():
            images = [Image.fromarray(array) for array in read.thumbnails[i]]
            title = f"{name}: {read.prompts[i].text}"
            sheets.append(grid(images, min(len(images), 10), title=title, note=_decided(read.decisions[i]), cell=96))
    return stack(sheets)


def write(folder: Path, result: Mapping, found: Mapping[str, Readings]) -> None:
    """contact.png and report.html in the evaluation's folder.

    Args:
        folder: Of the evaluation.
        result: What `livo.evaluation.results.assemble` returns.
        found: Readings of each method, by name.
    """
    sheet = contact_sheet(found)
    save_picture(sheet, folder / "contact.png", {"settings": result["settings"], "methods": list(found)})
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(_page(result, found, sheet), encoding="utf-8")


def _page(result: Mapping, found: Mapping[str, Readings], sheet: Image.Image) -> str:
    reference = result["reference"]["what"] if result["reference"] else "none"
    if result["reference"] and result["reference"]["broken"]:
        reference += f" (without {result['reference']['broken']} broken images)"
    record = {key: value for key, value in result.items() if key != "figures"}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html.jinja").render(
        prompts=len(next(iter(found.values())).prompts),
        images=result["settings"]["images"],
        judges="; ".join(f"{judge['name']} {judge['revision']}" for judge in result["judges"]),
        intervals=result["intervals"],
        reference=reference,
        groups=[
            {"name": group, "table": table(figures), "notes": _notes(figures), "differences": _differences(figures)}
            for group, figures in result["figures"].items()
        ],
        disagreement=[
            [method, pair, f"{d['differ']:.1f}", "" if d["kappa"] is None else f"{d['kappa']:.2f}"]
            for method, pairs in result["disagreement"].items()
            for pair, d in pairs.items()
        ],
        contact_sheet=_base64(sheet),
        decisions={
            name: [[prompt.text, _decided(rows)] for prompt, rows in zip(read.prompts, read.decisions, strict=True)]
            for name, read in found.items()
        },
        record=json.dumps(record, indent=1),
    )


def _differences(figures: Mapping[str, Mapping]) -> tuple[list[str], list[list[str]]] | None:
    """A table of the paired differences from the base: over the same prompts, or the same resamplings for a figure that is no mean.

    None where no method is compared with the base.
    """
    above = {
        method: {
            judge: {name: f["minus_base"] for name, f in named.items() if "minus_base" in f} for judge, named in judges.items()
        }
        for method, judges in figures.items()
        if method != "base"
    }
    return table(above) if columns(above) else None


def _notes(figures: Mapping[str, Mapping]) -> list[str]:
    """What a fair sampler scores, which images were not judged, and which prompts have no figure."""
    said: dict[str, None] = {}
    for method, judges in figures.items():
        for name, figure in (pair for named in judges.values() for pair in named.items()):
            if figure.get("floor") is not None:
                said[f"{name}, {method}: a fair sampler that draws each image on its own scores {figure['floor']:.1f}"] = None
            if figure.get("missing"):
                said[f"{name}, {method}: no image shows {', '.join(figure['missing'])}"] = None
            if figure.get("kinds"):
                kinds = ", ".join(f"{count} {kind}" for kind, count in figure["kinds"].items())
                said[f"{method}: {figure['count']} of {figure['images']} images were not judged ({kinds})"] = None
            if figure.get("left_out"):
                said[f"{name}, {method}: {figure['left_out']} prompts have no figure"] = None
    return list(said)


def _base64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _decided(decisions: Sequence[Mapping]) -> str:
    """A prompt's decisions in one line: which principle, on how many images, in which directions, and why."""
    first = decisions[0] if decisions else {}
    if not first.get("values"):
        return first.get("reason") or "as this method does it"
    parts = []
    for place in range(len(first["values"])):
        rows = [row["values"][place] for row in decisions]
        directions = Counter(row["direction"] for row in rows if row.get("direction"))
        how = ", ".join(f"{name} {count}" for name, count in sorted(directions.items()))
        on = f"{sum(bool(row['applied']) for row in rows)} of {len(rows)}"
        parts.append(f"{rows[0]['id'] or rows[0]['statement']} on {on}{f' ({how})' if how else ''}: {rows[0]['reason']}")
    return "; ".join(parts)
