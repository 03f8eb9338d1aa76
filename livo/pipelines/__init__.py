"""diffusers pipelines with values: generation, loading, saving, attaching, records."""

from livo.utils.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
