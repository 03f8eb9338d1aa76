"""The benchmark's parts: what it asks, how a row is computed, what its report says. It is run whole by its command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from livo.baselines import NegativePrompt
from livo.evaluation import metrics, runner
from livo.evaluation.judges import load_judge
from livo.evaluation.method import Method, Settings
from livo.evaluation.readings import Readings, gather
from livo.papertown import benchmark, plots, runs, tuning, world
from livo.papertown.budget import Budget
from livo.papertown.studies import Study
from livo.retrieval.lexicon import lexicon


def stated(prompt):
    return lexicon().read(prompt.text).stated()


@pytest.fixture(scope="module")
def judge():
    return load_judge("papertown")


def test_held_out_prompts_name_nothing_that_training_saw_and_cover_every_group():
    items = benchmark.held_out()
    assert len({item.prompt.text for item in items}) == len(items)
    groups = {item.prompt.group for item in items}
    assert groups == {"people", *world.RISKS, "stated", "no people", "near miss"}
    for item in items:
        unseen = [*world.CAREERS.held_out, *world.PLACES.held_out, *(p.split()[-1] for p in world.PLACES.held_out)]
        assert any(word in item.prompt.text for word in unseen), item.prompt.text
        assert not any(f" {career}" in item.prompt.text for career in world.CAREERS.train)
        assert bool(stated(item.prompt)) == (item.prompt.group == "stated") == bool(item.prompt.stated)
        if item.prompt.group in world.RISKS:
            assert any(w.format(item.scene.career) in item.prompt.text for w in world.RISK_WORDINGS[item.prompt.group].held_out)


def test_tuning_looks_at_training_prompts_alone():
    held_out = {item.prompt.text for item in benchmark.held_out()}
    for prompt, scene in tuning.training_prompts():
        assert prompt.text not in held_out and scene.career in world.CAREERS.train
        assert not any(place in prompt.text for place in world.PLACES.held_out)
        assert not any(w.format(scene.career) in prompt.text for risk in world.RISKS for w in world.RISK_WORDINGS[risk].held_out)


def test_the_reference_states_the_wanted_outcome():
    prompts = benchmark.reference_prompts(benchmark.held_out())
    assert len(prompts["people"]) == 16 * 10 and all(stated(prompt) for prompt in prompts["people"])
    assert len(prompts["risks"]) == len(set(prompts["risks"])) == 8
    words = [w.format("").split()[0] for risk in world.RISKS for w in world.RISK_WORDINGS[risk].held_out]
    assert not any(word in prompt.text for prompt in prompts["risks"] for word in words)


@pytest.fixture(scope="module")
def row(papertown, judge, tmp_path_factory):
    folder = tmp_path_factory.mktemp("row")
    items = [item for group in ("people", *world.RISKS, "stated", "near miss") for item in _of(group)[:2]]
    settings = Settings(images=3, batch=18, steps=1, group=3, precision="fp32")
    prompts = [item.prompt for item in items]
    methods = [Method("SD"), Method("negative", edit=NegativePrompt("bloody")), *benchmark._livo(papertown, items)]
    list(runner.evaluate(papertown, methods, prompts, [judge], folder, settings))
    found = {m.name: gather(folder, m, prompts, [judge], settings) for m in methods}
    generator = np.random.default_rng(0)
    references = {name: generator.normal(size=(40, 128)) for name in ("people", "risks")}
    table = {name: benchmark.figures(read, items, judge, found["SD"], references) for name, read in found.items()}
    return items, found, table, settings


def _of(group):
    return [item for item in benchmark.held_out() if item.prompt.group == group]


def test_a_row_has_every_column_and_equals_the_readings(row, judge):
    items, found, table, _ = row
    wanted = {c for title, columns in benchmark.TABLES.items() if title != "Cost" for c in columns if "no people" not in c}
    assert all(wanted <= set(figures) for figures in table.values())
    read = found["negative"].scores["papertown-judge"]
    career = read["career"].argmax(-1)
    shares = [100 * np.mean(np.array(judge.attributes["career"])[career[i]] == items[i].scene.career) for i in (0, 1)]
    assert table["negative"]["career %, people"]["per_prompt"] == pytest.approx(shares)
    toxic = [metrics.toxicity(read["bloody"][i, :, 1], group=3)["R"] for i in (2, 3)]
    assert table["negative"]["bloody R"]["per_prompt"] == pytest.approx(toxic)
    each = [table["negative"][f"{risk} R"]["per_prompt"] for risk in world.RISKS]
    assert table["negative"]["mean R"]["mean"] == pytest.approx(np.mean(each))
    both = table["negative"][benchmark.BOTH]
    assert both["mean"] == pytest.approx((table["negative"]["mean D1"]["mean"] + table["negative"]["mean R"]["mean"]) / 2)
    assert both["interval"][0] <= both["mean"] <= both["interval"][1]
    assert table["SD"]["near miss: as the base %"]["mean"] == 100


def test_livo_is_given_the_principles_or_chooses_them(row):
    _, found, *_ = row
    given, chosen = (found[name].decisions for name in benchmark.OURS)
    ids = [[[value["id"] for value in decision["values"]] for decision in decisions] for decisions in given]
    assert ids[0] == [["gender_equality", "racial_equality"]] * 3
    assert [ids[i][0] for i in (2, 4, 6)] == [[risk] for risk in world.RISKS] and ids[10][0] == ["bloody"]
    assert chosen[8][0]["values"] == []  # a stated identity is left alone


def test_the_report_holds_every_figure_and_says_where_livo_stands(row, judge, papertown, tmp_path):
    _, found, table, settings = row
    chosen = {
        "negative": tuning.Chosen(NegativePrompt("bloody"), tuning.FREE, [{"setting": "words", "score": 12.5, "chosen": True}])
    }
    measured = [Study(figure, "LiVO", x, table["SD"]) for figure in ("data", "convergence", "gammas") for x in (1.0, 2.0)]
    report = benchmark.write(tmp_path / "docs", table, chosen, measured, settings, Budget(images=3), judge, papertown, found)
    text = report.read_text()
    assert "livo benchmark papertown --images 3 --tries 8" in text and "LoRAs of 800 steps" in text
    assert "| negative | words | 12.5 | chosen |" in text and judge.revision in text and "Pareto front of mean D1" in text
    for name in ("trade_off", "convergence", "data", "samples"):
        assert f"benchmark_{name}.png" in text and Image.open(tmp_path / "docs" / f"benchmark_{name}.png").width > 300
    stored = json.loads((tmp_path / "docs" / "benchmark.json").read_text())
    assert stored["settings"]["precision"] == {"asked": "auto", "resolved": "fp32"} and ", in fp32; seeds" in text
    assert stored["table"]["SD"]["mean R"]["per_prompt"] == pytest.approx(table["SD"]["mean R"]["per_prompt"], rel=1e-5)
    assert stored["studies"][0]["row"]["mean R"].keys() == table["SD"]["mean R"].keys() - {"per_prompt"}


def test_the_pareto_front_is_what_nothing_beats_and_the_verdict_is_honest():
    points = {"a": (0.0, 5.0), "b": (5.0, 0.0), "c": (5.0, 5.0), "d": (1.0, 4.0), "e": (1.0, 4.0), "f": (0.0, 6.0)}
    assert plots.pareto(points) == ["a", "b", "d", "e"]

    def figures(d1, fid, low, high):
        return {
            name: {"mean": value, "interval": (low, high)}
            for name, value in (("mean D1", d1), ("FID, people", fid), ("mean R", d1), ("FID, risks", fid), (benchmark.BOTH, d1))
        }

    table = {"SD": figures(90.0, 1.0, 80, 100), "UCE": figures(50.0, 9.0, 20, 70), benchmark.OURS[0]: figures(5.0, 3.0, 1, 9)}
    lines = list(benchmark.verdict(table))
    assert "SD, LiVO, given principle." in lines[0] and "UCE" not in lines[0] and lines[2].endswith("ahead of every baseline.")
    table[benchmark.OURS[0]] = figures(30.0, 3.0, 10, 40)
    assert list(benchmark.verdict(table))[2].endswith("its interval overlaps or trails UCE.")


def test_a_subset_of_the_data_keeps_whole_pairs_of_every_statement(tmp_path):
    from livo.data import manifest

    (tmp_path / "all").mkdir()
    rows = []
    for value in ("gender equality", "bloody"):
        for pair in range(10):
            for label in (1, 0):
                name = f"{value}-{pair}-{label}.png"
                Image.new("RGB", (8, 8), (pair, label, 0)).save(tmp_path / "all" / name)
                rows.append({"prompt": "a doctor", "value": value, "label": label, "scene": f"{pair}", "file_name": name})
    (tmp_path / "all" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = manifest.read_samples(runs.subset(tmp_path / "all", tmp_path / "part", 0.3))
    assert len(manifest.form_pairs(samples)) == 6 and {s.value for s in samples} == {"gender equality", "bloody"}
    assert runs.subset(tmp_path / "all", tmp_path / "x", 1) == tmp_path / "all"


def test_a_checkpoint_of_a_lora_is_merged_into_the_weights_it_names(pipe, tmp_path):
    name = next(name for name, _ in pipe.unet.named_parameters() if name.endswith("attn2.to_q.weight"))
    own = dict(pipe.unet.named_parameters())[name]
    low, high = torch.randn(2, own.shape[1]), torch.randn(own.shape[0], 2)
    file, layer = tmp_path / "step-0000010.safetensors", f"unet.{name.removesuffix('.weight')}"
    tensors = {f"parameter/{layer}.lora_A.default.weight": low, f"parameter/{layer}.lora_B.default.weight": high}
    save_file(tensors | {key.replace("parameter", "exp_avg"): value.clone() for key, value in tensors.items()}, file)
    edit = runs.lora_at(pipe, file)
    assert set(edit.weights) == {name}
    torch.testing.assert_close(edit.weights[name], own.data + high @ low)


def test_the_score_of_tuning_falls_with_bias_risk_and_lost_careers(papertown, judge, tmp_path, monkeypatch):
    pairs = tuning.training_prompts()
    monkeypatch.setattr(tuning, "evaluate", lambda *a: iter(()))
    readings = Readings(
        Method("tried"),
        [p for p, _ in pairs],
        {tuning.JUDGE: {}},
        None,
        None,
        [],
        np.zeros(1),
        [],
        [],
        np.full((len(pairs), 10), ""),
        1.0,
        1.0,
    )
    for attribute, classes in judge.attributes.items():
        readings.scores[tuning.JUDGE][attribute] = np.zeros((len(pairs), 10, len(classes)))
        for i, (_, scene) in enumerate(pairs):
            for image in range(10):
                fair = {"gender": world.GENDERS[image % 2], "race": world.RACES[image % 5]}
                label = fair.get(attribute) or replace(scene, risk=None).labels()[attribute]
                readings.scores[tuning.JUDGE][attribute][i, image, classes.index(label)] = 1
    monkeypatch.setattr(tuning, "gather", lambda *a: readings)
    assert tuning.score(papertown, judge, tmp_path, "perfect", NegativePrompt(""), Budget(tries=10)) == 0
    readings.scores[tuning.JUDGE]["gender"][:, :, :] = [1, 0, 0]
    assert tuning.score(papertown, judge, tmp_path, "biased", NegativePrompt(""), Budget(tries=10)) == pytest.approx(50)
