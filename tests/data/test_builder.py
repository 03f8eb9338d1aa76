import json
import os
import subprocess
import sys
import types
from collections import Counter
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from livo import ValuePrinciple
from livo.data import build_folder, build_plan, builder, manifest
from livo.data.builder import Options
from livo.data.manifest import PreferenceError
from livo.evaluation.judges import Judge, judge_for
from livo.principles.construction import Construct, fill
from livo.principles.principle import bundled_principles, load_principles

CLASSES = {"male": "a man", "female": "a woman"}
GENDER = ValuePrinciple(
    id="gender_equality",
    kind="debias",
    statement="gender equality",
    attributes=CLASSES,
    construct={
        "prompts": ["a photo of a {attribute} {career} {place}"],
        "fill": {"career": ["doctor", "engineer"], "place": ["", "at night"]},
        "judge": "gender",
        "also": {"career": "{career}"},
        "scene": "{career}",
        "pairs": 20,
    },
)
BLOODY = ValuePrinciple(
    id="bloody",
    statement="bloody considered inappropriate",
    attributes={"yes": "a bloody person", "no": "an unharmed person"},
    construct={
        "prompts": ["a bloody {career}"],
        "aligned": "a {career}",
        "fill": {"career": ["doctor", "engineer"]},
        "judge": "bloody",
        "pairs": 12,
    },
)


class Generator:
    """A text-to-image pipeline of one pixel pattern a word: what the prompt says is written into the picture.

    Where no gender is stated, nine of ten doctors are male and nine of ten engineers female.
    """

    device = torch.device("cpu")
    scheduler = DDPMScheduler()
    components: dict = {}

    def __init__(self, failure=0.0):
        self.failure, self.prompts = failure, []

    def __call__(self, prompts, generator, **_):
        self.prompts += prompts
        images = []
        for prompt, source in zip(prompts, generator, strict=True):
            draw = torch.rand(3, generator=source)
            words = prompt.split()
            male = "male" in words or ("female" not in words and (draw[0] < 0.9) == ("doctor" in words))
            pixels = np.random.default_rng(source.initial_seed()).integers(0, 200, (16, 16, 3), dtype=np.uint8)
            pixels[0, 0] = (255 if male else 0, 255 if "bloody" in words else 0, 255 if "doctor" in words else 0)
            if draw[1] < self.failure:
                pixels[0, 0, 0] = 255 - pixels[0, 0, 0]
            images.append(Image.fromarray(pixels))
        return types.SimpleNamespace(images=images)


class Reader(Judge):
    name, revision = "reader", "1"
    attributes = {"gender": ("male", "female"), "bloody": ("yes", "no"), "career": ("doctor", "engineer")}

    def probabilities(self, images, prompts):
        first = torch.stack([torch.from_numpy(np.array(image)[0, 0]) for image in images]) > 127
        return {name: torch.stack([first[:, i], ~first[:, i]], 1).float() for i, name in enumerate(self.attributes)}


SMALL = Options(batch=8)


def run(folder, principles=(GENDER, BLOODY), options=SMALL, generator=None, **kwargs):
    records = list(builder.build(generator or Generator(), Reader(), principles, folder, options, **kwargs))
    build_folder.finish(folder, principles)
    return records


def rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_what_is_built_can_be_trained_on_and_says_how_it_came_about(tmp_path):
    run(tmp_path)
    dropped = next(tmp_path.rglob("*_aligned.png"))
    dropped.with_name("dropped.png").write_bytes(dropped.read_bytes())
    report = manifest.check(tmp_path)
    assert not report.problems and not any("are not used" in note for note in report.notes)
    samples = manifest.read_samples(tmp_path)
    assert len(manifest.form_pairs(samples)) == 32
    row = rows(tmp_path)[0]
    assert row["judge"] == "reader@1" and row["scores"] == {"career": 1.0, "gender": 1.0} and row["seed"]
    card = json.loads((tmp_path / "data_card.json").read_text())
    assert card["principles"]["gender_equality"]["pairs"] == 20
    assert (tmp_path / "gender_equality.png").is_file() and (tmp_path / "bloody.png").is_file()


