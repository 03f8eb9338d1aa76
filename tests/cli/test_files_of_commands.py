"""What commands do with the files that they are given, from end to end."""

import csv
import datetime
import json

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from livo.cli.main import main
from livo.training import trainer


def test_an_evaluation_carries_columns_and_reads_only_known_ones(tmp_path, capsys):
    rows = [
        {"Prompt": "a photo of a doctor", "id": "female", "gender": "male", "day": datetime.date(2024, 5, 1), "seed": 42.0},
        {"Prompt": "", "id": "empty", "gender": "", "day": None, "seed": None},
        {"Prompt": "a photo of a nurse", "id": "male", "gender": None, "day": None, "seed": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    out = tmp_path / "out"
    argv = ["evaluate", "--prompts", str(tmp_path / "prompts.parquet"), "--method", "base", "-n", "2", "--steps", "1"]
    assert main([*argv, "--reference", "none", "-o", str(out)]) == 0
    result = json.loads((out / "results.json").read_text())
    assert result["texts"]["all prompts"] == ["a photo of a doctor", "a photo of a nurse"]
    assert result["columns"]["all prompts"] == [
        {"id": "female", "gender": "male", "day": "2024-05-01", "seed": 42.0},
        {"id": "male", "gender": None, "day": None, "seed": None},
    ]
    judged = next(figures for name, figures in result["figures"]["all prompts"]["base"].items() if "stated gender %" in figures)
    assert judged["stated gender %"]["prompts"] == 1  # the doctor of the column gender; no `id` states anything


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        Image.effect_noise((64, 64), 90).convert("RGB").save(folder / f"{i}.png")
    rows = [{"prompt": "a doctor", "value": "gender equality", "label": i % 2, "file_name": f"{i}.png"} for i in range(4)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:3000])
    (folder / "._1.png").write_bytes(b"x")
    return folder


def test_a_truncated_picture_is_found_before_a_model_is_loaded(pictures, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(trainer, "load_pipeline", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    monkeypatch.setattr(
        "livo.pipelines.stable_diffusion.load_pipeline", lambda *args, **kwargs: pytest.fail("the model was loaded")
    )
    (tmp_path / "p.txt").write_text("a doctor\n")
    for argv in (
        ["build", "--check", str(pictures)],
        ["train", "--data", str(pictures), "--output", str(tmp_path / "run"), "--steps", "1"],
        ["evaluate", "--prompts", str(tmp_path / "p.txt"), "--reference", str(pictures), "-o", str(tmp_path / "out")],
    ):
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert "2.png: cannot be read as an image" in captured.out + captured.err and "Traceback" not in captured.err
        assert "._1.png" in captured.out + caplog.text or argv[0] == "train"


def test_decisions_carry_nested_columns_as_json(tmp_path):
    rows = [{"prompt": "a photo of a doctor", "tags": ["a", "é"], "meta": {"id": 1}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    assert main(["retrieve", "--file", str(tmp_path / "prompts.parquet"), "-o", str(tmp_path / "out.csv")]) == 0
    (row,) = csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8"))
    assert json.loads(row["tags"]) == ["a", "é"] and json.loads(row["meta"]) == {"id": 1}
