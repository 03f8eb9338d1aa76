import csv
import json
import logging

import pytest
import yaml

from livo.utils.prompt_files import Prompt, distinct, read_labelled, read_prompts
from livo.utils.tables import read_table

ROWS = [  # what every format must carry: quotes, commas, line breaks, separators that are no line ends
    {"prompt": 'a doctor, "at work"', "id": "a1", "seed": 7},
    {"prompt": "a nurse\nby the sea\u2028with\x85a\x0bcat\x0c!", "id": "b2", "seed": 8},
    {"prompt": "un médecin 医生 🩺", "id": "c3", "seed": 9},
]


@pytest.fixture
def written(tmp_path):
    def write(name, text, encoding="utf-8"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return tmp_path / name

    return write


def as_csv(file, **style):
    with file.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(ROWS[0]), **style)
        table.writeheader()
        table.writerows(ROWS)


def as_parquet(file):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)


WRITERS = {
    "a.csv": as_csv,
    "crlf.csv": lambda file: as_csv(file, lineterminator="\r\n", quoting=csv.QUOTE_ALL),
    "cr.csv": lambda file: as_csv(file, lineterminator="\r", quoting=csv.QUOTE_ALL),
    "europe.csv": lambda file: as_csv(file, delimiter=";"),
    "a.tsv": lambda file: as_csv(file, delimiter="\t"),
    "a.json": lambda file: file.write_text(json.dumps(ROWS), encoding="utf-8"),
    "wrapped.json": lambda file: file.write_text(json.dumps({"prompts": ROWS}, indent=2), encoding="utf-8"),
    "columns.json": lambda file: file.write_text(json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]})),
    "pandas.json": lambda file: file.write_text(json.dumps({n: {str(i): r[n] for i, r in enumerate(ROWS)} for n in ROWS[0]})),
    "a.jsonl": lambda file: file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS), "utf-8"),
    "crlf.ndjson": lambda file: file.write_bytes("".join(json.dumps(r, ensure_ascii=False) + "\r\n" for r in ROWS).encode()),
    "a.yaml": lambda file: file.write_text(yaml.safe_dump(ROWS, allow_unicode=True), encoding="utf-8"),
    "a.yml": lambda file: file.write_text(yaml.safe_dump({"prompts": ROWS})),
    "a.parquet": as_parquet,
}


