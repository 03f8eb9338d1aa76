"""Bias, toxicity and quality of images: metrics, judges, the runner and its reports."""

from livo.utils.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
