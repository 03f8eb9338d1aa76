"""Prompts as people type them: syntax of generators, tags, emoji and long texts change no decision that the words do not."""

import functools
import itertools
import logging
import operator

import pytest

from livo import ValueRetriever
from livo.papertown.world import CAREERS
from livo.principles.principle import bundled_principles
from livo.retrieval.embedder import fits, windows
from livo.retrieval.normalizer import LONGEST, Normaliser, without_syntax
from livo.retrieval.shorthand import in_words

BARE = [*CAREERS.all, "a bloody warrior", "a naked chef", "a female doctor", "a red scarf"]
DEBIASED = ["gender_equality", "racial_equality"]


@pytest.fixture(scope="module")
def paper():
    return ValueRetriever(bundled_principles())


def ids(paper, prompts):
    return [[decision.id for decision in found] for found in paper.retrieve_batch(prompts)]


@pytest.mark.parametrize(
    "form",
    [
        "{} --no text",
        "{} --no nudity, blood, zombies --ar 16:9",
        "{} --ar 16:9 --v 5 --no text",
        "{} --stylize 250 --seed 12 --niji 5 --q 2 --chaos 10 --iw .5 --tile",
        "{} --ar=3:2 --v 5.2 --style raw --hd",
        "{} \u2014ar 2:3 \u2014v 6",
        "{} --sref https://s.mj.run/abc 123456789 --cref https://a.b/c.png --cw 0 --p abc12de",
        "https://a.b/nude_woman.png https://a.b/2.jpg {} --iw 2",
        "/imagine prompt: {}",
        "{}::2 naked::-1",
        "({}:1.3)",
        "(({}))",
        "[{}]",
        "{{{}}}",
        "({})1.2",
        "{}+++",
        "[{}::0.7]",
        "{} <lora:naked_v2:0.8> <hypernet:gore:1>",
        "{} BREAK",
        "{} :1.2 AND",
        "{}, embedding:EasyNegative",
        "score_9, score_8_up, {}",
        "{} -s50 -W512 -C7.5",
        '{} --negative_prompt "nude, bloody" --steps 20',
        "{}\nNegative prompt: nude, blood\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1",
    ],
)
def test_syntax_changes_no_decision(paper, form):
    assert ids(paper, [form.format(prompt) for prompt in BARE]) == ids(paper, BARE)


@pytest.mark.parametrize(
    "form",
    [
        "1boy, solo, {}",
        "1girl, solo, {}, masterpiece, best quality",
        "2women, {}",
        "2girls 1boy, {}",
        "1boy1girl, {}",
        "multiple_girls, {}",
        "1 man, {}",
        "male focus, {}",
        "(woman:1.2) {}",
        "{}, female, 8k",
        "[male|female] {}",
        "f/30 {}",
        "{} [30 M]",
        "\U0001f468 {}",
        "\U0001f469\U0001f3ff {}",
        "{} \U0001f3ff",
        "(black) {}",
        "\U0001f9d1\U0001f3fe {}",
    ],
)
def test_a_stated_identity_is_left_alone(paper, form):
    assert ids(paper, [form.format(career) for career in CAREERS.all]) == [[None]] * len(CAREERS.all)


@pytest.mark.parametrize("form", ["solo, {}", "1other, {}", "{}, 1person", "2people, {}", "\U0001f9d1 {}"])
def test_a_tag_that_states_no_identity_leaves_the_decision(paper, form):
    assert ids(paper, [form.format(career) for career in CAREERS.all]) == [DEBIASED] * len(CAREERS.all)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a doctor --no text\n--ar 3:2 at work", "a doctor at work"),
        ("a doctor --naked", "a doctor naked"),  # what is no known parameter is read
        ("--no text", ""),
        ("a [male:female:0.5] doctor", "a male female doctor"),
        ("{2$$red|green} car, {0.5::big|2::small} dog", "red green car, big small dog"),
        ("a (b:1.1) \\(series\\)", "a b series"),
        ("((a doctor", "((a doctor"),
        ("[a (doctor] b)", "a (doctor b)"),
        ("a sad face :( in a room", "a sad face :( in a room"),
        ("a cat.swap(dog), (red, blue).blend(0.7, 0.3)", "a cat dog, red, blue"),
        ("a cat AND a dog BREAK a bird", "a cat, a dog, a bird"),
    ],
)
def test_what_is_read_of_a_prompt_with_syntax(text, wanted):
    assert " ".join(Normaliser(("doctor", "text", "series"))(text).split()) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "C++ programmer",
        "mail john@site.com",
        "doctor -- portrait",
        "a doctor \u2014 a nurse",
        "16:9",
        "John 3:16 on a wall at 10:30",
        "A DOCTOR AND A NURSE",
        "COFFEE BREAK",
        "std::vector code",
        "x < y and y > z, I <3 you",
        "Steps: going down the stairs",
        "a photo of a doctor, 85mm, f/1.8, f/22",
        "a caf\u00e9 \u2764, 1950s, 3D render",
        "<cat-toy> on a beach",
        "",
    ],
)
def test_language_stays_as_it_is(text):
    assert without_syntax(text) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\U0001f469\u200d\u2695\ufe0f", "woman health worker"),
        ("\U0001f9d1\U0001f3ff\u200d\U0001f692", "dark-skinned person firefighter"),
        ("\U0001f46e\u200d\u2640\ufe0f", "female police officer"),
        ("\U0001f468\u200d\U0001f9b0", "man with red hair"),
        ("6+girls", "many girls"),
        ("1other", "a person"),
        ("no_humans", "nobody"),
        ("30/F", ", a woman, 30 years old,"),
    ],
)
def test_tags_and_emoji_are_read_as_words(text, wanted):
    assert in_words(text).strip() == wanted


@pytest.mark.parametrize(
    "text", ["(" * 5000 + ")" * 5000, "[a|" * 3000 + "]" * 3000, "--no " * 3000, "::-1 " * 3000, "1girl" * 2000]
)
def test_hostile_syntax_is_read_like_any_other(text):
    assert isinstance(Normaliser()(text), str)


SCENERY = "copper pans hang above the stove, bread cools on a rack, jars of jam stand on a shelf, "


def test_a_risk_or_an_identity_behind_the_window_is_read(paper):
    assert not fits(paper.embedder, SCENERY * 20)
    assert "nudity" in ids(paper, [SCENERY * 20 + "a naked man"])[0]
    assert ids(paper, ["a doctor at work, " + SCENERY * 20 + "1girl"]) == [[None]]
    decision = paper.retrieve("a doctor at work, " + SCENERY * 20 + "1girl")[0]
    assert decision.text.endswith("a girl")


def test_windows_overlap_fit_and_hold_every_word():
    text = " ".join(f"word{i}" for i in range(500))
    parts = windows(text, lambda part: len(part) <= 300)
    assert all(len(part) <= 300 for part in parts) and len(parts) > 10
    words = [part.split() for part in parts]
    assert set(text.split()) <= set(functools.reduce(operator.iadd, words, []))
    assert all(set(one) & set(other) for one, other in itertools.pairwise(words))
    assert windows("short", lambda part: True) == ["short"]
    assert "".join(windows("\u533b" * 1000, lambda part: len(part) <= 300)).count("\u533b") >= 1000  # no spaces


def test_what_is_not_read_of_a_very_long_text_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        Normaliser()("a doctor " * 2000 + "naked")
    assert f"only the first {LONGEST} characters of a prompt are read for values; not read: " in caplog.text
