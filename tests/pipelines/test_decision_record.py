"""The record of an image, the report of an environment, and what is published."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from livo import LiVOPipeline
from livo.cli.main import main
from livo.pipelines.decision_record import current_record, read_record, save_images
from livo.training.config import TrainingConfig
from livo.training.model_card import weights_card
from livo.utils.hashing import weights_hash
from livo.utils.pictures import save_picture
from livo.utils.versions import known_bad, versions
from tests.conftest import WordEmbedder

WARRIOR, DOCTOR, CAT = "a bloody warrior", "a photo of a doctor", "a cat"
RECORDED = {"prompt", "values", "reason", "seed", "image", "settings"}
OF_A_VALUE = {"id", "statement", "score", "threshold", "nearest_exemplar", "scale", "applied", "reason", "encoder"}


def draw(pipe, prompt, number=1, **kwargs):
    generator = torch.Generator().manual_seed(11)
    return pipe(prompt, generator=generator, num_images_per_prompt=number, num_inference_steps=2, **kwargs)


# --- the record -----------------------------------------------------------------------------------------------------------


def test_every_image_is_saved_with_its_own_record_and_read_back(pipe, tmp_path, capsys):
    out = draw(pipe, [DOCTOR, WARRIOR, CAT], 2, value_scale=0.7, value_end=0.8)
    files = save_images(out, tmp_path / "out")
    records = [read_record(file)[0] for file in files]
    assert records == json.loads(json.dumps([decision.to_dict() for decision in out.decisions]))
    assert all(record.keys() >= RECORDED for record in records)
    values = [value for record in records for value in record["values"]]
    assert all(value.keys() >= OF_A_VALUE for value in values)
    assert [value["id"] for value in values] == ["gender_equality"] * 2 + ["bloody"] * 2 and records[4]["values"] == []
    assert [record["reason"] is None for record in records] == [True] * 4 + [False] * 2
    assert sorted(value["applied"] for value in values[:2]) == [False, True]
    blood = values[2]
    assert (
        (blood["scale"], blood["start"], blood["end"]) == (0.7, 0.0, 0.8) and records[2]["seed"] == 11 and records[2]["image"] == 2
    )
    assert blood["encoder"] == weights_hash(pipe.value_encoder)
    for image, file in zip(out.images, files, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(file)))
    assert main(["inspect", *map(str, files)]) == 0
    text = capsys.readouterr().out
    assert all(
        word in text for word in (str(files[0]), "bloody: received the token", "without the token", blood["encoder"], "seed 11")
    )
    assert main(["inspect", str(files[2]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [records[2]]


def test_a_record_tells_how_to_draw_the_image_again(pipe, tmp_path):
    out = draw(pipe, WARRIOR, value_scale=0.7)
    record = read_record(save_images(out, tmp_path)[0])[0]
    again = pipe(
        record["prompt"],
        value=record["values"][0]["statement"],
        value_scale=record["values"][0]["scale"],
        generator=torch.Generator().manual_seed(record["seed"]),
        num_inference_steps=2,
    )
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(out.images[0]))


def test_pictures_without_a_record_are_named(pipe, tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "bare.png")
    (tmp_path / "text.png").write_text("not a picture")
    save_picture(Image.new("RGB", (4, 4)), tmp_path / "sheet.png", {"what": "a sheet"})
    for name, words in (("bare.png", "no record of LiVO"), ("text.png", "not a picture"), ("absent.png", "absent.png")):
        assert main(["inspect", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.strip().splitlines()) == 1
    assert main(["inspect", str(tmp_path / "sheet.png")]) == 0 and "what: a sheet" in capsys.readouterr().out
    out = draw(pipe, CAT)
    save_images(out, tmp_path / "twice")
    with pytest.raises(ValueError, match="is there already"):
        save_images(out, tmp_path / "twice")
    with pytest.raises(ValueError, match="output_type='pil'"):
        save_images(draw(pipe, CAT, output_type="np"), tmp_path / "arrays")


def test_a_folder_is_a_table_and_broken_files_get_one_line_each(pipe, tmp_path, capsys):
    out = draw(pipe, [DOCTOR, "a cat\x1b[31m\non a mat"], value=[("bloody", "gender_equality"), None])
    for format in ("png", "jpg"):
        save_images(out, tmp_path / format, format)
    (tmp_path / "png" / "cut.png").write_bytes((tmp_path / "png" / "000.png").read_bytes()[:300])
    Image.new("RGB", (4, 4)).save(tmp_path / "bare.webp")
    (tmp_path / "notes.txt").write_text("no picture")
    assert main(["inspect", str(tmp_path)]) == 0
    told = capsys.readouterr()
    head, *rows = told.out.splitlines()
    assert head.split() == ["file", "prompt", "values", "seed", "encoder", "applied"]
    assert [row.split()[0] for row in rows] == ["jpg/000.jpg", "jpg/001.jpg", "png/000.png", "png/001.png"]
    assert all(word in rows[0] for word in (DOCTOR, "bloody + gender_equality", " 11 ", weights_hash(pipe.value_encoder)))
    assert rows[1].split()[1:] == ["a", "cat", "[31m", "on", "a", "mat", "none", "11", "no"]
    problems = told.err.splitlines()
    assert len(problems) == 2 and "bare.webp: no record of LiVO" in problems[0] and "cut.png: its metadata cannot" in problems[1]
    assert main(["inspect", "--json", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["file"] == str(tmp_path / "jpg" / "000.jpg") and lines[0]["record"] == read_record(lines[0]["file"])
    for name in ("jpg", "png"):
        for file in (tmp_path / name).iterdir():
            file.write_text("not a picture")
    assert main(["inspect", str(tmp_path)]) == 2 and "none of 6 pictures could be read" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["inspect", str(tmp_path / "empty")]) == 2 and "no picture in it" in capsys.readouterr().err


def test_a_single_file_shows_the_full_record(pipe, tmp_path, capsys):
    (file,) = save_images(draw(pipe, WARRIOR, negative_prompt="a dog"), tmp_path, "webp")
    assert main(["inspect", str(file), str(tmp_path / "absent.png")]) == 0
    told = capsys.readouterr()
    assert "absent.png" in told.err and len(told.err.splitlines()) == 1
    for words in (
        "seed 11, image 0",
        "num_inference_steps=2",
        "negative_prompt=a dog",
        "DDIMScheduler",
        "weights=float32",
        "torch=",
    ):
        assert words in told.out
    assert weights_hash(pipe.value_encoder) in told.out and weights_hash(pipe.unet) in told.out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("7", "not one that LiVO writes"),
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ("[]", "not one that LiVO writes"),
        ('[{"prompt": 3}]', "not one that LiVO writes"),
        ('{"prompt": "a cat", "also": [1]}', "not one that LiVO writes"),
        ("{", "not valid JSON"),
    ],
)
def test_hostile_records_get_one_line(tmp_path, capsys, text, words):
    info = PngInfo()
    info.add_itxt("livo", text)
    Image.new("RGB", (4, 4)).save(tmp_path / "odd.png", pnginfo=info)
    assert main(["inspect", str(tmp_path / "odd.png")]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_a_record_of_an_older_version_is_still_read(tmp_path, capsys):
    old = {
        "prompt": DOCTOR,
        "id": "gender_equality",
        "statement": "gender equality",
        "score": 0.9,
        "threshold": 0.6,
        "why": "asked",
    }
    old |= {"scale": 1.0, "applied": True, "direction": "female", "also": [], "encoder": "0123456789ab", "seed": 4, "image": 0}
    info = PngInfo()
    info.add_itxt("livo", json.dumps([old | {"conflicts": None}, {"what": "a sheet"}]))
    Image.new("RGB", (4, 4)).save(tmp_path / "old.png", pnginfo=info)
    assert main(["inspect", str(tmp_path / "old.png")]) == 0
    assert "gender_equality: received the token; asked" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path)]) == 0
    assert "gender_equality > female  4     0123456789ab  yes" in capsys.readouterr().out
    first, sheet = read_record(tmp_path / "old.png")
    assert sheet == {"what": "a sheet"} and first["seed"] == 4 and first["reason"] is None and "also" not in first
    assert [(v["id"], v["direction"], v["scale"], v["reason"]) for v in first["values"]] == [
        ("gender_equality", "female", 1.0, "asked")
    ]


def test_an_old_record_of_two_values_or_of_none_is_converted():
    second = {
        "prompt": CAT,
        "id": "tones",
        "statement": "tones, towards a",
        "why": "both",
        "applied": True,
        "encoder": "0f",
        "also": [],
    }
    first = second | {
        "id": None,
        "statement": "calm",
        "why": "asked",
        "applied": False,
        "also": [second],
        "settings": {"model": {}},
    }
    found = current_record(first)
    assert [(v["id"], v["statement"], v["applied"], v["reason"]) for v in found["values"]] == [
        (None, "calm", False, "asked"),
        ("tones", "tones, towards a", True, "both"),
    ]
    assert found.keys() == {"prompt", "settings", "values", "reason"} and current_record(found) == found
    nothing = {
        "prompt": CAT,
        "id": None,
        "statement": None,
        "score": 0.1,
        "why": "no principle applies",
        "also": [],
        "applied": False,
    }
    assert current_record(nothing) == {"prompt": CAT, "values": [], "reason": "no principle applies"}


# --- livo env -------------------------------------------------------------------------------------------------------------


def test_env_names_devices_what_they_compute_in_and_the_embedding_model(capsys):
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("float32", "bfloat16", "all-MiniLM-L6-v2", "huggingface-hub"))
    assert all(version in text for version in versions().values())


@pytest.mark.parametrize(
    ("found", "system", "words"),
    [
        ({"transformers": "4.40.0"}, "Linux", "transformers below 4.50"),
        ({"diffusers": "0.30.0"}, "Linux", "diffusers below 0.42"),
        ({"transformers": "4.57.1", "diffusers": "0.42.1"}, "Linux", "different versions of huggingface-hub"),
        ({"transformers": "5.23.0", "diffusers": "0.42.1"}, "Linux", "clip_skip"),
        ({"transformers": "5.0.0", "peft": "0.17.1"}, "Linux", "peft below 0.18"),
        ({"faiss-cpu": "1.9.0", "torch": "2.6.0"}, "Darwin", "OMP_NUM_THREADS=1"),
        ({"numpy": "2.1.0", "torch": "2.2.0+cpu"}, "Linux", "numpy<2"),
    ],
)
def test_each_combination_that_is_known_to_be_bad_is_named_with_its_remedy(found, system, words):
    assert [problem for problem in known_bad(found, system, {}) if words in problem]
    assert known_bad({"transformers": "5.5.0", "diffusers": "0.42.1", "torch": "2.6.0", "peft": "0.18.0"}, "Linux", {}) == []
    assert (
        known_bad({"diffusers": "0.42.0.dev0", "transformers": "5.5", "torch": "2.13.0+cpu", "numpy": "2.4.6"}, "Linux", {}) == []
    )
    assert known_bad({"faiss-cpu": "1.9.0", "torch": "2.6.0"}, "Darwin", {"OMP_NUM_THREADS": "1"}) == []


# --- publishing -------------------------------------------------------------------------------------------------------------

TRAINING = {
    "config": {"objective": "livo", "beta": 100.0, "steps": 15},
    "pairs": 96,
    "data": "0f",
    "metrics": {"accuracy": 0.75, "lr": 0.1},
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """huggingface_hub's two calls, which keep in a folder what they are given."""
    from shutil import copytree
    from types import SimpleNamespace

    calls = []

    def create_repo(repo_id, **options):
        calls.append(("create", repo_id, options))
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(repo_id, folder_path, **options):
        calls.append(("upload", repo_id, options))
        copytree(folder_path, tmp_path / "hub" / repo_id)
        return f"https://huggingface.co/{repo_id}/commit/0"

    monkeypatch.setattr("livo.pipelines.model_card.create_repo", create_repo)
    monkeypatch.setattr("livo.pipelines.model_card.upload_folder", upload_folder)
    return tmp_path / "hub", calls


