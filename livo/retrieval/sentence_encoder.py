"""SentenceEncoder: BERT sentence embeddings without sentence-transformers.

Importing sentence-transformers takes longer than everything else that `livo retrieve` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

_MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_PLAIN = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
_BATCH = 32


class SentenceEncoder(nn.Module):
    """A BERT whose token vectors are averaged: what the folder of a SentenceTransformer such as all-MiniLM-L6-v2 describes.

    `encode` gives the vectors that `SentenceTransformer.encode` gives. Use `fits` to see whether a folder holds such a model.

    Args:
        folder: A SentenceTransformer's folder for which `fits` is true.
        device: Where it computes.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu"):
        super().__init__()
        folder = Path(folder)
        config, settings = _read(folder / "config.json"), _read(folder / "sentence_bert_config.json")
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.segment = nn.Parameter(torch.empty(width))  # one text is all of segment 0
        self.norm = nn.LayerNorm(width, eps)
        heads, inner = config["num_attention_heads"], config["intermediate_size"]
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, inner, activation="gelu", layer_norm_eps=eps, batch_first=True)
            for _ in range(config["num_hidden_layers"])
        )
        self.load_state_dict(_renamed(load_file(folder / "model.safetensors"), len(self.layers)))
        self.normalised = "Normalize" in _modules(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.max_seq_length = settings["max_seq_length"]
        self.tokenizer.enable_truncation(self.max_seq_length)
        self.tokenizer.enable_padding(pad_id=config["pad_token_id"], pad_token=_read(folder / "tokenizer_config.json")["pad_token"])
        self.eval().requires_grad_(False).to(device)

    @staticmethod
    def fits(folder: str | Path) -> bool:
        """Whether `folder` holds a BERT with mean pooling and nothing else that would change its vectors."""
        folder = Path(folder)
        names = ("model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json", "sentence_bert_config.json")
        if not all((folder / name).is_file() for name in (*names, "modules.json", "1_Pooling/config.json")):
            return False
        config, settings, pooling = (_read(folder / name) for name in (names[2], names[4], "1_Pooling/config.json"))
        about = folder / "config_sentence_transformers.json"
        prompts = _read(about).get("default_prompt_name") if about.is_file() else None
        modes = {name for name, on in pooling.items() if name.startswith("pooling_mode") and on}
        return (
            _modules(folder) in _MODULES
            and all(config.get(name, value) == value for name, value in _PLAIN.items())
            and modes in ({"pooling_mode_mean_tokens"}, {"pooling_mode"})
            and pooling.get("pooling_mode", "mean") == "mean"
            and set(settings) <= {"max_seq_length", "do_lower_case"}
            and bool(settings.get("max_seq_length"))
            and not settings.get("do_lower_case")
            and not prompts
        )

    def encode(self, texts: Sequence[str], output_value: str | None = "sentence_embedding", **_) -> np.ndarray | list[dict]:
        """Sentence vectors (N, width), float32, as `SentenceTransformer.encode` gives them.

        Args:
            output_value: None for a dict of each text in place of its vector: `sentence_embedding` (width,), `token_embeddings` and
                `middle_embeddings` (tokens, width), those of the layer half way up, and `attention_mask` (tokens,).
        """
        rows: list[dict] = [{}] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # texts of one length waste no padding on each other
        for first in range(0, len(order), _BATCH):
            part = order[first : first + _BATCH]
            for i, row in zip(part, self._read([texts[i] for i in part]), strict=True):
                rows[i] = row
        if output_value is None:
            return rows
        return np.stack([row["sentence_embedding"].cpu().numpy() for row in rows])

    @torch.inference_mode()
    def _read(self, texts: list[str]) -> Iterator[dict[str, torch.Tensor]]:
        encoded = self.tokenizer.encode_batch(texts)
        ids = torch.tensor([row.ids for row in encoded], device=self.segment.device)
        mask = torch.tensor([row.attention_mask for row in encoded], device=ids.device)
        x = self.norm(self.words(ids) + self.segment + self.positions.weight[: ids.shape[1]])
        layers = [x]
        for layer in self.layers:
            layers.append(layer(layers[-1], src_key_padding_mask=mask == 0))
        kept = mask[..., None].float()
        sentences = (layers[-1] * kept).sum(1) / kept.sum(1)
        if self.normalised:
            sentences = nn.functional.normalize(sentences, dim=-1)
        names = ("sentence_embedding", "token_embeddings", "middle_embeddings", "attention_mask")
        values = (sentences, layers[-1], layers[len(layers) // 2], mask)
        return (dict(zip(names, row, strict=True)) for row in zip(*values, strict=True))


def _modules(folder: Path) -> list[str]:
    return [module["type"].rpartition(".")[2] for module in _read(folder / "modules.json")]


def _read(file: Path):
    return json.loads(file.read_text(encoding="utf-8"))


def _renamed(weights: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """BERT's weights under the names of this module and of torch's TransformerEncoderLayer."""
    weights = {name.removeprefix("bert."): tensor for name, tensor in weights.items()}
    found = {
        "words.weight": weights["embeddings.word_embeddings.weight"],
        "positions.weight": weights["embeddings.position_embeddings.weight"],
        "segment": weights["embeddings.token_type_embeddings.weight"][0],
    }
    names = {"attention.output.dense": "self_attn.out_proj", "attention.output.LayerNorm": "norm1"}
    names |= {"intermediate.dense": "linear1", "output.dense": "linear2", "output.LayerNorm": "norm2"}
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = weights[f"embeddings.LayerNorm.{kind}"]
        for i in range(layers):
            own, theirs = f"layers.{i}", f"encoder.layer.{i}"
            parts = [weights[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            found[f"{own}.self_attn.in_proj_{kind}"] = torch.cat(parts)
            for old, new in names.items():
                found[f"{own}.{new}.{kind}"] = weights[f"{theirs}.{old}.{kind}"]
    return found
