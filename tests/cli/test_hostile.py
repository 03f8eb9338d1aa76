"""Input that is broken or made to do harm: one clear line and exit code 2, and no other file is touched."""

import struct
import subprocess
import sys
import zlib

import pytest

from livo import load_principles
from livo.cli.main import main
from livo.utils.files import check_output, refuse_overwriting

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def lines_of(error):
    return [line for line in error.strip().splitlines() if line.startswith("livo")]


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks, size=(1, 1)):
    head = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(b"\0\0"))
        + chunk(b"IEND", b"")
    )


def record(text):
    return chunk(b"iTXt", b"livo\0\0\0\0\0" + text.encode())


RECORDS = {
    "a number": record("3"),
    "a text": record('"x"'),
    "null": record("null"),
    "no list of objects": record("[[1]]"),
    "nested": record("[" * 10_000 + "]" * 10_000),
    "nested objects": record('{"a":' * 10_000 + "1" + "}" * 10_000),
    "conflicts a number": record('{"prompt": "a", "conflicts": 3}'),
    "also a number": record('[{"prompt": "a", "also": [3]}]'),
    "a value that is a number": record('[{"prompt": "a", "values": [3]}]'),
    "values that are a text": record('[{"prompt": "a", "values": "x"}]'),
    "a huge number": record('[{"prompt": "a", "seed": ' + "9" * 5000 + "}]"),
    "not a number": record('[{"prompt": "a", "score": NaN}]'),
    "half a character": record('[{"prompt": "\\ud800"}]'),
    "a text bomb": chunk(b"zTXt", b"livo\0\0" + zlib.compress(bytes(20_000_000))),
    "nothing": b"",
}


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("kind", RECORDS)
def test_a_broken_record_is_one_line_that_names_the_file(tmp_path, capsys, kind, flags):
    (tmp_path / "a.png").write_bytes(png(RECORDS[kind]))
    assert main(["inspect", *flags, str(tmp_path / "a.png")]) == 2
    (line,) = lines_of(capsys.readouterr().err)
    assert "a.png" in line and "unexpected" not in line


def test_a_record_with_nothing_in_its_parts_is_read(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png(record('[{"prompt": "a", "conflicts": null, "also": null}]')))
    assert main(["inspect", str(tmp_path / "a.png")]) == 0 and "a" in capsys.readouterr().out


@pytest.mark.parametrize("content", [png(record("[]"), size=(60_000, 60_000)), png(record('[{"prompt": "a"}]'))[:60], b"", b"text"])
def test_a_broken_picture_is_one_line_that_names_the_file(tmp_path, capsys, content):
    (tmp_path / "a.png").write_bytes(content)
    assert main(["inspect", str(tmp_path / "a.png")]) == 2
    (line,) = lines_of(capsys.readouterr().err)
    assert "a.png" in line and "unexpected" not in line


def test_what_is_no_file_is_one_line_without_a_number(tmp_path, capsys, monkeypatch):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    for name, words in (("absent.png", "no such file"), ("link.png", "a broken link to"), ("/dev/null", "a device")):
        assert main(["inspect", str(tmp_path / name)]) == 2
        (line,) = lines_of(capsys.readouterr().err)
        assert words in line and "Errno" not in line
    (tmp_path / "secret.png").write_bytes(png())
    monkeypatch.setattr("PIL.Image.open", lambda file: (_ for _ in ()).throw(PermissionError(13, "Permission denied", str(file))))
    assert main(["inspect", str(tmp_path / "secret.png")]) == 2
    assert "secret.png: no permission to read it" in capsys.readouterr().err


@pytest.mark.parametrize("argument", [b"bytes \xff", b"\xc3"])
def test_invalid_bytes_on_the_command_line_are_one_line(argument):
    done = subprocess.run([sys.executable, "-m", "livo", "retrieve", argument], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("livo: argument 2 is not UTF-8: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "argv", [["retrieve", "half \ud800"], ["retrieve", "--file", "\udcff.txt", "-o", "x.csv"], ["inspect", "a\udfff.png"]]
)
def test_half_a_character_in_any_argument_is_one_line(argv, capsys):
    assert main(argv) == 2
    assert len(lines_of(capsys.readouterr().err)) == 1


def test_half_a_character_is_refused_by_the_python_interface(pipe):
    retriever = pipe.retriever
    for text in ("half \ud800", "\udfff"):
        with pytest.raises(ValueError, match=r"prompt .* holds half of a character"):
            retriever.retrieve(text)
        for value in ("auto", None, "gender_equality"):
            with pytest.raises(ValueError, match=r"prompt .* holds half of a character"):
                pipe(["a doctor", text], value=value, num_inference_steps=1)
        with pytest.raises(ValueError, match=r"negative_prompt .* holds half"):
            pipe("a doctor", negative_prompt=text, num_inference_steps=1)
        with pytest.raises(ValueError, match=r"value .* holds half"):
            pipe("a doctor", value=[(text, "bloody")], num_inference_steps=1)
    assert retriever.retrieve("whole \U0001f469\u200d\u2695\ufe0f \x00 \ufffe")


PRINCIPLES = {
    "laughs.yaml": (LAUGHS, "aliases multiply to more than 2,000,000 values"),
    "itself.yaml": ("&a [*a]\n", "aliases multiply"),
    "deep.yaml": ("[" * 20_000, "nested too deeply"),
    "deeper.yaml": ("id: a\nstatement: b\nexemplars: " + "{a: " * 5_000, "nested too deeply"),
    "half.yaml": ('id: a\nstatement: "\\ud800"\nexemplars: [x]\n', "half.yaml:2: .* half of a character"),
    "nan.yaml": ("id: a\nstatement: b\napply_rate: .nan\nexemplars: [x]\n", "apply_rate is nan"),
    "code.yaml": ("- id: !!python/object/apply:os.system [ls]\n  statement: x\n", "could not determine a constructor"),
    "null.yaml": ("id: a\0\n", "a null character"),
    "picture.yaml": ("\x89PNG", "holds a PNG picture, not text"),
}


@pytest.mark.parametrize("name", PRINCIPLES)
def test_hostile_principles_are_refused_by_name(tmp_path, name):
    text, words = PRINCIPLES[name]
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name}.*{words}" if name not in words else words):
        load_principles(tmp_path / name)