def card_of(folder):
    head, text = (folder / "README.md").read_text().split("---\n", 2)[1:]
    return yaml.safe_load(head), text


def test_a_pushed_pipeline_loads_again_and_its_card_is_made_from_the_training_record(pipe, hub, tmp_path):
    pipe.value_encoder.config.value_statements = ["gender equality"]
    pipe.value_encoder.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "training.json").write_text(json.dumps(TRAINING))  # where `livo train` leaves it
    pipe.load_value_encoder(tmp_path / "run")
    pipe.register_to_config(_name_or_path="someone/base")
    folder, calls = hub
    assert pipe.push_to_hub("me/aligned", license="mit", private=True, token="t") == "https://huggingface.co/me/aligned/commit/0"
    assert [(what, repo) for what, repo, _ in calls] == [("create", "me/aligned"), ("upload", "me/aligned")]
    assert calls[0][2]["private"] is True and calls[1][2]["token"] == "t"
    head, text = card_of(folder / "me/aligned")
    assert head["base_model"] == "someone/base" and head["license"] == "mit" and head["pipeline_tag"] == "text-to-image"
    for words in (
        'livo.LiVOPipeline.from_pretrained("me/aligned")',
        "gender equality",
        "pairs: 96",
        "objective: livo",
        "| accuracy | 0.75 |",
        "not a security boundary",
        weights_hash(pipe.value_encoder),
    ):
        assert words in text
    again = LiVOPipeline.from_pretrained(folder / "me/aligned")
    again.retriever._embedder = WordEmbedder()
    again.set_progress_bar_config(disable=True)
    assert again.value_encoder.config.value_training == TRAINING and again.principles == pipe.principles
    assert np.array_equal(draw(again, WARRIOR, output_type="np").images, draw(pipe, WARRIOR, output_type="np").images)


