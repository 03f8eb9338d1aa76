import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import livo.retrieval.features
from livo import ValuePrinciple, ValueRetriever
from livo.principles.principle import FACETS, bundled_principles
from livo.retrieval.corpus import labelled_prompts
from livo.retrieval.embedder import load_embedder
from livo.retrieval.features import FacetHeads
from livo.retrieval.normalizer import subject
from tests.conftest import PRINCIPLES, WordEmbedder, gap


@pytest.fixture(scope="module")
def small():
    return ValueRetriever(PRINCIPLES, embedder=WordEmbedder())


@pytest.fixture(scope="module")
def paper():
    return ValueRetriever(bundled_principles())


def ids(retriever, prompt):
    return [decision.id for decision in retriever.retrieve(prompt)]


def test_scores_are_cosines_that_a_brute_force_search_finds_too(paper):
    """What the prompt says about the kind of picture is not part of it."""
    for prompt, wanted, read in (
        ("a photo of a bloody plumber in a park", "bloody", "a bloody plumber in a park"),
        ("a photo of an optician in a park, 8k", "gender_equality", "an optician in a park"),
    ):
        decision = paper.retrieve(prompt)[0]
        principle = next(p for p in paper.principles if p.id == wanted)
        vectors = paper.embed([read, *principle.exemplars])
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        similarity = dict(zip(principle.exemplars, vectors[1:] @ vectors[0], strict=True))
        assert decision.id == wanted and decision.score == pytest.approx(similarity[decision.nearest_exemplar], abs=1e-5)
        assert decision.score == pytest.approx(max(similarity.values()), abs=1e-5)


def test_an_exemplar_or_counter_exemplar_speaks_louder_than_the_facets(paper):
    first = next(p for p in paper.principles if p.id == "gender_equality")
    listed = replace(
        first,
        exemplars=(*first.exemplars, "a red scarf on a chair"),
        counter_exemplars=(*first.counter_exemplars, "a plumber at work"),
    )
    mine = paper.with_principles([listed])
    for prompt, kind, before in (("a red scarf on a chair", "exemplar", None), ("a plumber at work", "counter-exemplar", first.id)):
        assert ids(paper.with_principles([first]), prompt) == [before]
        (decision,) = mine.retrieve(f"a photo of {prompt}, 8k")  # which says the same
        assert (decision.id is None) == (before is not None) and f"it says the same as {kind} {prompt!r}" in decision.reason


def test_hand_computed_similarity_of_shared_words(small):
    decision = small.retrieve("a photo of a doctor pilot")[0]  # read as "a doctor pilot": two words of three, of two
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
    assert decisions[0].score is not None and decisions[0].nearest_exemplar and "no principle applies" in decisions[0].reason


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
    assert decision.id is None and "counter-exemplar 'a blood orange'" in decision.reason


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
    with pytest.raises(OSError, match=r"no-model': no such file or folder"):
        load_embedder(tmp_path / "no-model")


def test_the_index_and_its_order_agree_with_a_brute_force_search(paper):
    for prompt in ("a naked surgeon", "a basket of apples", "two firefighters"):
        found = paper.neighbours(prompt, k=8)
        entries = list(dict.fromkeys((e.text, e.owner) for e in paper.exemplars.entries))
        vectors = paper.embed([subject(paper.normalise(text)) for text, _ in entries])
        scores = vectors @ paper.embed([prompt])[0]
        assert found[0].score == pytest.approx(scores.max(), abs=1e-5)
        best = {entries[i] for i in np.argsort(-scores)[:8]}
        assert all((n.text, n.owner) in best or n.score == pytest.approx(np.sort(scores)[-8], abs=1e-4) for n in found)


def test_known_prompts_have_known_neighbours(paper):
    assert paper.neighbours("a gory cook")[0].text in {"a gory worker", "a gory teacher", "a bloody doctor"}
    assert paper.neighbours("a glass of tomato juice")[0].owner in {None, "bloody"}
    assert paper.neighbours("A photo of a NURSE")[0].text == "a nurse"


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a n4ked w0man on a beach", "nudity"),
        ("a z.o.m.b.i.e in an office", "zombie"),
        ("a bl00dy s0ldier", "bloody"),
        ("a n\u0430k\u0435d dancer", "nudity"),
        ("z\u200bombie nurse", "zombie"),
        ("\uff4e\uff55\uff44\uff45 person", "nudity"),
        ("a naaaked man", "nudity"),
    ],
)
def test_disguised_words_are_read_and_the_prompt_is_kept_as_it_was(paper, prompt, wanted):
    decision = paper.retrieve(prompt)[0]
    assert decision.id == wanted and decision.prompt == prompt and decision.text != prompt


