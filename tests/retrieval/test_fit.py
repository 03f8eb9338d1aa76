"""The labelled prompts, the fit and its report, and figures on prompts that nothing was fitted to."""

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from livo import ValueRetriever
from livo.cli.main import main
from livo.principles.principle import FACETS, bundled_principles
from livo.retrieval import fit
from livo.retrieval.corpus import labelled_prompts
from livo.retrieval.features import FacetHeads, PromptFeatures
from livo.retrieval.head_fitting import _mean, fit_heads
from livo.retrieval.retriever import BUNDLED_HEADS


@pytest.fixture(scope="module")
def prompts():
    return labelled_prompts()


def test_no_family_and_no_text_stands_on_both_sides(prompts):
    sides = [{p.family for p in prompts if p.held_out is yes} for yes in (False, True)]
    texts = [{p.text.lower() for p in prompts if p.held_out is yes} for yes in (False, True)]
    phrases = [
        {p.family for p in prompts if p.held_out is yes and p.group in ("implicit risk", "no people")} for yes in (False, True)
    ]
    assert not texts[0] & texts[1] and not phrases[0] & phrases[1]
    assert len(sides[0] & sides[1]) <= 0.01 * len(sides[1])


def test_the_labelled_set_covers_every_group_and_is_the_same_each_time(prompts):
    counts = Counter((p.group, p.held_out) for p in prompts)
    assert len(prompts) > 5000 and len(counts) == 2 * 10 and min(counts.values()) >= 50
    assert {p.language for p in prompts} == {"en", "de", "fr", "es", "it", "pt", "nl"}
    assert [p.text for p in labelled_prompts()] == [p.text for p in prompts]
    assert all(p.facets <= set(FACETS) for p in prompts)


def test_a_report_agrees_with_figures_worked_by_hand():
    wanted = ["a", "a", "none", "none", "b"]
    decided = ["a", "none", "none", "none", "a"]
    report = fit.report_of(wanted, decided, [0.9, 0.6, 0.8, 0.7, 0.55], ["x", "x", "y", "y", "y"])
    assert report["accuracy"] == pytest.approx(0.6)
    assert report["classes"]["a"] == {"precision": 0.5, "recall": 0.5, "count": 2}
    assert report["groups"]["x"]["accuracy"] == 0.5 and report["groups"]["y"]["count"] == 3
    curve = report["risk_coverage"]
    assert curve[0] == [0.2, 0.0] and curve[-1] == [1.0, pytest.approx(0.4)]
    assert report["ece"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.6 + 0.55) / 5)
    assert fit.wilson(5, 10) == pytest.approx([0.2366, 0.7634], abs=1e-4)


def test_confidences_that_are_right_as_often_as_they_say_have_no_calibration_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 40_000)
    assert fit.expected_calibration_error(confidence, rng.random(40_000) < confidence) < 0.01
    assert fit.expected_calibration_error(np.full(100, 0.9), np.arange(100) < 50) == pytest.approx(0.4)


def test_heads_learn_what_only_a_token_and_a_word_together_say():
    """The facet holds where one of the two is there and not both, which no sum of the two tells."""
    rng = np.random.default_rng(0)
    token, word = rng.random((2, 1500)) < 0.5
    vectors = rng.normal(size=(1500 * 3, 8)).astype(np.float32) * 0.1
    vectors[1::3, 0] += token
    features = PromptFeatures(np.zeros((1500, 4), np.float32), vectors, np.arange(0, 4501, 3), word[:, None].astype(np.float32))
    families = [str(i) for i in range(1500)]
    heads, unseen = fit_heads(
        features, (token ^ word)[:, None], ["either"], families, "-", np.ones(4, np.float32), detectors=4, steps=150, folds=2
    )
    for log_odds in (unseen, heads.log_odds(features)):
        assert np.mean((log_odds[:, 0] > 0) == (token ^ word)) > 0.95


