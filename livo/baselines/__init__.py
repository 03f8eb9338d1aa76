"""The methods that LiVO is compared with, each written from its equations. All have one interface, `Baseline`.

A baseline is reversible: within `with baseline.on(pipe):` the pipeline generates with it, and afterwards it is as it was. A baseline that
edits nothing changes no bit. They run on any Stable Diffusion or SDXL pipeline with classifier-free guidance.
"""

from livo.utils.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
