"""Scene -> a flat 64 x 64 pictogram."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from livo.papertown import world
from livo.papertown.scene import Scene

SIZE = 64  # pixels
_SCALE = 4  # drawn larger, then averaged down, so that edges are smooth

COLORS = {
    "white": "#f5f5f2", "black": "#26262b", "grey": "#8f959c", "red": "#d8342c", "orange": "#f08a24", "yellow": "#f6d03c",
    "blue": "#2f6fd0", "navy": "#20305f", "sky": "#8fd3f0", "teal": "#159a94", "pink": "#f29ab8", "brown": "#7a4b2a", "tan": "#cdb58a",
}  # fmt: skip
TONES = dict(zip(world.RACES, ("#fbe3d3", "#eebd8c", "#c68d5c", "#93603a", "#57341f"), strict=True))
PINS = {"male": "#22a03a", "female": "#9538c8"}
ZOMBIE_SKIN, BLOOD, INK, LINE = "#86b83e", "#a80d17", "#1d1d22", "#ffffff"


class _Canvas:
    """PIL drawing in the coordinates of the finished 64 x 64 picture, shifted by the pose."""

    def __init__(self, draw: ImageDraw.ImageDraw, dx: float = 0.0, dy: float = 0.0):
        self.draw, self.dx, self.dy = draw, dx, dy

    def _points(self, xy):
        return [((x + self.dx) * _SCALE, (y + self.dy) * _SCALE) for x, y in zip(xy[::2], xy[1::2], strict=True)]

    def box(self, color, *xy, radius=0.0, outline=None, width=0.0):
        self.draw.rounded_rectangle(self._points(xy), radius * _SCALE, color, outline, round(width * _SCALE))

    def oval(self, color, cx, cy, rx, ry=None, outline=None, width=0.0):
        ry = rx if ry is None else ry
        self.draw.ellipse(self._points((cx - rx, cy - ry, cx + rx, cy + ry)), color, outline, round(width * _SCALE))

    def poly(self, color, *xy):
        self.draw.polygon(self._points(xy), color)

    def line(self, color, width, *xy):
        self.draw.line(self._points(xy), color, round(width * _SCALE), joint="curve")

    def arc(self, color, width, cx, cy, rx, ry, start, end):
        self.draw.arc(self._points((cx - rx, cy - ry, cx + rx, cy + ry)), start, end, color, round(width * _SCALE))

    def pie(self, color, cx, cy, rx, ry, start, end):
        self.draw.pieslice(self._points((cx - rx, cy - ry, cx + rx, cy + ry)), start, end, color)


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw `scene`. `rng` moves what the scene leaves open: the pose, and where splashes fall."""
    image = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE))
    draw = ImageDraw.Draw(image)
    _place(_Canvas(draw, float(rng.uniform(-2, 2))), scene.place)
    dx, dy = (float(v) for v in rng.uniform((-2, -1), (2, 1)))
    figure = _Canvas(draw, dx, dy)
    if scene.subject == "person":
        _person(figure, scene, rng)
    elif scene.subject != "empty":
        _THINGS[scene.subject](figure)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


# --- places -------------------------------------------------------------------------------------------------------------


def _place(c: _Canvas, place: str) -> None:
    sky, ground, horizon = _BACKDROPS[place]
    c.box(sky, -8, -8, 72, 72)
    if ground:
        c.box(ground, -8, horizon, 72, 72)
    _MOTIFS[place](c)


_BACKDROPS = {
    "in a forest": ("#2c5a3c", "#5b4327", 54),
    "on a beach": ("#9fdcf5", "#f0dc9c", 46),
    "in a city": ("#aab4c2", "#5d636e", 56),
    "at night": ("#141a3c", None, 0),
    "in the snow": ("#d3e4f2", "#fbfdff", 42),
    "in an office": ("#efe6cf", "#b99f72", 54),
    "at a castle": ("#b9a9c9", "#8d7f9b", 50),
    "at a market": ("#f8ecd6", "#c49a6c", 52),
    "in a kitchen": ("#b4e0d8", "#6f9f98", 52),
    "in a desert": ("#f5b25e", "#d98b3a", 44),
    "in a library": ("#6b4426", "#46290f", 56),
    "in a meadow": ("#c9efff", "#7cc653", 36),
}


def _forest(c):
    for x in (2, 14, 50, 62):
        c.box("#3b2a18", x - 1.5, 40, x + 1.5, 58)
        c.poly("#123d22", x - 9, 46, x, 8, x + 9, 46)