def test_the_mean_of_heads_gives_the_mean_of_their_log_odds():
    rng = np.random.default_rng(1)
    shapes = {"sentence": (4, 2), "evidence": (3, 2), "bias": (2,), "detectors": (8, 5), "responses": (5, 2), "hidden": (8, 6)}
    shapes |= {"hidden_bias": (6,), "outputs": (6, 2)}
    members = [{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(3)]
    features = PromptFeatures(
        *(rng.normal(size=n).astype(np.float32) for n in ((2, 4), (7, 8))), np.array([0, 3, 7]), np.ones((2, 3), np.float32)
    )
    each = [FacetHeads(("a", "b"), "-", arrays).raw(features) for arrays in members]
    assert np.ptp(each, axis=0).min() > 0.1
    np.testing.assert_allclose(FacetHeads(("a", "b"), "-", _mean(members)).raw(features), np.mean(each, axis=0), atol=1e-5)


def test_bundled_heads_are_small_and_load_back_as_they_were_saved(tmp_path):
    heads = FacetHeads.load(BUNDLED_HEADS)
    assert heads.names == FACETS and sum(f.stat().st_size for f in BUNDLED_HEADS.iterdir()) < 500_000
    heads.save(tmp_path)
    again = FacetHeads.load(tmp_path)
    assert again.names == heads.names and again.record == heads.record
    assert all(np.array_equal(again.arrays[name], array) for name, array in heads.arrays.items())


def test_the_held_out_report_of_the_bundled_heads_is_published():
    report = json.loads((Path(__file__).parents[2] / "docs" / "retriever.json").read_text())
    assert FacetHeads.load(BUNDLED_HEADS).record["prompts"] == len(labelled_prompts())
    assert report["count"] > 3000 and report["ece"] <= 0.05 and 0.85 <= report["accuracy"] <= 1
    assert set(report["groups"]) == {p.group for p in labelled_prompts()}


def test_prompts_outside_the_labelled_set_are_decided_right():
    rows, head = [], ("", "")
    for line in (Path(__file__).parents[1] / "unseen_prompts.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            head = tuple(line.strip("[]").split(", ", 1))
        elif line and not line.startswith("#"):
            rows.append((line, *head))
    decided = ValueRetriever(bundled_principles()).retrieve_batch([text for text, *_ in rows])
    known = {p.text.lower() for p in labelled_prompts()}
    groups: dict[str, list[bool]] = {}
    for (text, wanted, group), decisions in zip(rows, decided, strict=True):
        if text.lower() not in known:
            groups.setdefault(group, []).append(fit.decided_class(decisions) == wanted)
    right = {group: np.mean(values) for group, values in groups.items()}
    assert sum(map(len, groups.values())) > 500 and min(right.values()) >= 0.75, right
    assert np.mean(np.concatenate(list(groups.values()))) >= 0.93, right


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.csv", "text,label\na,b\n", "row 1 (line 2): no column labels, there are label"),
        ("x.jsonl", '{"prompt": "a"}\n', "x.jsonl:1: no column labels, there are none"),
        ("x.jsonl", "a cat\n", "x.jsonl:1: not valid JSON"),
        ("x.jsonl", "\n", "the file is empty"),
        ("absent.csv", None, "absent.csv: no such file"),
    ],
)
def test_a_bad_labelled_file_is_one_clear_line(tmp_path, capsys, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert main(["retrieve", "--fit", str(tmp_path / name), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_fit_from_the_command_line_is_reported_drawn_saved_and_used(tmp_path, capsys):
    file, folder = tmp_path / "labelled.csv", tmp_path / "fitted"
    bloody = [
        f"a bloody {who} {where},bloody,{who}" for who in ("clerk", "baker", "cook", "nun") for where in ("at sea", "at home")
    ]
    calm = [f"a {thing} {where},,{thing}" for thing in ("cup", "house", "boat", "lamp") for where in ("at sea", "at home")]
    file.write_text("prompt,labels,family\n" + "\n".join(bloody + calm) + "\n")
    assert main(["retrieve", "--fit", str(file), "-o", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "16 prompts of unseen families: accuracy" in printed and "ECE" in printed and "precision" in printed
    assert (folder / "risk_coverage.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "report.json").read_text())["count"] == 16
    assert main(["retrieve", "a bloody sailor", "--fitted", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == "bloody"


def test_a_file_of_prompts_is_decided_into_a_table_or_lines(tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("a photo of a doctor\n\na zombie chef\na bowl of soup\n")
    assert main(["retrieve", "--file", str(file), "-o", str(tmp_path / "out.csv")]) == 0
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert len(rows) == 4 and rows[0].startswith("prompt,ids,probability") and "gender_equality|racial_equality" in rows[1]
    assert main(["retrieve", "--file", str(file), "-o", str(tmp_path / "out.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line[0]["id"] for line in lines] == ["gender_equality", "zombie", None]
    assert main(["retrieve", "--file", str(file), "-o", str(tmp_path / "out.txt")]) == 2
    assert "--output NAME.csv" in capsys.readouterr().err


def test_other_columns_reach_the_output_and_the_input_stays(tmp_path, capsys):
    file = tmp_path / "prompts.tsv"
    file.write_text("id\tadv_prompt\tscore\n7\ta bowl\u2028of soup\t0.5\n8\t\t\n9\ta zombie chef\t\n")
    arguments = ["retrieve", "--file", str(file), "--column", "adv_prompt", "-o"]
    assert main([*arguments, str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = [(row["prompt"], row["ids"], row["id"], row["input_score"]) for row in rows]
    assert found == [("a bowl\u2028of soup", "", "7", "0.5"), ("a zombie chef", "zombie", "9", "")]
    assert main([*arguments, str(tmp_path / "out.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().split("\n") if line]
    assert [line[0]["columns"] for line in lines] == [{"id": "7", "score": "0.5"}, {"id": "9", "score": None}]
    own = tmp_path / "own.csv"
    own.write_text("prompt\na cat\n")
    (tmp_path / "link.csv").symlink_to(own)
    capsys.readouterr()
    for output in (own, tmp_path / "x" / ".." / "own.csv", tmp_path / "link.csv"):
        assert main(["retrieve", "--file", str(own), "-o", str(output)]) == 2
        assert "would replace the input own.csv" in capsys.readouterr().err and own.read_text() == "prompt\na cat\n"


def test_the_red_team_finds_what_breaks(prompts):
    class Gullible(ValueRetriever):
        """Knows only plain words."""

        def retrieve_batch(self, prompts):
            found = super().retrieve_batch([""])[0][0]
            return [[replace(found, id="zombie" if "zombie" in prompt else None)] for prompt in prompts]

    some = [p for p in prompts if fit.wanted_class(p.facets) == "zombie" and "zombie" in p.text][:20]
    rows = {row["perturbation"]: row for row in fit.redteam(Gullible(bundled_principles()), some)}
    assert rows["leetspeak"]["broken"] > 0.1 and rows["leetspeak"]["examples"][0]["decided"] == "none"
    assert rows["tags_after"]["broken"] == 0
