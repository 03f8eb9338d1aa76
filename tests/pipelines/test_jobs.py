"""Images from a table: rows that are checked first, files and a manifest that survive a kill, and rows that batches do not change."""

import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

import livo.pipelines.jobs
from livo.cli import generate
from livo.cli.main import main
from livo.pipelines.decision_record import read_record
from livo.pipelines.job_table import COLUMNS, Defaults, carried, read_jobs
from livo.pipelines.jobs import run_jobs
from livo.pipelines.redraw import redraw

TABLE = """\
prompt,id,seed,negative_prompt,width,height,steps,guidance,value,value_scale,num_images,split
a bloody warrior,w1,5,,,,2,,,,2,test
a cat,,7.0,a dog,24,16,1,3.5,none,,,train
"a photo of a doctor, smiling",w2,9,,,,2,,,0.5,2,
a bloody warrior,,,,,,2,,bloody|gender_equality,,1,test
"""


@pytest.fixture
def jobs(tmp_path):
    return rows(tmp_path, TABLE)


def rows(folder, text, **defaults):
    (folder / "jobs.csv").write_text(text)
    return read_jobs(folder / "jobs.csv", Defaults(**defaults))


def manifest(folder):
    text = (folder / "manifest.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".png", ".jpg", ".webp")}


def run(pipe, jobs, folder, **options):
    return list(run_jobs(pipe, jobs, folder, **options))


# --- rows -----------------------------------------------------------------------------------------------------------------


def test_rows_are_completed_with_the_defaults(jobs):
    first, second, third, fourth = jobs
    assert (first.name, first.seed, first.steps, first.guidance, first.images) == ("w1", 5, 2, 5.0, 2)
    assert (second.name, second.seed, second.negative_prompt, second.width, second.height) == ("row-000002", 7, "a dog", 24, 16)
    assert (second.value, second.guidance, third.value, third.value_scale) == (None, 3.5, "auto", 0.5)
    assert fourth.value == ("bloody", "gender_equality") and fourth.columns == {"id": None, "split": "test"}
    assert carried(jobs) == ["id", "split"]


def test_a_row_without_a_seed_gets_one_of_its_own(tmp_path):
    first, second = rows(tmp_path, "prompt,id\na cat,1\na cat,2\n")
    assert first.seed != second.seed
    assert [job.seed for job in rows(tmp_path, "prompt,id\na cat,1\na cat,2\n")] == [first.seed, second.seed]
    assert rows(tmp_path, "prompt,id\na cat,1\na cat,2\n", seed=1)[0].seed != first.seed


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("steps", "0", "steps is 0"),
        ("steps", "many", "steps is 'many'"),
        ("seed", "-1", "seed is '-1'"),
        ("guidance", "nan", "guidance is"),
        ("guidance", "-2", "guidance is '-2'"),
        ("value_scale", "half", "value_scale is 'half'"),
        ("width", "24", "width is 24 and height None: give both, multiples of 8"),
        ("num_images", "1.5", "num_images is '1.5'"),
        ("id", "///", "makes no file name"),
        ("id", "x" * 300, "makes no file name"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_drawn(tmp_path, column, cell, words):
    with pytest.raises(ValueError, match="row") as error:
        rows(tmp_path, f"prompt,{column}\na dog,\na cat,{cell}\n")
    assert words in str(error.value) and "row 2" in str(error.value)


def test_several_bad_rows_are_named_together(tmp_path):
    with pytest.raises(ValueError, match=r"row 1 .*row 2 .*and 4 more rows"):
        rows(tmp_path, "prompt,steps\n" + "a cat,0\n" * 9)


def test_rows_whose_files_would_share_a_name_are_refused(tmp_path):
    for first, second in (("a", "a"), ("A", "a"), ("a/b", "a b")):
        with pytest.raises(ValueError, match="same name"):
            rows(tmp_path, f"prompt,id\na cat,{first}\na dog,{second}\n")


@pytest.mark.parametrize(
    ("column", "meant"), [("widht", "width"), ("num_inference_steps", "steps"), ("negativ_prompt", "negative_prompt")]
)
def test_a_misspelt_column_is_an_error(tmp_path, column, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        carried(rows(tmp_path, f"prompt,{column}\na cat,8\n"))


# --- images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_each_image_has_a_file_with_its_record_and_a_line(pipe, jobs, tmp_path, format):
    assert run(pipe, jobs, tmp_path / "out", format=format)[-1] == 6
    lines = manifest(tmp_path / "out")
    names = ["w1-000", "w1-001", "w2-000", "w2-001", "row-000002-000", "row-000004-000"]
    assert sorted(line["file"] for line in lines) == sorted(f"{name}.{format}" for name in names)
    assert sorted(contents(tmp_path / "out")) == sorted(f"{name}.{format}" for name in names)
    by_file = {line["file"].split(".")[0]: line for line in lines}
    cat, blood = by_file["row-000002-000"], by_file["w1-001"]
    assert (cat["seed"], cat["negative_prompt"], cat["size"], cat["steps"], cat["values"]) == (7, "a dog", [24, 16], 1, [])
    assert (blood["seed"], blood["image"], blood["columns"]) == (6, 1, {"id": "w1", "split": "test"})
    (record,) = read_record(tmp_path / "out" / blood["file"])
    (value,) = record["values"]
    assert value["id"] == blood["values"][0]["id"] == "bloody" and value["encoder"] == blood["values"][0]["encoder"]
    assert Image.open(tmp_path / "out" / cat["file"]).size == (24, 16)


def test_batches_do_not_change_an_image(pipe, jobs, tmp_path):
    run(pipe, jobs, tmp_path / "together", batch=100)
    run(pipe, jobs, tmp_path / "alone", batch=1)
    for name in contents(tmp_path / "together"):
        one, other = (np.asarray(Image.open(tmp_path / folder / name)).astype(int) for folder in ("together", "alone"))
        assert np.abs(one - other).max() <= 1
        records = [read_record(tmp_path / folder / name)[0] for folder in ("together", "alone")]
        assert records[0]["values"] == records[1]["values"]
        again = np.asarray(redraw(tmp_path / "alone" / name, pipe)).astype(int)
        assert np.abs(again - other).max() <= 1


@pytest.mark.parametrize("batch", [1, 4])
def test_a_killed_run_resumes_with_the_same_files_and_draws_no_row_twice(pipe, jobs, tmp_path, monkeypatch, batch):
    run(pipe, jobs, tmp_path / "whole", batch=batch)
    drawn, calls = [], type(pipe).__call__
    monkeypatch.setattr(type(pipe), "__call__", lambda self, prompt, **given: drawn.append(prompt) or calls(self, prompt, **given))
    for stop in range(12):  # a kill at each write
        folder, left = tmp_path / f"killed-{stop}", [stop]

        def counted(write, left=left):
            def counting(*args):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return write(*args)

            return counting

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(livo.pipelines.jobs, "save_picture", counted(livo.pipelines.jobs.save_picture))
            patch.setattr(livo.pipelines.jobs, "_append", counted(livo.pipelines.jobs._append))
            run(pipe, jobs, folder, batch=batch)
        finished = [job for job in jobs if all(file.is_file() for file in job.files(folder, "png"))]
        if (folder / "manifest.jsonl").is_file():
            with (folder / "manifest.jsonl").open("a") as file:
                file.write('{"file": "w1-0')  # half a line
        (folder / "w9-000.png.9999999.partial").write_text("half a file")
        drawn.clear()
        run(pipe, jobs, folder, batch=batch, resume=True)
        assert sum(map(len, drawn)) == len(jobs) - len(finished)
        assert contents(folder) == contents(tmp_path / "whole") and not list(folder.glob("*.partial"))
        lines = manifest(folder)
        assert sorted(map(str, lines)) == sorted(map(str, manifest(tmp_path / "whole")))


def test_a_file_that_was_deleted_is_drawn_again(pipe, jobs, tmp_path):
    run(pipe, jobs, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "w2-001.png").unlink()
    assert run(pipe, jobs, tmp_path / "out", resume=True)[0] == 4
    assert contents(tmp_path / "out") == before and len(manifest(tmp_path / "out")) == 6


def test_a_folder_of_another_run_is_refused(pipe, jobs, tmp_path):
    run(pipe, jobs, tmp_path / "out", settings={"precision": "fp32"})
    again = {"resume": True, "settings": {"precision": "fp32"}}
    with pytest.raises(ValueError, match="holds a run already"):
        run(pipe, jobs, tmp_path / "out")
    with pytest.raises(ValueError, match="started with another precision"):
        run(pipe, jobs, tmp_path / "out", resume=True, settings={"precision": "bf16"})
    with pytest.raises(ValueError, match="started with another format"):
        run(pipe, jobs, tmp_path / "out", format="jpg", **again)
    changed = rows(tmp_path, TABLE.replace(",w2,9,", ",w2,10,"))
    with pytest.raises(ValueError, match=r"row 3 .*drawn with other settings"):
        run(pipe, changed, tmp_path / "out", **again)
    more = rows(tmp_path, TABLE + "a dog,w3,1,,,,1,,,,1,\n")
    assert run(pipe, more, tmp_path / "out", **again) == [6, 7]
    pipe.load_value_principles(pipe.principles[:1])
    with pytest.raises(ValueError, match="started with another principles"):
        run(pipe, jobs, tmp_path / "out", **again)
    next(pipe.value_encoder.parameters()).data.add_(1e-3)
    with pytest.raises(ValueError, match="started with another encoder, principles"):
        run(pipe, jobs, tmp_path / "out", **again)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        run(pipe, jobs, tmp_path / "other", resume=True)


def test_a_value_that_cannot_be_honoured_is_named_before_anything_is_drawn(pipe, tmp_path):
    jobs = rows(tmp_path, "prompt,value\na cat,\na dog,gender_eqality\n")
    with pytest.raises(ValueError, match=r"row 2 .*no principle has the id 'gender_eqality'"):
        run(pipe, jobs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the command ----------------------------------------------------------------------------------------------------------


def test_the_command_draws_a_table_and_resumes_it(tmp_path, capsys):
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a bloody warrior", "id": "x", "group": "risk"}\n{"prompt": "a red scarf"}\n')
    argv = ["generate", "--file", str(tmp_path / "jobs.jsonl"), "--out", str(tmp_path / "out"), "--steps", "1", "--format", "webp"]
    assert main([*argv, "--device", "cpu", "--precision", "fp32"]) == 0
    told = capsys.readouterr()
    assert "carried into the manifest: id, group" in told.out and "2 images drawn, 0 were there" in told.out
    assert "image/s" in told.err
    assert main([*argv, "--precision", "fp32"]) == 2 and "holds a run already" in capsys.readouterr().err
    assert main([*argv, "--precision", "fp32", "--resume"]) == 0 and "0 images drawn, 2 were there" in capsys.readouterr().out
    assert main([*argv, "--precision", "fp32", "--resume", "--guidance", "3"]) == 2
    assert "drawn with other settings before" in capsys.readouterr().err
    assert {line["file"] for line in manifest(tmp_path / "out")} == {"x-000.webp", "row-000002-000.webp"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "give prompts, or a table"),
        (["a cat", "--file", "x.csv", "--out", "y"], "leave PROMPT out"),
        (["--file", "x.csv"], "--file needs --out"),
        (["--file", "x.csv", "--out", "y", "--compare"], "--compare makes a grid"),
        (["a cat", "--resume"], "--resume needs --file"),
        (["--file", "missing.csv", "--out", "y"], "missing.csv"),
    ],
)
def test_options_that_do_not_go_together_are_refused(argv, words, capsys):
    assert main(["generate", *argv]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(capsys):
    assert main(["generate", "a cat", "--device", "cuda"]) == 2
    assert "--device cuda: PyTorch finds none here" in capsys.readouterr().err


def test_help_names_every_column(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ", ".join(COLUMNS) in text and generate.EXAMPLE in text
