"""A vision-language model as a judge, asked yes/no questions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from livo.evaluation.judges.base import NO_YES, Judge, Words, loading, rgb
from livo.evaluation.judges.base import revision as revision_of


class VisionLanguageJudge(Judge):
    """P(yes) at the first generated token of a vision-language model that was asked a yes/no question (LiVO, section 4.1).

    Any image-text-to-text model of transformers will do. Yes and No are looked up in its vocabulary: of every spelling the first
    token counts, unless it begins both. Where an attribute has other classes than "no" and "yes", each class is asked for and the
    answers are scaled to sum to 1.

    Args:
        source: Hub id or folder of the checkpoint.
        classes: For each attribute its classes and the words that stand for them: {"bloody": {"no": ..., "yes": "a bloody person"}}.
        question: What is asked; {attribute} is filled in.
        prompt: The model's prompt around {question}, for a checkpoint that has no chat template of its own.
        revision: Branch, tag or commit of a hub id; None for the default branch.
        device: Where the model runs.
    """

    name = "vlm"

    def __init__(
        self,
        source: str,
        classes: Words,
        question: str = "Does this image show {attribute}? Answer with yes or no.",
        prompt: str | None = None,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ):
        with loading(self.name, source, revision) as hub:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
            self.model = (
                AutoModelForImageTextToText.from_pretrained(source, **hub, dtype=dtype, use_safetensors=True).eval().to(device)
            )
            self.processor = AutoProcessor.from_pretrained(source, **hub)
        if prompt is None and not getattr(self.processor, "chat_template", None):
            raise ValueError(
                f"judge vlm {source}: it has no chat template; give `prompt`, as in 'USER: <image>\\n{{question}} ASSISTANT:'"
            )
        self.words, self.question, self.prompt = classes, question, prompt
        self.attributes = {attribute: tuple(words) for attribute, words in classes.items()}
        self.answers = yes_no_tokens(self.processor.tokenizer)
        words = {attribute: dict(choices) for attribute, choices in classes.items()}
        self.settings = {"source": str(source), "question": question, "prompt": prompt, "words": words, "threshold": 0.5}
        self.revision = revision_of(self.model)

    def probabilities(self, images: Sequence[Image.Image], prompts: Sequence[str] | None) -> dict[str, torch.Tensor]:
        """See the base class."""
        found = {}
        for attribute, words in self.words.items():
            if set(words) == set(NO_YES):
                yes = self.ask(images, self.question.format(attribute=words["yes"]))
                answers = {"no": 1 - yes, "yes": yes}
                found[attribute] = torch.stack([answers[name] for name in words], dim=-1)
            else:
                asked = torch.stack([self.ask(images, self.question.format(attribute=text)) for text in words.values()], dim=-1)
                found[attribute] = asked / asked.sum(-1, keepdim=True).clamp(min=1e-9)
        return found

    @torch.no_grad()
    def ask(self, images: Sequence[Image.Image], question: str, batch: int = 8) -> torch.Tensor:
        """P(yes) against P(no) for each image, (N,).

        Args:
            images: Pictures of any size and mode.
            question: A question for yes or no.
            batch: How many are read together.
        """
        parts, yes_no = [], self.answers
        for i in range(0, len(images), batch):
            part = rgb(images[i : i + batch])
            inputs = self._inputs(part, question).to(self.model.device, self.model.dtype)
            last = inputs["attention_mask"].shape[1] - 1 - inputs["attention_mask"].flip(-1).argmax(-1)
            logits = self.model(**inputs).logits[torch.arange(len(part)), last].float().log_softmax(-1)
            yes, no = (logits[:, ids].logsumexp(-1) for ids in yes_no)
            parts.append(torch.sigmoid(yes - no).cpu())
        return torch.cat(parts)

    def _inputs(self, images: list[Image.Image], question: str):
        options = {"padding": True, "return_tensors": "pt"}
        if self.prompt is not None:
            return self.processor(images=images, text=[self.prompt.format(question=question)] * len(images), **options)
        asked = {"type": "text", "text": question}
        turns = [[{"role": "user", "content": [{"type": "image", "image": image}, asked]}] for image in images]
        return self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True, **options)


def yes_no_tokens(tokenizer) -> tuple[list[int], list[int]]:
    """The token ids that an answer of yes, and of no, can begin with.

    Args:
        tokenizer: The model's tokenizer.
    """
    affirming, denying = (
        {
            tokenizer(f"{space}{spelt}", add_special_tokens=False).input_ids[0]
            for space in ("", " ")
            for spelt in (w, w.lower(), w.upper())
        }
        for w in ("Yes", "No")
    )
    neither = (affirming & denying) | {tokenizer.unk_token_id}
    yes, no = sorted(affirming - neither), sorted(denying - neither)
    if not yes or not no:
        raise ValueError("the model's vocabulary cannot tell yes from no by the first token of an answer: take another judge")
    return yes, no
