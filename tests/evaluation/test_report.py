"""report.html: texts are escaped, and tables and notes stand where their figures do."""

from types import SimpleNamespace

import pytest
from PIL import Image

from livo.evaluation import report

EVIL = "<script>alert(1)</script> & {{ 7 * 7 }}"


@pytest.fixture()
def page():
    def made(**changes):
        figure = {"mean": 12.5, "interval": (10.0, 15.0), "prompts": 2, "left_out": 1}
        base = {"judge": {"D1": figure}}
        other = {"judge": {"D1": figure | {"minus_base": {"mean": -3.0, "interval": (-4.0, -2.0)}}}}
        result = {
            "settings": {"images": 4},
            "judges": [{"name": EVIL, "revision": "abc"}],
            "reference": None,
            "intervals": "95% intervals",
            "figures": {EVIL: {"base": base, EVIL: other}},
            "disagreement": {},
        }
        prompts = [SimpleNamespace(text=EVIL), SimpleNamespace(text="plain")]
        found = {EVIL: SimpleNamespace(prompts=prompts, decisions=[[], [{"values": [], "reason": EVIL}]])}
        return report._page(result | changes, found, Image.new("RGB", (2, 2)))

    return made


def test_texts_of_users_are_escaped_everywhere(page):
    text = page()
    assert "<script>" not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; {{ 7 * 7 }}") >= 8
    assert "49" not in text.split("<h2>Images</h2>")[0]


def test_a_comparison_shows_figures_notes_and_paired_differences(page):
    text = page()
    assert "2 prompts, 4 images each" in text and "<td>12.5 [10.0, 15.0]" in text and "<td>-3.00 [-4.00, -2.00]</td>" in text
    assert "D1, base: 1 prompts have no figure.</p>" in text and "Reference of FID and KID: none." in text
    assert "Where the judges disagree" not in text


def test_without_another_method_there_is_no_table_of_differences(page):
    figures = {"all": {"base": {"judge": {"D1": {"mean": 1.0, "interval": None}}}}}
    text = page(figures=figures, disagreement={"base": {"a, b: gender": {"differ": 5.0, "kappa": None}}})
    assert "Paired differences" not in text and "<td>a, b: gender</td><td>5.0</td><td></td>" in text


def test_a_value_that_the_page_needs_and_lacks_is_an_error(page):
    with pytest.raises(KeyError):
        page(judges=[{"name": "clip"}])