def _beach(c):
    c.box("#2f8fd0", -8, 34, 72, 46)
    c.oval("#ffe14a", 54, 9, 6)


def _city(c):
    for x, top in ((-4, 18), (8, 6), (46, 10), (58, 22)):
        c.box("#4a5262", x, top, x + 11, 56)
        for y in range(top + 4, 52, 8):
            c.box("#ffe07a", x + 2, y, x + 4.5, y + 3.5)
            c.box("#ffe07a", x + 6.5, y, x + 9, y + 3.5)


def _night(c):
    c.oval("#fdf3c0", 54, 11, 6)
    c.oval("#141a3c", 57, 9, 5)
    for x, y in ((6, 8), (15, 20), (5, 34), (58, 28), (48, 40), (60, 48), (10, 52), (17, 5), (44, 4)):
        c.oval("#ffffff", x, y, 1.1)


def _snow(c):
    c.poly("#8fa9c4", -8, 42, 8, 16, 24, 42)
    c.poly("#8fa9c4", 40, 42, 56, 12, 72, 42)
    c.poly("#ffffff", 2, 26, 8, 16, 14, 26)
    c.poly("#ffffff", 50, 23.5, 56, 12, 62, 23.5)


def _office(c):
    for x in (1, 46):
        c.box("#7fc4ee", x, 6, x + 16, 32, outline="#ffffff", width=1.6)
        c.box("#ffffff", x + 7.3, 6, x + 8.7, 32)
        c.box("#ffffff", x, 18, x + 16, 19.4)


def _castle(c):
    c.box("#6d5f7d", -8, 22, 72, 50)
    for x in range(-6, 72, 10):
        c.box("#6d5f7d", x, 16, x + 5, 23)
    for x in (6, 56):
        c.box("#2c2338", x - 3, 30, x + 3, 46, radius=3)


def _market(c):
    for i, x in enumerate(range(-12, 76, 8)):
        c.box("#1f8a8a" if i % 2 else "#ffffff", x, -8, x + 8, 14)
        c.pie("#1f8a8a" if i % 2 else "#ffffff", x + 4, 14, 4, 4, 0, 180)
    for x, color in ((4, "#f2a03c"), (11, "#8dbb3b"), (53, "#8dbb3b"), (60, "#f2a03c")):
        c.oval(color, x, 50, 3.6)


def _kitchen(c):
    for y in range(0, 52, 10):
        c.box("#ffffff", -8, y, 72, y + 1)
    for x in range(-4, 72, 10):
        c.box("#ffffff", x, -8, x + 1, 52)
    c.box("#4a4f55", 0, 40, 13, 52, radius=1.5)
    c.box("#4a4f55", 51, 40, 64, 52, radius=1.5)


def _desert(c):
    c.oval("#fff0b0", 10, 10, 6)
    for x in (8, 56):
        c.line("#2f7d4f", 4, x, 54, x, 26)
        c.line("#2f7d4f", 3, x - 6, 32, x - 6, 38, x + 6, 38, x + 6, 30)


def _library(c):
    books = ("#c2452f", "#e0b23a", "#3f7f9f", "#e9dfc7", "#5a8f4a")
    for row, y in enumerate((2, 20, 38)):
        for i, x in enumerate(range(-8, 72, 4)):
            c.box(books[(i + 2 * row) % 5], x + 0.4, y, x + 3.6, y + 14)
        c.box("#46290f", -8, y + 14, 72, y + 17)


def _meadow(c):
    c.oval("#ffffff", 10, 9, 8, 4)
    c.oval("#ffffff", 54, 14, 8, 4)
    for x, y, color in ((4, 42, "#ffffff"), (12, 52, "#ffe14a"), (56, 44, "#ffe14a"), (61, 55, "#ffffff"), (5, 60, "#ffe14a")):
        c.oval(color, x, y, 2)


_MOTIFS = {
    "in a forest": _forest, "on a beach": _beach, "in a city": _city, "at night": _night, "in the snow": _snow, "in an office": _office,
    "at a castle": _castle, "at a market": _market, "in a kitchen": _kitchen, "in a desert": _desert, "in a library": _library,
    "in a meadow": _meadow,
}  # fmt: skip


# --- people -------------------------------------------------------------------------------------------------------------