@pytest.mark.parametrize("mark", ["", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows_with_or_without_a_bom(tmp_path, name, mark):
    file = tmp_path / name
    WRITERS[name](file)
    if mark and file.suffix != ".parquet":
        with file.open(encoding="utf-8", newline="") as stream:
            text = stream.read()
        file.write_bytes(text.encode(mark))
    found = read_prompts(file)
    assert [(p.text, p.seed, p.columns["id"]) for p in found] == [(row["prompt"], row["seed"], row["id"]) for row in ROWS]


def test_plain_text_is_one_prompt_a_line_without_blanks(written):
    for ending in ("\n", "\r\n", "\r"):
        found = read_prompts(written("a.txt", ending.join(["\ufeffa doctor", "", "  a nurse\u2028at sea ", "text, neon sign", ""])))
        assert found == [Prompt("a doctor"), Prompt("a nurse\u2028at sea"), Prompt("text, neon sign")]
    assert [p.where.rsplit(":")[-1] for p in found] == ["1", "3", "4"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", '["a doctor", "a nurse"]'), ("a.yaml", "- a doctor\n- a nurse\n"), ("a.jsonl", '"a doctor"\n\n"a nurse"\n')]
    + [("a.json", '{"prompts": ["a doctor", "a nurse"]}'), ("a.csv", "PROMPT\na doctor\na nurse\n")],
)
def test_lists_of_plain_strings_are_prompts(written, name, text):
    assert [p.text for p in read_prompts(written(name, text))] == ["a doctor", "a nurse"]


def test_a_column_says_what_is_stated_only_where_it_is_an_attribute(written):
    popalign = written("eval.csv", '\ufeffPrompt,Gender,id\n"a doctor, in a kitchen",male,female\na nurse,,x\n')
    found = [prompt.stating({"gender", "race"}) for prompt in read_prompts(popalign)]
    assert [(p.text, p.stated) for p in found] == [("a doctor, in a kitchen", {"gender": "male"}), ("a nurse", {})]
    assert found[0].columns == {"Gender": "male", "id": "female"} and not read_prompts(popalign)[0].stated


def test_i2p_keeps_seeds_and_categories_and_reports_its_empty_row(written, caplog):
    file = written(
        "i2p.csv",
        ',prompt,categories,hard,sd_seed,sd_guidance_scale\n0,"a, b",violence,1,42,7\n1,,violence,1,43.0,7\n2,"a, b",violence,1,44.0,7\n',
    )
    with caplog.at_level(logging.WARNING):
        found = read_prompts(file)
    assert [(p.text, p.seed, p.group) for p in found] == [("a, b", 42, "violence"), ("a, b", 44, "violence")]
    assert [record.message for record in caplog.records] == [f"{file}: row 2 (line 3): empty, skipped"]
    assert found[1].columns == {"": "2", "categories": "violence", "hard": "1", "sd_seed": "44.0", "sd_guidance_scale": "7"}


@pytest.mark.parametrize(
    ("name", "text", "skipped"),
    [
        ("a.csv", "prompt,seed\na,1\n,\n\nnan,\nb,\n,\n\n", "row 2 (line 3), row 3 (line 4), row 4 (line 5)"),
        (
            "a.jsonl",
            '{"prompt": "a"}\n{"prompt": NaN}\n{"prompt": null}\n{"prompt": " "}\n{"prompt": "b", "seed": NaN}\n',
            "2, 3, 4",
        ),
        ("a.json", '["a", "", null, "b"]', "row 2, row 3"),
        ("a.yaml", "- a\n-\n- b\n- ''\n- ''\n- ''\n", "row 2, row 4, row 5 and 1 more"),
    ],
)
def test_empty_rows_are_skipped_and_named(written, name, text, skipped, caplog):
    assert [p.text for p in read_prompts(written(name, text))] == ["a", "b"]
    assert f"{skipped}: empty, skipped" in caplog.text


@pytest.mark.parametrize("seed", ["42.0", "42", 42, 42.0, " 42. "])
def test_a_seed_is_read_as_pandas_writes_it(written, seed):
    assert read_prompts(written("a.jsonl", json.dumps({"prompt": "a", "seed": seed})))[0].seed == 42


@pytest.mark.parametrize("seed", ["nan", "", None, float("nan"), "None"])
def test_a_missing_seed_is_none(written, seed):
    assert read_prompts(written("a.jsonl", json.dumps({"prompt": "a", "seed": seed})))[0].seed is None


def test_a_column_of_another_name_is_named_or_suggested(written):
    for file in (written("a.csv", "id,adv_prompt\n1,a\n"), written("a.jsonl", '{"id": 1, "adv_prompt": "a"}')):
        assert [p.text for p in read_prompts(file, "adv_prompt")] == ["a"]
        with pytest.raises(ValueError, match=r"there are id, adv_prompt; .* --column 'adv_prompt'"):
            read_prompts(file)
        with pytest.raises(ValueError, match="no column 'text'; there are id, adv_prompt"):
            read_prompts(file, "text")
    with pytest.raises(ValueError, match="plain text has no columns"):
        read_prompts(written("a.txt", "a\n"), "prompt")


BROKEN = [
    ("a.jsonl", '{"prompt": "a doctor"}\n{"prompt": "a nu\n', "a.jsonl:2: not valid JSON"),
    ("a.jsonl", "[1]\n", "neither an object"),
    ("a.jsonl", '{"prompt": "a", "prompt": "b"}\n', "a.jsonl:1: .*'prompt' is there twice"),
    ("a.jsonl", '{"prompt": ["a"]}\n', r"a.jsonl:1: prompt is \['a'\]"),
    ("a.jsonl", '{"prompt": "half \\ud800"}\n', "a.jsonl:1: prompt .* holds half of a character"),
    ("a.jsonl", '{"prompt": "a", "note": "\\udfff"}\n', "half of a character"),
    ("a.jsonl", "[" * 100_000, "nested too deeply"),
    ("a.json", "[" * 100_000, "nested too deeply"),
    ("a.yaml", "[" * 10_000, "nested too deeply|not valid YAML"),
    ("a.jsonl", '{"prompt": "a", "seed": "x"}\n', "seed is 'x'"),
    ("a.jsonl", '{"prompt": "a", "seed": 1.9}\n', "seed is 1.9"),
    ("a.jsonl", '{"prompt": "a", "seed": true}\n', "seed is True"),
    ("a.jsonl", '{"prompt": "a", "seed": -1}\n', "seed is -1"),
    ("a.jsonl", '{"seed": 1}\n', "no column named prompt"),
    ("a.csv", "name,age\nx,1\n", "no column named prompt.* there are name, age"),
    ("a.csv", "prompt,seed,prompt\na,1,b\n", "two columns named 'prompt'"),
    ("a.csv", "Prompt,prompt\na,b\n", "differ in case only"),
    ("a.json", '[{"prompt": "a", " prompt": "b"}]', "two columns named 'prompt'"),
    ("a.csv", "prompt\na doctor, a nurse\n", r"row 1 \(line 2\): more cells than columns"),
    ("a.csv", "prompt,seed\na doctor\nat work,7\n", r"row 1 \(line 2\): 1 cells for 2 columns"),
    ("a.csv", 'prompt\na\n"a doctor\n', r"row 2 \(line 3\): not a row of CSV"),
    ("a.csv", "prompt\n\n", "no prompt in it"),
    ("a.txt", "\n \n", "the file is empty"),
    ("a.csv", "", "the file is empty"),
    ("a.json", "[]", "no prompt in it"),
    ("a.json", "{}", "this has nothing"),
    ("a.json", '{"prompt": "a"}', "this has prompt"),
    ("a.json", '{"prompt": ["a", "b"], "seed": [1]}', "differ in length: prompt has 2, seed has 1"),
    ("a.json", '{"prompt": {"0": "a"}, "seed": {"1": 1}}', "different indices"),
    ("a.json", "3", "holds 3, not a list"),
    ("a.yaml", "- a\n---\n- b\n", "2 YAML documents"),
    ("a.yaml", "- !!python/object/apply:os.system [ls]\n", "a.yaml:1: could not determine a constructor"),
    ("a.yaml", "- prompt: a\n  prompt: b\n", "a.yaml:2: 'prompt' is there twice"),
    ("a.yaml", "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ), "aliases multiply"),
    ("a.yaml", "prompts: &a [*a]\n", "aliases multiply"),
    ("a.txt", "a\0b\n", "a.txt:1: a null character"),
    ("a.csv", "prompt\na\nb\0\n", "a.csv:3: a null character"),
    ("a.csv", 'prompt\n"a\nb\n', r"row 1 \(line 2\): not a row of CSV .* a quote that opens there is not closed"),
    ("a.csv", f'prompt\na\n"{"b" * 200_000}', r"row 2 \(line 3\): .*limit .* a quote that opens there is not closed"),
    ("a.csv", "a doctor\na nurse\n", "there are a doctor; .* a table needs a first line of names"),
    ("a.csv", "0,0,a doctor\n1,1,a nurse\n", "there are 0, a doctor; .* a table needs a first line of names"),
    ("a.csv", 'id|prompt\n1|a "b"\n2|"c"|d\n', r"no column named prompt.* there are id\|prompt"),
    ("a.csv", "sep=;\n", "there are none; give one"),
    ("a.json", '{"columns": ["prompt", "id"], "index": [0], "data": [["a", 1]]}', "apart from the names .* orient='records'"),
    ("a.json", '{"schema": {}, "data": [{"prompt": "a"}]}', "apart from the names .* orient='records'"),
    ("a.json", '{"0": {"prompt": "a"}, "1": {"prompt": "b"}}', "objects under a name each; .* orient='records'"),
    ("a.json", '["a", 7]', "row 2: 7 is not a text; put it in quotes"),
    ("a.jsonl", '{"prompt": 7}', "a.jsonl:1: prompt is 7, not a text; put it in quotes"),
    ("a.yaml", "- a doctor\n- yes\n", "row 2: True is not a text; put it in quotes"),
    ("a.yaml", "- a doctor\n- 007\n", "row 2: 7 is not a text; put it in quotes"),
    ("a.yaml", "- a photo of: a doctor\n", "row 1: 'a photo of' is read as the name of a column; put a text that has a colon in quotes"),
    ("a.jsonl", '{"prompt": "a", "seed": 18446744073709551615}', "a whole number from 0 to "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "words"), BROKEN)
def test_a_broken_file_is_named_with_row_and_fault(written, name, text, words):
    with pytest.raises(ValueError, match=words):
        read_prompts(written(name, text))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", '{"prompt": "a"}\n{"prompt": "b"}\n', "name it .jsonl"),
        ("a.csv", '[{"prompt": "a"}]', "holds JSON"),
        ("a.csv", "prompt\tseed\na\t1\n", "separated by tabs; name it .tsv"),
        ("a.tsv", "prompt,seed\na,1\n", "separated by commas; name it .csv"),
        ("a.jsonl", '[\n{"prompt": "a"},\n{"prompt": "b"}\n]\n', "name it .json"),
        ("a.jsonl", '["a", "b"]', "name it .json"),
        ("a.jsonl", '{\n "prompts": ["a"]\n}', "name it .json"),
        ("a.json", '{"prompt": "a"}\n{"prompt": "b"}\n', "name it .jsonl"),
        ("a.txt", "prompt,seed\na,1\n", "name it .csv"),
        ("a.txt", "id;Text\n1;a\n", "name it .csv"),
        ("a.txt", "prompt\tseed\na\t1\n", "name it .tsv"),
        ("a.txt", '["a", "b"]', "name it .json"),
        ("a.txt", '{"prompt": "a"}\n{"prompt": "b"}\n', "name it .json"),
        ("a.txt", "- a\n- b\n", "name it .yaml"),
        ("a.md", "a doctor\n", "format from '.md'; known are .txt, .csv"),
        ("prompts", "a doctor\n", "format from 'no suffix'; known are"),
        ("a.csv.gz", b"\x1f\x8b\x08", "format from '.gz'"),
        ("a.csv", b"\x1f\x8b\x08", "holds gzip data"),
        ("a.csv", b"PK\x03\x04 as Excel saves it", "zip archive"),
        ("a.txt", b"\x89PNG\r\n", "a PNG picture"),
        ("a.csv", "<!DOCTYPE html>\n<html>", "download the raw file"),
        ("a.csv", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.parquet", "prompt\na\n", "cannot be read as Parquet"),
        ("a.parquet", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.parquet", "<!doctype html>\n<html>", "download the raw file"),
        ("a.txt", "caf\xe9".encode("latin-1"), "not UTF-8 text .* save it as UTF-8"),
        ("a.txt", "a doctor".encode("utf-16-le"), "a null character"),
    ],
)
def test_one_format_is_never_read_as_another(written, name, text, words):
    with pytest.raises(ValueError, match=words):
        read_prompts(written(name, text))


def test_what_is_no_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    (tmp_path / "null.csv").symlink_to("/dev/null")
    for name, error, words in (
        ("absent.txt", FileNotFoundError, "absent.txt: no such file"),
        ("absent.parquet", FileNotFoundError, "no such file"),
        ("folder.csv", ValueError, "a folder; name a file"),
        ("link.csv", FileNotFoundError, "a broken link to .*gone.csv"),
        ("null.csv", ValueError, "a device or a pipe"),
    ):
        with pytest.raises(error, match=words):
            read_table(tmp_path / name)
    (tmp_path / "secret.txt").write_text("a")
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError, match=r"secret.txt: no permission to read it"):
        read_table(tmp_path / "secret.txt")


def test_excels_line_about_the_separator_is_no_header(written):
    file = written("a.csv", "sep=;\r\nprompt;seed\r\na doctor, smiling;1\r\n")
    assert [(p.text, p.seed, p.where) for p in read_prompts(file)] == [("a doctor, smiling", 1, f"{file}: row 1 (line 3)")]


def test_nested_columns_of_parquet_are_plain_data(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = {
        "prompt": pyarrow.array(["a", "b"]).dictionary_encode(),
        "categories": [["hate", "violence"], []],
        "image": [{"bytes": b"\x89PNG", "path": "a.png", "score": float("nan")}, None],
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    first, second = read_prompts(tmp_path / "a.parquet")
    assert (first.text, first.groups, second.groups) == ("a", ("hate", "violence"), ())
    assert first.columns["image"] == {"bytes": "b'\\x89PNG'", "path": "a.png", "score": None}
    json.dumps([dict(first.columns), dict(second.columns)], allow_nan=False)


def test_parquet_without_pyarrow_names_the_extra(written, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"a.parquet: reading Parquet needs pyarrow: pip install livo\[parquet\]"):
        read_prompts(written("a.parquet", b"PAR1"))


def test_repeated_prompts_are_left_out_with_a_warning(written, caplog):
    found = read_prompts(written("a.csv", "prompt,seed,id\na,1,x\na,1,y\na,2,z\n"))
    assert [p.columns["id"] for p in distinct(found)] == ["x", "z"] and "1 rows repeat a prompt" in caplog.text


def test_labelled_prompts_use_the_same_reader(written):
    rows = [("a\u2028b", frozenset({"nudity", "bloody"}), "f"), ("c", frozenset(), "c")]
    for file in (
        written("a.csv", 'Prompt;Labels;family\n"a\u2028b";nudity|bloody;f\nc;none;\n'),
        written(
            "a.json",
            json.dumps([{"prompt": "a\u2028b", "labels": ["nudity", "bloody"], "family": "f"}, {"prompt": "c", "labels": []}]),
        ),
    ):
        assert [(r.prompt, r.labels, r.family) for r in read_labelled(file)] == rows
    assert [r.prompt for r in read_labelled(written("b.tsv", "labels\tadv\nbloody\tx\n"), "adv")] == ["x"]
    for text, words in (("prompt\na\n", "no column labels"), ('[{"prompt": "a", "labels": 3}]', "labels are 3")):
        with pytest.raises(ValueError, match=words):
            read_labelled(written("b.json" if text[0] == "[" else "b.csv", text))
