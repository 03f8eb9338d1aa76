"""CLIP as a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn

from livo.evaluation.judges.base import Judge, Words, loading, rgb
from livo.evaluation.judges.base import revision as revision_of

TEMPLATE = "{prompt}, {attribute}"  # of the LiVO paper, section 4.1
ZERO_SHOT = "a photo of {attribute}"  # of CLIP's paper, for what the prompt itself names


class CLIPJudge(Judge):
    """Zero-shot classes by CLIP (Radford et al., arXiv 2103.00020), with the LiVO paper's template by default.

    Args:
        source: Hub id or folder of the checkpoint.
        classes: For each attribute its classes and the words that stand for them: {"gender": {"male": "male", "female": "female"}}.
        template: What is compared with the image; {prompt} and {attribute} are filled in. Of a prompt that is too long the end is cut,
            so that the attribute is always read. One for all attributes, or a mapping with one for each.
        revision: Branch, tag or commit of a hub id; None for the default branch.
        device: Where the model runs.
    """

    name = "clip"

    def __init__(
        self,
        source: str,
        classes: Words,
        template: str | Mapping[str, str] = TEMPLATE,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ):
        with loading(self.name, source, revision) as hub:
            from transformers import AutoProcessor, CLIPModel

            self.model = CLIPModel.from_pretrained(source, **hub, use_safetensors=True).eval().to(device)
            self.processor = AutoProcessor.from_pretrained(source, **hub)
        self.words = classes
        self.templates = {name: template if isinstance(template, str) else template[name] for name in classes}
        self.attributes = {attribute: tuple(words) for attribute, words in classes.items()}
        words = {attribute: dict(choices) for attribute, choices in classes.items()}
        self.settings = {"source": str(source), "template": template, "words": words, "threshold": 0.5}
        self.revision = revision_of(self.model)

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image], prompts: Sequence[str] | None) -> dict[str, torch.Tensor]:
        """See the base class."""
        for template in self.templates.values():
            if prompts is None and "{prompt}" in template:
                raise ValueError(f"the template {template!r} needs the prompts of the images")
        prompts = [""] * len(images) if prompts is None else prompts
        features = torch.from_numpy(self.embed(images))
        scale = self.model.logit_scale.exp().item()
        found = {}
        for attribute, words in self.words.items():
            texts = [[self._text(self.templates[attribute], prompt, word) for word in words.values()] for prompt in prompts]
            once = list(dict.fromkeys(text for row in texts for text in row))
            encoded = dict(zip(once, torch.from_numpy(self.embed_texts(once)), strict=True))
            logits = [
                feature @ torch.stack([encoded[text] for text in row]).T for feature, row in zip(features, texts, strict=True)
            ]
            found[attribute] = (scale * torch.stack(logits)).softmax(-1)
        return found

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image], batch: int = 32) -> np.ndarray:
        """Image embeddings (N, F) of length 1: for FID, drift and the CLIP score.

        Args:
            images: Pictures of any size and mode.
            batch: How many are read together.
        """
        parts = []
        for i in range(0, len(images), batch):
            pixels = self.processor(images=rgb(images[i : i + batch]), return_tensors="pt").pixel_values
            pooled = self.model.vision_model(pixels.to(self.model.device)).pooler_output
            parts.append(nn.functional.normalize(self.model.visual_projection(pooled), dim=-1).float().cpu())
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch: int = 64) -> np.ndarray:
        """Text embeddings (N, F) of length 1.

        Args:
            texts: Each is cut to what the text encoder reads.
            batch: How many are read together.
        """
        parts = []
        for i in range(0, len(texts), batch):
            tokens = self.processor(text=list(texts[i : i + batch]), padding=True, truncation=True, return_tensors="pt")
            pooled = self.model.text_model(**tokens.to(self.model.device)).pooler_output
            parts.append(nn.functional.normalize(self.model.text_projection(pooled), dim=-1).float().cpu())
        return torch.cat(parts).numpy()

    def _text(self, template: str, prompt: str, word: str) -> str:
        tokenizer = self.processor.tokenizer
        room = tokenizer.model_max_length - len(tokenizer(template.format(prompt="", attribute=word)).input_ids)
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        return template.format(prompt=prompt if len(ids) <= room else tokenizer.decode(ids[:room]), attribute=word)