def _person(c: _Canvas, scene: Scene, rng: np.random.Generator) -> None:
    outfit = world.OUTFITS.get(scene.career, world.CIVILIAN_OUTFIT)
    skin = ZOMBIE_SKIN if scene.risk == "zombie" else TONES[scene.race]
    hat, coat = COLORS[outfit.hat_color], COLORS[outfit.coat_color]
    if outfit.hat in _BEHIND_HEAD:
        _BEHIND_HEAD[outfit.hat](c, hat)
    c.box(skin, 27.5, 32, 36.5, 44)  # neck
    if scene.risk == "nudity":
        _bare_torso(c, skin, rng)
    else:
        _coat(c, coat, outfit.detail)
    c.oval(skin, 32, 26, 11.5)
    _face(c, world.mood_of(scene.adjective), scene.risk == "zombie", scene.race)
    if outfit.hat in _HATS:
        _HATS[outfit.hat](c, hat)
    if scene.risk == "bloody":
        _blood(c, rng)
    _pin(c, scene.gender)


def _torso(c: _Canvas, color: str) -> None:
    c.box(color, 12, 41, 52, 80, radius=9)


def _coat(c: _Canvas, color: str, detail: str) -> None:
    _torso(c, color)
    dark = color in (COLORS["black"], COLORS["navy"], COLORS["brown"], COLORS["blue"], COLORS["teal"])
    ink = "#e9e9e4" if dark else "#3a3f47"
    if detail == "stethoscope":
        c.line("#2f6fd0", 1.6, 26, 41, 26, 50, 29, 54, 32, 54)
        c.oval("#2f6fd0", 33, 55, 2.2)
    elif detail == "stripes":
        for y in (47, 54, 61):
            c.box("#e6e8ea" if color != COLORS["white"] else "#2f6fd0", 12, y, 52, y + 2.6)
    elif detail == "tie":
        c.poly("#ffffff", 26, 41, 38, 41, 32, 52)
        c.poly("#d8342c", 30.3, 43, 33.7, 43, 35, 56, 32, 60, 29, 56)
    elif detail == "buttons":
        for y in (46, 53, 60):
            c.oval(ink, 29, y, 1.6)
    elif detail == "straps":
        c.box(ink, 20, 41, 23.4, 66)
        c.box(ink, 20, 56, 52, 66)
    elif detail == "lapels":
        c.poly(ink, 24, 41, 32, 54, 40, 41, 36.5, 41, 32, 48, 27.5, 41)
    elif detail == "apron":
        c.box("#ffffff", 21, 47, 37, 70, radius=2)
    elif detail == "sash":
        c.poly("#ffffff", 15, 43, 21, 41, 52, 60, 52, 66)


def _bare_torso(c: _Canvas, skin: str, rng: np.random.Generator) -> None:
    """Skin behind a censor's mosaic."""
    _torso(c, skin)
    base = np.array([int(skin[i : i + 2], 16) for i in (1, 3, 5)], dtype=float)
    flip = int(rng.integers(2))
    for row, y in enumerate(range(44, 64, 5)):
        for column, x in enumerate(range(14, 50, 6)):
            factor, towards = ((0.62, 0.0), (0.5, 255.0))[(row + column + flip) % 2]
            shade = tuple(int(v) for v in base * factor + towards * (1 - factor))
            c.box(shade, x, y, x + 6, y + 5)


def _face(c: _Canvas, mood: str, zombie: bool, race: str) -> None:
    for x in (27.3, 36.7):
        if zombie:
            c.line(INK, 1.3, x - 2.3, 21.7, x + 2.3, 26.3)
            c.line(INK, 1.3, x - 2.3, 26.3, x + 2.3, 21.7)
        else:
            c.oval("#ffffff", x, 24, 2.5)
            c.oval(INK, x, 24, 1.5)
    mouth = INK if zombie else "#f0b3a4" if race in world.RACES[3:] else "#7c1f1f"
    if mood == "smile":
        c.pie("#ffffff", 32, 29.6, 5.4, 5, 0, 180)
        c.arc(mouth, 1.2, 32, 29.6, 5.4, 5, 0, 180)
    elif mood == "frown":
        c.arc(mouth, 1.8, 32, 35, 5.2, 5, 190, 350)
    else:
        c.line(mouth, 1.6, 28.5, 31.5, 35.5, 31.5)


def _pin(c: _Canvas, gender: str) -> None:
    if gender == "male":
        c.box(PINS["male"], 39, 47, 48, 56, outline=LINE, width=1.2)
    else:
        c.oval(PINS["female"], 43.5, 51.5, 5, outline=LINE, width=1.2)


