import json
import os
import subprocess
import sys

import pytest

from livo.utils.files import differing, refuse_foreign, replacing, sweep, write_json, write_report


def test_a_file_is_whole_or_not_there(tmp_path):
    file = tmp_path / "figures.json"
    file.write_text("old")
    with pytest.raises(OSError), replacing(file) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert [f.name for f in tmp_path.iterdir()] == ["figures.json"] and file.read_text() == "old"


def test_what_a_folder_was_begun_with_is_told_from_what_is_wanted_now(tmp_path):
    file = tmp_path / "inner" / "config.json"
    wanted = {"seed": 0, "places": ("Zürich", "Köln"), "rate": 0.5}
    assert differing(file, wanted) == []  # nothing is there yet
    write_json(file, wanted)
    assert differing(file, wanted) == [] and "Zürich" in file.read_text(encoding="utf-8")
    assert differing(file, wanted | {"rate": 0.6, "steps": 20}) == ["rate", "steps"]
    with pytest.raises(TypeError):
        write_json(file, wanted | {"seed": object()})
    assert differing(file, wanted) == [] and [f.name for f in file.parent.iterdir()] == ["config.json"]


def test_only_what_dead_processes_left_half_written_is_swept(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        kept = tmp_path / "inner" / f"latents.safetensors.{living.pid}.partial"
        kept.parent.mkdir()
        for file in (kept, tmp_path / f"a.{finished.pid}.partial", tmp_path / f"b.{os.getpid()}.partial", tmp_path / "c.partial"):
            file.write_text("half")
        sweep(tmp_path)
        assert [f for f in tmp_path.rglob("*") if f.is_file()] == [kept]
        living.communicate(b"\n")


def test_a_folder_that_holds_someone_elses_results_is_refused(tmp_path):
    refuse_foreign(tmp_path / "new", "build.json", ("metadata.jsonl", "rounds"))
    (tmp_path / "notes.txt").write_text("mine")
    refuse_foreign(tmp_path, "build.json", ("metadata.jsonl", "rounds"))
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(
        ValueError, match=r"its metadata.jsonl was not made by this command \(no build.json\); choose another folder"
    ):
        refuse_foreign(tmp_path, "build.json", ("metadata.jsonl", "rounds"))
    (tmp_path / "build.json").write_text("{}")
    refuse_foreign(tmp_path, "build.json", ("metadata.jsonl", "rounds"))


def test_a_report_spreads_its_outer_levels_and_rounds_its_numbers(tmp_path):
    data = {
        "row": {"D1": {"mean": 2 / 3, "interval": [0.1, 1e-9]}, "n": 12345678},
        "list": [{"a": 1}, {"b": []}],
        "text": "1.23456789 ü",
    }
    write_report(tmp_path / "docs" / "report.json", data, levels=2)
    assert (tmp_path / "docs" / "report.json").read_text(encoding="utf-8").splitlines() == [
        "{",
        ' "row": {',
        '  "D1": {"mean": 0.666667, "interval": [0.1, 1e-09]},',
        '  "n": 12345678',
        " },",
        ' "list": [',
        '  {"a": 1},',
        '  {"b": []}',
        " ],",
        ' "text": "1.23456789 ü"',
        "}",
    ]


@pytest.mark.parametrize("data", [{}, [], 1.5, None, {"a": {}, "b": [[], {"c": None}]}, [{"x": float("nan")}]])
def test_a_report_reads_back_as_what_was_written(tmp_path, data):
    for levels in range(4):
        write_report(tmp_path / "report.json", data, levels)
        assert repr(json.loads((tmp_path / "report.json").read_text())) == repr(data)
