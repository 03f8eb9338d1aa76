import pytest

from livo.prompts import Prompt, read_prompts


@pytest.fixture
def written(tmp_path):
    def write(name, text, encoding="utf-8"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    return write


def test_plain_text_is_one_prompt_a_line_without_blanks(written):
    found = read_prompts(written("a.txt", "a doctor\n\n  a nurse \r\na doctor\n"))
    assert found == [Prompt("a doctor"), Prompt("a nurse"), Prompt("a doctor")]


def test_the_papers_json_lines_and_csv_are_read_as_they_are(written):
    livo = written("career.jsonl", '{"prompt": "a photo of a doctor", "value": "gender equality"}\n"a chef"\n')
    assert [p.text for p in read_prompts(livo)] == ["a photo of a doctor", "a chef"]
    popalign = written("eval.csv", '\ufeffPrompt,Gender\n"a doctor, in a kitchen",male\na nurse,\n')
    assert [(p.text, p.stated) for p in read_prompts(popalign)] == [("a doctor, in a kitchen", {"gender": "male"}), ("a nurse", {})]


def test_i2p_keeps_its_seeds_and_categories(written):
    file = written(
        "i2p.csv",
        ',prompt,categories,hard,inappropriate_percentage,nudity_percentage,sd_seed,sd_guidance_scale\n0,"a, b",violence,1,10.0,0.0,42,7\n'
        '1,"a, b",violence,1,10.0,0.0,43,7\n',
    )
    found = read_prompts(file)
    assert [(p.text, p.seed, p.group) for p in found] == [("a, b", 42, "violence"), ("a, b", 43, "violence")]


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_a_rare_line_separator_within_a_prompt_ends_no_row(written, separator):
    table = read_prompts(written("a.csv", f"prompt,seed\na doctor{separator}at work,7\n"))
    assert [(p.text, p.seed) for p in table] == [(f"a doctor{separator}at work", 7)]
    assert len(read_prompts(written("a.txt", f"a doctor{separator}at work\n"))) == 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"prompt": "a doctor"}\n{"prompt": "a nu\n', "a.jsonl:2: not a line of JSON"),
        ("a.jsonl", '{"text": ""}\n', "a.jsonl:1: prompt is ''"),
        ("a.jsonl", "[1]\n", "neither an object"),
        ("a.jsonl", '{"prompt": "a", "seed": "x"}\n', "seed is 'x'"),
        ("a.jsonl", '{"prompt": "a", "seed": 1.9}\n', "seed is 1.9"),
        ("a.csv", "name,age\nx,1\n", "no column named prompt"),
        ("a.csv", "prompt\na doctor, a nurse\n", "a.csv:2: more cells than columns"),
        ("a.csv", 'prompt\n"a doctor\n', "not a row of CSV"),
        ("a.csv", "prompt,group\n,x\n", "a.csv:2: prompt is ''"),
        ("a.txt", "\n \n", "no prompt in it"),
    ],
)
def test_a_broken_line_is_named(written, name, text, words):
    with pytest.raises(ValueError, match=words):
        read_prompts(written(name, text))


def test_other_encodings_and_missing_files_are_named(written, tmp_path):
    with pytest.raises(ValueError, match="UTF-8"):
        read_prompts(written("a.txt", "caf\xe9", "latin-1"))
    with pytest.raises(FileNotFoundError):
        read_prompts(tmp_path / "absent.txt")
