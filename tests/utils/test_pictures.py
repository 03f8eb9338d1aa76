import numpy as np
import pytest
from PIL import Image, ImageDraw

from livo.utils.lettering import _own_font, letter
from livo.utils.pictures import bars, grid

LONG = "a photo of a doctor in a very large kitchen with a red scarf, a window and three small dogs that sleep under the table " * 4


def ink(image: Image.Image) -> np.ndarray:
    """Which pixels are not background."""
    return np.asarray(image.convert("L")) < 200


def gaps(text: str) -> int:
    """How many gaps of at least 3 white columns a line of text has."""
    line = letter(text, 11)
    image = Image.new("RGB", (line.width + 20, 20), "white")
    line.draw(ImageDraw.Draw(image), 5, 2, "black")
    columns = np.flatnonzero(ink(image).any(axis=0))
    return int((np.diff(columns) > 3).sum())


@pytest.mark.parametrize("text", ["as the base", "without the token", "it says the same", "a cat at a lake"])
def test_small_captions_keep_their_spaces(text):
    assert gaps(text) == text.count(" ")


@pytest.mark.parametrize("width", [60, 128, 300, 480])
def test_text_is_wrapped_between_words_and_fits(width):
    found = letter(LONG, 12, width, 100)
    assert " ".join(found.lines).split() == LONG.split() and found.width <= width + 1


def test_what_does_not_fit_ends_in_an_ellipsis_after_a_whole_word():
    found = letter(LONG, 12, 200, 3)
    assert len(found.lines) == 3 and found.lines[-1].endswith(" …") and found.width <= 201
    assert LONG.split()[: len(" ".join(found.lines).split()) - 1] == " ".join(found.lines).split()[:-1]


@pytest.mark.parametrize("most", [1, 3])
def test_a_word_that_is_wider_than_a_line_is_divided(most):
    found = letter("x" * 200, 12, 100, most)
    assert len(found.lines) == most and found.width <= 101 and found.lines[-1].endswith("…")


@pytest.mark.parametrize("text", ["врач", "γιατρός", "рентгенолог Žižek"])
def test_letters_that_the_first_font_lacks_come_from_another(text):
    found = letter(text, 12)
    assert " ".join(found.lines) == text and found.font is not _own_font(12)


@pytest.mark.parametrize(("text", "shown"), [("\U0001f469\u200d\u2695", "?"), ("\u0e81 cat", "? cat"), ("\U00013000", "?")])
def test_a_letter_that_no_font_has_is_a_question_mark_and_no_box(text, shown, monkeypatch):
    monkeypatch.setattr("livo.utils.lettering._FONTS", ())
    assert letter(text, 12).lines[0].replace("??", "?") == shown


def test_a_sheet_of_one_picture_is_as_wide_as_its_title():
    picture = Image.new("RGB", (64, 64), "navy")
    sheet = grid([picture], 1, ["as the base"], "LiVO: a photo of a doctor in a kitchen", note="it says the same as an exemplar")
    assert 300 < sheet.width <= 480
    assert grid([picture], 1).width == 140  # without text there is nothing to be wider for
    longer = grid([picture], 1, title=LONG)
    assert longer.width == 480 and longer.height > sheet.height


def test_captions_are_wrapped_below_their_picture():
    pictures = [Image.new("RGB", (64, 64), "navy")] * 2
    short, long = (grid(pictures, 2, [caption] * 2) for caption in ("base", "gender_equality token, racial_equality token"))
    assert long.height > short.height and long.width == short.width
    assert not ink(long)[-4:].any()  # nothing reaches the edge, where it would be cut


@pytest.mark.parametrize("width", [140, 800])
def test_bars_hold_their_labels_values_and_legend_at_any_width(width):
    shares = {"asked": 0.5, "assigned": 1.0, "LiVO, as the judge reads it": 0.0, "base, as the judge reads it": 1.0}
    sheet = bars("racial_equality", {"a very long name of a class": shares, "southeast asian": shares}, width)
    edge = ink(sheet)
    assert sheet.width >= 480 and not edge[:, -3:].any() and not edge[-2:].any()
