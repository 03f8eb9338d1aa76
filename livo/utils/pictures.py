"""Grids of pictures with captions, and the record in a PNG's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageDraw, PngImagePlugin

from livo.utils.files import replacing
from livo.utils.lettering import letter

METADATA_KEY = "livo"
RECORD_FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}  # by suffix: those that hold a record
_ASCII = b"ASCII\0\0\0"  # how EXIF's UserComment names its encoding
_EXIF = 65_000  # bytes of a comment: JPEG's EXIF segment holds 65,533
_BACKGROUND, _INK, _ACCENT = "#ffffff", "#20242c", "#1a7f5a"
_READABLE = 480  # pixels: a sheet of one small picture is as wide as this where its text needs it


def grid(
    images: Sequence[Image.Image],
    columns: int,
    captions: Sequence[str] | None = None,
    title: str = "",
    marked: Sequence[bool] | None = None,
    note: str = "",
    cell: int = 128,
) -> Image.Image:
    """Pictures in rows of `columns`, each `cell` pixels wide, under a title and a note, with a caption below each and a frame around
    those that are `marked`.

    A title or note that is wider than the pictures widens the sheet up to `_READABLE` pixels and is wrapped beyond; captions are
    wrapped below their pictures.

    Args:
        images: At least one picture.
        columns: Pictures in a row.
        captions: A text below each picture.
        title: A line above all.
        marked: Which pictures have a frame.
        note: A smaller line below the title.
        cell: Width of a picture in pixels.
    """
    gap = 6
    width = columns * (cell + gap) + gap
    if width < _READABLE:
        needed = max(letter(title, 17).width, letter(note, 12).width) + 2 * gap + 4
        width = max(width, min(needed, _READABLE))
    head = [
        (letter(text, size, width - 2 * gap - 4, 4), ink) for text, size, ink in ((title, 17, _INK), (note, 12, _ACCENT)) if text
    ]
    top = sum(text.height + 4 for text, _ in head) + (2 if head else 0)
    below = [letter(caption, 11, cell - 2, 4) for caption in captions or ()]
    foot = max((text.height for text in below), default=-4) + 4
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (width, top + rows * (cell + foot + gap) + gap), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    y = 4
    for text, ink in head:
        text.draw(draw, gap + 2, y, ink)
        y += text.height + 4
    for i, image in enumerate(images):
        x, y = gap + (i % columns) * (cell + gap), top + gap + (i // columns) * (cell + foot + gap)
        resampling = Image.Resampling.NEAREST if image.width < cell else Image.Resampling.LANCZOS
        sheet.paste(image.convert("RGB").resize((cell, cell), resampling), (x, y))
        if marked and marked[i]:
            draw.rectangle((x - 3, y - 3, x + cell + 2, y + cell + 2), outline=_ACCENT, width=3)
        if captions:
            below[i].draw(draw, x + 1, y + cell + 3, _INK)
    return sheet


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets below each other.

    Args:
        sheets: Sheets of any size.
    """
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), _BACKGROUND)
    y = 0
    for sheet in sheets:
        whole.paste(sheet, (0, y))
        y += sheet.height
    return whole


def save_picture(image: Image.Image, file: Path, record: object) -> None:
    """Write the picture with `record` as JSON in its metadata, whole or not at all.

    PNG keeps it as the text "livo", JPEG (quality 95) and WebP (lossless) as the EXIF tag UserComment.

    Args:
        image: The picture.
        file: A PNG file.
        record: JSON values that are stored in it.

    Raises:
        ValueError: the name ends in none of these formats, or the record is longer than the 64 kB that EXIF holds.
    """
    kind = RECORD_FORMATS.get(file.suffix.lower().removeprefix("."))
    if kind is None:
        known = ", ".join(f".{name}" for name in RECORD_FORMATS)
        raise ValueError(f"{file}: {file.suffix or 'a name without a suffix'} holds no record; end the name in one of {known}")
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt(METADATA_KEY, json.dumps(record, ensure_ascii=False))
        how: dict[str, Any] = {"pnginfo": info}
    else:
        comment = _ASCII + json.dumps({METADATA_KEY: record}).encode("ascii")
        if len(comment) > _EXIF:
            raise ValueError(f"{file}: its record takes {len(comment)} bytes, EXIF holds {_EXIF}; write a .png")
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
        how = {"exif": exif, **({"quality": 95} if kind == "JPEG" else {"lossless": True})}
        image = image.convert("RGB") if kind == "JPEG" else image
    with replacing(file) as temporary:
        image.save(temporary, format=kind, **how)


