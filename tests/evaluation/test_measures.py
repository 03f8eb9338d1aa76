"""Figures against numbers computed by hand, and what has too few images to be measured."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from livo.evaluation import measures, metrics, report
from livo.evaluation.measures import bias, quality, risk
from livo.evaluation.method import Method
from livo.evaluation.readings import Readings, seen
from livo.evaluation.report import cell
from livo.principles.principle import ValuePrinciple
from livo.utils.prompt_files import Prompt

GENDER = ValuePrinciple("gender", "gender equality", "debias", attributes={"male": "a man", "female": "a woman"})
RACE = ValuePrinciple("race", "racial equality", "debias", attributes=dict.fromkeys(("white", "black", "asian"), "a person"))
CLASSES = {"gender": ("none", "male", "female"), "race": ("white", "black", "asian", "none"), "mood": ("smile", "frown", "none")}
EYE = SimpleNamespace(name="eye", attributes=CLASSES, measured=())


def readings(prompts=None, faults=None, features=None, **rows):
    """Rows of classes by attribute, a prompt a row; "" is a broken image."""
    first = next(iter(rows.values()))
    scores = {}
    for attribute, classes in rows.items():
        known = CLASSES[attribute]
        p = np.array([[[float(name == c) for name in known] if c else [np.nan] * len(known) for c in row] for row in classes])
        scores[attribute] = p
    faults = np.array([["" if c else "black" for c in row] for row in first]) if faults is None else faults
    prompts = prompts or [Prompt(f"a photo of a doctor number {i}") for i in range(len(first))]
    shape = faults.shape
    small = np.zeros((*shape, 16, 16, 3), dtype=np.uint8)
    return Readings(Method("m"), prompts, {"eye": scores}, features, None, [], small, [], [], faults, 1.0, 1.0)


def test_one_image_a_prompt_is_pooled_and_has_no_figure_of_its_own():
    found = bias(readings(gender=[["male"], ["male"], ["male"], ["female"]]), "eye", EYE, GENDER, "gender")
    assert found["D1 gender"]["mean"] is None and cell(found["D1 gender"]) == "not measured: one image per prompt"
    pooled = found["D1 gender, pooled"]
    assert pooled["mean"] == 50 and pooled["images"] == 4 and pooled["counts"] == {"male": 3, "female": 1}
    assert pooled["floor"] == pytest.approx(37.5)  # sum of |2k - 4| / 4 binom(4, k) / 16
    low, high = pooled["interval"]
    assert 0 <= low < 50 < high and "(floor 37.5)" in cell(pooled)
    assert found["D2 gender"]["mean"] is None and found["discrepancy gender, pooled"]["mean"] == pytest.approx(0.25 * 2**0.5)


def test_a_class_that_was_never_seen_counts_and_is_named():
    found = bias(readings(race=[["white"], ["white"], ["black"], ["black"]]), "eye", EYE, RACE, "race")["D1 race, pooled"]
    assert found["mean"] == 50 and found["missing"] == ["asian"] and "never shown: asian" in cell(found)
    outcomes = np.array([np.bincount(draw, minlength=3) for draw in product(range(3), repeat=4)])
    assert found["floor"] == pytest.approx(metrics.d1(outcomes).mean())


def test_an_uneven_target_is_what_d1_and_its_floor_are_measured_from():
    wanted = ValuePrinciple(
        "gender",
        "s",
        "debias",
        attributes=GENDER.attributes,
        target={"male": 0.75, "female": 0.25},
        directions={"male": "m", "female": "f"},
    )
    rows = [["male", "male", "male", "female"]] * 3
    found = bias(readings(gender=rows), "eye", EYE, wanted, "gender")
    assert found["D1 gender, from its target"]["mean"] == 0 and found["D1 gender, from its target, pooled"]["mean"] == 0
    outcomes = np.array([np.bincount(draw, minlength=2) for draw in product((0, 0, 0, 1), repeat=4)])
    floor = np.mean(metrics.d1(outcomes, (0.75, 0.25)))
    assert found["D1 gender, from its target"]["floor"] == pytest.approx(floor) and floor > 10
    even = bias(readings(gender=rows), "eye", EYE, GENDER, "gender")
    assert even["D1 gender"]["mean"] == 50


def test_broken_images_are_in_no_count():
    rows = [["male", "", "female", "female"], ["", "", "", ""], ["male", "male", "male", ""]]
    found = bias(readings(gender=rows), "eye", EYE, GENDER, "gender")
    assert found["D1 gender"]["per_prompt"] == [pytest.approx(100 / 3), None, 100]
    assert found["no gender %"]["per_prompt"] == [0, None, 0]
    floors = [metrics.fair_floor(metrics.d1, 2, 3)] * 2
    assert found["D1 gender"]["floor"] == pytest.approx(np.mean(floors)) and found["D1 gender, pooled"]["images"] == 6
    stated = [Prompt("a female doctor"), Prompt("a female nurse"), Prompt("a female chef")]
    assert bias(readings(stated, gender=rows), "eye", EYE, GENDER, "gender")["stated gender %"]["per_prompt"][:2] == [
        pytest.approx(200 / 3),
        None,
    ]
    assert seen(readings(gender=rows), "eye", EYE, "gender")[0].tolist() == rows[0]


def test_risks_are_measured_on_the_images_that_are_left():
    rows = [["frown", "", "smile", "frown"], ["", "", "", ""]]
    found = risk(readings(mood=rows), "eye", EYE, "mood", "frown", 2)
    assert found["R frown (mood)"]["per_prompt"] == [pytest.approx(200 / 3), None]
    assert found["Max frown (mood)"]["per_prompt"] == [100, None]  # one whole group: the first two that are left
    none = risk(readings(mood=[["", ""]]), "eye", EYE, "mood", "frown", 2)
    assert cell(none["R frown (mood)"]) == cell(none["Max frown (mood)"]) == "not measured: no image can be judged"


def test_groups_larger_than_the_prompts_images_are_not_made_smaller():
    found = risk(readings(mood=[["frown", "smile"]] * 2), "eye", EYE, "mood", "frown", 5)
    assert found["R frown (mood)"]["mean"] == 50
    assert cell(found["Prob frown (mood)"]) == "not measured: 2 images per prompt, and a group has 5"


@pytest.mark.parametrize(
    ("prompts", "rows", "why"),
    [
        (["a female doctor", "a male nurse"], [["male", "male"]] * 2, "every prompt states an identity"),
        (["a photo of a doctor"], [["none", "none"]], "no prompt has two images that show a class"),
        (["a photo of a doctor"], [["male", "none"]], "no prompt has two images that show a class"),
    ],
)
def test_bias_without_people_or_without_neutral_prompts_is_not_measured(prompts, rows, why):
    found = bias(readings([Prompt(text) for text in prompts], gender=rows), "eye", EYE, GENDER, "gender")
    assert cell(found["D1 gender"]) == f"not measured: {why}" and found["D1 gender, pooled"]["mean"] is None


def test_fid_and_the_inception_score_need_enough_images():
    rows = [["smile", "frown"]] * 3
    features = np.random.default_rng(0).normal(size=(3, 2, 6))
    eye = SimpleNamespace(name="eye", attributes={"mood": CLASSES["mood"]}, embed=None)
    reference = np.random.default_rng(1).normal(size=(50, 6))
    found = quality(readings(mood=rows, features=features), [eye], None, reference)
    assert cell(found["FID"]) == "not measured: 6 images for 6 features; KID needs fewer"
    assert found["KID x 1000"]["mean"] == pytest.approx(1000 * metrics.kernel_distance(features.reshape(-1, 6), reference))
    wide = quality(readings(mood=rows, features=features[..., :2]), [eye], None, reference[:, :2])
    assert wide["FID"]["mean"] == pytest.approx(metrics.frechet_distance(features[..., :2].reshape(-1, 2), reference[:, :2]))
    few = quality(readings(mood=[["smile", "frown"]]), [eye], None, None)
    assert cell(few["IS"]) == "not measured: 2 images for the 3 classes of mood" and found["IS"]["mean"] > 1


def test_broken_images_are_counted_and_leave_the_other_figures_alone():
    rows = [["smile", "", "frown", "frown"], ["smile", "smile", "", "none"]]
    features = np.random.default_rng(0).normal(size=(2, 4, 2))
    found = readings(mood=rows, features=np.where(np.array(rows)[..., None] == "", np.nan, features))
    eye = SimpleNamespace(name="eye", attributes={"mood": CLASSES["mood"]}, embed=None)
    reference = np.random.default_rng(1).normal(size=(50, 2))
    figures = quality(found, [eye], found, reference)
    assert cell(figures["broken images"]) == "2 of 8 (25.0%)" and figures["broken images"]["kinds"] == {"black": 2}
    good = features[found.good]
    assert figures["FID"]["mean"] == pytest.approx(metrics.frechet_distance(good, reference)) and figures["FID"]["images"] == 6
    assert figures["as the base %"]["mean"] == 100 and figures["drift"]["mean"] == pytest.approx(0)


def test_all_broken_is_not_measured_anywhere():
    found = readings(mood=[["", ""], ["", ""]])
    eye = SimpleNamespace(name="eye", attributes={"mood": CLASSES["mood"]}, embed=None)
    figures = quality(found, [eye], found, np.zeros((9, 2)))
    measured = {name for name, figure in figures.items() if figure["mean"] is not None}
    assert measured == {"broken images", "seconds an image", "peak memory, MB"}
    assert cell(figures["broken images"]) == "4 of 4 (100.0%)"


def test_what_no_method_has_stands_once_with_its_reason():
    why = measures.not_measured("no judge")
    figures = {name: {"eye": {"R x": {"mean": 1.0}}, "principles": {"R mine": why}} for name in ("base", "livo")}
    text = report.plain(*report.table(figures)).splitlines()
    assert text[2] == "R mine  not measured: no judge" and text[1].split() == ["R", "x", "1.00", "1.00"]
