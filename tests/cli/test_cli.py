import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from livo import ValueLedger
from livo.cli.main import COMMANDS, main


def test_retrieve_prints_the_decision_and_as_json_too(capsys):
    assert main(["retrieve", "a bloody warrior", "a bowl of soup"]) == 0
    text = capsys.readouterr().out
    assert "bloody" in text and "none" in text and "threshold" in text
    assert main(["retrieve", "a bloody warrior", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == "bloody"


def test_generate_writes_the_grid_and_the_record_beside_and_inside_it(tmp_path, capsys):
    output = tmp_path / "out" / "grid.png"
    assert main(["generate", "a photo of a doctor", "-n", "2", "--steps", "2", "--compare", "-o", str(output)]) == 0
    with Image.open(output) as image:
        inside = json.loads(image.text["livo"])
    beside = json.loads(output.with_suffix(".json").read_text())
    assert inside == beside and [row["values"][0]["id"] for row in beside] == ["gender_equality"] * 2
    assert {row["values"][0]["direction"] for row in beside} == {"male", "female"} and beside[0]["seed"] == 0
    assert {row["values"][1]["id"] for row in beside} == {"racial_equality"}
    assert "token on 2 of 2 images" in capsys.readouterr().out


def test_generate_with_a_ledger_balances_over_prompts_and_runs(tmp_path):
    for career in ("doctor", "nurse"):
        prompts = [f"a photo of a {career}", f"a {career} at night"]
        options = ["-n", "1", "--steps", "1", "--value", "gender_equality", "--ledger", str(tmp_path / "shares.sqlite")]
        assert main(["generate", *prompts, *options, "-o", str(tmp_path / "out.png")]) == 0
    assert ValueLedger(tmp_path / "shares.sqlite").counts("gender_equality") == {"male": 2, "female": 2}


def test_env_names_the_versions_for_a_bug_report(capsys):
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("python", "torch", "diffusers", "transformers", "livo", "cuda"))


def test_papertown_grid_is_a_picture(tmp_path):
    assert main(["papertown", "grid", "-o", str(tmp_path / "world.png")]) == 0
    assert Image.open(tmp_path / "world.png").width > 800


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["generate", "a doctor", "-o", "x.jpg"], ".png"),
        (["generate", "a doctor", "--principles", "absent.yaml"], "absent.yaml"),
        (["generate", "a doctor", "--model", "./absent"], "absent"),
        (["generate", "a doctor", "--value", "gender_equalty"], "gender_equalty"),
        (["generate", "a doctor", "--value", "none", "--value", "bloody"], "give auto or none alone"),
        (["generate", "a doctor", "--value", "bloody", "--value", "bloody"], "each once"),
        (["generate", "a doctor", "--value", " "], "give auto or none alone"),
        (["generate", "a doctor", "--value-encoder", ""], "--value-encoder is empty"),
        (["generate", "a doctor", "--value-encoder", __file__], "a folder or a .safetensors file"),
        (["generate", "a doctor", "--ledger", __file__], "not a ledger"),
        (["generate", "a doctor", "--ledger", "absent/x.sqlite"], "name a file in a folder that exists"),
        (["retrieve", "a doctor", "--principles", "absent"], "absent"),
        (["retrieve", "a doctor", "-o", "x.csv"], "--output needs --file, --fit or --redteam"),
        (["retrieve", "a doctor", "--json", "--explain"], "one of the two at a time"),
        (["retrieve", "--redteam", "--explain"], "are for prompts in the command line"),
        (["evaluate", "--prompts", "p.txt", "--method", "livo="], "a word of it is empty"),
        (["evaluate", "--prompts", "p.txt", "--method", "uce=blood,"], "a word of it is empty"),
        (["evaluate", "--prompts", "p.txt", "--method", "negative= "], "a word of it is empty"),
        (["evaluate", "--prompts", "p.txt", "--method", "fair=a man"], "two concepts or more"),
        (["evaluate", "--prompts", "p.txt", "--method", "fair=a man/a woman;a cat/a cat"], "each once"),
        (["evaluate", "--prompts", "p.txt", "--method", "base", "livo", "base"], "--method base is there twice"),
        (["evaluate", "--prompts", "p.txt", "--judge", "papertown", "--judge", "papertown"], "papertown is there twice"),
        (["train", "--data", "{tmp}", "--output", "{tmp}/run"], "no metadata.jsonl in it"),
        (["generate", "a doctor", "--format", "jpg"], "--format needs --file"),
        (["generate", "a doctor", "--batch", "2"], "--batch needs --file"),
        (["generate", "--file", "{tmp}/prompts.txt", "--out", __file__], f"--out {__file__} is a file: give a folder"),
        (["benchmark", "papertown", "--docs", __file__], f"--docs {__file__} is a file: give a folder"),
        (["build"], "--output"),
        (["build", "--check", "absent"], "no such folder"),
        (["build", "-o", "data", "--only", "kindness"], "no such principle"),
        (["train", "--data", "absent"], "output is empty"),
        (["train", "--data", "absent", "--output", "{tmp}", "--steps", "0"], "steps is 0"),
        (["train", "--data", "absent", "--output", "{tmp}"], "no such folder"),
        (["train", "--data", "absent", "--output", "{tmp}", "--resume", "latest"], "no run to resume"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(argv, words, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("a doctor\n")
    assert main([word.replace("{tmp}", str(tmp_path)) for word in argv]) == 2
    error = capsys.readouterr().err.strip()
    lines = [line for line in error.splitlines() if line.startswith("livo ")]
    assert len(lines) == 1 and words in lines[0] and "Traceback" not in error


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "--steps"], "--steps: expected one argument"),
        (["generate", "x", "-n", "0"], "-n: 0 is not at least 1"),
        (["generate", "x", "-n", "two"], "-n: 'two' is not a whole number"),
        (["generate", "x", "--seed", "1.5"], "--seed: '1.5' is not a whole number"),
        (["generate", "x", "--guidance", "high"], "--guidance: 'high' is not a number"),
        (["generate", "x", "--guidance", "nan"], "--guidance: nan is not from -1000 to 1000"),
        (["generate", "x", "--scale", "-2"], "--scale: -2 is not from 0"),
        (["generate", "x", "--scale", "1e308"], "--scale: 1e308 is not from 0 (the base) to 1000"),
        (["generate", "x", "--precision", "fp8"], "--precision: invalid choice"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_two(argv, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and line.startswith("livo") and line.endswith("--help")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_one_line_with_a_remedy(error, monkeypatch, capsys):
    def large(args):
        raise error

    monkeypatch.setattr(COMMANDS["env"], "run", large)
    assert main(["env"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("livo env: not enough memory (") and line.endswith("draw fewer or smaller images at once")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_a_complete_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert COMMANDS[command].EXAMPLE.split()[1] in capsys.readouterr().out


def test_a_principle_is_built_checked_and_trained_from_the_command_line(tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    build = ["build", "--only", "bloody", "--pairs", "6", "--batch", "8", "--steps", "12", "-o", str(data)]
    assert main(build) == 0 and main(build) == 0
    capsys.readouterr()
    assert main(["build", "--check", str(data)]) == 0
    assert "6 pairs, no problem" in capsys.readouterr().out
    train = ["train", "--data", str(data), "--output", str(run), "--steps", "2", "--batch", "2", "--lr", "1e-4"]
    assert main(train) == 0
    assert json.loads((run / "value_encoder" / "training.json").read_text())["pairs"] == 6
    assert main(train) == 2 and "--resume latest" in capsys.readouterr().err
    next(data.glob("rounds/*/*/*.png")).unlink()
    assert main(["build", "--check", str(data)]) == 2
    assert "no such file" in capsys.readouterr().out


def test_a_target_is_asked_assigned_measured_and_drawn(tmp_path, capsys):
    census = tmp_path / "census.yaml"
    census.write_text("here: {male: 0.25, female: 0.75}\n")
    common = ["generate", "a photo of a doctor", "-n", "4", "--steps", "2", "--value", "gender_equality"]
    plain, output = tmp_path / "plain.png", tmp_path / "target.png"
    assert main([*common, "-o", str(plain)]) == 0
    assert main([*common, "--target", f"{census}#here", "--compare", "-o", str(output)]) == 0
    record = json.loads(output.with_suffix(".json").read_text())
    assert [row["values"][0]["direction"] for row in record].count("female") == 3
    printed = capsys.readouterr().out
    assert "asked  75%" in printed and "assigned  75%" in printed and "as the judge reads it" in printed
    own = tmp_path / "own.yaml"  # it has no construct section, but the judge knows the classes
    own.write_text(
        "id: mine\nkind: debias\nstatement: gender equality\nattributes: {male: a man, female: a woman}\n"
        "directions: {male: 'gender equality, towards male', female: 'gender equality, towards female'}\ncalled_by: [person]\n"
    )
    assert main(["generate", "a photo of a doctor", "-n", "2", "--steps", "2", "--principles", str(own), "-o", str(output)]) == 0
    assert "as the judge reads it" in capsys.readouterr().out
    census.write_text("{cats: 0.5, dogs: 0.5}\n")
    assert main([*common, "--target", str(census), "-o", str(output)]) == 2
    assert "no principle has the classes cats, dogs" in capsys.readouterr().err


def test_calibration_is_measured_and_saved_with_the_encoder(tmp_path, capsys):
    from livo import LiVOPipeline

    encoder, prompts = tmp_path / "encoder", tmp_path / "prompts.txt"
    LiVOPipeline.from_pretrained("papertown").value_encoder.save_pretrained(encoder)
    prompts.write_text("a photo of a doctor\n\n")
    assert main(["calibrate", str(prompts), "--value-encoder", str(encoder), "-n", "10", "--steps", "8"]) == 0
    saved = json.loads((encoder / "config.json").read_text())["value_calibration"]["gender_equality"]
    assert saved["classes"] == ["male", "female"] and saved["images"] == 10
    printed = capsys.readouterr().out
    assert "shares that meet" in printed and "10 images for 2 directions; below 20 each the shares are rough" in printed
    text = (Path(__file__).parents[2] / "value_principles" / "livo.yaml").read_text().replace("judge: gender", "judge: sex")
    (tmp_path / "other.yaml").write_text(text)
    assert main(["calibrate", str(prompts), "--value-encoder", str(encoder), "--principles", str(tmp_path / "other.yaml")]) == 2
    assert "papertown-judge cannot tell sex (male, female)" in capsys.readouterr().err
    prompts.write_text("\n")
    assert main(["calibrate", str(prompts), "--value-encoder", str(encoder)]) == 2
    assert "no prompt in it" in capsys.readouterr().err


def broken(args):
    raise KeyError("a mistake of ours")


@pytest.mark.parametrize("argv", [["--debug", "env"], ["env", "--debug"], ["env"]])
def test_an_unexpected_error_is_one_line_and_debug_shows_its_traceback(argv, monkeypatch, capsys):
    monkeypatch.setattr(COMMANDS["env"], "run", broken)
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert ("Traceback" in error) == ("--debug" in argv)
    last = error.strip().splitlines()[-1]
    assert last.startswith("livo env: unexpected KeyError: 'a mistake of ours'") and "please report it" in last


@pytest.mark.parametrize("debug", [True, False])
def test_debug_shows_the_traceback_of_bad_input_too(debug, capsys):
    assert main([*["--debug"] * debug, "inspect", "absent.png"]) == 2
    error = capsys.readouterr().err
    assert ("Traceback" in error) is debug and "absent.png" in error.splitlines()[-1] and "Errno" not in error.splitlines()[-1]


def test_a_missing_package_is_one_line_with_the_command_that_installs_it(monkeypatch, capsys):
    def needs(args):
        raise ModuleNotFoundError("No module named 'peft.utils'", name="peft.utils")

    monkeypatch.setattr(COMMANDS["env"], "run", needs)
    assert main(["env"]) == 2
    assert capsys.readouterr().err == "livo env: the package peft.utils is not installed: pip install livo[train]\n"


CHECKED = """
import sys
from pathlib import Path
from livo.cli.main import main
tmp = Path(sys.argv[1])
prompts = tmp / "prompts.txt"
prompts.write_text("a doctor\\n")
jobs = tmp / "jobs.csv"
jobs.write_text("prompt,value\\na doctor,gender_equalty\\n")
for argv in (
    "build --check absent", "build -o {tmp}/new --only kindness", "build -o {tmp}/new --judge nonsense", "build -o {tmp}/new --judge age:x",
    "build -o {prompts}", "evaluate --prompts absent.txt", "evaluate --prompts {prompts} --method nonsense",
    "evaluate --prompts {prompts} --method weights=absent.safetensors", "evaluate --prompts {prompts} --judge clip:./absent",
    "evaluate --prompts {prompts} --model {tmp}", "calibrate absent.txt --value-encoder absent", "train --data absent --output {tmp}/new",
    "train --data absent --output {tmp}/new --resume latest", "train --data {tmp} --output {tmp}/new --model ./absent",
    "generate x --principles absent.yaml", "generate x --model ./absent", "generate x --value-encoder {tmp}", "generate x --target absent",
    "generate x --value gender_equalty", "generate --file {prompts} --out {tmp}",
    "generate --file {jobs} --out {tmp}/new", "generate x --value-encoder {prompts}", "generate x --value auto --value bloody",
    "generate x -o {prompts}/x.png", "retrieve x --principles absent", "retrieve x --fitted absent",
    "retrieve x --embedder ./absent", "retrieve --file absent -o {tmp}/x.csv", "inspect absent.png",
):
    assert main(argv.format(tmp=tmp, prompts=prompts, jobs=jobs).split()) == 2, argv
    assert "torch" not in sys.modules, argv
assert main(["retrieve", "a bloody warrior"]) == 0
heavy = {"sentence_transformers", "transformers", "diffusers", "sklearn", "scipy", "matplotlib"} & set(sys.modules)
assert "torch" in sys.modules and not heavy, heavy
"""


def test_arguments_are_checked_before_torch_and_retrieve_imports_no_more(tmp_path):
    done = subprocess.run([sys.executable, "-c", CHECKED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("livo ") for line in done.stderr.splitlines()), done.stderr
    assert "  bloody " in done.stdout


@pytest.mark.parametrize(
    ("command", "package"),
    [
        ("build -o {tmp}/new", "accelerate"),
        ("evaluate --prompts {tmp}/p.txt -o {tmp}/new", "accelerate"),
        ("train --data {tmp} --output {tmp}/new", "accelerate"),
        ("train --data {tmp} --output {tmp}/new", "matplotlib"),
        ("train --data {tmp} --output {tmp}/new --adapter lora", "peft"),
        ("retrieve --fit {tmp}/labels.csv -o {tmp}/new", "matplotlib"),
        ("benchmark papertown --work {tmp}/new --docs {tmp}/docs", "matplotlib"),
    ],
)
def test_a_missing_extra_is_one_line_before_any_work(command, package, tmp_path, monkeypatch, capsys):
    (tmp_path / "p.txt").write_text("a doctor\n")
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    (tmp_path / "labels.csv").write_text("prompt,labels\na doctor,person\n")
    monkeypatch.setitem(sys.modules, package, None)
    assert main(command.format(tmp=tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith(f" needs {package}: pip install livo[train]\n")
    assert not (tmp_path / "new").exists()
