import runpy
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_the_example_runs_and_is_short(example, tmp_path):
    text = example.read_text()
    assert len(text.splitlines()) <= 40 and text.count("# For Stable Diffusion 1.5 or SDXL: ") == 1
    runpy.run_path(str(example))["main"](tmp_path / "out.png", steps=2)
    assert Image.open(tmp_path / "out.png").width > 600