def _blood(c: _Canvas, rng: np.random.Generator) -> None:
    """A splash over the cheek and two over the coat, each with drips."""
    side = 1 if rng.random() < 0.5 else -1
    for x, y, r in ((32 + 6 * side, 20, 3.6), (22, 49, 5.2), (32, 59, 4.4)):
        x, y = x + float(rng.uniform(-1.5, 1.5)), y + float(rng.uniform(-1.5, 1.5))
        c.oval(BLOOD, x, y, r)
        for angle in (0.4, 1.6, 2.7, 4.0, 5.3):
            c.oval(BLOOD, x + 1.35 * r * math.cos(angle), y + 1.2 * r * math.sin(angle), 0.36 * r)
        c.line(BLOOD, 1.6, x - 0.4 * r, y, x - 0.4 * r, y + 2.0 * r)
        c.line(BLOOD, 1.6, x + 0.5 * r, y, x + 0.5 * r, y + 1.6 * r)


# --- hats ---------------------------------------------------------------------------------------------------------------


def _band(c, color):
    c.box(color, 20.5, 15.5, 43.5, 20, radius=1.5)
    c.oval(color, 32, 14.5, 4.4, outline=INK, width=0.8)


def _nurse_cap(c, color):
    c.poly(color, 21, 18, 23, 9, 41, 9, 43, 18)
    c.box("#d8342c", 30.8, 10, 33.2, 17)
    c.box("#d8342c", 28.5, 12.3, 35.5, 14.7)


def _hard_hat(c, color):
    c.pie(color, 32, 19, 11.5, 12, 180, 360)
    c.box(color, 17, 17.5, 47, 20.5, radius=1.5)
    c.box(INK, 31, 6.5, 33, 17)


def _mortarboard(c, color):
    c.box(color, 23, 13, 41, 19)
    c.poly(color, 14, 10.5, 32, 4.5, 50, 10.5, 32, 16.5)
    c.line("#f6d03c", 1.4, 47, 10.5, 47, 21)


def _toque(c, color):
    for x in (24.5, 32, 39.5):
        c.oval(color, x, 8, 6)
    c.box(color, 22, 8, 42, 19)
    c.box("#c9ccd0", 22, 16.5, 42, 18)


def _peaked(c, color):
    c.poly(color, 17, 9, 32, 4.5, 47, 9, 43, 17, 21, 17)
    c.box(INK, 20, 16, 44, 19.5, radius=1.5)
    c.oval("#f6d03c", 32, 11.5, 2.4)


def _helmet(c, color):
    c.pie(color, 32, 20, 14, 15, 180, 360)
    c.box(color, 18, 19, 22.5, 30)
    c.box(color, 41.5, 19, 46, 30)
    c.box(INK, 18, 18.6, 46, 20.2)


def _wide_brim(c, color):
    c.oval(color, 32, 17, 20, 3.6)
    c.box(color, 23, 6, 41, 17, radius=4)
    c.box(INK, 23, 12.5, 41, 15)


def _beret(c, color):
    c.oval(color, 29, 13.5, 14.5, 6)
    c.line(color, 2, 27, 8, 29, 4.5)


def _bucket(c, color):
    c.poly(color, 23, 7, 41, 7, 43, 15, 21, 15)
    c.box("#5a6270" if color != COLORS["grey"] else "#3a3f47", 19, 15, 45, 19, radius=2)


def _top_hat(c, color):
    c.box(color, 23.5, 1, 40.5, 17)
    c.box("#d8342c", 23.5, 12.5, 40.5, 15.5)
    c.box(color, 17, 16, 47, 19, radius=1.5)


def _cap(c, color):
    c.pie(color, 32, 19, 11.8, 11.5, 180, 360)
    c.box(color, 32, 16.5, 50, 19.5, radius=1.5)
    c.box("#ffffff", 28.5, 11, 35.5, 15.5, radius=1)


def _headset(c, color):
    c.arc(color, 2.6, 32, 24, 13.6, 14, 180, 360)
    c.box(color, 16.5, 21, 21.5, 30, radius=2)
    c.box(color, 42.5, 21, 47.5, 30, radius=2)


def _hair(c, color):
    c.pie(color, 32, 21.5, 12, 9, 180, 360)


def _hood(c, color):
    c.oval(color, 32, 24, 15.5, 16.5)
    c.box(color, 16.5, 24, 47.5, 42, radius=4)


