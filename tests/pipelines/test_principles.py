"""Principles of a pipeline: adding, replacing, bundled names; nothing disappears without a message."""

import logging

import pytest

import livo
from livo import LiVOPipeline, ValuePrinciple, load_principles
from livo.cli.main import main
from livo.principles.principle import PrincipleError, bundled_principles
from tests.conftest import PRINCIPLES, WordEmbedder

KIND = ValuePrinciple(id="kindness", statement="kindness", exemplars=("people who help each other",))
SAFETY = bundled_principles().with_name("safety.yaml")


def ids(pipe):
    return [principle.id for principle in pipe.principles]


def test_adding_keeps_the_principles_and_says_nothing(pipe, caplog):
    pipe.load_value_principles([KIND], add=True)
    pipe.load_value_principles(pipe.principles)
    assert ids(pipe) == ["gender_equality", "bloody", "kindness"] and not caplog.records
    assert pipe.retriever.retrieve("a bloody warrior")[0].id == "bloody"


def test_an_id_in_use_is_an_error_that_names_both(pipe):
    before = pipe.retriever
    with pytest.raises(
        PrincipleError, match=r"safety\.yaml:.*id 'bloody' is taken already by the loaded principle 'bloody considered"
    ):
        pipe.load_value_principles("safety", add=True)
    with pytest.raises(PrincipleError, match=r"the given list: id 'bloody'.*rename one of them, or replace"):
        pipe.load_value_principles([KIND, PRINCIPLES[1]], add=True)
    assert pipe.retriever is before


@pytest.mark.parametrize(
    ("principles", "level", "words"),
    [
        ([KIND], "WARNING", "gender_equality, bloody were replaced by kindness; add=True keeps them"),
        ([PRINCIPLES[0]], "WARNING", "bloody were replaced by gender_equality"),
        ([*PRINCIPLES[:1], ValuePrinciple(id="bloody", statement="no blood", exemplars=("x",))], "INFO", "bloody were replaced"),
    ],
)
def test_replacing_reports_what_was_replaced(pipe, caplog, principles, level, words):
    caplog.set_level(logging.INFO)
    pipe.load_value_principles(principles)
    assert [(r.levelname, words in r.message) for r in caplog.records if r.name == "livo.pipelines.loading"] == [(level, True)]


def test_dropping_a_fitted_retriever_is_reported(pipe, caplog):
    pipe.retriever.fitted = True
    pipe.load_value_principles(pipe.principles)
    assert pipe.retriever.fitted and not caplog.records
    pipe.load_value_principles([KIND], add=True)
    assert "retriever that was fitted for the principles before is dropped: fit it again" in caplog.text


@pytest.mark.parametrize("name", ["safety", "safety.yaml", "livo"])
def test_bundled_files_go_by_name_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "livo").mkdir()  # as in a checkout
    assert load_principles(name) == load_principles(SAFETY.with_name(f"{name.removesuffix('.yaml')}.yaml"))


def test_a_file_of_ones_own_comes_before_the_bundled_one_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "safety.yaml").write_text("id: kindness\nstatement: kindness\n")
    assert [p.id for p in load_principles("safety.yaml")] == ["kindness"]
    assert [p.id for p in load_principles("safety")] == ["nudity", "bloody", "zombie"]


@pytest.mark.parametrize("name", ["safty", "folder/safety", "value_principles/livo.yml"])
def test_a_name_that_is_nothing_lists_the_bundled_ones(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrincipleError, match=f"{name}: no such file or folder.*by name: livo, safety"):
        load_principles(name)


def test_loading_attaching_and_the_command_line_take_bundled_names(base, tmp_path, monkeypatch, capsys, tiny_checkpoint):
    monkeypatch.chdir(tmp_path)
    assert ids(livo.attach(base, None, "safety")) == ["nudity", "bloody", "zombie"]
    assert ids(LiVOPipeline.from_pretrained(tiny_checkpoint, value_principles="safety")) == ["nudity", "bloody", "zombie"]
    main(["retrieve", "a bloody warrior", "--principles", "safety"])
    assert "bloody" in capsys.readouterr().out


def test_the_embedding_model_stays_when_principles_are_added(pipe):
    pipe.load_value_principles([KIND], add=True)
    assert isinstance(pipe.retriever.embedder, WordEmbedder)