def read_metadata(image: Image.Image) -> str | None:
    """The record in an opened picture, as JSON; None where there is none.

    Args:
        image: An opened PNG.
    """
    if isinstance(image, PngImagePlugin.PngImageFile):
        return image.info.get(METADATA_KEY) or image.text.get(METADATA_KEY)  # which looks behind the pixels too
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    comment = comment if isinstance(comment, bytes) else str(comment).encode()
    start = f'{{"{METADATA_KEY}": '.encode()
    text = comment.removeprefix(_ASCII).strip(b"\0 ")
    return text[len(start) : -1].decode("ascii", "replace") if text.startswith(start) else None


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], file: Path) -> None:
    """One small panel for each named series of (x, y), as a PNG.

    Args:
        series: x and y values by name.
        file: A PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, len(series))
    rows = -(-len(series) // columns)
    width, height = 3.2 * columns, 2.3 * rows  # inches
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    margins = {"left": 0.5 / width, "right": 1 - 0.1 / width, "bottom": 0.3 / height, "top": 1 - 0.3 / height}
    figure.subplots_adjust(**margins, wspace=0.25, hspace=0.4)  # a layout engine would draw everything twice
    for i, (name, (x, y)) in enumerate(series.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.plot(x, y, color=_ACCENT, linewidth=1.2, marker="o" if len(x) == 1 else None)  # one point makes no line
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def bars(title: str, classes: Mapping[str, Mapping[str, float]], width: int) -> Image.Image:
    """Horizontal bars: for each class its shares under each name, as in {"female": {"asked": 0.5, "measured": 0.48}}.

    `width` in pixels is at least `_READABLE`.

    Args:
        title: A line above the bars.
        classes: Share of each class, 0 to 1.
        width: In pixels.
    """
    colors = ("#c9ced6", "#7fb8a4", _ACCENT, "#d98e04")
    width = max(width, _READABLE)
    names = list(next(iter(classes.values())))
    head = letter(title, 15, width - 16, 2)
    labels = [letter(label, 12, width // 3, 2) for label in classes]
    left, right = max(90, 20 + max(label.width for label in labels)), width - 60
    keys = [letter(name, 11) for name in names]
    places, x, line = [], left, 0
    for key in keys:  # the legend, in as many lines as it needs
        if x > left and x + 14 + key.width > width - 8:
            x, line = left, line + 1
        places.append((x, line))
        x += 32 + key.width
    row, top = max(14 * len(names), max(label.height for label in labels)) + 8, head.height + 12
    legend = top + row * len(classes)
    sheet = Image.new("RGB", (width, legend + 16 * (line + 1) + 4), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    head.draw(draw, 8, 6, _INK)
    for i, (label, shares) in enumerate(zip(labels, classes.values(), strict=True)):
        y = top + i * row
        label.draw(draw, 8, y, _INK)
        for j, name in enumerate(names):
            end = left + (right - left) * shares[name]
            draw.rectangle((left, y + 14 * j + 2, max(left + 1, end), y + 14 * j + 12), fill=colors[j % 4])
            letter(f"{100 * shares[name]:.0f}%", 11).draw(draw, end + 4, y + 14 * j, _INK)
    for j, (key, (x, line)) in enumerate(zip(keys, places, strict=True)):
        draw.rectangle((x, legend + 16 * line + 2, x + 10, legend + 16 * line + 12), fill=colors[j % 4])
        key.draw(draw, x + 14, legend + 16 * line, _INK)
    return sheet
