import os
import subprocess
import sys

import pytest

from livo.utils.files import differing, refuse_foreign, replacing, sweep, write_json


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
