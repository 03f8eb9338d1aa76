"""Grids of pictures with captions, and the record in a PNG's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import ExifTags, Image, ImageDraw, ImageFont, PngImagePlugin

from livo.files import replacing

METADATA_KEY = "livo"
RECORD_FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}  # by suffix: those that hold a record
_ASCII = b"ASCII\0\0\0"  # how EXIF's UserComment names its encoding
_EXIF = 65_000  # bytes of a comment: JPEG's EXIF segment holds 65,533
_BACKGROUND, _INK, _ACCENT = "#ffffff", "#20242c", "#1a7f5a"


def font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)


def grid(
    images: Sequence[Image.Image],
    columns: int,
    captions: Sequence[str] | None = None,
    title: str = "",
    marked: Sequence[bool] | None = None,
    note: str = "",
    cell: int = 128,
) -> Image.Image:
    """Pictures in rows of `columns`, each `cell` pixels wide, under a title and a note, with a caption below each and a frame
    around those that are `marked`."""
    head, foot, gap = (28 if title else 0) + (18 if note else 0), (16 if captions else 0), 6
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, head + rows * (cell + foot + gap) + gap), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap + 2, 6), fit(title, font(17), sheet.width - 2 * gap), _INK, font(17))
    draw.text((gap + 2, 29), fit(note, font(12), sheet.width - 2 * gap), _ACCENT, font(12))
    for i, image in enumerate(images):
        x, y = gap + (i % columns) * (cell + gap), head + gap + (i // columns) * (cell + foot + gap)
        resampling = Image.Resampling.NEAREST if image.width < cell else Image.Resampling.LANCZOS
        sheet.paste(image.convert("RGB").resize((cell, cell), resampling), (x, y))
        if marked and marked[i]:
            draw.rectangle((x - 3, y - 3, x + cell + 2, y + cell + 2), outline=_ACCENT, width=3)
        if captions:
            draw.text((x + 1, y + cell + 2), fit(captions[i], font(11), cell), _INK, font(11))
    return sheet


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets below each other."""
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), _BACKGROUND)
    y = 0
    for sheet in sheets:
        whole.paste(sheet, (0, y))
        y += sheet.height
    return whole


def fit(text: str, face: ImageFont.ImageFont, width: float) -> str:
    """`text`, shortened until it is at most `width` pixels wide."""
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def save_picture(image: Image.Image, file: Path, record: object) -> None:
    """Write the picture with `record` as JSON in its metadata, whole or not at all.

    PNG keeps it as the text "livo", JPEG (quality 95) and WebP (lossless) as the EXIF tag UserComment.

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
        how = {"pnginfo": info}
    else:
        comment = _ASCII + json.dumps({METADATA_KEY: record}).encode("ascii")
        if len(comment) > _EXIF:
            raise ValueError(f"{file}: its record takes {len(comment)} bytes, EXIF holds {_EXIF}; write a .png")
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
        how = {"exif": exif} | ({"quality": 95} if kind == "JPEG" else {"lossless": True})
        image = image.convert("RGB") if kind == "JPEG" else image
    with replacing(file) as temporary:
        image.save(temporary, format=kind, **how)


def read_metadata(image: Image.Image) -> str | None:
    """The record in an opened picture, as JSON; None where there is none."""
    if image.format == "PNG":
        return image.info.get(METADATA_KEY) or image.text.get(METADATA_KEY)  # which looks behind the pixels too
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    comment = comment if isinstance(comment, bytes) else str(comment).encode()
    start = f'{{"{METADATA_KEY}": '.encode()
    text = comment.removeprefix(_ASCII).strip(b"\0 ")
    return text[len(start) : -1].decode("ascii", "replace") if text.startswith(start) else None


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], file: Path) -> None:
    """One small panel for each named series of (x, y), as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, len(series))
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, (x, y)) in enumerate(series.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.plot(x, y, color=_ACCENT, linewidth=1.2)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def bars(title: str, classes: Mapping[str, Mapping[str, float]], width: int) -> Image.Image:
    """Horizontal bars: for each class its shares under each name, as in {"female": {"asked": 0.5, "measured": 0.48}}."""
    colors = ("#c9ced6", "#7fb8a4", _ACCENT, "#d98e04")
    names = list(next(iter(classes.values())))
    row, head = 14 * len(names) + 8, 28
    sheet = Image.new("RGB", (width, head + row * len(classes) + 20), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 6), fit(title, font(15), width - 16), _INK, font(15))
    left, right = 90, width - 60
    for i, (label, shares) in enumerate(classes.items()):
        top = head + i * row
        draw.text((8, top), fit(label, font(12), left - 12), _INK, font(12))
        for j, name in enumerate(names):
            y = top + 14 * j
            draw.rectangle((left, y + 2, left + max(1, (right - left) * shares[name]), y + 12), fill=colors[j % 4])
            draw.text((left + (right - left) * shares[name] + 4, y), f"{100 * shares[name]:.0f}%", _INK, font(11))
    x = left
    for j, name in enumerate(names):
        draw.rectangle((x, sheet.height - 14, x + 10, sheet.height - 4), fill=colors[j % 4])
        draw.text((x + 14, sheet.height - 16), name, _INK, font(11))
        x += 30 + font(11).getlength(name)
    return sheet
