"""LiVO: align a frozen text-to-image model with stated values."""

from pathlib import Path

from livo.utils.bundled import BundledModel, register
from livo.utils.lazy import public_names
from livo.utils.logs import drop_empty_warnings

drop_empty_warnings()  # before diffusers is imported, which brings the first of them
register(BundledModel("papertown", Path(__file__).parent / "papertown" / "weights", "livo.papertown.judge:PapertownJudge"))

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
