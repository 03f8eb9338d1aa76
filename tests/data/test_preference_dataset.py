import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from livo.data.embedding_cache import EmbeddingCache, PromptEmbeddings
from livo.data.manifest import Sample
from livo.data.precompute import encode_dataset
from livo.data.preference_dataset import PreferenceDataset


def samples(folder):
    made = []
    for i, prompt in enumerate(("a doctor", "a doctor", "a nurse")):
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
        made.append(Sample(prompt, "equality", 1 - i % 2, folder / f"{i}.png", "s", f"line {i}", source_prompt=f"source {i}"))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoding_a_dataset_leaves_the_pipeline_as_it_was(pipe, tmp_path, dtype):
    pipe = pipe.to(dtype)
    before = {name: (module, module.dtype) for name, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
    encode_dataset(samples(tmp_path), pipe, 16, tmp_path / "cache", Accelerator(cpu=True))
    for name, (module, dtype_before) in before.items():
        assert getattr(pipe, name) is module and module.dtype == dtype_before


def test_cached_embeddings_equal_the_pipelines(pipe, tmp_path):
    dataset = encode_dataset(samples(tmp_path), pipe, 16, tmp_path / "cache", Accelerator(cpu=True), source_prompts=True)
    for prompt in ("", "a nurse", "source 1"):
        expected, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        torch.testing.assert_close(dataset.embed([prompt]).embeds, expected)
    assert torch.equal(dataset.embed(["a nurse", ""]).embeds[1:], dataset.embed([""]).embeds)


def test_prompts_are_encoded_once(pipe, tmp_path, monkeypatch):
    encode_dataset(samples(tmp_path), pipe, 16, tmp_path / "cache", Accelerator(cpu=True))
    monkeypatch.setattr("livo.data.embedding_cache.encode_prompts", lambda *_: pytest.fail("encoded again"))
    encode_dataset(samples(tmp_path), pipe, 16, tmp_path / "cache", Accelerator(cpu=True))
    assert EmbeddingCache(tmp_path / "cache", pipe, ["another"]).file.is_file() is False


def test_a_prompt_that_was_not_encoded_is_an_error(tmp_path):
    dataset = PreferenceDataset(samples(tmp_path), torch.zeros(3, 2, 4, 8, 8), {"": PromptEmbeddings(torch.zeros(1, 77, 8))})
    assert dataset.pairs == [(0, (1,)), (2, (1,))]
    with pytest.raises(KeyError, match="a doctor"):
        dataset.embed(["", "a doctor"])


@pytest.mark.parametrize("pooled", [True, False])
def test_embeddings_keep_their_pooled_part(pooled):
    whole = PromptEmbeddings(torch.arange(12.0).reshape(3, 2, 2), torch.arange(3.0).reshape(3, 1) if pooled else None)
    rows = [whole[i : i + 1] for i in range(3)]
    back = PromptEmbeddings.cat(rows).repeat(2)[torch.tensor([4, 0])]
    assert torch.equal(back.embeds, whole.embeds[[1, 0]])
    assert back.pooled is None if not pooled else back.pooled.flatten().tolist() == [1.0, 0.0]
