"""The dataset that training reads: samples, the pairs they form, and their cached latents and text embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch

from livo.data.embedding_cache import PromptEmbeddings
from livo.data.manifest import Sample, form_pairs


class PreferenceDataset:
    """Judged images with everything that training needs of them, so that no step opens an image or runs a text encoder.

    `livo.data.precompute.encode_dataset` makes one from a folder's samples and a pipeline.

    Args:
        samples: N judged images.
        latents: Their latents, (N, 2, C, h, w), scaled as the UNet expects them: as they are, and mirrored.
        embeddings: The embeddings of every prompt that training may use, among them those of the empty prompt.

    Attributes:
        pairs: For each aligned sample: its index, and the indices of the violating samples of its scene.
    """

    def __init__(self, samples: Sequence[Sample], latents: torch.Tensor, embeddings: Mapping[str, PromptEmbeddings]):
        self.samples, self.latents, self.embeddings = samples, latents, embeddings
        self.pairs = form_pairs(samples)

    def embed(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """The cached embeddings of prompts, one row for each.

        Args:
            prompts: Prompts of the samples, or "".

        Raises:
            KeyError: A prompt was not among those that were encoded.
        """
        return PromptEmbeddings.cat([self.embeddings[prompt] for prompt in prompts])

    def digest(self, *, classes: bool = False, source_prompts: bool = False) -> str:
        """A hash of everything that a training run reads of the data. A run is resumed only if it has not changed.

        Args:
            classes: Whether the run reads the classes of the images.
            source_prompts: Whether the run reads the prompts that the images were generated from.
        """
        content = [
            [s.prompt, s.value, s.label, s.scene] + [s.class_name] * classes + [s.source_prompt] * source_prompts
            for s in self.samples
        ]
        return hashlib.sha256(json.dumps(content).encode() + self.latents.numpy().tobytes()).hexdigest()[:16]
