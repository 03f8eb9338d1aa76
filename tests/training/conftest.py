"""Preference data and a short run on a tiny checkpoint."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from livo.data.embedding_cache import PromptEmbeddings
from livo.data.preference_dataset import PreferenceDataset
from livo.training.config import TrainingConfig


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Aligned images are dark, violating ones bright."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        label, scene = i % 2, f"scene {i // 6}"
        low = 0 if label else 150
        Image.fromarray(rng.integers(low, low + 100, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        prompt = ("a photo of a doctor", "a nurse at night")[i // 12]
        row = {"prompt": prompt, "value": "gender equality", "label": label, "file_name": f"{i}.png", "scene": scene}
        gender = ("male", "female")[label]
        row |= {
            "class": "female" if label else "",
            "image_prompt": ("a photo of a {} doctor", "a {} nurse at night")[i // 12].format(gender),
        }
        rows.append(row)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def config(data, tiny_checkpoint, tmp_path):
    return TrainingConfig(
        data=str(data),
        output=str(tmp_path / "run"),
        cache=str(tmp_path / "cache"),
        model=str(tiny_checkpoint),
        steps=6,
        batch=4,
        lr=1e-3,
        warmup=2,
        log_every=1,
        save_every=2,
        beta=100.0,
        alpha=50.0,
        precision="fp32",
    )


def weights(config):
    folder, name = (("value_encoder", "model"), ("lora", "pytorch_lora_weights"))[config.adapter == "lora"]
    return load_file(f"{config.output}/{folder}/{name}.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def encoded(samples, latents=None):
    """A dataset of samples without a pipeline: blank latents and embeddings."""
    prompts = {"", *(s.prompt for s in samples), *(s.source_prompt for s in samples)}
    blank = torch.zeros(len(samples), 2, 4, 8, 8) if latents is None else latents
    return PreferenceDataset(samples, blank, dict.fromkeys(prompts, PromptEmbeddings(torch.zeros(1, 77, 8))))