def test_the_violating_image_shows_the_class_that_is_drawn_most_often(tmp_path):
    run(tmp_path, [GENDER])
    for row in rows(tmp_path):
        usual = "male" if row["subject"] == "doctor" else "female"
        assert (row["read"]["gender"] == usual) == (row["label"] == 0)
        assert not {"male", "female"} & set(row["prompt"].split()) and row["read"]["gender"] in row["image_prompt"].split()


def test_a_detoxify_pair_is_the_risky_prompts_image_and_the_harmless_ones(tmp_path):
    run(tmp_path, [BLOODY])
    for row in rows(tmp_path):
        assert row["prompt"].startswith("a bloody")
        assert row["read"]["bloody"] == ("no" if row["label"] else "yes")


def test_images_that_do_not_show_what_they_should_are_thrown_away_and_counted(tmp_path):
    run(tmp_path, [GENDER], generator=Generator(failure=0.3))
    assert all((row["read"]["gender"] in row["image_prompt"].split()) for row in rows(tmp_path))
    card = json.loads((tmp_path / "data_card.json").read_text())["principles"]["gender_equality"]
    assert card["rejected_images_by_attribute"]["gender"] > 0 and card["yield"] < 1


def test_a_generator_that_never_does_as_told_is_reported_with_numbers(tmp_path):
    with pytest.raises(PreferenceError, match=r"gender_equality: only 0 of 20 pairs after \d+ images, rejected for .*gender"):
        run(tmp_path, [GENDER], generator=Generator(failure=1.0))


def test_populations_are_even_and_differ_in_nothing_but_the_class(tmp_path):
    run(tmp_path, [GENDER], Options(batch=8, populations=True))
    diverse = Counter((row["subject"], row["read"]["gender"]) for row in rows(tmp_path) if row["label"])
    for career in ("doctor", "engineer"):
        assert abs(diverse[career, "male"] - diverse[career, "female"]) <= 1
    neutral = [row for row in rows(tmp_path) if not row["label"]]
    assert all(row["image_prompt"] == row["prompt"] and "gender" not in row["read"] for row in neutral)


def test_a_directions_pair_is_its_class_against_another_under_its_own_statement(tmp_path):
    directions = {"male": "gender equality, towards male", "female": "gender equality, towards female"}
    run(tmp_path, [replace(GENDER, directions=directions, construct=replace(GENDER.construct, direction_pairs=10))])
    towards = [row for row in rows(tmp_path) if row["value"] != "gender equality"]
    assert len(towards) == 40 and len(rows(tmp_path)) == 80
    kinds = Counter()
    for row in towards:
        kind = next(name for name, statement in directions.items() if statement == row["value"])
        assert (row["read"]["gender"] == kind) == (row["label"] == 1)
        kinds[row["subject"], kind] += row["label"]
    assert all(kinds[career, "male"] == kinds[career, "female"] > 0 for career in ("doctor", "engineer"))


def test_near_duplicates_are_dropped_and_counted(tmp_path):
    class Repeating(Generator):
        def __call__(self, prompts, generator, **kwargs):
            same = [torch.Generator().manual_seed(g.initial_seed() % 3) for g in generator]
            return super().__call__(prompts, same, **kwargs)

    run(tmp_path, [BLOODY], generator=Repeating())
    card = json.loads((tmp_path / "data_card.json").read_text())["principles"]["bloody"]
    assert card["near_duplicate_pairs_dropped"] > 0 and card["pairs"] + card["near_duplicate_pairs_dropped"] >= 12


def test_a_build_interrupted_anywhere_ends_as_one_that_was_not(tmp_path):
    run(tmp_path / "whole")
    for stop in range(1, 5):
        generator, folder = Generator(), tmp_path / f"stopped-{stop}"
        jobs = builder.build(generator, Reader(), (GENDER, BLOODY), folder, Options(batch=8))
        for _ in range(stop):
            next(jobs)
        jobs.close()
        (folder / "rounds" / "bloody").mkdir(parents=True, exist_ok=True)
        (folder / "rounds" / "bloody" / f"000009.{2**22 + 1}.partial").mkdir()  # what a killed process leaves
        builder.prepare(folder, Generator(), Reader(), (GENDER, BLOODY), SMALL)
        again = Generator()
        run(folder, generator=again)
        assert rows(folder) == rows(tmp_path / "whole")
        assert not list(folder.rglob("*.partial*"))


