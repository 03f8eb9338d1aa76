"""The word lists of the labelled prompts, and the everyday prompts."""

from collections import Counter
from pathlib import Path

from livo.retrieval.corpus import everyday_prompts, lists, sections

FOLDER = Path(lists.__file__).parent


def test_each_section_stands_in_one_file_once():
    headings = [line for file in FOLDER.glob("*.txt") for line in file.read_text(encoding="utf-8").splitlines() if line[:1] == "["]
    assert {name: n for name, n in Counter(headings).items() if n > 1} == {}
    assert sorted(headings) == sorted(f"[{name}]" for name in sections())


def test_comments_and_everyday_prompts_are_in_no_section():
    items = {variant for name in sections() for variants in lists.section(name) for variant in variants}
    assert not any("#" in item or "[" in item for item in items)
    assert len(everyday_prompts()) == 96 and everyday_prompts()[0] == "a bowl of fruit on a wooden table"
    assert "a nurse shark" in everyday_prompts() and all(text == " ".join(text.split()) for text in everyday_prompts())
