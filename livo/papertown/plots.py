"""The benchmark's pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from PIL import Image

from livo.utils.files import replacing
from livo.utils.pictures import grid, save_picture, stack

_OURS, _OTHERS, _GAMMA = "#1a7f5a", "#5a6270", "#d98e04"


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points than which none is lower in one figure and not higher in the other."""

    def beaten(a, b):
        return b[0] <= a[0] and b[1] <= a[1] and b != a

    return [name for name, a in points.items() if not any(beaten(a, b) for b in points.values())]


def measured_points(table: Mapping[str, Mapping], x: str, y: str) -> dict[str, tuple[float, float]]:
    """For each row in which both figures were measured, their means."""
    return {name: (row[x]["mean"], row[y]["mean"]) for name, row in table.items() if None not in (row[x]["mean"], row[y]["mean"])}


def trade_offs(table: Mapping[str, Mapping], studies: Sequence, ours: Sequence[str], file: Path) -> None:
    """Bias against quality, and toxicity against quality: lower and further left is better; the line is the Pareto front."""
    figure = Canvas(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    rows = dict(table) | {f"LiVO {study.series}": study.row for study in studies if study.figure == "gammas"}
    for i, (x, y) in enumerate((("mean D1", "FID, people"), ("mean R", "FID, risks"))):
        axes = figure.add_subplot(1, 2, i + 1)
        points = measured_points(rows, x, y)
        for name, (px, py) in points.items():
            color = _color(name, table, ours)
            low, high = rows[name][x]["interval"] or (px, px)
            axes.errorbar(px, py, xerr=[[max(0, px - low)], [max(0, high - px)]], fmt="o", color=color, markersize=5, linewidth=0.8)
        if points:
            _label(axes, points, {name: _color(name, table, ours) for name in points})
            front = sorted(points[name] for name in pareto(points))
            axes.plot(*zip(*front, strict=True), color=_OURS, linewidth=1, linestyle="--", zorder=0)
        axes.set_xlabel(f"{x} (lower is better)")
        axes.set_ylabel(f"{y} (lower is better)")
        axes.margins(x=0.15)
        axes.grid(alpha=0.25)
    figure.suptitle(
        "dashed: Pareto front; amber: (gamma_1, gamma_2) of LiVO's loss, trained shorter; bars: 95% intervals", fontsize=9
    )
    _save(figure, file)


def _color(name: str, table: Mapping, ours: Sequence[str]) -> str:
    return _OURS if name in ours else _OTHERS if name in table else _GAMMA


def _label(axes, points: Mapping[str, tuple[float, float]], colors: Mapping[str, str]) -> None:
    """Names beside the points; where points lie together the names stand above each other."""
    spans = [max(values) - min(values) or 1.0 for values in zip(*points.values(), strict=True)]
    placed: list[tuple[float, float]] = []
    for name, point in points.items():
        near = sum(all(abs(a - b) < 0.06 * span for a, b, span in zip(point, other, spans, strict=True)) for other in placed)
        offset = (4, 4 + 9 * near)
        axes.annotate(name, point, xytext=offset, textcoords="offset points", fontsize=7, color=colors[name])
        placed.append(point)


def lines(studies: Sequence, which: str, label: str, file: Path) -> None:
    """Bias, toxicity and fidelity against the amount of training or data, a line a method, with intervals."""
    figure = Canvas(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    mine = [study for study in studies if study.figure == which]
    for i, name in enumerate(("mean D1", "mean R", "career %, people")):
        axes = figure.add_subplot(1, 3, i + 1)
        for series, color in zip(dict.fromkeys(study.series for study in mine), (_OURS, _OTHERS, _GAMMA), strict=False):
            points = sorted(
                (study.x, study.row[name]["mean"], *study.row[name]["interval"]) for study in mine if study.series == series
            )
            x, y, low, high = zip(*points, strict=True)
            axes.plot(x, y, color=color, marker="o", markersize=3, linewidth=1.3, label=series)
            axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(label, fontsize=9)
        axes.set_ylim(-3, 103)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    _save(figure, file)


def samples(found: Mapping[str, object], file: Path, prompts: Sequence[int] = (0, 16, 24, 32, 40, 48, 56)) -> None:
    """The first images of one prompt of each kind, a row a method."""
    sheets = []
    for i in prompts:
        rows = []
        for name, read in found.items():
            if i < len(read.prompts):
                images = [Image.fromarray(array) for array in read.thumbnails[i]]
                rows.append(grid(images, len(images), title=f"{name}: {read.prompts[i].text}", cell=64))
        sheets += rows
    save_picture(_columns(sheets, 3), file, {"what": "the first images of one prompt of each kind, by method"})


def _columns(sheets: Sequence[Image.Image], columns: int) -> Image.Image:
    each = -(-len(sheets) // columns)
    parts = [stack(sheets[i : i + each]) for i in range(0, len(sheets), each)]
    whole = Image.new("RGB", (sum(part.width for part in parts), max(part.height for part in parts)), "#ffffff")
    x = 0
    for part in parts:
        whole.paste(part, (x, 0))
        x += part.width
    return whole


def _save(figure: Canvas, file: Path) -> None:
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
