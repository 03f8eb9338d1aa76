"""Value principles: what they are, and how they are read from YAML files."""

from livo.utils.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
