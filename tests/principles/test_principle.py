import pytest

from livo import ValuePrinciple, load_principles
from livo.principles.principle import PrincipleError, bundled_principles, load_target

GOOD = "id: a\nstatement: a first value\n"
TONES = GOOD + "kind: debias\nattributes: {x: an x, y: a y}\n"
TOWARDS = TONES + "directions: {x: towards x, y: towards y}\n"


def write(tmp_path, text, name="p.yaml"):
    file = tmp_path / name
    file.write_text(text)
    return file


def test_the_bundled_file_holds_the_five_principles_of_the_paper():
    principles = {p.id: p for p in load_principles(bundled_principles())}
    assert set(principles) == {"gender_equality", "racial_equality", "nudity", "bloody", "zombie"}
    assert principles["gender_equality"].kind == "debias" and principles["gender_equality"].apply_rate == 0.5
    assert all(principles[risk].apply_rate == 1.0 for risk in ("nudity", "bloody", "zombie"))


def test_documents_and_lists_are_read_alike(tmp_path):
    documents = write(tmp_path, "id: a\nstatement: one\n---\nid: b\nstatement: two\nkind: debias\n", "documents.yaml")
    items = write(tmp_path, "- id: a\n  statement: one\n- id: b\n  statement: two\n  kind: debias\n", "list.yaml")
    assert load_principles(documents) == load_principles(str(items))


def test_a_folder_is_read_in_the_order_of_its_file_names(tmp_path):
    write(tmp_path, "id: second\nstatement: two\n", "b.yaml")
    write(tmp_path, "id: first\nstatement: one\n", "a.yaml")
    assert [p.id for p in load_principles(tmp_path)] == ["first", "second"]


def test_ready_made_principles_pass_through():
    principle = ValuePrinciple(id="kindness", statement="kindness")
    assert load_principles([principle]) == [principle]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (GOOD + "---\nid: a\nstatement: again\n", 4, ["'a'", "taken already", "rename"]),
        (GOOD + "colour: red\n", 3, ["unknown key 'colour'", "statement"]),
        ("id: a\nstatement: '  '\n", 2, ["statement", "at least one word"]),
        ("statement: words\n", 1, ["no id"]),
        ("id: a\n", 1, ["no statement"]),
        (GOOD + "apply_rate: 1.5\n", 3, ["apply_rate", "1.5", "0 to 1"]),
        (GOOD + "apply_rate: often\n", 3, ["apply_rate", "often"]),
        (GOOD + "apply_rate: .nan\n", 3, ["apply_rate", "nan"]),
        (GOOD + "kind: improve\n", 3, ["kind", "improve", "debias, detoxify"]),
        (GOOD + "exemplars: a doctor\n", 3, ["exemplars", "list"]),
        (GOOD + "keywords: [1]\n", 3, ["keywords"]),
        (GOOD + "attributes: [male]\n", 3, ["attributes"]),
        (GOOD + "id: b\n", 3, ["twice"]),
        (TONES + "directions: {x: towards x}\n", 5, ["directions", "x, y"]),
        (TONES + "directions: {x: towards x, z: towards z}\n", 5, ["directions", "x, y"]),
        (TONES + "directions: {x: towards, y: towards}\n", 5, ["same statement"]),
        (TONES + "directions: [x, y]\n", 5, ["directions"]),
        (GOOD + "attributes: {x: an x}\ndirections: {x: towards x}\n", 4, ["directions", "debias"]),
        (TOWARDS + "target: {x: 0.5, y: 0.4}\n", 6, ["target", "0.9", "sum to 1"]),
        (TOWARDS + "target: {x: 1.0}\n", 6, ["target", "x, y"]),
        (TOWARDS + "target: {x: 1.5, y: -0.5}\n", 6, ["target", "share of x"]),
        (TOWARDS + "target: {x: most, y: few}\n", 6, ["target", "share of x"]),
        (TONES + "target: {x: 0.5, y: 0.5}\n", 5, ["target", "without directions"]),
        (GOOD + "construct: {prompts: [a cup]}\n", 3, ["construct", "no judge"]),
        (GOOD + "construct: {prompts: [a cup], judge: cup, aligned: a mug}\n", None, ["attributes", "two classes"]),
        ("just words\n", 1, ["mapping", "id:"]),
        (GOOD + "exemplars: [\n", None, ["not valid YAML"]),
        ("id: !!python/object/apply:os.system ['true']\nstatement: x\n", 1, ["python/object"]),
        ("", None, ["no principle"]),
    ],
)
def test_a_bad_file_gives_one_line_with_file_line_and_remedy(tmp_path, text, line, words):
    file = write(tmp_path, text)
    with pytest.raises(PrincipleError) as caught:
        load_principles(file)
    message = str(caught.value)
    assert "\n" not in message and str(file) in message
    assert line is None or f"{file}:{line}:" in message
    assert all(word in message for word in words), message


