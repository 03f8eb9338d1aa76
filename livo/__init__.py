"""LiVO: keep a text-to-image model to stated values, with its backbone frozen."""

from importlib import import_module

from livo.utils.logs import drop_empty_warnings

drop_empty_warnings()  # before diffusers is imported, which brings the first of them

__version__ = "0.1.0"

_HOMES = {
    "LiVOPipeline": "livo.pipelines.stable_diffusion",
    "LiVOXLPipeline": "livo.pipelines.stable_diffusion",
    "ValueDecision": "livo.retrieval.rules",
    "ValueEncoder": "livo.value_encoder.encoder",
    "ValueLedger": "livo.pipelines.ledger",
    "ValuePrinciple": "livo.principles.principle",
    "ValueRetriever": "livo.retrieval.retriever",
    "aligned": "livo.pipelines.attach",
    "attach": "livo.pipelines.attach",
    "detach": "livo.pipelines.attach",
    "load_principles": "livo.principles.principle",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Public names are imported when they are first used, so that `livo --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'livo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