def test_a_finished_build_generates_nothing_when_it_is_started_again(tmp_path):
    run(tmp_path)
    generator = Generator()
    run(tmp_path, generator=generator)
    assert generator.prompts == []


def test_two_processes_share_the_rounds(tmp_path):
    principles = (GENDER, BLOODY)
    for rank in (0, 1):
        list(builder.build(Generator(), Reader(), principles, tmp_path, Options(batch=8), rank=rank, world=2))
    build_folder.finish(tmp_path, principles)
    names = [row["file_name"] for row in rows(tmp_path)]
    assert len(names) == len(set(names)) == 64
    assert {int(name.split("/")[2]) % 2 for name in names} == {0, 1}


def test_a_folder_that_was_built_otherwise_is_not_added_to(tmp_path):
    run(tmp_path)
    with pytest.raises(PreferenceError, match="another seed"):
        run(tmp_path, options=Options(batch=8, seed=1))


def test_a_judge_that_cannot_read_the_classes_is_refused_first(tmp_path):
    tone = ValuePrinciple(
        id="tone",
        kind="debias",
        statement="tone",
        attributes=CLASSES,
        construct={"prompts": ["a {attribute} cup"], "judge": "tone"},
    )
    with pytest.raises(
        PreferenceError, match=r"principle tone: reader cannot tell tone \(male, female\); it reads gender, bloody, career"
    ):
        run(tmp_path, [tone])
    other = replace(GENDER, attributes={"male": "a man", "woman": "a woman"})
    with pytest.raises(PreferenceError, match="gender_equality: reader reads no 'woman' of gender, only male, female"):
        run(tmp_path, [other])


def test_yes_is_the_violating_class_in_either_order(tmp_path):
    run(tmp_path, [replace(BLOODY, attributes=dict(reversed(BLOODY.attributes.items())))])
    assert all(("bloody" in row["image_prompt"]) == (row["label"] == 0) for row in rows(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": []}, "no prompts"),
        ({"judge": ""}, "no judge"),
        ({"prompts": ["a {carer}"]}, "has the field 'carer'"),
        ({"prompts": ["a {career.__class__}"]}, "career.__class__"),
        ({"prompts": ["a {career"]}, "cannot be read"),
        ({"prompts": ["a {career}"]}, "field {attribute}"),
        ({"aligned": "a {career}"}, "leave it out"),
        ({"pairs": 0}, "pairs is 0"),
        ({"fill": {"career": "doctor"}}, "fill is"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"scene": 5}, "give templates"),
    ],
)
def test_a_faulty_construct_section_is_refused(changes, words):
    good = {"prompts": ["a {attribute} {career}"], "judge": "gender", "fill": {"career": ["doctor"]}}
    Construct.parse(good, "debias")
    with pytest.raises(ValueError, match=words.replace("{", r"\{")):
        Construct.parse(good | changes, "debias")


def test_templates_leave_out_what_is_empty_and_put_articles_right():
    assert fill("{view} a {attribute} {career} {place}", {"career": "engineer", "place": "at night"}) == "an engineer at night"
    assert fill("an {attribute} {career}", {"attribute": "female", "career": "engineer"}) == "a female engineer"
    assert fill("a unicorn in an hour, a {career}", {"career": "artist"}) == "a unicorn in an hour, an artist"


class Dark(Generator):
    """Every fifth image is black, or all of them."""

    def __init__(self, every=5):
        super().__init__()
        self.every, self.made = every, 0

    def __call__(self, prompts, generator, **kwargs):
        out = super().__call__(prompts, generator, **kwargs)
        for i in range(len(out.images)):
            self.made += 1
            if self.made % self.every == 0:
                out.images[i] = Image.new("RGB", out.images[i].size)
        return out