def test_a_missing_path_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(PrincipleError, match="no such file"):
        load_principles(tmp_path / "absent.yaml")
    with pytest.raises(PrincipleError, match=r"no \.yaml"):
        load_principles(tmp_path)


def test_a_file_in_another_encoding_and_a_list_within_a_list_are_told(tmp_path):
    file = tmp_path / "latin.yaml"
    file.write_bytes("id: café\nstatement: x\n".encode("latin-1"))
    with pytest.raises(PrincipleError, match=r"latin\.yaml: not UTF-8"):
        load_principles(file)
    with pytest.raises(PrincipleError, match=r":1: a principle is a mapping .* not a list$"):
        load_principles(write(tmp_path, "- - id: a\n"))


def test_a_text_is_an_exemplar_or_a_counter_exemplar():
    with pytest.raises(PrincipleError, match="counter_exemplars has 'a dog', which is an exemplar too"):
        ValuePrinciple("a", "b", "detoxify", exemplars=["a cat", "a dog"], counter_exemplars=["a dog"])


@pytest.mark.parametrize("source", [None, 5, ValuePrinciple("a", "b", "detoxify", exemplars=["a dog"])])
def test_what_are_no_principles_is_told(source):
    with pytest.raises(PrincipleError, match="give a file, a folder, or a list of ValuePrinciple"):
        load_principles(source)


@pytest.mark.parametrize("where", ["attributes: ", "target: ", "construct:\n  fill: "])
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path, where):
    text = "id: a\nkind: debias\nstatement: x\nexemplars: [y]\n" + where + "{m: 0.5, f: 0.5,\n m: 0.7}\n"
    with pytest.raises(PrincipleError, match=f":{text.count(chr(10))}: 'm' is there twice; keep one$"):
        load_principles(write(tmp_path, text))


def test_a_file_of_shares_holds_each_class_once(tmp_path):
    with pytest.raises(PrincipleError, match=r"target .*census.yaml:1: 'x' is there twice; keep one"):
        load_target(write(tmp_path, "{x: 0.9, y: 0.1, x: 0.2}", "census.yaml"))


def test_a_target_is_even_unless_it_is_given(tmp_path):
    (even,) = load_principles(write(tmp_path, TOWARDS))
    assert even.shares == {"x": 0.5, "y": 0.5} and even.target == {}
    (given,) = load_principles(write(tmp_path, TOWARDS + "target: {x: 0.7, y: 0.3}\n"))
    assert given.shares == {"x": 0.7, "y": 0.3}


def test_a_target_may_name_a_file_of_shares_beside_the_principles(tmp_path):
    write(tmp_path, "norway: {x: 0.9, y: 0.1}\nchile: {x: 0.4, y: 0.6}\n", "census.yaml")
    write(tmp_path, "x: 2020-13-45\n", "dates.yaml")
    (principle,) = load_principles(write(tmp_path, TOWARDS + "target: census.yaml#chile\n"))
    assert principle.shares == {"x": 0.4, "y": 0.6}
    for entry, words in (
        ("census.yaml#peru", "norway, chile"),
        ("census.yaml", "census.yaml#norway"),
        ("absent.yaml", "no such file"),
        ("dates.yaml", "target .*dates.yaml:1: not plain data: month"),
    ):
        with pytest.raises(PrincipleError, match=words):
            load_principles(write(tmp_path, TOWARDS + f"target: {entry}\n"))
