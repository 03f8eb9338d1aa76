"""Preference training: objectives, adapters, the step and the loop."""

from livo.utils.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