def test_black_images_are_rejected_for_a_reason_of_their_own(tmp_path):
    run(tmp_path, [BLOODY], generator=Dark())
    card = json.loads((tmp_path / "data_card.json").read_text())["principles"]["bloody"]
    assert card["rejected_images_by_attribute"] == {"black image": card["images_generated"] // 5} and card["pairs"] == 12
    assert all(np.asarray(Image.open(tmp_path / row["file_name"])).any() for row in rows(tmp_path))
    with pytest.raises(PreferenceError, match=r"rejected for \{'black image': 2"):
        run(tmp_path / "all", [BLOODY], generator=Dark(1))
    with pytest.raises(PreferenceError, match=r"all 16 images of 'a photo of an? \w+( at night)?' are black: check the generator"):
        run(tmp_path / "census", [GENDER], generator=Dark(1))


def test_a_judge_that_needs_prompts_is_given_what_a_user_would_type(tmp_path):
    class Asking(Reader):
        asked: ClassVar[list] = []

        def probabilities(self, images, prompts):
            self.asked.extend(prompts)
            return super().probabilities(images, prompts)

    list(builder.build(Generator(), Asking(), [GENDER, BLOODY], tmp_path, SMALL))
    assert {"a photo of a doctor at night", "a bloody engineer"} <= set(Asking.asked)
    assert not any(word in prompt.split() for prompt in Asking.asked for word in ("male", "female"))


@pytest.mark.parametrize(
    ("principle", "options", "words"),
    [
        (
            replace(GENDER, construct=replace(GENDER.construct, judge="sex")),
            SMALL,
            r"cannot tell sex \(male, female\); it reads gender",
        ),
        (
            replace(GENDER, construct=replace(GENDER.construct, also={"place": "{place}"})),
            SMALL,
            r"tell place, which .*; it reads gender",
        ),
        (
            replace(GENDER, construct=replace(GENDER.construct, fill={"career": ("doctor", "plumber"), "place": ("",)})),
            SMALL,
            "reads no 'plumber' of career, only doctor, engineer",
        ),
        (replace(GENDER, construct=None), SMALL, "has no construct section"),
        (GENDER, Options(batch=1), "batch is 1"),
    ],
)
def test_a_build_that_cannot_start_leaves_its_folder_free(tmp_path, principle, options, words):
    generator = Generator()
    for start in (builder.prepare, lambda *args: next(builder.build(*args[1:4], args[0], args[4]))):
        with pytest.raises(PreferenceError, match=words):
            start(tmp_path, generator, Reader(), [BLOODY, principle], options)
    assert not generator.prompts and not list(tmp_path.iterdir())


def test_a_build_that_made_no_image_may_start_otherwise(tmp_path):
    builder.prepare(tmp_path, Generator(), Reader(), [BLOODY], Options(batch=4, seed=3))
    run(tmp_path, [BLOODY])
    with pytest.raises(PreferenceError, match="another seed"):
        builder.prepare(tmp_path, Generator(), Reader(), [BLOODY], Options(batch=8, seed=3))


def test_clip_reads_all_that_the_bundled_principles_ask_for(papertown, tiny_clip):
    known = load_principles(bundled_principles())
    for chosen in (known, known[:1], known[-1:]):
        judge = judge_for(papertown, f"clip:{tiny_clip}", chosen, "cpu", build_plan.further_attributes(chosen, known))
        build_plan.check(papertown, judge, chosen, 8)
        assert {"career", "place", "bloody"} <= set(judge.attributes) and len(judge.attributes["bloody"]) == 2
    with pytest.raises(PreferenceError, match=f"principle {known[0].id}: clip cannot tell career, which"):
        build_plan.check(papertown, judge_for(papertown, f"clip:{tiny_clip}", known), known, 8)


@pytest.mark.slow
def test_a_builder_killed_ten_times_loses_nothing_and_repeats_nothing(tmp_path):
    """kill -9 at ten moments, on Papertown's own generator and judge."""
    command = [sys.executable, "-m", "livo", "build", "--only", "gender_equality", "--pairs", "24", "--batch", "8", "--steps", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True, env=environment, capture_output=True)
    rng = np.random.default_rng(0)
    for _ in range(10):
        process = subprocess.Popen([*command, "-o", str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=float(rng.uniform(4, 12)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    subprocess.run([*command, "-o", str(tmp_path / "killed")], check=True, env=environment, capture_output=True)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.partial*"))
