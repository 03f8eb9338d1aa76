"""What users import, and what their type checker sees of it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import livo

ROOT = Path(__file__).parent.parent
PACKAGES = [".".join(stub.parent.relative_to(ROOT).parts) for stub in sorted((ROOT / "livo").rglob("__init__.pyi"))]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_can_be_imported(name):
    package = importlib.import_module(name)
    assert package.__all__ and set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        assert getattr(package, public).__module__ if callable(getattr(package, public)) else True


@pytest.mark.parametrize("name", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'LiVOPipelin'"):
        _ = importlib.import_module(name).LiVOPipelin


@pytest.mark.parametrize("what", ["import livo", "from livo.cli.main import main; main(['--help'])"])
def test_torch_is_not_imported_before_it_is_needed(what):
    code = f"import sys\ntry:\n    {what}\nexcept SystemExit:\n    pass\nassert not {{'torch', 'diffusers', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_the_version_is_written_in_one_place():
    written = [file for file in ("setup.cfg", "pyproject.toml") if livo.__version__ in (ROOT / file).read_text()]
    assert not written and (ROOT / "livo" / "__init__.py").read_text().count(f'__version__ = "{livo.__version__}"') == 1
    assert f"## {livo.__version__}" in (ROOT / "CHANGELOG.md").read_text()
