"""LiVO: keep a text-to-image model to stated values, with its backbone frozen."""

from importlib import import_module

from livo.logs import drop_empty_warnings

drop_empty_warnings()  # before diffusers is imported, which brings the first of them

__version__ = "0.1.0"

_HOMES = {
    "LiVOPipeline": "livo.pipeline",
    "LiVOXLPipeline": "livo.pipeline",
    "ValueDecision": "livo.deciding",
    "ValueEncoder": "livo.value_encoder",
    "ValueLedger": "livo.ledger",
    "ValuePrinciple": "livo.principles",
    "ValueRetriever": "livo.retriever",
    "aligned": "livo.attaching",
    "attach": "livo.attaching",
    "detach": "livo.attaching",
    "load_principles": "livo.principles",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Public names are imported when they are first used, so that `livo --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'livo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
