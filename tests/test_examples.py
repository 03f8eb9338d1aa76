import logging
import runpy
import warnings
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


class Heard(logging.Handler):
    """Keeps the warnings of a library."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@pytest.fixture
def heard():
    """What diffusers and transformers warn of."""
    handler = Heard()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for each in loggers:
        each.addHandler(handler)
    yield handler.messages
    for each in loggers:
        each.removeHandler(handler)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_the_example_runs_and_is_short(example, tmp_path, heard):
    text = example.read_text()
    assert "from diffusers import" not in text  # which, before livo, has transformers warn of torchvision
    assert len(text.splitlines()) <= 40 and text.count("# For Stable Diffusion 1.5 or SDXL: ") == 1
    with warnings.catch_warnings(record=True) as raised:
        few = {"calls": 12} if example.stem == "shared_ledger" else {}
        runpy.run_path(str(example))["main"](tmp_path / "out.png", steps=2, **few)
    assert Image.open(tmp_path / "out.png").width > 600
    hidden = (DeprecationWarning, PendingDeprecationWarning)  # as Python hides them outside tests
    assert not heard and not [w for w in raised if not issubclass(w.category, hidden)]
