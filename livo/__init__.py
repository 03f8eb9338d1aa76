"""LiVO: keep a text-to-image model to stated values, with its backbone frozen."""

from livo.pipeline import LiVOPipeline
from livo.principles import ValuePrinciple, load_principles
from livo.retriever import ValueDecision, ValueRetriever
from livo.value_encoder import ValueEncoder

__version__ = "0.1.0"

__all__ = ["LiVOPipeline", "ValueDecision", "ValueEncoder", "ValuePrinciple", "ValueRetriever", "load_principles"]
