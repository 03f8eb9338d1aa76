import numpy as np
import pytest
from conftest import PRINCIPLES, WordEmbedder

from livo import ValuePrinciple, ValueRetriever
from livo.principles import bundled_principles
from livo.retriever import load_embedder


@pytest.fixture(scope="module")
def small():
    return ValueRetriever(PRINCIPLES, embedder=WordEmbedder())


@pytest.fixture(scope="module")
def paper():
    return ValueRetriever(bundled_principles())


def ids(retriever, prompt):
    return [decision.id for decision in retriever.retrieve(prompt)]


def test_scores_are_cosines_that_a_brute_force_search_finds_too(paper):
    """Risks read the whole prompt, people its subject."""
    for prompt, wanted, read in (
        ("a photo of a bloody plumber in a park", "bloody", "a bloody plumber in a park"),
        ("a photo of an optician in a park", "gender_equality", "an optician"),
    ):
        decision = paper.retrieve(prompt)[0]
        principle = next(p for p in paper.principles if p.id == wanted)
        vectors = paper.embed([read, *principle.exemplars])
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        similarity = dict(zip(principle.exemplars, vectors[1:] @ vectors[0], strict=True))
        assert decision.id == wanted and decision.score == pytest.approx(similarity[decision.nearest_exemplar], abs=1e-5)
        sharing = [s for text, s in similarity.items() if "bloody" in text] if wanted == "bloody" else similarity.values()
        assert decision.score == pytest.approx(max(sharing), abs=1e-5)


def test_hand_computed_similarity_of_shared_words(small):
    decision = small.retrieve("a photo of a doctor pilot at work")[0]  # read as "a doctor pilot": two words of three, of two
    assert decision.score == pytest.approx(2 / 6**0.5) and decision.nearest_exemplar == "a photo of a doctor"


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a photo of a bloody carpenter", "bloody"),
        ("a gory miner in a kitchen", "bloody"),
        ("an undressed lifeguard on a beach", "nudity"),
        ("a zombified secretary in a library", "zombie"),
        ("a photo of an astronaut in a desert", "gender_equality"),
        ("a photo of a bus driver", "gender_equality"),
    ],
)
def test_the_papers_principles_are_found_for_unseen_wordings(paper, prompt, wanted):
    assert ids(paper, prompt)[0] == wanted


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat on a beach",
        "a dog in a kitchen",
        "a miner's lamp",
        "a doctor's empty office",
        "a red scarf",
        "a green mask",
        "a bloodhound",
        "Essex countryside",
        "a deadline",
        "a bowl of soup",
        "an empty desert",
    ],
)
def test_prompts_without_people_or_risk_are_left_alone(paper, prompt):
    decisions = paper.retrieve(prompt)
    assert [d.id for d in decisions] == [None]
    assert decisions[0].score is not None and decisions[0].nearest_exemplar and "no principle applies" in decisions[0].why


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of a female doctor",
        "a pilot who is a man",
        "an asian gardener in a meadow",
        "a Male nurse",
        "a photo of a black doctor",
        "a 14th-century Malian king",
    ],
)
def test_a_person_who_states_an_identity_is_left_alone(paper, prompt):
    assert ids(paper, prompt) == [None]


def test_keywords_are_whole_words_and_never_decide_alone(small):
    assert ids(small, "a bloody knight") == ["bloody"]
    assert ids(small, "bloodcurdling") == [None]
    assert ids(small, "blood test results of last tuesday morning on the fridge door") == [None]


def test_a_counter_exemplar_that_is_nearer_wins(small):
    decision = small.retrieve("a blood orange")[0]
    assert decision.id is None and "counter-exemplar 'a blood orange'" in decision.why


def test_decisions_follow_the_order_of_the_file():
    twins = [ValuePrinciple(id=i, statement=i, kind="debias", exemplars=("a photo of a doctor", "a nurse")) for i in ("b", "a")]
    assert ids(ValueRetriever(twins, embedder=WordEmbedder()), "a photo of a doctor") == ["b", "a"]


def test_a_principle_without_exemplars_is_found_by_its_statement():
    retriever = ValueRetriever([ValuePrinciple(id="calm", statement="calm and quiet")], embedder=WordEmbedder())
    assert ids(retriever, "calm and quiet") == ["calm"] and ids(retriever, "noise") == [None]


def test_a_batch_equals_single_prompts_and_an_empty_one_is_empty(small):
    prompts = ["a photo of a doctor", "a cat", "a bloody warrior"]
    assert small.retrieve_batch(prompts) == [small.retrieve(prompt) for prompt in prompts]
    assert small.retrieve_batch([]) == []


def test_an_embedding_model_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(OSError, match=r"could not be loaded.*livo\[offline\]"):
        load_embedder(tmp_path / "no-model")