@pytest.mark.parametrize(
    "prompt", ["a bloody mary cocktail", "a killer whale", "nude lipstick", "a dead end street", "a chef's knife", "a fire engine"]
)
def test_words_that_only_sound_like_a_risk_or_a_person_are_left_alone(paper, prompt):
    assert ids(paper, prompt) == [None]


@pytest.mark.parametrize("prompt", ["", "   \n", "\u200b\u200d", "\x00\x07", "!!! ...", "\U0001f680\U0001f355"])
def test_prompts_without_words_are_decided(paper, prompt):
    assert ids(paper, prompt) == [None]


def test_odd_prompts_get_a_decision_and_what_is_no_text_a_clear_error(paper):
    assert ids(paper, "a naked man " + "by a lake " * 1000)[0] == "nudity"
    assert ids(paper, "\U0001f9df")[0] == "zombie"
    assert ids(paper, "a\x00 naked\x07 man")[0] == "nudity"
    with pytest.raises(TypeError, match=r"a prompt is 3: give a text"):
        paper.retrieve(3)


class Wrapped:
    """Passes everything on to a model."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)


def test_a_prompt_is_embedded_once_however_many_questions_are_asked(paper, monkeypatch):
    paper.retrieve("a cat")
    texts, encode = [], paper.embedder.encode
    monkeypatch.setattr(paper.embedder, "encode", lambda asked, **options: texts.extend(asked) or encode(asked, **options))
    paper.retrieve_batch(["a photo of a chemist", "a gory butcher"])
    assert texts == ["a chemist", "a gory butcher"]


def test_a_reading_holds_the_tokens_of_the_last_and_the_middle_layer_and_leaves_the_model_as_it_was(paper, minilm):
    model, texts = minilm, ["a baker", "a cat on a red sofa"]
    _, _, features = ValueRetriever(paper.principles, minilm).read(texts)
    assert features.offsets.tolist() == [0, 4, 12]  # with the marks at both ends
    for i, text in enumerate(texts):
        with torch.no_grad():
            layers = model[0].auto_model(**model.tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        wanted = torch.cat([torch.nn.functional.normalize(layers[j][0], dim=1) for j in (6, 3)], dim=1)
        found = features.tokens[features.offsets[i] : features.offsets[i + 1]]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not model[0].auto_model.config.output_hidden_states
    assert "middle_embeddings" not in model.encode(texts, output_value=None)[0]


def test_facet_heads_that_read_tokens_are_refused_for_a_model_that_gives_fewer(paper, minilm, caplog):
    other = ValueRetriever(paper.principles, Wrapped(minilm))  # the same vectors, but no way to its layers
    assert other.heads is None and "refused for Wrapped" in caplog.text
    assert ids(other, "a naked man") == ["nudity"]


def test_each_principle_says_which_facets_call_for_it_and_which_forbid_it(paper):
    assert ids(paper, "a photo of a female doctor") == [None]
    free = [replace(p, forbidden_by=("risk", "race", "named")) if p.id == "racial_equality" else p for p in paper.principles]
    mine = paper.with_principles(free)
    assert ids(mine, "a photo of a female doctor") == ["racial_equality"]
    assert ids(mine, "a photo of a doctor") == ["gender_equality", "racial_equality"]
    assert ids(mine, "a Kenyan doctor") == ids(mine, "Marie Curie") == [None]


def test_doubts_that_are_small_alone_can_forbid_together(paper, monkeypatch):
    def decided(**facets):
        known = dict.fromkeys(FACETS, 0.0) | facets
        monkeypatch.setattr(livo.retrieval.features.FacetHeads, "answers", lambda heads, features: [known] * len(features))
        return paper.retrieve("somebody by the harbour wall")[0]

    assert decided(person=0.9, gender=0.3).id == "gender_equality"
    assert decided(person=0.9, gender=0.3).probability == pytest.approx(0.9 * 0.7)
    left = decided(person=0.9, gender=0.3, named=0.4)
    assert left.id is None and "gender 0.30, named 0.40 speak against it together" in left.reason
    assert left.probability == pytest.approx(0.9 * 0.7 * 0.6)


def test_a_risk_comes_first_where_the_principles_say_so(paper):
    (decision,) = paper.retrieve("a bloody warrior")
    assert decision.id == "bloody" and decision.reason.endswith("passed over for it: gender_equality, racial_equality")
    together = [replace(p, forbidden_by=("gender", "race", "named")) for p in paper.principles if p.kind == "debias"]
    both = paper.with_principles([p for p in paper.principles if p.kind == "detoxify"] + together)
    assert ids(both, "a bloody warrior") == ["bloody", "gender_equality", "racial_equality"]


WEAPONS = ValuePrinciple(
    id="weapons",
    statement="weapons considered inappropriate",
    exemplars=(
        "a person holding a gun",
        "a soldier with a rifle",
        "a machine gun",
        "a pistol on a table",
        "an armed robber with a shotgun",
        "a sniper aiming a rifle",
        "a hand grenade",
        "a revolver and bullets",
        "a person loading a handgun",
        "assault rifles on a wall",
        "a tank firing",
        "a bomb with a timer",
    ),
    counter_exemplars=("a water pistol", "a glue gun"),
)


def test_a_principle_of_ones_own_works_at_once(paper):
    mine = paper.with_principles([*paper.principles, WEAPONS])
    assert ids(mine, "a photo of a teacher aiming a gun") == ["weapons"] == ids(mine, "a submachine gun in a case")
    assert ids(mine, "a glue gun on a desk") == [None] == ids(mine, "a bowl of soup")
    assert ids(mine, "a photo of a teacher") == ["gender_equality", "racial_equality"]


def test_likely_mistakes_in_principles_are_named(paper):
    twin = ValuePrinciple(id="gore", statement="gore", exemplars=("a bloody warrior", "a bloody doctor", "a gory teacher"))
    wrong = ValuePrinciple(
        id="kitchens", statement="kitchens", exemplars=WEAPONS.exemplars, counter_exemplars=("a rifle on a wall",)
    )
    age = ValuePrinciple(id="age", statement="age equality", kind="debias", exemplars=("a baker", "a pilot in the cockpit"))
    notes = paper.with_principles([*paper.principles, twin, wrong, age]).warnings()
    assert (
        [note for note in notes if "no called_by" in note]
        == [note for note in notes if note.startswith("age has no called_by")]
        != []
    )
    assert any("'a bloody warrior' of bloody and 'a bloody warrior' of gore" in note for note in notes)
    assert any("gore is too close to" in note or "is too close to gore" in note for note in notes)
    assert any("counter-exemplar 'a rifle on a wall' of kitchens" in note for note in notes)


def test_an_explanation_names_the_reading_the_facets_the_neighbours_and_what_would_change_it(paper):
    text = "\n".join(paper.explain("a photo of a f3male doctor"))
    assert "read as" in text and "'a female doctor'" in text and "decision    none" in text
    assert "gender" in text and "neighbour" in text and "it would apply if gender fell from" in text


@pytest.fixture(scope="module")
def fitted():
    """Twenty prompts about weapons and sixty others, fitted by ids."""
    others = [
        f"a photo of a {thing}" for thing in ("cat", "tree", "doctor", "cup", "house", "teacher", "boat", "lamp", "nurse", "road")
    ]
    armed = [
        f"a {who} with a {what}"
        for who in ("clerk", "robber", "driver", "teacher")
        for what in ("gun", "rifle", "bomb", "pistol", "shotgun")
    ]
    prompts = armed + [f"{o} {where}" for o in others for where in ("in a city", "at night", "by a lake")]
    labels = ["weapons"] * len(armed) + [None] * 30
    retriever = ValueRetriever([WEAPONS])
    return retriever, retriever.fit(prompts, labels), prompts


def test_fit_learns_from_labels_and_gives_probabilities_of_unseen_families(fitted):
    retriever, unseen, prompts = fitted
    assert unseen.shape == (len(prompts), 1) and retriever.fitted_names == ("weapons",)
    assert (unseen[:20] > 0.5).mean() >= 0.9 and (unseen[20:] < 0.5).mean() >= 0.9
    assert ids(retriever, "a baker with a revolver") == ["weapons"] and ids(retriever, "a photo of a dog by a lake") == [None]
    assert 0.5 <= retriever.retrieve("a baker with a revolver")[0].probability <= 1


def test_a_saved_retriever_decides_as_before_and_another_model_is_refused(fitted, tmp_path):
    retriever, _, prompts = fitted
    retriever.save(tmp_path / "kept")
    again = ValueRetriever.load(tmp_path / "kept", [WEAPONS])
    assert again.retrieve_batch(prompts[::7]) == retriever.retrieve_batch(prompts[::7])
    assert np.array_equal(again.exemplars.vectors, retriever.exemplars.vectors)
    assert again.exemplars.thresholds == retriever.exemplars.thresholds
    with pytest.raises(ValueError, match=r"fitted for sentence-transformers/all-MiniLM-L6-v2.*fit it again"):
        ValueRetriever.load(tmp_path / "kept", [WEAPONS], WordEmbedder())
    with pytest.raises(ValueError, match="saved for other principles"):
        ValueRetriever.load(tmp_path / "kept", PRINCIPLES)
    about = json.loads((tmp_path / "kept" / "retriever.json").read_text())
    (tmp_path / "kept" / "retriever.json").write_text(json.dumps(about | {"evidence": about["evidence"][:-1]}))
    with pytest.raises(ValueError, match="other evidence in words: fit it again"):
        ValueRetriever.load(tmp_path / "kept", [WEAPONS])


def test_a_damaged_index_is_one_clear_error(fitted, tmp_path):
    fitted[0].save(tmp_path)
    whole = (tmp_path / "index.faiss").read_bytes()
    for damaged in (whole[:40], b"", whole[: len(whole) // 2]):
        (tmp_path / "index.faiss").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            ValueRetriever.load(tmp_path, [WEAPONS])
    (tmp_path / "index.faiss").write_bytes(whole)
    heads = tmp_path / "principles" / "heads.safetensors"
    heads.write_bytes(heads.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        ValueRetriever.load(tmp_path, [WEAPONS])


def test_the_heads_of_one_model_are_refused_for_another_aloud(caplog):
    retriever = ValueRetriever(PRINCIPLES, WordEmbedder())
    assert ids(retriever, "a photo of a doctor") == ["gender_equality"]
    assert "refused for WordEmbedder" in caplog.text and retriever.heads is None


class Turned(Wrapped):
    """Another model of the same width: what the coordinates mean is different."""

    def encode(self, texts, **options):
        return np.asarray(self.model.encode(list(texts)))[:, ::-1].copy()


def test_a_model_of_the_same_width_is_refused_too(fitted, paper, tmp_path, caplog):
    other = ValueRetriever([WEAPONS], Turned(paper.embedder))
    assert other.heads is None and "refused for Turned" in caplog.text
    fitted[0].save(tmp_path)
    with pytest.raises(ValueError, match="fit it again"):
        ValueRetriever.load(tmp_path, [WEAPONS], Turned(paper.embedder))


def test_fitted_heads_that_read_tokens_are_refused_for_a_model_that_gives_fewer(paper, minilm, tmp_path):
    retriever = ValueRetriever([WEAPONS], paper.embedder)
    retriever.heads, retriever.fitted = paper.heads, True
    retriever.save(tmp_path)
    assert ValueRetriever.load(tmp_path, [WEAPONS], paper.embedder).heads is not None
    with pytest.raises(ValueError, match="mean nothing for Wrapped"):
        ValueRetriever.load(tmp_path, [WEAPONS], Wrapped(minilm))


def test_facet_heads_of_an_earlier_version_are_one_clear_error(paper, tmp_path):
    kept = {name: array for name, array in paper.heads.arrays.items() if name != "outputs"}
    replace(paper.heads, arrays=kept).save(tmp_path)
    with pytest.raises(ValueError, match=r"earlier version of LiVO.*fit them again"):
        FacetHeads.load(tmp_path)


def test_a_model_that_gives_no_token_vectors_decides_by_exemplars_and_words():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["[UNK]", "a", "photo", "of", "doctor", "naked", "man", "cat"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=np.eye(8, dtype=np.float32))])
    retriever = ValueRetriever(PRINCIPLES, static)
    assert retriever.heads is None and retriever.read(["a cat", "a doctor"])[2].tokens is None
    assert ids(retriever, "a doctor") == ["gender_equality"]


def test_a_model_that_uses_its_own_layers_keeps_them(paper, minilm):
    from copy import deepcopy

    own = deepcopy(minilm)
    own[0].auto_model.config.output_hidden_states = True
    seen = []
    own[1].register_forward_pre_hook(lambda module, inputs: seen.append("all_layer_embeddings" in inputs[0]))
    features = ValueRetriever(paper.principles, own).read(["a baker"])[2]
    assert gap(features.tokens, paper.read(["a baker"])[2].tokens) < 1e-5
    assert all(seen) and seen and own[0].auto_model.config.output_hidden_states


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["weapons"], "2 prompts and 1 labels"),
        (["weapons", "war"], "war"),
        (["weapons", None], "at least 5"),
        ([None, None], "none"),
    ],
)
def test_labels_that_cannot_be_fitted_are_one_clear_error(labels, words):
    with pytest.raises(ValueError, match=words):
        ValueRetriever([WEAPONS], WordEmbedder()).fit(["a gun", "a cat"], labels)


def test_another_embedding_model_can_be_taught_the_facets(tmp_path):
    prompts = [p for p in labelled_prompts() if p.language == "en"][::40]
    retriever = ValueRetriever(bundled_principles(), WordEmbedder())
    retriever.fit([p.text for p in prompts], [p.facets for p in prompts], [p.family for p in prompts])
    assert ids(retriever, "a naked doctor") == ["nudity"] and ids(retriever, "a female doctor") == [None]
    retriever.save(tmp_path)
    again = ValueRetriever.load(tmp_path, bundled_principles(), WordEmbedder())
    assert again.retrieve("a nurse in a garden") == retriever.retrieve("a nurse in a garden")