def test_the_encoder_alone_is_pushed_in_the_published_layout(pipe, hub):
    folder, _ = hub
    pipe.push_to_hub("me/encoder", encoder_only=True)
    names = sorted(str(file.relative_to(folder / "me/encoder")) for file in (folder / "me/encoder").rglob("*.*"))
    assert names == ["README.md", "value_encoder/config.json", "value_encoder/model.safetensors", "value_principles.yaml"]
    head, text = card_of(folder / "me/encoder")
    assert head["license"] == "other" and 'load_value_encoder("me/encoder")' in text and "without a training record" in text
    before = weights_hash(pipe.value_encoder)
    pipe.load_value_encoder(folder / "me/encoder")
    assert weights_hash(pipe.value_encoder) == before
    pipe.unload_value_encoder()
    with pytest.raises(ValueError, match="no value encoder to upload"):
        pipe.push_to_hub("me/encoder", encoder_only=True)


def test_saving_pushes_where_it_is_asked_to_and_never_pickles(pipe, hub, tmp_path):
    folder, calls = hub
    pipe.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/saved")
    assert (folder / "me/saved" / "model_index.json").is_file() and len(calls) == 2
    with pytest.raises(ValueError, match="never pickle"):
        pipe.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert not (tmp_path / "pickled").exists()


def test_the_card_of_trained_weights_is_valid_yaml_whatever_the_model_is_called(tmp_path):
    config = TrainingConfig("data", "run", model="C:\\models #2: mine", objective="distillation")
    record = {"weights": "0f", "pairs": 12, "data": "abc", "backbone": "def", "metrics": {"loss": 0.25}}
    (tmp_path / "README.md").write_text(weights_card(config, record, ["gender equality", "bloody"]))
    head, text = card_of(tmp_path)
    assert head["base_model"] == config.model and "distillation" in head["tags"]
    evil = weights_card(config, record, ["{{ 7 * 7 }}", "<b>&"])
    assert "{{ 7 * 7 }}, <b>&" in evil
    for expected in ("12 pairs", "gender equality, bloody", "| loss | 0.25 |", "load_value_encoder"):
        assert expected in text