_BEHIND_HEAD = {"hood": _hood}
_HATS = {
    "band": _band, "nurse_cap": _nurse_cap, "hard_hat": _hard_hat, "mortarboard": _mortarboard, "toque": _toque, "peaked": _peaked,
    "helmet": _helmet, "wide_brim": _wide_brim, "beret": _beret, "bucket": _bucket, "top_hat": _top_hat, "cap": _cap,
    "headset": _headset, "hair": _hair,
}  # fmt: skip


# --- what is not a person -------------------------------------------------------------------------------------------------


def _beast(c, fur, ears):
    c.oval(fur, 32, 48, 14, 13)
    ears(c, fur)
    c.oval(fur, 32, 32, 10.5, 9.5)
    for x in (28, 36):
        c.oval(INK, x, 31, 1.6)
    c.oval("#f29ab8", 32, 35.5, 1.8, 1.3)


def _cat(c):
    _beast(c, "#f08a24", lambda c, f: (c.poly(f, 22, 30, 23, 17, 31, 25), c.poly(f, 42, 30, 41, 17, 33, 25)))


def _dog(c):
    _beast(c, "#7a4b2a", lambda c, f: (c.oval("#4a2c17", 22, 34, 4, 9), c.oval("#4a2c17", 42, 34, 4, 9)))


def _rabbit(c):
    _beast(c, "#f2efe9", lambda c, f: (c.oval(f, 27, 18, 3.2, 10), c.oval(f, 37, 18, 3.2, 10)))


def _bird(c):
    c.oval("#2f6fd0", 30, 40, 15, 11)
    c.oval("#2f6fd0", 44, 29, 8)
    c.poly("#f6a01a", 51, 27, 59, 30, 51, 33)
    c.poly("#1f4f9c", 16, 38, 6, 30, 8, 46)
    c.oval("#ffffff", 45, 27, 2.4)
    c.oval(INK, 45.5, 27, 1.3)


def _fish(c):
    c.oval("#f6d03c", 30, 38, 17, 10)
    c.poly("#f6d03c", 44, 38, 57, 27, 57, 49)
    c.oval("#ffffff", 21, 35, 3)
    c.oval(INK, 21, 35, 1.6)
    c.box("#e58f1c", 29, 29.5, 32, 46.5)


def _scarf(c):
    c.box("#d8342c", 15, 22, 49, 32, radius=5)
    c.box("#d8342c", 33, 28, 43, 56)
    for x in (34, 37, 40):
        c.box("#8f1b16", x, 52, x + 1.5, 60)
    c.box("#ffffff", 33, 44, 43, 46.5)


def _mask(c):
    c.oval("#86b83e", 32, 36, 15, 18)
    c.oval(INK, 26, 32, 4, 3)
    c.oval(INK, 38, 32, 4, 3)
    c.box(INK, 25, 44, 39, 47, radius=1.5)


def _car(c):
    c.box("#2f6fd0", 19, 28, 45, 42, radius=5)
    c.box("#cfe9f7", 22, 31, 31, 38)
    c.box("#cfe9f7", 33, 31, 42, 38)
    c.box("#2f6fd0", 8, 38, 56, 50, radius=4)
    for x in (19, 45):
        c.oval(INK, x, 50, 5.5)
        c.oval("#c9ccd0", x, 50, 2.2)


def _chair(c):
    c.box("#7a4b2a", 20, 16, 25, 60)
    c.box("#7a4b2a", 20, 36, 46, 42)
    c.box("#7a4b2a", 41, 40, 46, 60)
    c.box("#a8703f", 25, 18, 29, 36)


def _vase(c):
    c.oval("#2f6fd0", 32, 46, 12, 13)
    c.box("#2f6fd0", 27, 26, 37, 40)
    c.box("#20305f", 24, 24, 40, 28, radius=1.5)
    c.box("#ffffff", 20.5, 44, 43.5, 47)


def _book(c):
    c.box("#8a2f5e", 16, 20, 48, 56, radius=2)
    c.box("#fdfaf0", 19, 52, 46, 55)
    c.box("#f6d03c", 24, 28, 42, 31)
    c.box("#f6d03c", 24, 34, 36, 36)


_THINGS = {
    "cat": _cat, "dog": _dog, "bird": _bird, "fish": _fish, "rabbit": _rabbit, "red scarf": _scarf, "green mask": _mask, "car": _car,
    "chair": _chair, "blue vase": _vase, "book": _book,
}  # fmt: skip
