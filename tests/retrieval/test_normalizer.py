"""Disguises are undone, ordinary text stays as it is, and word evidence knows a word from a word that only looks like it."""

import numpy as np
import pytest

from livo.retrieval.corpus.perturb import DISGUISES
from livo.retrieval.lexicon import NAMES, Lexicon, lexicon
from livo.retrieval.normalizer import LONGEST, Normaliser, subject

ORDINARY = ("naked", "doctor", "woman", "warrior", "office", "nurse", "portrait", "the", "beach", "hospital", "airplane")


@pytest.fixture(scope="module")
def normalise():
    return Normaliser(ORDINARY)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a n4ked w0man", "a naked woman"),
        ("z0mb13 doctor!", "zombie doctor!"),
        ("n u d e portrait", "nude portrait"),
        ("a z.o.m.b.i.e in the office", "a zombie in the office"),
        ("n\u0430k\u0435d", "naked"),
        ("zom\u200bbie", "zombie"),
        ("\U0001d4c3\U0001d4ca\U0001d4b9\u212f", "nude"),
        ("n*ked and bl**dy", "naked and bloody"),
        ("nakedwoman", "naked woman"),
        ("naaaked", "naked"),
        ("bloddy warrior", "bloody warrior"),
        ("nakd", "naked"),
        ("z\u0336ombie", "zombie"),
        ("zom bie", "zombie"),
        ("naked_doctor", "naked doctor"),
        ("n a k e d w o m a n on a beach", "naked woman on a beach"),
        ("a NaKeD DoCtOr", "a naked doctor"),
        ("\U0001f9df", "zombie"),
    ],
)
def test_hidden_words_are_restored(normalise, text, wanted):
    assert normalise(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "photo of a doctor, 85mm, f/1.8, 8k, 1920s",
        "Essex deadline bloodhound",
        "M\u00e9decin \u00e0 l'h\u00f4pital",
        "\u041c\u0430\u0440\u0438\u044f \u0432\u0440\u0430\u0447",
        "e.g. a dog",
        "3D render, C4D, masterpiece",
        "stainless noodles",
        "",
    ],
)
def test_ordinary_text_stays_as_it_is(normalise, text):
    assert normalise(text) == text


def test_every_disguise_of_a_plain_risk_is_undone_nearly_always(normalise):
    undone = {}
    for name, disguise in DISGUISES.items():
        texts = [disguise("a zombie doctor", np.random.default_rng(seed)) for seed in range(40)]
        undone[name] = np.mean(["zombie" in normalise(text).lower() for text in texts])
    assert min(undone.values()) >= 0.8 and np.mean(list(undone.values())) >= 0.95, undone


def test_long_prompts_are_cut_and_control_characters_dropped(normalise):
    assert len(normalise("a doctor " * 5000)) <= LONGEST + 1
    assert normalise("a\x00 doctor\x07") == "a doctor"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a photo of a doctor, 8k, digital art", "a doctor"),
        ("can you paint a nurse at night?", "a nurse at night"),
        ("a doctor in the style of Van Gogh", "a doctor"),
        ("masterpiece, best quality, a dean", "a dean"),
        ("a black and white photo of a nurse", "a nurse"),
        ("nude portrait of a chef", "nude portrait of a chef"),
        ("a headshot for a resume", "a headshot for a resume"),
        ("8k", "8k"),
    ],
)
def test_the_subject_is_what_is_in_the_picture(text, wanted):
    assert subject(text) == wanted


@pytest.mark.parametrize(
    ("text", "kind", "there"),
    [
        ("a bloody doctor", "bloody", True),
        ("a bloody mary cocktail", "bloody", False),
        ("a king on a throne", "gender", True),
        ("a king penguin", "gender", False),
        ("men's shoes", "gender", False),
        ("a black doctor", "race of a person", True),
        ("a doctor in a black coat", "race of a person", False),
        ("a chef cooking Chinese food", "race of a person", False),
        ("a doctor who is white", "race of a person", True),
        ("the naked eye", "nudity", False),
        ("a woman's bag", "gender", True),
        ("bloodcurdling", "bloody", False),
    ],
)
def test_words_count_only_in_the_sense_that_states_something(text, kind, there):
    assert (kind in lexicon().read(text).found) is there


def test_a_person_noun_is_told_from_the_first_half_of_a_compound():
    at = {name: i for i, name in enumerate(NAMES)}
    features = {text: lexicon().read(text).features for text in ("a chef at work", "a chef knife", "a chef's knife")}
    assert [f[at["occupation free"]] for f in features.values()] == [1, 0, 0]
    assert [f[at["occupation possessive"]] for f in features.values()] == [0, 0, 1]


def test_a_lexicon_can_be_kept_from_knowing_held_out_words():
    assert "occupation" in lexicon().read("two blacksmiths").found
    assert "occupation" not in Lexicon(without=["blacksmith"]).read("two blacksmiths").found
    assert "occupation" not in lexicon().read("a blacksmith", frozenset(["blacksmith"])).found
