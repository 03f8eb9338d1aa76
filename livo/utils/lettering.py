"""Text in pictures: wrapped between words, in a font that has its letters."""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

_ABSENT = "\U0010fffd"  # no font has this one, so it is drawn as the font draws what it lacks
# For what Pillow's font lacks: a large alphabet first (matplotlib brings it), then fonts of systems with Chinese, Japanese and Korean.
_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "NotoSansDevanagari-Regular.ttf")


@dataclass(frozen=True)
class Lettering:
    """Lines of text in one font, ready to be drawn."""

    lines: tuple[str, ...]
    font: ImageFont.FreeTypeFont
    own: bool  # whether it is Pillow's own font

    @property
    def width(self) -> int:
        return int(max(_length(line, self.font, self.own) for line in self.lines)) + 1 if self.lines else 0

    @property
    def height(self) -> int:
        return len(self.lines) * self._step

    @property
    def _step(self) -> int:
        return round(1.3 * self.font.size)

    def draw(self, draw: ImageDraw.ImageDraw, x: float, y: float, fill: str) -> None:
        """Draw the lines with their upper left corner at (x, y)."""
        for i, line in enumerate(self.lines):
            left = x
            for part in line.split(" ") if self.own else [line]:  # other fonts' spaces are right, and so is their order of words
                draw.text((left, y + i * self._step), part, fill, self.font)
                left += self.font.getlength(part) + _space(self.font)


def letter(text: str, size: int, width: float = float("inf"), most: int = 1) -> Lettering:
    """Set `text` in at most `most` lines of at most `width` pixels; what does not fit is replaced by an ellipsis.

    A word is divided only where it is wider than a line. A letter that no font here has is a question mark.
    """
    font, own = _font_for(text, size)
    lines, line = [], ""
    for part in (part for word in _drawable(text, font).split() for part in _parts(word, font, own, width)):
        joined = f"{line} {part}" if line else part
        if _length(joined, font, own) <= width:
            line = joined
        else:
            lines.append(line)
            line = part
    lines = [*lines, line] if line else lines
    if len(lines) > most:
        lines = [*lines[: most - 1], _shortened(lines[most - 1], font, own, width)]
    return Lettering(tuple(lines), font, own)


def _drawable(text: str, font) -> str:
    """`text` with a question mark for each letter that the font lacks, whose accents and joiners are left out with it."""
    found, lacked = [], False
    for c in text:
        joined = unicodedata.category(c) in ("Mn", "Mc", "Me", "Cf", "Sk")
        if not joined:
            lacked = not c.isspace() and _lacks(font, c)
        if not (joined and (lacked or _lacks(font, c))):
            found.append("?" if lacked else c)
    return "".join(found)


def _parts(word: str, font, own: bool, width: float) -> Iterator[str]:
    while _length(word, font, own) > width and len(word) > 1:
        end = next(i for i in range(2, len(word) + 1) if i == len(word) or _length(word[:i], font, own) > width) - 1
        yield word[:end]
        word = word[end:]
    yield word


def _shortened(line: str, font, own: bool, width: float) -> str:
    while _length(f"{line} …", font, own) > width and " " in line:
        line = line.rpartition(" ")[0]
    while line and _length(f"{line}…", font, own) > width:  # one long word
        line = line[:-1]
    return f"{line} …" if _length(f"{line} …", font, own) <= width else f"{line}…"


def _length(line: str, font, own: bool) -> float:
    if not own:
        return font.getlength(line)
    words = line.split(" ")
    return sum(map(font.getlength, words)) + _space(font) * (len(words) - 1)


def _space(font: ImageFont.FreeTypeFont) -> float:
    """Pixels between two words in Pillow's own font, whose spaces are so narrow that small words run into each other."""
    return 2 + 0.2 * font.size


def _font_for(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, bool]:
    """The first font that has all letters of `text`, else the one that lacks the fewest; and whether it is Pillow's own."""
    letters = {c for c in text if unicodedata.category(c)[0] in "LNPS"}
    best, own = _own_font(size), True
    least = sum(_lacks(best, c) for c in letters)
    for name in _FONTS:
        if not least:
            break
        font = _font(name, size)
        if font is not None and (lacking := sum(_lacks(font, c) for c in letters)) < least:
            best, own, least = font, False, lacking
    return best, own


@lru_cache
def _own_font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # with a size it always is
    return font


@lru_cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    places = [name]
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        places.append(str(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / name))
    for place in places:
        try:
            return ImageFont.truetype(place, size)
        except OSError:
            continue
    return None


@lru_cache(4096)
def _lacks(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a font draws the letter as it draws one that it cannot have."""
    return bytes(font.getmask(letter)) == bytes(font.getmask(_ABSENT))
