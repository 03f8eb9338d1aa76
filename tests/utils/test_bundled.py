"""The registry of models that ship inside the package."""

import json
from pathlib import Path

import pytest

import livo
from livo.evaluation.judge_spec import BUNDLED, no_judge, parse_judge
from livo.evaluation.judges import bundled_model_of, load_judge
from livo.papertown.judge import PapertownJudge
from livo.pipelines.settings import _short
from livo.utils import bundled as registry
from livo.utils.bundled import BundledModel, bundled, bundled_models, bundled_names, register


@pytest.fixture()
def second(tmp_path, monkeypatch):
    """A second bundled model in a folder of its own, whose judge is of Papertown's class."""
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    livo.LiVOPipeline.from_pretrained("papertown").save_pretrained(tmp_path / "second")
    judge = load_judge("papertown")
    judge.head.bias.data.add_(1)
    judge.save_pretrained(tmp_path / "second" / "judge")
    register(BundledModel("second", tmp_path / "second", "livo.papertown.judge:PapertownJudge"))


def test_a_bundled_model_is_found_by_its_name_alone():
    assert bundled_names() == "papertown" and bundled_models() == [bundled("papertown")]
    assert bundled("papertown").judge_class is PapertownJudge
    assert bundled(Path("papertown")).name == "papertown"
    assert bundled("Papertown") is None and bundled("") is None and bundled(None) is None


def test_a_second_bundled_model_loads_by_its_name_and_is_told_by_its_weights(second, papertown):
    assert bundled_names() == "papertown, second"
    assert "only bundled models (papertown, second) have one of their own" in no_judge()
    pipe = livo.LiVOPipeline.from_pretrained("second")
    assert Path(pipe.config["_name_or_path"]).name == "second" and _short(pipe.config["_name_or_path"]) == "second"
    assert parse_judge("second", {}) == (BUNDLED, "second", None)
    assert load_judge("second").revision != load_judge("papertown").revision
    pipe.unet.conv_in.weight.data.mul_(2)
    assert bundled_model_of(pipe) is None and bundled_model_of(papertown).name == "papertown"


def test_a_records_path_inside_the_package_is_the_models_name():
    assert _short(str(bundled("papertown").weights)) == "papertown"
    assert _short("/home/somebody/papertown/weights") == "weights"


def test_a_folder_of_a_judge_names_its_model(tmp_path):
    judge = load_judge("papertown")
    judge.save_pretrained(tmp_path)
    assert load_judge(str(tmp_path)).revision == judge.revision
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({**config, "model": "elsewhere"}, {"attributes": config["attributes"]}, []):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=rf"judge {tmp_path}: its config.json names no bundled model \(papertown\)"):
            load_judge(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_judge(str(tmp_path))