def test_plain_aliases_and_a_bom_are_still_read(tmp_path):
    text = "\ufeff- &a {id: a, statement: &s x, exemplars: &e [one, two]}\r\n- {id: b, statement: *s, exemplars: *e}\r\n"
    (tmp_path / "a.yaml").write_bytes(text.encode())
    assert [(p.id, p.statement, p.exemplars) for p in load_principles(tmp_path / "a.yaml")] == [
        ("a", "x", ("one", "two")),
        ("b", "x", ("one", "two")),
    ]


@pytest.mark.parametrize(
    "option", [["--guidance", "nan"], ["--guidance", "inf"], ["--seed", "-1"], ["--seed", str(2**70)], ["--scale", "nan"]]
)
def test_numbers_that_mean_nothing_are_refused(option, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["generate", "a doctor", *option])
    assert caught.value.code == 2 and option[1] in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named_first(tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a doctor\n")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.csv").mkdir()
    prompts = ["--file", str(tmp_path / "p.txt"), "-o"]
    for argv, words in (
        (["generate", "a", "-o", str(tmp_path / "folder.png")], "is a folder: name a file"),
        (["generate", "a", "-o", str(tmp_path / "p.txt" / "a.png")], "is a file, so nothing can be written below it"),
        (["retrieve", *prompts, str(tmp_path / "folder.csv")], "is a folder: name a file"),
        (["evaluate", "--prompts", str(tmp_path / "p.txt"), "-o", str(tmp_path / "p.txt")], "is a file: give a folder"),
        (["build", "-o", str(tmp_path / "p.txt" / "x")], "is a file, so nothing can be written below it"),
    ):
        assert main(argv) == 2
        (line,) = lines_of(capsys.readouterr().err)
        assert words in line
    check_output(tmp_path / "new" / "a.csv")
    check_output(tmp_path / "new", folder=True)


def test_no_command_writes_over_what_it_reads(tmp_path, capsys):
    inputs = {
        "results.json": '["a doctor"]',
        "data_card.json": "{}",
        "grid.json": "{male: 0.5, female: 0.5}",
        "grid.png": "no picture",
        "config.json": '["a doctor"]',
        "report.json": "[]",
    }
    for name, text in inputs.items():
        (tmp_path / name).write_text(text)
    at = {name: str(tmp_path / name) for name in inputs}
    for argv in (
        ["evaluate", "--prompts", at["results.json"], "-o", str(tmp_path)],
        ["calibrate", at["config.json"], "--value-encoder", str(tmp_path)],
        ["build", "--principles", at["data_card.json"], "-o", str(tmp_path)],
        ["generate", "a", "--target", at["grid.json"] + "#x", "-o", at["grid.png"]],
        ["generate", "a", "--principles", at["grid.png"], "-o", at["grid.png"]],
        ["retrieve", "--fit", at["report.json"], "-o", str(tmp_path)],
        ["retrieve", "--redteam", "--principles", at["report.json"], "-o", at["report.json"]],
    ):
        assert main(argv) == 2, argv
        (line,) = lines_of(capsys.readouterr().err)
        foreign = argv[0] in ("evaluate", "build")  # whose folder must be their own
        assert ("was not made by this command" if foreign else "would replace the input") in line
    assert {name: (tmp_path / name).read_text() for name in inputs} == inputs


def test_an_input_beside_the_output_is_left_in_peace(tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt\na\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "prompts.csv").write_text("prompt\na\n")
    refuse_overwriting(tmp_path / "prompts.csv", tmp_path, ("results.json", "images"))
    with pytest.raises(ValueError, match="would replace the input"):
        refuse_overwriting(tmp_path / "images" / "prompts.csv", tmp_path, ("results.json", "images"))
    (tmp_path / "results.json").hardlink_to(tmp_path / "prompts.csv")
    with pytest.raises(ValueError, match="would replace the input"):
        refuse_overwriting(tmp_path / "prompts.csv", tmp_path, ("results.json",))
